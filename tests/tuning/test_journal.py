"""Trials of a search: when a score counts, what is kept of it, and which trial is best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raykfold.errors import BadInput
from raykfold.observers import RunStart
from raykfold.training.results import EpochMetrics, FoldResult
from raykfold.tuning.journal import (
    Journal,
    Score,
    ScoreKeeper,
    Trial,
    TrialStatus,
    best_of_trials,
    ranked,
    value_text,
    values_text,
)


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


# --- scores at equal epochs ----------------------------------------------------------------------


def test_a_score_is_told_when_the_last_fold_has_that_epoch() -> None:
    scores, told = keeper(start(1, 2))
    for number, accuracy in enumerate((0.5, 0.7, 0.6)):
        scores.epoch_committed(1, epoch(number, accuracy))
    assert told == []
    scores.epoch_committed(2, epoch(0, 0.3))
    assert told == [Score(1, {1: 0.5, 2: 0.3})]
    assert told[0].mean == pytest.approx(0.4) and told[0].std == pytest.approx(0.1)
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


def test_a_fold_that_fails_is_kept_and_no_score_is_told_without_it() -> None:
    scores, told = keeper(start(1, 2))
    failed = FoldResult.of(2, "failed", 8, 4, error="out of memory")
    scores.fold_finished(failed)
    scores.epoch_committed(1, epoch(0, 0.5))
    assert scores.failure == failed and told == []


# --- the journal ---------------------------------------------------------------------------------


def test_a_journal_goes_on_where_it_was_left(tmp_path: Path) -> None:
    place = tmp_path / "trials.json"
    journal = Journal(place)
    first, second = journal.begin({"learning_rate": 0.1}), journal.begin({"learning_rate": 0.2})
    assert journal.score(1, Score(1, {1: 0.5, 2: 0.7}), epochs_run=2)
    assert not journal.score(1, Score(1, {1: 0.5, 2: 0.7}), epochs_run=3)
    journal.judge(1, 1, stops=False)
    assert journal.score(2, Score(1, {1: 0.1, 2: 0.2}), epochs_run=2)
    journal.end(1, "complete", 5)
    again = Journal(place)
    assert (first.number, second.number) == (1, 2)
    assert list(again) == list(journal)
    assert again[1].mean == pytest.approx(0.6) and again[1].std == pytest.approx(0.1)
    assert [trial.status for trial in again] == ["complete", "running"]
    assert again[1].epochs_run == 5
    assert again.judged == ((1, 1, False),)


def test_what_the_scheduler_stops_is_stopped_whenever_a_kill_comes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    for _ in range(2):
        journal.begin({})
        journal.score(len(journal), Score(1, {1: 0.5}), epochs_run=1)
    journal.judge(1, 1, stops=True)
    journal.score(2, Score(2, {1: 0.6}), epochs_run=2)  # and then the kill
    again = Journal(tmp_path / "trials.json")
    assert [trial.status for trial in again] == ["stopped", "running"]


def test_a_trial_that_failed_is_tried_again_from_where_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.begin({})
    journal.score(1, Score(1, {1: 0.5, 2: 0.7}), epochs_run=3)
    journal.end(1, "failed", 3, "out of memory")
    assert (journal[1].status, journal[1].error) == ("failed", "out of memory")
    again = Journal(tmp_path / "trials.json")
    assert (again[1].status, again[1].error) == ("running", None)
    assert again[1].mean == pytest.approx(0.6) and again[1].std == pytest.approx(0.1)
    assert again[1].to_json()["fold_scores"] == {"1": 0.5, "2": 0.7}


def test_a_trial_that_the_scheduler_has_stopped_is_not_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.begin({})
    journal.score(1, Score(1, {1: 0.5}), epochs_run=1)
    journal.judge(1, 1, stops=True)
    journal.end(1, "failed", 1, "out of memory")
    assert Journal(tmp_path / "trials.json")[1].status == "stopped"


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_what_is_over_is_stopped_by_no_late_word(tmp_path: Path, status: TrialStatus) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.begin({})
    journal.end(1, status, 1)
    journal.judge(1, 1, stops=True)
    assert journal[1].status == status


def test_a_trial_that_comes_to_its_end_before_it_is_stopped_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.begin({})
    journal.score(1, Score(1, {1: 0.5}), epochs_run=1)
    journal.judge(1, 1, stops=True)
    journal.go_on(1)
    journal.score(1, Score(2, {1: 0.6}), epochs_run=2)
    assert journal[1].status == Journal(tmp_path / "trials.json")[1].status == "running"


def test_time_is_summed_over_sessions(tmp_path: Path) -> None:
    place = tmp_path / "trials.json"
    first = Journal(place)
    first.start()
    first.stop()
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "wall_seconds": 100.0}))
    journal = Journal(place)
    assert (journal.wall_seconds, journal.sessions) == (100.0, 1)  # a look takes none
    journal.start()
    journal.stop()
    assert journal.wall_seconds > 100.0
    assert json.loads(place.read_text())["wall_seconds"] == round(journal.wall_seconds, 3)
    assert Journal(place).sessions == 2


def test_what_the_winner_does_on_the_outer_fold_is_of_that_trial(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    assert journal.measured(1) is None
    journal.measure(1, 0.75)
    again = Journal(tmp_path / "trials.json")
    assert again.measured(1) == 0.75
    assert again.measured(2) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"trials": 3}'])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, content: str) -> None:
    place = tmp_path / "trials.json"
    place.write_text(content)
    with pytest.raises(BadInput, match=rf"{place}: is no journal of a search .*--fresh$"):
        Journal(place)


# --- the best ------------------------------------------------------------------------------------


def trial(number: int, status: TrialStatus, *history: float) -> Trial:
    return Trial(number, {}, status, list(history), {1: history[-1]} if history else {})


def test_only_a_trial_that_was_trained_to_its_end_can_be_the_best() -> None:
    trials = [trial(1, "stopped", 0.9), trial(2, "complete", 0.5), trial(3, "complete", 0.7)]
    assert best_of_trials(trials) == trials[2]
    assert best_of_trials(trials[:1]) is None
    assert best_of_trials([]) is None


def test_of_equals_the_first_is_the_best() -> None:
    trials = [trial(2, "complete", 0.7), trial(1, "complete", 0.7)]
    assert best_of_trials(trials) == trials[1]


def test_trials_are_ranked_by_how_they_ended_and_then_by_score() -> None:
    trials = [
        trial(1, "failed", 0.9),
        trial(2, "running", 0.1),
        trial(3, "stopped", 0.2),
        trial(4, "stopped", 0.8),
        trial(5, "complete", 0.3),
        trial(6, "running"),
    ]
    assert [each.number for each in ranked(trials)] == [5, 4, 3, 2, 6, 1]


def test_a_trial_that_failed_has_no_score() -> None:
    row = trial(1, "failed", 0.9).to_json()
    assert row["mean_accuracy"] is None and row["std_accuracy"] is None
    assert row["fold_scores"] == {}


def test_values_are_shown_with_four_figures() -> None:
    values = {"learning_rate": 0.00012345678, "batch_size": 16, "model": "a:B", "model.deep": True}
    assert values_text(values) == (
        "learning_rate 0.0001235, batch_size 16, model a:B, model.deep True"
    )
    assert value_text(0.5) == "0.5"
