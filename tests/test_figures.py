"""Pictures from plain values: what is in them, and what making them leaves alone."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from raykfold import figures
from raykfold.figures import DARK, LIGHT, Curve, FoldAccuracy, Picture
from raykfold.statistics import ClassMetrics

NAMES = ("dog", "<script>alert(1)</script>", "$x^2$", "a & b", "雨の音", "جرس", "#010001", 'id="x"')


def curves(folds: int = 3, epochs: int = 6) -> list[Curve]:
    """Of unequal length: the last fold has one epoch fewer."""
    rng = np.random.default_rng(0)
    lengths = [epochs] * (folds - 1) + [epochs - 1]
    return [
        Curve(fold, rng.uniform(size=n).tolist(), rng.uniform(size=n).tolist(), kept=n - 2)
        for fold, n in enumerate(lengths, start=1)
    ]


def scores(names: tuple[str, ...] = NAMES) -> list[ClassMetrics]:
    return [
        ClassMetrics(label, name, None if label == 1 else 0.5, 0.25, 1 / 3, 8)
        for label, name in enumerate(names)
    ]


def matrix(size: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(0.5, (size, size)) + 30 * np.eye(size, dtype=int)


PICTURES: dict[str, Callable[[], Picture]] = {
    "curves": lambda: figures.curves(curves()),
    "accuracy": lambda: figures.curve(curves(), "accuracy"),
    "loss": lambda: figures.curve(curves(12), "loss"),
    "folds": lambda: figures.folds(
        [FoldAccuracy(1, 0.9, 0.8, 0.85), FoldAccuracy(2, 0.7, None), FoldAccuracy(3, None, None)],
        0.8,
        "best epoch",
    ),
    "classes": lambda: figures.classes(scores()),
    "confusion": lambda: figures.confusion(matrix(len(NAMES)), NAMES),
}


def texts(picture: Picture) -> list[str]:
    root = ET.fromstring(picture.svg("a picture"))
    return ["".join(element.itertext()).strip() for element in root.iter("text")]


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height, pixels."""
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_values_give_the_same_bytes(name: str) -> None:
    first, second = PICTURES[name](), PICTURES[name]()
    assert first.svg("a") == second.svg("a")
    assert first.png() == second.png()


@pytest.mark.parametrize("name", PICTURES)
def test_an_svg_is_at_home_in_a_page(name: str) -> None:
    """No colour but the page's, no style sheet, and nothing from elsewhere."""
    svg = PICTURES[name]().svg('what "it" shows')
    root = ET.fromstring(svg)
    assert root.tag == "svg" and root.get("role") == "img"
    assert root.get("aria-label") == 'what "it" shows'
    assert {each.tag for each in root.iter()}.isdisjoint({"style", "metadata", "script", "image"})
    painted = " ".join(value for each in root.iter() for value in each.attrib.values())
    assert set(re.findall(r"var\(--(\w+)\)", painted)) <= set(LIGHT)
    assert not re.search(r"#[0-9a-f]{6}|font-family|https?:", painted)


def test_several_svgs_share_a_page_without_sharing_ids() -> None:
    seen: set[str] = set()
    for make in PICTURES.values():
        root = ET.fromstring(make().svg(""))
        own = {each.attrib["id"] for each in root.iter() if "id" in each.attrib}
        assert own and not own & seen
        seen |= own
        for each in root.iter():
            for value in (each.get("href", ""), each.get("clip-path", "")):
                for found in re.findall(r"#([^)]+)", value):
                    assert found in own


def test_both_themes_have_every_colour() -> None:
    assert LIGHT.keys() == DARK.keys()


def test_names_are_shown_as_they_are() -> None:
    for picture in (PICTURES["classes"](), PICTURES["confusion"]()):
        shown = texts(picture)
        for name in NAMES:
            short = name if len(name) <= 22 else f"{name[:21]}…"
            assert short in shown
        assert "<script" not in picture.svg("")


def test_what_the_user_has_set_in_matplotlib_neither_shows_nor_changes() -> None:
    plain = PICTURES["confusion"]().svg("")
    with mpl.rc_context({"font.size": 40.0, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(mpl.rcParams)
        assert PICTURES["confusion"]().svg("") == plain
        PICTURES["confusion"]().png()
        assert dict(mpl.rcParams) == before


def test_pyplot_is_never_imported() -> None:
    script = (
        "import sys; from raykfold import figures; "
        "assert 'matplotlib' not in sys.modules; "
        "figures.curves([figures.Curve(1, [0.5], [1.0])]).png(); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_mean_is_over_the_folds_that_have_the_epoch() -> None:
    count, mean, spread = figures.means([[0.2, 0.4, 0.6], [0.4, 0.8], [float("nan"), 0.6]])
    assert count.tolist() == [2, 3, 1]
    assert mean == pytest.approx([0.3, 0.6, 0.6])
    assert spread == pytest.approx([0.1, np.std([0.4, 0.8, 0.6]), 0.0])
    assert [part.size for part in figures.means([])] == [0, 0, 0]


def test_up_to_ten_folds_are_told_apart() -> None:
    svg = figures.curve(curves(10), "accuracy").svg("")
    for position in range(10):
        assert f"var(--fold{position})" in svg
    assert texts(figures.curve(curves(10), "accuracy")).count("fold 10") == 1
    many = texts(figures.curve(curves(100), "accuracy"))
    assert "a fold" in many and "fold 1" not in many


def test_a_loss_that_is_no_number_is_a_gap() -> None:
    values = [1.0, float("nan"), float("inf"), 0.5]
    svg = figures.curve([Curve(1, [0.5] * 4, values)], "loss").svg("")
    assert "nan" not in svg.lower() and "inf" not in svg.lower()


@pytest.mark.parametrize("size", [2, 10, 26, 50])
def test_a_confusion_matrix_has_its_counts(size: int) -> None:
    counts = matrix(size)
    picture = figures.confusion(counts, [f"class {number}" for number in range(size)])
    shown = texts(picture)
    wanted = [str(count) for count in counts.flatten() if count]
    assert [text for text in shown if text.isdecimal()] == wanted
    assert picture.needs_scrolling == (size == 50)


def test_a_count_that_does_not_fit_is_left_to_the_colour() -> None:
    counts = np.full((50, 50), 123456)
    assert "123456" not in texts(figures.confusion(counts, ["x"] * 50))
    assert "123456" in texts(figures.confusion(counts[:2, :2], ["x"] * 2))


def test_a_class_that_was_never_seen_leaves_no_row_of_shares() -> None:
    counts = np.array([[3, 1], [0, 0]])
    assert "3" in texts(figures.confusion(counts, ["seen", "unseen"]))


def test_a_png_is_as_large_as_it_is_drawn() -> None:
    picture = PICTURES["folds"]()
    width, height = size_of(picture.png())
    assert (width, height) == (int(picture.width / 72 * 150), int(picture.height / 72 * 150))


def test_low_frequencies_are_at_the_bottom_of_a_spectrogram() -> None:
    feature = np.zeros((8, 4), np.float16)
    feature[0] = 1.0  # the lowest band
    pixels = imread(io.BytesIO(figures.spectrogram(feature)))[..., :3].sum(axis=2)
    assert pixels.shape == (8, 4)
    assert (pixels[-1] > pixels[0]).all()


def test_a_spectrogram_is_scaled_by_itself_and_kept_small() -> None:
    feature = np.linspace(0, 1, 128 * 431, dtype=np.float32).reshape(128, 431)
    small = figures.spectrogram(feature)
    assert small == figures.spectrogram(feature * 60 - 80)
    assert size_of(small) == (144, 64)
    assert size_of(figures.spectrogram(np.ones((4, 5)))) == (5, 4)  # silence, all alike
