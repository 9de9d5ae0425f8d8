from __future__ import annotations

import numpy as np
import pytest

from raykfold.results import EpochMetrics, FoldResult, Summary
from raykfold.statistics import sample_std


def epoch(number: int, val_accuracy: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=number,
        loss=1.0,
        accuracy=0.5,
        val_loss=1.0,
        val_accuracy=val_accuracy,
        learning_rate=0.001,
        seconds=1.0,
    )


def fold(label: int, accuracies: list[float], best: int) -> FoldResult:
    history = tuple(epoch(number, value) for number, value in enumerate(accuracies))
    return FoldResult(label, "complete", 80, 20, history=history, best_epoch=best)


def failed(label: int, accuracies: list[float]) -> FoldResult:
    history = tuple(epoch(number, value) for number, value in enumerate(accuracies))
    return FoldResult(
        label, "failed", 80, 20, history=history, best_epoch=0 if accuracies else None, error="no"
    )


def summary(*folds: FoldResult) -> Summary:
    return Summary("run", folds, None, {0: "a", 1: "b"}, wall_seconds=1.0, num_workers=2)


def test_means_are_over_best_and_over_last_epochs() -> None:
    whole = summary(fold(1, [0.2, 0.8, 0.6], 1), fold(2, [0.5, 0.4], 0), fold(4, [0.9], 0))
    best, last = [0.8, 0.5, 0.9], [0.6, 0.4, 0.9]
    assert whole.status == "complete"
    assert whole.mean_accuracy == pytest.approx(np.mean(best))
    assert whole.std_accuracy == pytest.approx(np.std(best))
    values = whole.to_json()
    assert values["std_accuracy_sample"] == pytest.approx(np.std(best, ddof=1))
    assert values["last_mean_accuracy"] == pytest.approx(np.mean(last))
    assert values["last_std_accuracy"] == pytest.approx(np.std(last))
    assert whole.partial_mean_accuracy is None


def test_a_partial_run_reports_no_mean_but_says_over_which_folds_one_would_be() -> None:
    part = summary(fold(1, [0.8], 0), failed(2, [0.1]), fold(3, [0.6], 0))
    assert part.status == "partial"
    values = part.to_json()
    for name in ("mean", "std", "last_mean", "last_std"):
        assert values[f"{name}_accuracy"] is None
    assert values["std_accuracy_sample"] is None
    assert values["partial_mean_accuracy"] == {"folds": [1, 3], "mean": pytest.approx(0.7)}


def test_a_run_without_a_complete_fold_has_not_even_a_partial_mean() -> None:
    assert summary(failed(1, [])).partial_mean_accuracy == {"folds": [], "mean": None}


def test_a_single_fold_has_no_sample_deviation() -> None:
    assert sample_std([0.5]) is None
    assert summary(fold(1, [0.5], 0)).to_json()["std_accuracy_sample"] is None


def test_a_fold_survives_the_way_through_json() -> None:
    result = fold(3, [0.1, 0.7], 1)
    assert FoldResult.from_json(result.to_json()) == result
    assert result.best_val_accuracy == 0.7
    assert result.last_val_accuracy == 0.7
    assert result.epochs_run == 2
