"""Pictures as files: what is in an SVG and a PNG, and what making them leaves alone."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
from support.pictures import NAMES, pictures, size_of, texts

from raykfold.pages.drawing import LIGHT, cut

PICTURES = pictures()


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_values_give_the_same_bytes(name: str) -> None:
    again = pictures()[name]
    assert PICTURES[name].svg("a") == again.svg("a")
    assert PICTURES[name].png() == again.png()


@pytest.mark.parametrize("name", PICTURES)
def test_an_svg_is_at_home_in_a_page(name: str) -> None:
    """No colour but the page's, no style sheet, and nothing from elsewhere."""
    root = ET.fromstring(PICTURES[name].svg('what "it" shows'))
    assert root.tag == "svg" and root.get("role") == "img"
    assert root.get("aria-label") == 'what "it" shows'
    assert {each.tag for each in root.iter()}.isdisjoint({"style", "metadata", "script", "image"})
    attributes = " ".join(value for each in root.iter() for value in each.attrib.values())
    assert set(re.findall(r"var\(--(\w+)\)", attributes)) <= set(LIGHT)
    assert not re.search(r"#[0-9a-f]{6}\b|font-family|https?:", attributes)


def test_svgs_share_a_page_without_sharing_ids() -> None:
    seen: set[str] = set()
    for picture in PICTURES.values():
        root = ET.fromstring(picture.svg(""))
        own = {each.attrib["id"] for each in root.iter() if "id" in each.attrib}
        assert not own & seen
        seen |= own
        for each in root.iter():
            for value in (each.get("href", ""), each.get("clip-path", "")):
                assert set(re.findall(r"#([^)]+)", value)) <= own
    assert seen


def test_the_colours_of_the_light_theme_can_be_told_apart() -> None:
    """Each of them stands for itself in an SVG."""
    assert len(set(LIGHT.values())) == len(LIGHT)


@pytest.mark.parametrize("picture", ["classes", "confusion"])
def test_names_are_shown_as_they_are(picture: str) -> None:
    shown = texts(PICTURES[picture])
    for name in NAMES:
        assert (name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}") in shown
    assert "<script" not in PICTURES[picture].svg("")


def test_a_png_is_as_large_as_it_is_drawn() -> None:
    picture = PICTURES["folds"]
    width, height = size_of(picture.png())
    assert (width, height) == (int(picture.width / 72 * 150), int(picture.height / 72 * 150))


def test_what_the_user_has_set_in_matplotlib_neither_shows_nor_changes() -> None:
    plain = PICTURES["confusion"].svg("")
    with mpl.rc_context({"font.size": 40.0, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(mpl.rcParams)
        assert PICTURES["confusion"].svg("") == plain
        PICTURES["confusion"].png()
        assert dict(mpl.rcParams) == before


def test_pyplot_is_never_imported() -> None:
    script = (
        "import sys; from raykfold.pages import run_figures, search_figures; "
        "assert 'matplotlib' not in sys.modules; "
        "run_figures.curve([], 'accuracy').png(); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_cut_keeps_both_its_ends() -> None:
    assert cut("raykfold.models:AudioCNN", 12) == "raykf…dioCNN"
    assert cut("AudioCNN", 8) == "AudioCNN"
