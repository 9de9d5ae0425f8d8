"""What a search measures: of a trial, of an outer fold, of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raykfold.data.leakage import Leakage
from raykfold.files.remote import Place
from raykfold.training.results import Figure, KeptEpochs
from raykfold.training.statistics import Estimate, population_std

TrialStatus = Literal["running", "complete", "stopped", "failed"]

# How trials are ranked. A stopped trial has a score of fewer epochs, which is not comparable.
TRIAL_STATUSES: Sequence[TrialStatus] = ("complete", "stopped", "running", "failed")


@dataclass(frozen=True)
class Trial:
    """One configuration, and how far its cross-validation has come.

    Attributes:
        number: from 1.
        values: searched hyper-parameter → this trial's value.
        status: `stopped` is by the scheduler.
        history: mean score over the folds after each epoch that all folds have completed: of the
            search's figure, as the accuracy, on the held-out samples.
        folds: fold → score after the last of these epochs.
        epochs_run: summed over the folds.
        error: why it failed.
    """

    number: int
    values: Mapping[str, Any]
    status: TrialStatus = "running"
    history: tuple[float, ...] = ()
    folds: Mapping[int, float] = field(default_factory=dict)
    epochs_run: int = 0
    error: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the folds; None before the first epoch of all folds, and of a failed trial."""
        return self.history[-1] if self.history and self.status != "failed" else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the folds (ddof 0); None where `mean` is."""
        return None if self.mean is None else population_std(list(self.folds.values()))

    def to_json(self, figure: Figure = "accuracy") -> dict[str, Any]:
        """Return the trial's row of ``search.json``; `figure` is what its scores are."""
        folds = {} if self.mean is None else self.folds
        return {
            "trial": self.number,
            "config": dict(self.values),
            "status": self.status,
            "rounds": len(self.history),
            "epochs_run": self.epochs_run,
            "fold_scores": {str(fold): score for fold, score in folds.items()},
            f"mean_{figure}": self.mean,
            f"std_{figure}": self.std,
            "history": list(self.history),
            "error": self.error,
        }


def rank(trials: Iterable[Trial]) -> list[Trial]:
    """Sort trials by status, as in `TRIAL_STATUSES`, then by mean, then by number."""
    order = TRIAL_STATUSES.index
    return sorted(trials, key=lambda each: (order(each.status), -(each.mean or 0.0), each.number))


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """Return the complete trial of the highest mean, the first of equals; None if there is none."""
    first = next(iter(rank(trials)), None)
    return first if first is not None and first.status == "complete" else None


@dataclass(frozen=True)
class OuterFold:
    """A fold that an inner search left out, and what the winner of that search reaches on it.

    Attributes:
        fold: its label.
        winner: the best trial on the other folds; None before one is complete.
        value: the search's figure on this fold, of the epoch that an inner validation split chose;
            None before.
        epochs_run: of the inner search, summed over trials and folds.
        failed: trials of the inner search that failed.
        error: why there is no value.
    """

    fold: int
    winner: Trial | None
    value: float | None
    epochs_run: int = 0
    failed: int = 0
    error: str | None = None

    @property
    def status(self) -> Literal["running", "complete", "failed"]:
        if self.error is not None:
            return "failed"
        return "running" if self.value is None else "complete"

    def to_json(self, figure: Figure = "accuracy") -> dict[str, Any]:
        return {
            "fold": self.fold,
            "status": self.status,
            "trial": self.winner.number if self.winner else None,
            "config": dict(self.winner.values) if self.winner else {},
            "epochs_run": self.epochs_run,
            f"inner_mean_{figure}": self.winner.mean if self.winner else None,
            f"outer_{figure}": self.value,
            "error": self.error,
        }


@dataclass(frozen=True)
class SearchResults:
    """A search as it stands; `to_json` is the content of ``search.json``.

    Attributes:
        run_name: the search's name.
        score: which epoch of each fold counts: its best, or the one an inner split chose.
        figure: what trials are ranked by; names in ``search.json`` end with it.
        sampler, trial_scheduler, seed: as in the search's configuration.
        epochs: most epochs of a fold.
        folds: those that each trial holds out.
        space: searched hyper-parameter → kind of range → its values.
        trials: in order of number.
        is_over: no trial is left to train.
        epochs_of_all: epochs, summed over folds, if each of these trials were trained to its end.
        command: starts or resumes the search.
        best_command: runs or resumes the best trial.
        best_config: the file that `best_command` reads.
        trials_dir: each trial's outputs are in the folder of its number in here.
        wall_seconds: summed over the sessions.
        sessions: how many there were.
        identity: the fields that must be equal for the search to be resumed.
        leakage: samples that are in more than one fold, or under two labels.
        versions: package → version.
        outer: with --nested, each outer fold.
        test_to_train: of the outer folds, as in `statistics.corrected_std_error`.
    """

    run_name: str
    score: KeptEpochs
    sampler: str
    trial_scheduler: str
    seed: int
    epochs: int
    folds: tuple[int, ...]
    space: Mapping[str, Mapping[str, Sequence[Any]]]
    trials: tuple[Trial, ...]
    is_over: bool
    epochs_of_all: int
    command: str
    best_command: str
    best_config: str
    trials_dir: Place
    wall_seconds: float
    sessions: int
    identity: Mapping[str, Any]
    versions: Mapping[str, str]
    leakage: Leakage | None = None
    outer: tuple[OuterFold, ...] = ()
    test_to_train: float = 0.0
    figure: Figure = "accuracy"

    @property
    def status(self) -> Literal["running", "complete", "partial"]:
        """`partial`: a trial failed, also of an inner search, or an outer fold did."""
        if not self.is_over or any(each.status == "running" for each in self.outer):
            return "running"
        failed = [each for each in self.trials if each.status == "failed"]
        without = [each for each in self.outer if each.status == "failed" or each.failed]
        return "partial" if failed or without else "complete"

    @property
    def best(self) -> Trial | None:
        return best_trial(self.trials)

    @property
    def compared(self) -> list[Trial]:
        """The trials among which the best was chosen: those that are over, with a score."""
        return [t for t in self.trials if t.status != "running" and t.mean is not None]

    @property
    def close_to_best(self) -> list[Trial]:
        """The complete trials less than one standard deviation over folds below the best.

        None are known while the search is running, or with one fold.
        """
        best = self.best
        if best is None or best.mean is None or not best.std or self.status == "running":
            return []
        complete = [t for t in rank(self.trials) if t.status == "complete" and t is not best]
        return [each for each in complete if (each.mean or 0.0) >= best.mean - best.std]

    @property
    def nested(self) -> Estimate | None:
        """What search and training together reach; None unless every outer fold is complete."""
        values = [each.value for each in self.outer if each.value is not None]
        if not self.outer or len(values) < len(self.outer):
            return None
        return Estimate(tuple(values), self.test_to_train)

    @property
    def epochs_run(self) -> int:
        """Summed over trials and folds, without the epochs under way when a trial was stopped."""
        return sum(trial.epochs_run for trial in self.trials)

    def to_json(self) -> dict[str, Any]:
        return {
            "run_name": self.run_name,
            "status": self.status,
            "score": self.score,
            "figure": self.figure,
            "sampler": self.sampler,
            "trial_scheduler": self.trial_scheduler,
            "seed": self.seed,
            "epochs": self.epochs,
            "folds": list(self.folds),
            "space": {name: dict(domain) for name, domain in self.space.items()},
            "trials": [self._row(trial) for trial in self.trials],
            "best": self._best_row(),
            "epochs_run": self.epochs_run,
            "epochs_of_all": self.epochs_of_all,
            "nested": self._nested_row(),
            "command": self.command,
            "wall_seconds": round(self.wall_seconds, 3),
            "sessions": self.sessions,
            "identity": dict(self.identity),
            "warnings": self.leakage.warnings() if self.leakage else [],
            "versions": dict(self.versions),
        }

    def _row(self, trial: Trial) -> dict[str, Any]:
        return {**trial.to_json(self.figure), "model_dir": str(self.trials_dir / str(trial.number))}

    def _best_row(self) -> dict[str, Any] | None:
        if self.best is None:
            return None
        row = self._row(self.best)
        of_figure = f"mean_{self.figure}", f"std_{self.figure}"
        names = ("trial", "config", *of_figure, "fold_scores", "model_dir")
        run = {"config_file": self.best_config, "command": self.best_command}
        return {name: row[name] for name in names} | run

    def _nested_row(self) -> dict[str, Any] | None:
        if not self.outer:
            return None
        estimate = self.nested
        return {
            "folds": [each.to_json(self.figure) for each in self.outer],
            f"mean_{self.figure}": estimate.mean if estimate else None,
            f"std_{self.figure}": estimate.std if estimate else None,
            "interval": list(estimate.interval) if estimate and estimate.interval else None,
        }
