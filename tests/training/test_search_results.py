"""What a search measures: which trial is best, and when a search is complete."""

from __future__ import annotations

from typing import Any

import pytest
from support.searches import nested, outer, search, trial

from raykfold.training.search_results import best_trial, rank
from raykfold.training.statistics import Estimate


def test_only_a_complete_trial_can_be_the_best() -> None:
    trials = [trial(1, 0.9, "stopped"), trial(2, 0.5), trial(3, 0.7)]
    assert best_trial(trials) == trials[2]
    assert best_trial(trials[:1]) is None
    assert best_trial([]) is None


def test_of_equals_the_first_is_the_best() -> None:
    trials = [trial(2, 0.7), trial(1, 0.7)]
    assert best_trial(trials) == trials[1]


def test_trials_are_ranked_by_how_they_ended_and_then_by_score() -> None:
    trials = [
        trial(1, 0.9, "failed"),
        trial(2, 0.1, "running"),
        trial(3, 0.2, "stopped"),
        trial(4, 0.8, "stopped"),
        trial(5, 0.3),
        trial(6, None, "running"),
    ]
    assert [each.number for each in rank(trials)] == [5, 4, 3, 2, 6, 1]


def test_a_failed_trial_has_no_score() -> None:
    row = trial(1, 0.9, "failed").to_json()
    assert row["mean_accuracy"] is None and row["std_accuracy"] is None
    assert row["fold_scores"] == {}


def test_names_in_the_file_say_which_figure_is_ranked_by() -> None:
    content = search(outer=nested(), figure="macro_f1").to_json()
    assert content["figure"] == "macro_f1"
    rows = [content["trials"][0], content["best"], content["nested"]]
    assert all("mean_macro_f1" in row and "mean_accuracy" not in row for row in rows)
    assert content["nested"]["folds"][0]["outer_macro_f1"] == 0.71


def test_the_best_and_the_epochs_are_of_the_trials() -> None:
    content = search([trial(1, 0.5), trial(2, 0.9, "stopped"), trial(3, 0.6)]).to_json()
    assert content["status"] == "complete"
    assert (content["best"]["trial"], content["best"]["mean_accuracy"]) == (3, 0.6)
    assert content["best"]["model_dir"] == "/runs/sounds/trials/3"
    assert (content["epochs_run"], content["epochs_of_all"]) == (42, 54)
    assert search([trial(1, 0.5, "failed")]).to_json()["best"] is None


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"trials": (trial(1, 0.5), trial(2, None, "failed"))}, "partial"),
        ({"is_over": False}, "running"),
        ({"outer": (outer(1), outer(2))}, "complete"),
        ({"outer": (outer(1), outer(2, value=None))}, "running"),
        ({"outer": (outer(1), outer(2, value=None, error="out of memory"))}, "partial"),
        ({"outer": (outer(1), outer(2, failed=1))}, "partial"),
    ],
)
def test_a_search_is_complete_when_nothing_has_failed_or_is_left(
    changes: dict[str, Any], status: str
) -> None:
    results = search(**{"trials": (trial(1, 0.5),), **changes})
    assert results.status == results.to_json()["status"] == status


def test_an_outer_fold_with_an_error_has_failed_whatever_it_had() -> None:
    row = outer(1, error="epoch 3: out of memory").to_json()
    assert (row["status"], row["error"]) == ("failed", "epoch 3: out of memory")


def test_the_mean_over_outer_folds_needs_all_of_them() -> None:
    whole = search(outer=nested(), test_to_train=0.5)
    assert whole.nested == Estimate((0.71, 0.72, 0.73), 0.5)
    assert whole.to_json()["nested"]["mean_accuracy"] == pytest.approx(0.72)
    part = search(outer=(outer(1, 0.4), outer(2, None, error="no memory")))
    assert part.nested is None
    assert part.to_json()["nested"]["mean_accuracy"] is None
