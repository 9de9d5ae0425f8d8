"""The pictures of a search: what is in them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import pytest
from support.pictures import SPACE, points, size_of, texts, trials

from raykfold.pages import search_figures
from raykfold.training.search_results import Trial, TrialStatus


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


def test_each_hyper_parameter_has_an_axis_and_its_values() -> None:
    shown = texts(search_figures.parallel(SPACE, trials()))
    assert {"learning_rate", "model.dropout", "<b>model</b>", "accuracy"} <= set(shown)
    assert {"1e-4", "3e-4", "0.001", "0.003", "0.01"} <= set(shown)  # by its logarithm
    assert {"0.1", "0.2", "0.3", "0.4", "0.5", "dog", "$x^2$"} <= set(shown)
    kinds = ["best", "complete", "stopped", "running", "failed"]
    assert [text for text in shown if text in kinds] == kinds


def test_a_better_trial_has_a_colour_further_up() -> None:
    plain = [Trial(each, {"x": 0.5}, "complete", (each / 10,)) for each in range(1, 8)]
    svg = search_figures.parallel({"x": {"uniform": [0.0, 1.0]}}, plain).svg("")
    lines = re.findall(r"stroke: var\(--scale(\d)\)", svg)
    assert lines[:7] == list("0123456")


def test_a_trial_that_was_stopped_early_does_not_take_the_colours_of_the_others() -> None:
    found = [Trial(1, {"x": 0.1}, "stopped", (0.1,)), Trial(2, {"x": 0.2}, "complete", (0.8,))]
    found.append(Trial(3, {"x": 0.3}, "complete", (0.9,)))
    svg = search_figures.parallel({"x": {"uniform": [0.0, 1.0]}}, found).svg("")
    assert re.findall(r"stroke: var\(--scale(\d)\)", svg)[:3] == ["0", "0", "6"]


def test_a_trial_that_has_failed_or_goes_on_ends_before_the_accuracy() -> None:
    def right_end(status: TrialStatus) -> float:
        """Of its line, in points."""
        config = {"learning_rate": 2e-3, "model.dropout": 0.2}
        whole = Trial(1, config, "complete", (0.5,))
        space = {name: SPACE[name] for name in config}
        found = [whole, Trial(2, config, status, (0.4,))]
        svg = search_figures.parallel(space, found).svg("")
        paths = [each.get("d", "") for each in ET.fromstring(svg).iter("path")]
        lines = [path for path in paths if "z" not in path.lower()]  # not the dots
        return sorted(points(line)[-1][0] for line in lines if " C " in f" {line} ")[0]

    assert right_end("complete") == right_end("stopped")
    assert right_end("failed") == right_end("running") < right_end("complete") - 100


@pytest.mark.parametrize("dimensions", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [1, 100])
def test_many_hyper_parameters_and_trials_have_room(dimensions: int, number: int) -> None:
    config = {f"model.some_parameter_{each}": each for each in range(dimensions)}
    space = {name: {"uniform": [0, 9]} for name in config}
    found = [Trial(each, config, "complete", (each / number,)) for each in range(1, number + 1)]
    picture = search_figures.parallel(space, found)
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
    found = [Trial(n, {"x": x}, "complete", (0.5,)) for n, x in enumerate(values, 1)]
    found.append(Trial(9, {}, "complete", (0.5,)))  # equal in accuracy, and without a value
    for kind in ("uniform", "loguniform", "choice"):
        picture = search_figures.parallel({"x": {kind: [0.5]}}, found)
        assert "0.5" in texts(picture)
        assert "nan" not in picture.svg("")


def test_the_best_so_far_is_of_complete_trials() -> None:
    """A stopped trial that was higher for a while, or a failed one, is not it."""

    def steps(*found: Trial) -> list[float]:
        svg = search_figures.progress(found).svg("")
        line = re.findall(r'd="([^"]*)"[^>]*stroke: var\(--ink\)', svg)[0]
        return list(dict.fromkeys(height for _, height in points(line)))

    first, last = Trial(1, {}, "complete", (0.5,)), Trial(3, {}, "complete", (0.6,))
    assert len(steps(first, Trial(2, {}, "complete", (0.4,)), last)) == 2
    assert len(steps(first, Trial(2, {}, "stopped", (0.55,)), last)) == 2
    assert len(steps(first, Trial(2, {}, "complete", (0.55,)), last)) == 3


def test_a_gap_in_a_history_is_a_gap() -> None:
    found = [Trial(1, {}, "complete", (0.1, float("nan"), 0.5))]
    assert "nan" not in search_figures.learning(found).svg("").lower()
