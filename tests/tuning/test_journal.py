"""The record from which a search resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raykfold.errors import BadInput
from raykfold.training.search_results import TrialStatus
from raykfold.tuning.journal import Decision, Journal
from raykfold.tuning.scores import Score


def test_a_journal_goes_on_where_it_was_left(tmp_path: Path) -> None:
    place = tmp_path / "trials.json"
    journal = Journal(place)
    first, second = (
        journal.add_trial({"learning_rate": 0.1}),
        journal.add_trial({"learning_rate": 0.2}),
    )
    assert journal.add_score(1, Score(1, {1: 0.5, 2: 0.7}), epochs_run=2)
    assert not journal.add_score(1, Score(1, {1: 0.5, 2: 0.7}), epochs_run=3)
    journal.add_decision(Decision(1, 1, stops=False))
    assert journal.add_score(2, Score(1, {1: 0.1, 2: 0.2}), epochs_run=2)
    journal.end_trial(1, "complete", 5)
    again = Journal(place)
    assert (first.number, second.number) == (1, 2)
    assert list(again) == list(journal)
    assert again[1].mean == pytest.approx(0.6) and again[1].std == pytest.approx(0.1)
    assert [trial.status for trial in again] == ["complete", "running"]
    assert again[1].epochs_run == 5
    assert again.decisions == ((1, 1, False),)


def test_what_the_scheduler_stops_is_stopped_whenever_a_kill_comes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    for _ in range(2):
        journal.add_trial({})
        journal.add_score(len(journal), Score(1, {1: 0.5}), epochs_run=1)
    journal.add_decision(Decision(1, 1, stops=True))
    journal.add_score(2, Score(2, {1: 0.6}), epochs_run=2)  # and then the kill
    again = Journal(tmp_path / "trials.json")
    assert [trial.status for trial in again] == ["stopped", "running"]


def test_a_trial_that_failed_is_tried_again_from_where_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.add_trial({})
    journal.add_score(1, Score(1, {1: 0.5, 2: 0.7}), epochs_run=3)
    journal.end_trial(1, "failed", 3, "out of memory")
    assert (journal[1].status, journal[1].error) == ("failed", "out of memory")
    again = Journal(tmp_path / "trials.json")
    assert (again[1].status, again[1].error) == ("running", None)
    assert again[1].mean == pytest.approx(0.6) and again[1].std == pytest.approx(0.1)
    assert again[1].to_json()["fold_scores"] == {"1": 0.5, "2": 0.7}


def test_a_trial_that_the_scheduler_has_stopped_is_not_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.add_trial({})
    journal.add_score(1, Score(1, {1: 0.5}), epochs_run=1)
    journal.add_decision(Decision(1, 1, stops=True))
    journal.end_trial(1, "failed", 1, "out of memory")
    assert Journal(tmp_path / "trials.json")[1].status == "stopped"


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_what_is_over_is_stopped_by_no_late_word(tmp_path: Path, status: TrialStatus) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.add_trial({})
    journal.end_trial(1, status, 1)
    journal.add_decision(Decision(1, 1, stops=True))
    assert journal[1].status == status


def test_a_trial_that_comes_to_its_end_before_it_is_stopped_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    journal.add_trial({})
    journal.add_score(1, Score(1, {1: 0.5}), epochs_run=1)
    journal.add_decision(Decision(1, 1, stops=True))
    journal.revoke_stop(1)
    journal.add_score(1, Score(2, {1: 0.6}), epochs_run=2)
    assert journal[1].status == Journal(tmp_path / "trials.json")[1].status == "running"


def test_time_is_summed_over_sessions(tmp_path: Path) -> None:
    place = tmp_path / "trials.json"
    first = Journal(place)
    first.start_clock()
    first.stop_clock()
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "wall_seconds": 100.0}))
    journal = Journal(place)
    assert (journal.wall_seconds, journal.sessions) == (100.0, 1)  # a look takes none
    journal.start_clock()
    journal.stop_clock()
    assert journal.wall_seconds > 100.0
    assert json.loads(place.read_text())["wall_seconds"] == round(journal.wall_seconds, 3)
    assert Journal(place).sessions == 2


def test_what_the_winner_does_on_the_outer_fold_is_of_that_trial(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.json")
    assert journal.outer_value(1) is None
    journal.set_outer_value(1, 0.75)
    again = Journal(tmp_path / "trials.json")
    assert again.outer_value(1) == 0.75
    assert again.outer_value(2) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"trials": 3}'])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, content: str) -> None:
    place = tmp_path / "trials.json"
    place.write_text(content)
    with pytest.raises(BadInput, match=rf"{place}: is not the journal of a search .*--fresh$"):
        Journal(place)
