"""Scores of a trial: when one counts, and of which epochs it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raykfold.observers import RunStart
from raykfold.training.results import EpochMetrics, FoldResult
from raykfold.tuning.scores import Score, ScoreKeeper


def epoch(number: int, accuracy: float, inner: float | None = None) -> EpochMetrics:
    """`number` from 0."""
    inner_loss = None if inner is None else 1.0
    return EpochMetrics(number, 1.0, 0.5, 1.0, accuracy, 0.001, 1.0, inner_loss, inner)


def result(fold: int, *accuracies: float, **changes: Any) -> FoldResult:
    history = tuple(epoch(number, accuracy) for number, accuracy in enumerate(accuracies))
    return FoldResult.of(fold, "complete", 8, 4, history, **changes)


def start(
    *folds: int,
    histories: dict[int, list[EpochMetrics]] | None = None,
    finished: dict[int, FoldResult] | None = None,
) -> RunStart:
    return RunStart("run", 9, folds, histories or {}, finished or {})


def keeper(started: RunStart) -> tuple[ScoreKeeper, list[Score]]:
    told: list[Score] = []
    scores = ScoreKeeper(told.append)
    scores.run_started(started)
    return scores, told


def test_a_score_is_told_when_the_last_fold_has_that_epoch() -> None:
    scores, told = keeper(start(1, 2))
    for number, accuracy in enumerate((0.5, 0.7, 0.6)):
        scores.epoch_committed(1, epoch(number, accuracy))
    assert told == []
    scores.epoch_committed(2, epoch(0, 0.3))
    assert told == [Score(1, {1: 0.5, 2: 0.3})]
    assert told[0].mean == pytest.approx(0.4)
    scores.epoch_committed(2, epoch(1, 0.2))
    assert told[1:] == [Score(2, {1: 0.7, 2: 0.3})]
    assert scores.epochs_run == 5


def test_a_fold_that_has_stopped_early_counts_with_its_last_epoch() -> None:
    scores, told = keeper(start(1, 2))
    scores.epoch_committed(1, epoch(0, 0.5))
    scores.fold_finished(result(1, 0.5))
    for number, accuracy in enumerate((0.1, 0.2, 0.3)):
        scores.epoch_committed(2, epoch(number, accuracy))
    assert [(score.epoch, score.folds) for score in told] == [
        (1, {1: 0.5, 2: 0.1}),
        (2, {1: 0.5, 2: 0.2}),
        (3, {1: 0.5, 2: 0.3}),
    ]


def test_the_end_of_a_fold_can_be_what_a_score_waits_for() -> None:
    scores, told = keeper(start(1, 2))
    for fold, accuracies in {1: (0.5,), 2: (0.1, 0.2)}.items():
        for number, accuracy in enumerate(accuracies):
            scores.epoch_committed(fold, epoch(number, accuracy))
    assert [score.epoch for score in told] == [1]
    scores.fold_finished(result(1, 0.5))
    assert told[1:] == [Score(2, {1: 0.5, 2: 0.2})]


def test_what_an_earlier_session_has_trained_is_told_first() -> None:
    histories = {1: [epoch(0, 0.4), epoch(1, 0.6)], 2: [epoch(0, 0.2)]}
    scores, told = keeper(start(1, 2, histories=histories))
    assert told == [Score(1, {1: 0.4, 2: 0.2})]
    scores.epoch_committed(2, epoch(1, 0.2))
    assert told[1:] == [Score(2, {1: 0.6, 2: 0.2})]


def test_a_run_that_is_over_tells_all_of_it_at_its_start() -> None:
    results = {1: result(1, 0.4, 0.5), 2: result(2, 0.2)}
    histories = {fold: list(each.history) for fold, each in results.items()}
    _, told = keeper(start(1, 2, histories=histories, finished=results))
    assert told == [Score(1, {1: 0.4, 2: 0.2}), Score(2, {1: 0.5, 2: 0.2})]


def test_an_epoch_that_is_trained_again_is_not_told_again() -> None:
    scores, told = keeper(start(1))
    for number in (0, 1, 1, 2):
        scores.epoch_committed(1, epoch(number, 0.1 * number))
    assert [score.epoch for score in told] == [1, 2, 3]
    assert scores.epochs_run == 3


def test_with_an_inner_split_the_score_is_of_the_epoch_that_it_chose() -> None:
    scores, told = keeper(start(1))
    for number, (accuracy, inner) in enumerate([(0.5, 0.9), (0.8, 0.3), (0.6, 0.95)]):
        scores.epoch_committed(1, epoch(number, accuracy, inner))
    assert [score.folds[1] for score in told] == [0.5, 0.5, 0.6]


def test_a_score_can_be_of_another_figure() -> None:
    told: list[Score] = []
    scores = ScoreKeeper(told.append, "macro_f1")
    scores.run_started(start(1))
    for number, macro_f1 in enumerate((0.3, 0.5, 0.4)):
        known = replace(epoch(number, 0.9), val_macro_f1=macro_f1, val_score=macro_f1)
        scores.epoch_committed(1, known)
    assert [score.folds[1] for score in told] == [0.3, 0.5, 0.5]


def test_a_fold_that_fails_is_remembered_and_no_score_is_told_without_it() -> None:
    scores, told = keeper(start(1, 2))
    failed = FoldResult.of(2, "failed", 8, 4, error="out of memory")
    scores.fold_finished(failed)
    scores.epoch_committed(1, epoch(0, 0.5))
    assert scores.failure == failed and told == []
