"""Results of searches that were never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raykfold.training.search_results import OuterFold, SearchResults, Trial, TrialStatus

EPOCHS = 6
HOSTILE = "<script>alert(1)</script>"
SPACE = {
    "learning_rate": {"loguniform": [1e-4, 1e-2]},
    "batch_size": {"choice": [16, 32]},
    "model.kind": {"choice": ["plain", HOSTILE]},
    "model.dropout": {"uniform": [0.1, 0.5]},
}


def trial(
    number: int, accuracy: float | None, status: TrialStatus = "complete", **changes: Any
) -> Trial:
    """Return a trial of three folds, whose deviation is 0.02 · √(2/3)."""
    rounds = EPOCHS if status == "complete" else 2
    history = [] if accuracy is None else [accuracy * each / rounds for each in range(1, rounds)]
    scores = [] if accuracy is None else [accuracy - 0.02, accuracy, accuracy + 0.02]
    values = {
        "learning_rate": 1e-4 * number,
        "batch_size": 16 * (1 + number % 2),
        "model.kind": ("plain", HOSTILE)[number % 2],
        "model.dropout": 0.1 + 0.3 / number,
    }
    fields: dict[str, Any] = {
        "number": number,
        "values": values,
        "status": status,
        "history": tuple(history if accuracy is None else [*history, accuracy]),
        "folds": dict(enumerate(scores, 1)),
        "epochs_run": 3 * rounds,
        "error": "fold 2: <b>out of memory</b> & more" if status == "failed" else None,
    }
    return Trial(**{**fields, **changes})


TRIALS = (
    trial(1, 0.7),
    trial(2, 0.5, "stopped"),
    trial(3, 0.82),
    trial(4, 0.4, "failed"),
    trial(5, 0.81),
    trial(6, 0.6, "failed"),
)


def outer(fold: int, accuracy: float | None = 0.5, **changes: Any) -> OuterFold:
    return OuterFold(fold, **{"winner": trial(fold, 0.8), "value": accuracy, **changes})


def nested() -> tuple[OuterFold, ...]:
    return tuple(outer(fold, 0.7 + fold / 100, epochs_run=40 + fold) for fold in (1, 2, 3))


def search(trials: Sequence[Trial] = TRIALS, **changes: Any) -> SearchResults:
    fields: dict[str, Any] = {
        "run_name": "sounds",
        "score": "best",
        "sampler": "optuna",
        "trial_scheduler": "asha",
        "seed": 7,
        "epochs": EPOCHS,
        "folds": (1, 2, 3),
        "space": SPACE,
        "trials": tuple(trials),
        "is_over": True,
        "epochs_of_all": len(trials) * 3 * EPOCHS,
        "command": "python -m raykfold.search --space 'a <b>.toml'",
        "best_command": "python -m raykfold.run --config /runs/sounds/best.toml",
        "best_config": "/runs/sounds/best.toml",
        "trials_dir": Path("/runs/sounds/trials"),
        "wall_seconds": 305.0,
        "sessions": 3,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "identity": {"data": "b6d0d59b", "device": "cpu x1", "seed": 7},
        "test_to_train": 0.5,
    }
    return SearchResults(**{**fields, **changes})
