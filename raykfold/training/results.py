"""What a cross-validation measures: of an epoch, of a fold, of the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raykfold.training.statistics import (
    ClassMetrics,
    Estimate,
    Spread,
    macro_f1,
    mean,
    mean_accuracy,
    outliers,
    spread,
)

FoldStatus = Literal["running", "complete", "failed"]


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one fold.

    Attributes:
        epoch: counted from 0.
        loss: mean cross-entropy over the training samples, in training mode.
        accuracy: share of right training predictions, in training mode, 0 to 1.
        val_loss: mean cross-entropy over the validation samples, which the fold holds out.
        val_accuracy: share of right validation predictions, 0 to 1.
        learning_rate: what the epoch was trained with.
        seconds: wall time of training and evaluation.
        inner_loss: as `val_loss`, of the inner validation samples; None where there are none.
        inner_accuracy: as `val_accuracy`, of them.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    inner_loss: float | None = None
    inner_accuracy: float | None = None

    @property
    def deciding_loss(self) -> float:
        """What the learning rate and early stopping follow."""
        return self.val_loss if self.inner_loss is None else self.inner_loss

    @property
    def deciding_accuracy(self) -> float:
        """What decides which epoch's weights are kept."""
        return self.val_accuracy if self.inner_accuracy is None else self.inner_accuracy


@dataclass(frozen=True)
class Histogram:
    """How often values fall between `edges`: `counts` has one fewer than these."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]


def best_of(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """The epoch of the highest validation accuracy, the first of equals; None before the first.

    Chosen by the samples that are held out: its accuracy flatters.
    """
    return max(history, key=lambda each: (each.val_accuracy, -each.epoch), default=None)


def kept_of(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """The epoch whose weights are kept; None before the first.

    That of the highest accuracy on the inner validation samples where there are some, which can be
    few: of equals, that of the lowest loss on them. Else `best_of`.
    """
    if not history or history[-1].inner_loss is None:
        return best_of(history)
    return max(history, key=lambda e: (e.deciding_accuracy, -e.deciding_loss, -e.epoch))


@dataclass(frozen=True)
class FoldResult:
    """One fold: `running`, trained to its end (`complete`), or `failed` with its `error`.

    `best_epoch` counts from 0; `chosen_epoch` also, and is None unless an inner validation split
    chose it; `stopped_early` says that patience ended it before `--epochs`.
    """

    fold: int
    status: FoldStatus
    n_train: int
    n_val: int
    history: tuple[EpochMetrics, ...] = ()
    best_epoch: int | None = None
    stopped_early: bool = False
    error: str | None = None
    chosen_epoch: int | None = None

    @classmethod
    def of(
        cls,
        fold: int,
        status: FoldStatus,
        n_train: int,
        n_val: int,
        history: Sequence[EpochMetrics],
        **more: Any,
    ) -> FoldResult:
        """With the epochs that the history names."""
        best, kept = best_of(history), kept_of(history)
        chosen = None if kept is None or kept.inner_accuracy is None else kept.epoch
        return cls(
            fold,
            status,
            n_train,
            n_val,
            tuple(history),
            best_epoch=best.epoch if best else None,
            chosen_epoch=chosen,
            **more,
        )

    @property
    def epochs_run(self) -> int:
        return len(self.history)

    @property
    def best_val_accuracy(self) -> float | None:
        return None if self.best_epoch is None else self.history[self.best_epoch].val_accuracy

    @property
    def chosen_val_accuracy(self) -> float | None:
        return None if self.chosen_epoch is None else self.history[self.chosen_epoch].val_accuracy

    @property
    def last_val_accuracy(self) -> float | None:
        return self.history[-1].val_accuracy if self.history else None

    @property
    def kept_epoch(self) -> int | None:
        """Whose weights are kept."""
        return self.best_epoch if self.chosen_epoch is None else self.chosen_epoch

    @property
    def kept_val_accuracy(self) -> float | None:
        return None if self.kept_epoch is None else self.history[self.kept_epoch].val_accuracy

    @property
    def seconds(self) -> float:
        """Wall time of its epochs."""
        return sum(metrics.seconds for metrics in self.history)

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
        handed_over: those of them whose state was written, as they had trained an epoch.
        saved: folds that are in the round's checkpoint.
        histograms: fold → of its weights and gradients, by name; empty unless asked for.
    """

    number: int
    epochs: dict[int, EpochMetrics] = field(default_factory=dict)
    finished: dict[int, FoldResult] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    released: tuple[int, ...] = ()
    handed_over: tuple[int, ...] = ()
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
            "handed_over": list(self.handed_over),
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
            handed_over=tuple(values["handed_over"]),
            saved=tuple(values["saved"]),
            histograms=histograms,
        )


@dataclass(frozen=True)
class OutOfFoldMetrics:
    """What the kept weights of each fold say of the samples that it held out, all pooled.

    Attributes:
        accuracy: share of right predictions.
        interval: 95 %, as `statistics.wilson_interval` has it.
        classes: each class, in the order of the network's outputs.
        confusion: samples by true class (row) and predicted class (column), in the same order.
    """

    accuracy: float
    interval: tuple[float, float]
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Repeats:
    """One cross-validation with several seeds.

    Attributes:
        seeds: of each repeat, the run's own first.
        folds: results of each repeat, all of the same folds in the same order.
    """

    seeds: tuple[int, ...]
    folds: tuple[tuple[FoldResult, ...], ...]


@dataclass(frozen=True)
class Summary:
    """A run when it is over; `to_json` is the content of ``summary.json``.

    The means are over every fold of the run, and None unless all of them are complete: a mean
    over the folds that happened to succeed is another number, and stands in
    `partial_mean_accuracy`. Where there are repeats, a fold's accuracy is its mean over the seeds.

    Attributes:
        folds: one result a fold, in fold order.
        out_of_fold: of all samples, with the run's own seed; None unless every fold is complete.
        classes: label → name, in the order of the network's outputs.
        wall_seconds: time spent on the run, summed over the sessions it took.
        num_workers: most workers that were at work at once.
        versions: package → version.
        sessions: how many have trained: one more than the run was resumed.
        select: what chose the epoch whose weights are kept.
        repeats: the run and its repeats, if it has any.
        leakage: what `raykfold.data.leakage` has found, in plain values.
    """

    run_name: str
    folds: tuple[FoldResult, ...]
    out_of_fold: OutOfFoldMetrics | None
    classes: Mapping[int, str]
    wall_seconds: float
    num_workers: int
    versions: Mapping[str, str] = field(default_factory=dict)
    sessions: int = 1
    select: str = "best"
    repeats: Repeats | None = None
    leakage: Mapping[str, Any] | None = None

    @property
    def status(self) -> Literal["complete", "partial"]:
        results = [result for folds in self._runs() for result in folds]
        complete = all(result.status == "complete" for result in results)
        return "complete" if complete else "partial"

    @property
    def best(self) -> Estimate | None:
        """Of each fold's best epoch: the usual protocol, and an optimistic one."""
        return self._estimate("best_val_accuracy")

    @property
    def last(self) -> Estimate | None:
        """Of each fold's last epoch, which nobody chose."""
        return self._estimate("last_val_accuracy")

    @property
    def chosen(self) -> Estimate | None:
        """Of the epoch that each fold's inner validation split chose; None without one."""
        return self._estimate("chosen_val_accuracy")

    @property
    def kept(self) -> Estimate | None:
        """Of the epochs whose weights are kept."""
        return self.chosen if self.kept_epochs == "chosen" else self.best

    @property
    def kept_epochs(self) -> Literal["best", "chosen"]:
        """Which these are."""
        return kept_epochs({"select": self.select})

    @property
    def mean_accuracy(self) -> float | None:
        return self.best.mean if self.best else None

    @property
    def std_accuracy(self) -> float | None:
        return self.best.std if self.best else None

    @property
    def oof_accuracy(self) -> float | None:
        return self.out_of_fold.accuracy if self.out_of_fold else None

    @property
    def partial_mean_accuracy(self) -> dict[str, Any] | None:
        """The mean over the folds that are complete, with every seed, of the epochs that are kept;
        and which these are. None in a whole run.
        """
        if self.status == "complete":
            return None
        kept = self._of_complete_folds("kept_val_accuracy")
        average = mean_accuracy(list(kept.values())) if kept else None
        return {"folds": list(kept), "epochs": self.kept_epochs, "mean": average}

    @property
    def ranked(self) -> list[tuple[int, float]]:
        """The complete folds, the worst first, each with the accuracy of the epoch that is kept."""
        accuracies = self._of_complete_folds("kept_val_accuracy")
        return sorted(accuracies.items(), key=lambda pair: (pair[1], pair[0]))

    @property
    def folds_differ(self) -> bool:
        """Whether one is the worst and one the best."""
        return bool(self.ranked) and self.ranked[0][1] < self.ranked[-1][1]

    @property
    def outlier_folds(self) -> list[int]:
        """Folds whose accuracy stands apart from the others' (`statistics.outliers`)."""
        ranked, sizes = self.ranked, {result.fold: result.n_val for result in self.folds}
        apart = outliers([accuracy for _, accuracy in ranked], [sizes[fold] for fold, _ in ranked])
        return sorted(ranked[position][0] for position in apart)

    @property
    def spread(self) -> Spread | None:
        """Of the kept epochs' accuracies over seeds and over folds; None without repeats."""
        if self.repeats is None or self.status != "complete":
            return None
        return spread([[r.kept_val_accuracy for r in folds] for folds in self.repeats.folds])

    def to_json(self) -> dict[str, Any]:
        best, last, pooled, ranked = self.best, self.last, self.out_of_fold, self.ranked
        estimates = {"best": best, "last": last, "chosen": self.chosen}
        return {
            "run_name": self.run_name,
            "status": self.status,
            "select": self.select,
            "folds": [_fold_row(result) for result in self.folds],
            "mean_accuracy": best.mean if best else None,
            "std_accuracy": best.std if best else None,
            "std_accuracy_sample": best.std_sample if best else None,
            "last_mean_accuracy": last.mean if last else None,
            "last_std_accuracy": last.std if last else None,
            "estimates": {name: each.to_json() for name, each in estimates.items() if each},
            "partial_mean_accuracy": self.partial_mean_accuracy,
            "worst_fold": ranked[0][0] if self.folds_differ else None,
            "best_fold": ranked[-1][0] if self.folds_differ else None,
            "outlier_folds": self.outlier_folds,
            "oof_accuracy": pooled.accuracy if pooled else None,
            "oof_interval": list(pooled.interval) if pooled else None,
            "macro_f1": macro_f1(pooled.classes) if pooled else None,
            "per_class": [asdict(each) for each in pooled.classes] if pooled else None,
            "confusion_matrix": [list(row) for row in pooled.confusion] if pooled else None,
            "repeats": self._repeats_json(),
            "leakage": self.leakage,
            "classes": {str(label): name for label, name in self.classes.items()},
            "wall_seconds": round(self.wall_seconds, 3),
            "num_workers": self.num_workers,
            "sessions": self.sessions,
            "versions": dict(self.versions),
        }

    def _runs(self) -> tuple[tuple[FoldResult, ...], ...]:
        """The folds of each seed."""
        return (self.folds,) if self.repeats is None else self.repeats.folds

    def _of_complete_folds(self, which: str) -> dict[int, float]:
        """Fold → its accuracy, the mean over the seeds; of folds that are complete with each."""
        means = {}
        for of_fold in zip(*self._runs(), strict=True):
            accuracies = [getattr(result, which) for result in of_fold]
            if all(result.status == "complete" for result in of_fold) and None not in accuracies:
                means[of_fold[0].fold] = mean(accuracies)
        return means

    def _estimate(self, which: str) -> Estimate | None:
        accuracies = self._of_complete_folds(which)
        if len(accuracies) < len(self.folds):
            return None
        held_out = sum(result.n_val for result in self.folds)
        test_to_train = held_out / sum(result.n_train for result in self.folds)
        return Estimate.of(list(accuracies.values()), test_to_train)

    def _repeats_json(self) -> dict[str, Any] | None:
        if self.repeats is None:
            return None
        rows = [[_fold_row(result) for result in folds] for folds in self.repeats.folds]
        apart = self.spread
        return {
            "seeds": list(self.repeats.seeds),
            "folds": rows,
            "spread": None if apart is None else asdict(apart),
        }


def kept_epochs(summary: Mapping[str, Any]) -> Literal["best", "chosen"]:
    """Which epochs' weights a run has kept, by its ``summary.json``, also of an earlier version."""
    return "chosen" if summary.get("select") == "inner" else "best"


def rows_of_seeds(summary: Mapping[str, Any]) -> list[tuple[int | None, list[dict[str, Any]]]]:
    """Each seed with the rows of its folds, by a ``summary.json``; without repeats, None with those
    of the run.
    """
    repeats = summary.get("repeats") or {"seeds": [None], "folds": [summary["folds"]]}
    return list(zip(repeats["seeds"], repeats["folds"], strict=True))


def kept_estimate(summary: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Mean, std and interval of these epochs, by a ``summary.json``; None without a mean."""
    if summary is None or summary["mean_accuracy"] is None:
        return None
    # What earlier versions have written has no more than these.
    plain = {"mean": summary["mean_accuracy"], "std": summary["std_accuracy"], "interval": None}
    estimate: Mapping[str, Any] = summary.get("estimates", {}).get(kept_epochs(summary), plain)
    return estimate


def _fold_row(result: FoldResult) -> dict[str, Any]:
    return {
        "fold": result.fold,
        "status": result.status,
        "n_train": result.n_train,
        "n_val": result.n_val,
        "epochs_run": result.epochs_run,
        "best_epoch": result.best_epoch,
        "best_val_accuracy": result.best_val_accuracy,
        "chosen_epoch": result.chosen_epoch,
        "chosen_val_accuracy": result.chosen_val_accuracy,
        "last_val_accuracy": result.last_val_accuracy,
        "stopped_early": result.stopped_early,
        "error": result.error,
    }
