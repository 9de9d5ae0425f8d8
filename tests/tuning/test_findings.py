"""What a search has found, in figures and in words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from raykfold.training.statistics import Estimate
from raykfold.tuning.findings import Findings, OuterFold, lines
from raykfold.tuning.journal import Trial, TrialStatus
from raykfold.tuning.space import Domain, SearchConfig, SearchSpace


def trial(number: int, status: TrialStatus = "complete", mean: float = 0.5) -> Trial:
    error = "fold 1: out of memory" if status == "failed" else None
    values = {"learning_rate": number / 1000}
    return Trial(number, values, status, [0.1, mean], {1: mean - 0.1, 2: mean + 0.1}, 4, error)


def findings(folder: Path, *trials: Trial, **changes: Any) -> Findings:
    told: dict[str, Any] = {
        "demo": True,
        "epochs": 3,
        "model_dir": folder,
        "hf_model_repo_id": "me/best",
    }
    space = SearchSpace({"learning_rate": Domain("loguniform", (0.001, 0.1))})
    return Findings(
        **{
            "config": SearchConfig(**told, space=space),
            "folds": (1, 2),
            "trials": trials,
            "is_over": True,
            "wall_seconds": 60.0,
            "sessions": 1,
            "identity": {"data": "abc"},
            **changes,
        }
    )


def outer(fold: int, accuracy: float | None = 0.5, **changes: Any) -> OuterFold:
    return OuterFold(fold, trial(1), epochs_run=8, accuracy=accuracy, **changes)


def test_the_best_is_of_the_trials_that_came_to_their_end(tmp_path: Path) -> None:
    found = findings(tmp_path, trial(1), trial(2, "stopped", 0.9), trial(3, mean=0.6))
    assert found.status == "complete"
    row = found.to_json()
    assert row["best"]["trial"] == 3 and row["best"]["mean_accuracy"] == 0.6
    assert (row["epochs_run"], row["epochs_of_all"]) == (12, 18)
    text = "\n".join(lines(found))
    assert "Best: trial 3, 0.6000 (+/- 0.1000) over 2 folds" in text
    assert "Epochs trained, summed over folds: 12 of at most 18 for 3 trials (67%)" in text


def test_the_best_is_written_as_a_run_that_goes_to_the_hub(tmp_path: Path) -> None:
    found = findings(tmp_path, trial(1), trial(2, mean=0.7))
    found.write()
    values = tomllib.loads((tmp_path / "best.toml").read_text())
    assert values["learning_rate"] == 0.002 and values["hf_model_repo_id"] == "me/best"
    assert values["model_dir"] == str(tmp_path / "trials/2")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"trials": (trial(1), trial(2, "failed"))}, "partial"),
        ({"is_over": False}, "running"),
        ({"outer": (outer(1), outer(2))}, "complete"),
        ({"outer": (outer(1), outer(2, accuracy=None))}, "running"),
        ({"outer": (outer(1), outer(2, accuracy=None, error="out of memory"))}, "partial"),
        ({"outer": (outer(1), outer(2, failed=1))}, "partial"),
    ],
)
def test_it_is_complete_when_nothing_has_failed_or_is_left(
    tmp_path: Path, changes: dict[str, Any], status: str
) -> None:
    found = findings(tmp_path, *changes.pop("trials", (trial(1),)), **changes)
    assert found.status == found.to_json()["status"] == status


def test_an_outer_fold_with_an_error_is_failed_whatever_it_had(tmp_path: Path) -> None:
    row = outer(1, error="epoch 3: out of memory").to_json()
    assert (row["status"], row["error"]) == ("failed", "epoch 3: out of memory")


def test_the_mean_over_outer_folds_wants_all_of_them(tmp_path: Path) -> None:
    whole = findings(tmp_path, trial(1), outer=(outer(1, 0.4), outer(2, 0.6)), test_to_train=0.5)
    assert whole.nested == Estimate((0.4, 0.6), 0.5)
    assert whole.to_json()["nested"]["mean_accuracy"] == 0.5
    assert "Nested: 0.5000 (+/- 0.1000) over 2 outer folds, 95 % interval" in "\n".join(
        lines(whole)
    )
    one = "\n".join(lines(findings(tmp_path, trial(1), outer=(outer(1, 0.4),))))
    assert "Nested: 0.4000 over 1 outer fold: of search" in one  # whose spread nobody knows
    part = findings(tmp_path, trial(1), outer=(outer(1, 0.4), outer(2, None, error="no memory")))
    assert part.nested is None
    assert part.to_json()["nested"]["mean_accuracy"] is None
    assert "Nested: no mean" in "\n".join(lines(part)) and "no memory" in "\n".join(lines(part))


def test_without_a_complete_trial_there_is_no_best(tmp_path: Path) -> None:
    found = findings(tmp_path, trial(1, "failed"))
    found.write()
    assert found.to_json()["best"] is None
    assert not (tmp_path / "best.toml").exists()
    text = "\n".join(lines(found))
    assert "No trial is complete" in text and "trial 1 failed: fold 1: out of memory" in text
