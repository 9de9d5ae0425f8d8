from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from raykfold.training.results import EpochMetrics, FoldResult, Repeats, Summary
from raykfold.training.statistics import Estimate, sample_std, spread


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
    assert values["partial_mean_accuracy"] == {
        "folds": [1, 3],
        "epochs": "best",
        "mean": pytest.approx(0.7),
    }


def test_a_run_without_a_complete_fold_has_not_even_a_partial_mean() -> None:
    assert summary(failed(1, [])).partial_mean_accuracy == {
        "folds": [],
        "epochs": "best",
        "mean": None,
    }


def test_a_single_fold_has_no_sample_deviation() -> None:
    assert sample_std([0.5]) is None
    assert summary(fold(1, [0.5], 0)).to_json()["std_accuracy_sample"] is None


def test_a_fold_survives_the_way_through_json() -> None:
    result = fold(3, [0.1, 0.7], 1)
    assert FoldResult.from_json(result.to_json()) == result
    assert result.best_val_accuracy == 0.7
    assert result.last_val_accuracy == 0.7
    assert result.epochs_run == 2


# --- doubts ------------------------------------------------------------------------------------


def chosen(label: int, accuracies: list[float], inner: list[float]) -> FoldResult:
    history = [
        replace(epoch(number, value), inner_loss=1.0, inner_accuracy=other)
        for number, (value, other) in enumerate(zip(accuracies, inner, strict=True))
    ]
    return FoldResult.of(label, "complete", 60, 20, history)


def test_the_epoch_of_an_inner_split_is_the_one_that_is_kept() -> None:
    result = chosen(1, [0.2, 0.8, 0.6], [0.1, 0.3, 0.5])
    assert (result.best_epoch, result.chosen_epoch, result.kept_epoch) == (1, 2, 2)
    assert (result.best_val_accuracy, result.kept_val_accuracy) == (0.8, 0.6)
    without = FoldResult.of(1, "complete", 80, 20, fold(1, [0.2, 0.8, 0.6], 1).history)
    assert (without.best_epoch, without.chosen_epoch, without.kept_epoch) == (1, None, 1)


def test_each_mean_has_its_interval_and_says_which_it_is() -> None:
    folds = (chosen(1, [0.2, 0.8, 0.6], [0.1, 0.3, 0.5]), chosen(2, [0.7, 0.5], [0.2, 0.1]))
    values = replace(summary(*folds), select="inner").to_json()
    found = {name: each["mean"] for name, each in values["estimates"].items()}
    assert found == pytest.approx({"best": 0.75, "last": 0.55, "chosen": 0.65})
    for name, accuracies in (("best", [0.8, 0.7]), ("last", [0.6, 0.5]), ("chosen", [0.6, 0.7])):
        assert values["estimates"][name] == Estimate.of(accuracies, 20 / 60).to_json()
    assert (values["worst_fold"], values["best_fold"]) == (1, 2)
    assert [row["chosen_epoch"] for row in values["folds"]] == [2, 0]


def test_of_equals_on_an_inner_split_the_lowest_loss_is_kept() -> None:
    history = [
        replace(epoch(n, 0.5), inner_loss=loss, inner_accuracy=0.75)
        for n, loss in enumerate((0.9, 0.7, 0.8))
    ]
    assert FoldResult.of(1, "complete", 60, 20, history).kept_epoch == 1


def test_a_partial_run_has_no_estimates() -> None:
    assert summary(fold(1, [0.8], 0), failed(2, [0.1])).to_json()["estimates"] == {}


def test_repeats_are_in_the_means_and_apart_in_the_spread() -> None:
    rows = [[0.8, 0.6, 0.7], [0.9, 0.5, 0.7]]
    first, second = (
        tuple(fold(label, [x], 0) for label, x in enumerate(row, start=1)) for row in rows
    )
    repeated = replace(summary(*first), repeats=Repeats((3, 4), (first, second)))
    values = repeated.to_json()
    assert values["mean_accuracy"] == pytest.approx(0.7)
    folds = np.mean(rows, axis=0)
    known = Estimate.of(folds.tolist(), 20 / 80)
    assert values["estimates"]["best"]["std_error"] == pytest.approx(known.std_error)
    assert values["std_accuracy"] == pytest.approx(np.std(folds))
    assert values["repeats"]["seeds"] == [3, 4]
    assert values["repeats"]["spread"] == asdict(spread(rows))
    assert values["repeats"]["folds"][0] == values["folds"]
    assert (values["worst_fold"], values["best_fold"]) == (2, 1)


def test_the_mean_over_folds_of_one_size_is_the_pooled_accuracy_to_the_digit() -> None:
    right = [48, 46, 52, 55, 52]  # of 160 each; summed and divided they miss it by one bit
    values = summary(*(fold(label, [n / 160], 0) for label, n in enumerate(right))).to_json()
    assert values["mean_accuracy"] == sum(right) / 800


def test_folds_that_are_equally_good_have_no_best_and_no_worst() -> None:
    values = summary(fold(1, [0.8], 0), fold(2, [0.8], 0)).to_json()
    assert values["worst_fold"] is values["best_fold"] is None


def test_a_repeat_that_failed_leaves_no_mean_of_the_whole() -> None:
    whole = (fold(1, [0.8], 0), fold(2, [0.6], 0))
    broken = (fold(1, [0.7], 0), failed(2, [0.1]))
    repeated = replace(summary(*whole), repeats=Repeats((0, 1), (whole, broken)))
    assert repeated.status == "partial"
    values = repeated.to_json()
    assert values["mean_accuracy"] is values["repeats"]["spread"] is None
    assert values["partial_mean_accuracy"] == {
        "folds": [1],
        "epochs": "best",
        "mean": pytest.approx(0.75),
    }
    assert values["worst_fold"] is values["best_fold"] is None


def test_the_outlier_is_named() -> None:
    folds = [fold(label, [x], 0) for label, x in ((1, 0.9), (2, 0.91), (3, 0.2), (4, 0.89))]
    assert summary(*folds).to_json()["outlier_folds"] == [3]
