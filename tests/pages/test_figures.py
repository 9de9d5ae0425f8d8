"""Pictures from plain values: what is in them, and what making them leaves alone."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from raykfold.pages import run_figures, search_figures
from raykfold.pages.drawing import DARK, LIGHT, Picture, cut
from raykfold.pages.run_figures import Curve, FoldAccuracy
from raykfold.pages.search_figures import Dimension, Trial
from raykfold.training.statistics import ClassMetrics

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


DIMENSIONS = (
    Dimension("learning_rate", [1e-4, 1e-2], is_log=True),
    Dimension("model.dropout", [0.1, 0.5]),
    Dimension("<b>model</b>", NAMES, is_choice=True),
)


def trials(number: int = 12) -> list[Trial]:
    """The 4th of every four has failed, the 3rd was stopped, the last goes on; the 1st is best."""
    rng = np.random.default_rng(0)
    statuses = ("complete", "complete", "stopped", "failed")
    found = []
    for each in range(number):
        status = "running" if 0 < each == number - 1 else statuses[each % 4]
        config = {
            "learning_rate": float(10 ** rng.uniform(-4, -2)),
            "model.dropout": float(rng.uniform(0.1, 0.5)),
            "<b>model</b>": NAMES[each % len(NAMES)],
        }
        history = (0.2, 0.3) if status != "complete" else (0.2, 0.3, 0.5, 0.6)
        accuracy = None if status == "failed" else 0.9 - 0.3 * each / number
        found.append(Trial(each + 1, config, status, accuracy, history, is_best=each == 0))
    return found


PICTURES: dict[str, Callable[[], Picture]] = {
    "curves": lambda: run_figures.curves(curves()),
    "accuracy": lambda: run_figures.curve(curves(), "accuracy"),
    "loss": lambda: run_figures.curve(curves(12), "loss"),
    "folds": lambda: run_figures.folds(
        [FoldAccuracy(1, 0.9, 0.8, 0.85), FoldAccuracy(2, 0.7, None), FoldAccuracy(3, None, None)],
        0.8,
        "best epoch",
    ),
    "classes": lambda: run_figures.classes(scores()),
    "confusion": lambda: run_figures.confusion(matrix(len(NAMES)), NAMES),
    "parallel": lambda: search_figures.parallel(DIMENSIONS, trials()),
    "history": lambda: search_figures.history(trials()),
    "progress": lambda: search_figures.progress(trials()),
    "learning": lambda: search_figures.learning(trials()),
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
            short = name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"
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
        "import sys; from raykfold.pages import run_figures; "
        "assert 'matplotlib' not in sys.modules; "
        "run_figures.curves([run_figures.Curve(1, [0.5], [1.0])]).png(); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_mean_is_over_the_folds_that_have_the_epoch() -> None:
    count, mean, spread = run_figures.means([[0.2, 0.4, 0.6], [0.4, 0.8], [float("nan"), 0.6]])
    assert count.tolist() == [2, 3, 1]
    assert mean == pytest.approx([0.3, 0.6, 0.6])
    assert spread == pytest.approx([0.1, np.std([0.4, 0.8, 0.6]), 0.0])
    assert [part.size for part in run_figures.means([])] == [0, 0, 0]


def test_up_to_ten_folds_are_told_apart() -> None:
    svg = run_figures.curve(curves(10), "accuracy").svg("")
    for position in range(10):
        assert f"var(--fold{position})" in svg
    assert texts(run_figures.curve(curves(10), "accuracy")).count("fold 10") == 1
    many = texts(run_figures.curve(curves(100), "accuracy"))
    assert "a fold" in many and "fold 1" not in many


def test_a_loss_that_is_no_number_is_a_gap() -> None:
    values = [1.0, float("nan"), float("inf"), 0.5]
    svg = run_figures.curve([Curve(1, [0.5] * 4, values)], "loss").svg("")
    assert "nan" not in svg.lower() and "inf" not in svg.lower()


@pytest.mark.parametrize("size", [2, 10, 26, 50])
def test_a_confusion_matrix_has_its_counts(size: int) -> None:
    counts = matrix(size)
    picture = run_figures.confusion(counts, [f"class {number}" for number in range(size)])
    shown = texts(picture)
    wanted = [str(count) for count in counts.flatten() if count]
    assert [text for text in shown if text.isdecimal()] == wanted
    assert picture.needs_scrolling == (size == 50)


def test_a_count_that_does_not_fit_is_left_to_the_colour() -> None:
    counts = np.full((50, 50), 123456)
    assert "123456" not in texts(run_figures.confusion(counts, ["x"] * 50))
    assert "123456" in texts(run_figures.confusion(counts[:2, :2], ["x"] * 2))


def test_a_class_that_was_never_seen_leaves_no_row_of_shares() -> None:
    counts = np.array([[3, 1], [0, 0]])
    assert "3" in texts(run_figures.confusion(counts, ["seen", "unseen"]))


def test_a_png_is_as_large_as_it_is_drawn() -> None:
    picture = PICTURES["folds"]()
    width, height = size_of(picture.png())
    assert (width, height) == (int(picture.width / 72 * 150), int(picture.height / 72 * 150))


def test_low_frequencies_are_at_the_bottom_of_a_spectrogram() -> None:
    feature = np.zeros((8, 4), np.float16)
    feature[0] = 1.0  # the lowest band
    pixels = imread(io.BytesIO(run_figures.spectrogram(feature)))[..., :3].sum(axis=2)
    assert pixels.shape == (8, 4)
    assert (pixels[-1] > pixels[0]).all()


def test_a_spectrogram_is_scaled_by_itself_and_kept_small() -> None:
    feature = np.linspace(0, 1, 128 * 431, dtype=np.float32).reshape(128, 431)
    small = run_figures.spectrogram(feature)
    assert small == run_figures.spectrogram(feature * 60 - 80)
    assert size_of(small) == (144, 64)
    assert size_of(run_figures.spectrogram(np.ones((4, 5)))) == (5, 4)  # silence, all alike


# --- a search --------------------------------------------------------------------------------


def points(line: str) -> list[tuple[float, float]]:
    """Those that a path of an SVG goes through, and those that bend it."""
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", line)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (16, "16"),
        (0.0012, "0.0012"),
        (0.00123456, "0.00123"),
        (3.2e-5, "3.2e-5"),
        (1e-4, "1e-4"),
        (0.0, "0"),
        (64.0, "64"),
        (-0.25, "-0.25"),
        (12345.6, "12346"),
        (2.5e7, "2.5e7"),
        (True, "yes"),
        (None, "none"),
        ([1, 0.5], "1, 0.5"),
        ("a\nb", "a b"),
    ],
)
def test_a_value_is_written_as_it_reads_best(value: Any, text: str) -> None:
    assert search_figures.as_text(value) == text


def test_what_is_cut_keeps_both_its_ends() -> None:
    assert cut("raykfold.models:AudioCNN", 12) == "raykf…dioCNN"
    assert cut("AudioCNN", 8) == "AudioCNN"


def test_each_hyper_parameter_has_an_axis_and_its_values() -> None:
    shown = texts(PICTURES["parallel"]())
    assert {"learning_rate", "model.dropout", "<b>model</b>", "accuracy"} <= set(shown)
    assert {"1e-4", "3e-4", "0.001", "0.003", "0.01"} <= set(shown)  # by its logarithm
    assert {"0.1", "0.2", "0.3", "0.4", "0.5", "dog", "$x^2$"} <= set(shown)
    assert shown[-5:] == ["best", "complete", "stopped", "running", "failed"]


def test_a_better_trial_has_a_colour_further_up() -> None:
    plain = [Trial(each, {"x": 0.5}, "complete", each / 10) for each in range(1, 8)]
    svg = search_figures.parallel([Dimension("x", [0.0, 1.0])], plain).svg("")
    lines = re.findall(r"stroke: var\(--scale(\d)\)", svg)
    assert lines[:7] == list("0123456")


def test_a_trial_that_was_stopped_early_does_not_take_the_colours_of_the_others() -> None:
    found = [Trial(1, {"x": 0.1}, "stopped", 0.1), Trial(2, {"x": 0.2}, "complete", 0.8)]
    found.append(Trial(3, {"x": 0.3}, "complete", 0.9))
    svg = search_figures.parallel([Dimension("x", [0.0, 1.0])], found).svg("")
    assert re.findall(r"stroke: var\(--scale(\d)\)", svg)[:3] == ["0", "0", "6"]


def test_a_trial_that_has_failed_or_goes_on_ends_before_the_accuracy() -> None:
    def right_end(status: str) -> float:
        """Of its line, in points."""
        config = {"learning_rate": 2e-3, "model.dropout": 0.2}
        whole = Trial(1, config, "complete", 0.5)
        svg = search_figures.parallel(DIMENSIONS[:2], [whole, Trial(2, config, status, 0.4)]).svg(
            ""
        )
        lines = [each.get("d", "") for each in ET.fromstring(svg).iter("path")]
        return sorted(points(line)[-1][0] for line in lines if " C " in f" {line} ")[0]

    assert right_end("complete") == right_end("stopped")
    assert right_end("failed") == right_end("running") < right_end("complete") - 100


@pytest.mark.parametrize("dimensions", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [1, 100])
def test_many_hyper_parameters_and_trials_have_room(dimensions: int, number: int) -> None:
    axes = [Dimension(f"model.some_parameter_{each}", [0, 9]) for each in range(dimensions)]
    config = {each.name: index for index, each in enumerate(axes)}
    found = [Trial(each, config, "complete", each / number) for each in range(1, number + 1)]
    picture = search_figures.parallel(axes, found)
    assert picture.needs_scrolling == (dimensions > 2)
    assert len(texts(picture)) > 3 * dimensions
    width, _ = size_of(picture.png())
    assert width < 2200


@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.5, 0.5],
        [None, 0.5],
        [float("nan"), 0.5],
    ],
)
def test_odd_values_are_drawn_or_left_out(values: Sequence[Any]) -> None:
    found = [Trial(n, {"x": x}, "complete", 0.5) for n, x in enumerate(values, 1)]
    found.append(Trial(9, {}, "complete", 0.5))  # equal in accuracy, and without a value
    for is_choice in (False, True):
        for is_log in (False, True):
            one = Dimension("x", [0.5], is_choice=is_choice, is_log=is_log)
            picture = search_figures.parallel([one], found)
            assert "0.5" in texts(picture)
            assert "nan" not in picture.svg("")


def test_the_best_so_far_is_of_complete_trials() -> None:
    """A stopped trial that was higher for a while, or a failed one, is not it."""

    def steps(*found: Trial) -> list[float]:
        svg = search_figures.progress(found).svg("")
        line = re.findall(r'd="([^"]*)"[^>]*stroke: var\(--ink\)', svg)[0]
        return list(dict.fromkeys(height for _, height in points(line)))

    first, last = Trial(1, {}, "complete", 0.5), Trial(3, {}, "complete", 0.6)
    assert len(steps(first, Trial(2, {}, "complete", 0.4), last)) == 2
    assert len(steps(first, Trial(2, {}, "stopped", 0.55), last)) == 2
    assert len(steps(first, Trial(2, {}, "complete", 0.55), last)) == 3


def test_a_gap_in_a_history_is_a_gap() -> None:
    found = [Trial(1, {}, "complete", 0.5, [0.1, None, float("nan"), 0.5])]
    assert "nan" not in search_figures.learning(found).svg("").lower()
