"""What a cross-validation measures: of an epoch, of a fold, of the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FoldStatus = Literal["running", "complete", "failed"]


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one fold.

    Attributes:
        epoch: counted from 0.
        loss: mean cross-entropy over the training samples, in training mode.
        accuracy: share of right training predictions, in training mode, 0 to 1.
        val_loss: mean cross-entropy over the validation samples.
        val_accuracy: share of right validation predictions, 0 to 1.
        learning_rate: what the epoch was trained with.
        seconds: wall time of training and evaluation.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Histogram:
    """How often values fall between `edges`: `counts` has one fewer than these."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]


def best_of(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """The epoch of the highest validation accuracy, the first of equals; None before the first."""
    return max(history, key=lambda each: (each.val_accuracy, -each.epoch), default=None)


@dataclass(frozen=True)
class FoldResult:
    """One fold: `running`, trained to its end (`complete`), or `failed` with its `error`.

    `best_epoch` counts from 0; `stopped_early` says that patience ended it before `--epochs`.
    """

    fold: int
    status: FoldStatus
    n_train: int
    n_val: int
    history: tuple[EpochMetrics, ...] = ()
    best_epoch: int | None = None
    stopped_early: bool = False
    error: str | None = None

    @property
    def epochs_run(self) -> int:
        return len(self.history)

    @property
    def best_val_accuracy(self) -> float | None:
        return None if self.best_epoch is None else self.history[self.best_epoch].val_accuracy

    @property
    def last_val_accuracy(self) -> float | None:
        return self.history[-1].val_accuracy if self.history else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FoldResult:
        history = tuple(EpochMetrics(**epoch) for epoch in values["history"])
        return cls(**{**values, "history": history})


@dataclass(frozen=True)
class Round:
    """One round of a share, as its worker reports it.

    Attributes:
        number: counted from 1 within the share.
        epochs: fold → the epoch that it finished.
        finished: results of folds that are over, and are on storage as such.
        failed: fold → why it cannot go on.
        released: folds given back at the driver's wish.
        kept: those of them that had an epoch behind them, and whose state was handed over.
        saved: folds that are in the round's checkpoint.
        histograms: fold → of its weights and gradients, by name; empty unless asked for.
    """

    number: int
    epochs: dict[int, EpochMetrics] = field(default_factory=dict)
    finished: dict[int, FoldResult] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    released: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    saved: tuple[int, ...] = ()
    histograms: dict[int, dict[str, Histogram]] = field(default_factory=dict)

    def to_metrics(self) -> dict[str, Any]:
        """Plain Python values: Ray Train's metrics take nothing else."""
        return {
            "number": self.number,
            "epochs": [[fold, vars(metrics)] for fold, metrics in self.epochs.items()],
            "finished": [result.to_json() for result in self.finished.values()],
            "failed": [[fold, message] for fold, message in self.failed.items()],
            "released": list(self.released),
            "kept": list(self.kept),
            "saved": list(self.saved),
            "histograms": [
                [fold, name, list(each.counts), list(each.edges)]
                for fold, histograms in self.histograms.items()
                for name, each in histograms.items()
            ],
        }

    @classmethod
    def from_metrics(cls, values: Mapping[str, Any]) -> Round:
        results = [FoldResult.from_json(result) for result in values["finished"]]
        histograms: dict[int, dict[str, Histogram]] = {}
        for fold, name, counts, edges in values["histograms"]:
            histograms.setdefault(fold, {})[name] = Histogram(tuple(counts), tuple(edges))
        return cls(
            number=values["number"],
            epochs={fold: EpochMetrics(**metrics) for fold, metrics in values["epochs"]},
            finished={result.fold: result for result in results},
            failed=dict(map(tuple, values["failed"])),
            released=tuple(values["released"]),
            kept=tuple(values["kept"]),
            saved=tuple(values["saved"]),
            histograms=histograms,
        )


@dataclass(frozen=True)
class Summary:
    """A run when it is over; `to_json` is the content of ``summary.json``.

    The means are over every fold of the run, and None unless all of them are complete: a mean
    over the folds that happened to succeed is another number, and stands in
    `partial_mean_accuracy`.

    Attributes:
        folds: one result a fold, in fold order.
        oof_accuracy: share of right predictions among all held-out samples, pooled, each from
            the best weights of the fold that held it out.
        classes: label → name, in the order of the network's outputs.
        wall_seconds: time spent on the run, summed over the sessions it took.
        num_workers: most workers that were at work at once.
        versions: package → version.
        sessions: how many have trained: one more than the run was resumed.
    """

    run_name: str
    folds: tuple[FoldResult, ...]
    oof_accuracy: float | None
    classes: Mapping[int, str]
    wall_seconds: float
    num_workers: int
    versions: Mapping[str, str] = field(default_factory=dict)
    sessions: int = 1

    @property
    def status(self) -> Literal["complete", "partial"]:
        complete = all(result.status == "complete" for result in self.folds)
        return "complete" if complete else "partial"

    @property
    def mean_accuracy(self) -> float | None:
        return self._over_all_folds(mean, self._best())

    @property
    def std_accuracy(self) -> float | None:
        return self._over_all_folds(population_std, self._best())

    @property
    def std_accuracy_sample(self) -> float | None:
        return self._over_all_folds(sample_std, self._best())

    @property
    def last_mean_accuracy(self) -> float | None:
        return self._over_all_folds(mean, self._last())

    @property
    def last_std_accuracy(self) -> float | None:
        return self._over_all_folds(population_std, self._last())

    @property
    def partial_mean_accuracy(self) -> dict[str, Any] | None:
        """The mean over the folds that are complete, and which these are; None in a whole run."""
        if self.status == "complete":
            return None
        done = [result for result in self.folds if result.status == "complete"]
        best = [x for x in (result.best_val_accuracy for result in done) if x is not None]
        return {
            "folds": [result.fold for result in done],
            "mean": mean(best) if best else None,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "run_name": self.run_name,
            "status": self.status,
            "folds": [_fold_row(result) for result in self.folds],
            "mean_accuracy": self.mean_accuracy,
            "std_accuracy": self.std_accuracy,
            "std_accuracy_sample": self.std_accuracy_sample,
            "last_mean_accuracy": self.last_mean_accuracy,
            "last_std_accuracy": self.last_std_accuracy,
            "partial_mean_accuracy": self.partial_mean_accuracy,
            "oof_accuracy": self.oof_accuracy,
            "classes": {str(label): name for label, name in self.classes.items()},
            "wall_seconds": round(self.wall_seconds, 3),
            "num_workers": self.num_workers,
            "sessions": self.sessions,
            "versions": dict(self.versions),
        }

    def _best(self) -> list[float | None]:
        return [result.best_val_accuracy for result in self.folds]

    def _last(self) -> list[float | None]:
        return [result.last_val_accuracy for result in self.folds]

    def _over_all_folds(self, statistic: Any, values: list[float | None]) -> float | None:
        whole = [value for value in values if value is not None]
        if self.status != "complete" or len(whole) < len(values):
            return None
        return statistic(whole)


def _fold_row(result: FoldResult) -> dict[str, Any]:
    return {
        "fold": result.fold,
        "status": result.status,
        "n_train": result.n_train,
        "n_val": result.n_val,
        "epochs_run": result.epochs_run,
        "best_epoch": result.best_epoch,
        "best_val_accuracy": result.best_val_accuracy,
        "last_val_accuracy": result.last_val_accuracy,
        "stopped_early": result.stopped_early,
        "error": result.error,
    }


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def population_std(values: Sequence[float]) -> float:
    """Standard deviation with divisor n (ddof 0), as NumPy's `std` has by default."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values))


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation with divisor n - 1 (ddof 1); None for a single value."""
    if len(values) < 2:
        return None
    return population_std(values) * math.sqrt(len(values) / (len(values) - 1))
