"""How numbers, folds and times are written."""

from __future__ import annotations

import pytest

from raykfold.text import (
    accuracy_text,
    count_of,
    duration,
    epoch_text,
    figure_text,
    fold_names,
    fold_with_seed,
    mean_text,
    one_line,
    plus_minus,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_there_is_not_has_a_dash() -> None:
    assert (accuracy_text(0.71634), accuracy_text(None), accuracy_text(float("nan"))) == (
        *("0.7163", "-", "-"),
    )
    assert (epoch_text(0), epoch_text(None)) == ("1", "-")


def test_figures_have_the_names_that_people_know() -> None:
    figures = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
    assert list(map(figure_text, figures)) == ["accuracy", "balanced accuracy", "macro F1", "loss"]


def test_one_fold_has_no_spread() -> None:
    assert mean_text(0.5, 0.25, 2) == "0.5000 (+/- 0.2500)"
    assert plus_minus(0.5, 0.25, 2) == "0.5000 ± 0.2500"
    assert mean_text(0.5, 0.0, 1) == plus_minus(0.5, 0.0, 1) == "0.5000"


def test_folds_are_named() -> None:
    assert (fold_names([3]), fold_names([1, 2])) == ("fold 3", "folds 1, 2")
    assert (fold_with_seed(3, None), fold_with_seed(3, 1)) == ("fold 3", "fold 3 with seed 1")
    assert (count_of(1, "fold"), count_of(2, "fold")) == ("1 fold", "2 folds")


def test_text_of_a_library_becomes_one_printable_line() -> None:
    assert one_line("a\n b\x1b[31m") == "a b?[31m"
    assert one_line(OSError()) == "OSError"
    assert len(one_line("x" * 500)) == 200
