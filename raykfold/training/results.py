"""Results: of an epoch, of a fold, and of a run with all its folds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import numpy as np

from raykfold.data.leakage import Leakage
from raykfold.files.json_values import parse_as
from raykfold.text import (
    accuracy_text,
    epoch_text,
    figure_text,
    fold_with_seed,
    one_line,
    plus_minus,
)
from raykfold.training import html_parts
from raykfold.training.statistics import (
    ClassMetrics,
    Estimate,
    Spread,
    balanced_accuracy,
    macro_f1,
    mean,
    mean_accuracy,
    outliers,
    spread,
)

if TYPE_CHECKING:
    import pandas

FoldStatus = Literal["running", "complete", "failed"]
KeptEpochs = Literal["best", "chosen"]

# What results are measured by, each from 0 to 1.
Figure = Literal["accuracy", "balanced_accuracy", "macro_f1"]
FIGURES: tuple[Figure, ...] = get_args(Figure)
# What chooses epochs: a figure, the loss, or the score of a recipe that has its own.
Monitor = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss", "score"]

# Remarks on the results of the best and of the chosen epochs.
BEST_EPOCHS = (
    "The best epoch of a fold is chosen on the samples that measure it, so its results are "
    "optimistic."
)
CHOSEN_EPOCHS = (
    "The chosen epoch of a fold is chosen on an inner validation split, without the samples held "
    "out, so the choice does not make its results optimistic."
)

# What the history of a fold does not tell.
_NOT_IMPLIED = ("fold", "status", "n_train", "n_val", "stopped_early", "error")
# Of a fold, in a table.
_COLUMNS = (
    *("fold", "status", "n_train", "n_val", "epochs_run", "kept_epoch", "kept_val_accuracy"),
    *("best_epoch", "best_val_accuracy", "last_val_accuracy"),
    *("kept_val_balanced_accuracy", "kept_val_macro_f1", "stopped_early", "error"),
)


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch of one fold.

    Attributes:
        epoch: number of the epoch, from 0.
        loss: mean cross-entropy over the training samples, in training mode.
        accuracy: accuracy on the training samples, in training mode, from 0 to 1.
        val_loss: mean cross-entropy over the validation samples, which the fold holds out.
        val_accuracy: accuracy on the validation samples, from 0 to 1.
        learning_rate: learning rate of the epoch.
        seconds: wall time of training and evaluation.
        inner_loss: like `val_loss`, over the inner validation samples; None without a split.
        inner_accuracy: like `val_accuracy`, on the inner validation samples.
        val_balanced_accuracy, val_macro_f1: on the validation samples (`statistics`).
        val_score: the score on them that chooses the best epoch, the highest; None if it is the
            accuracy.
        inner_score: like `val_score`, on the inner validation samples.
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
    val_balanced_accuracy: float | None = None
    val_macro_f1: float | None = None
    val_score: float | None = None
    inner_score: float | None = None

    def figure(self, name: Figure) -> float | None:
        """Return a figure of the validation samples."""
        value: float | None = getattr(self, f"val_{name}")
        return value

    @property
    def held_out_score(self) -> float:
        """The score on the validation samples."""
        return self.val_accuracy if self.val_score is None else self.val_score

    @property
    def deciding_loss(self) -> float:
        """The loss that the learning rate and early stopping follow."""
        return self.val_loss if self.inner_loss is None else self.inner_loss

    @property
    def deciding_score(self) -> float:
        """The score that decides which epoch's weights are kept."""
        if self.inner_accuracy is None:
            return self.held_out_score
        return self.inner_accuracy if self.inner_score is None else self.inner_score


@dataclass(frozen=True)
class Histogram:
    """A histogram: `counts` of values between `edges`, of which there is one more."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]


def best_of(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """Return the first epoch of the highest validation score; None of an empty history.

    The held-out samples choose it, so its accuracy on them is optimistic.
    """
    return max(history, key=lambda each: (each.held_out_score, -each.epoch), default=None)


def kept_of(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """Return the epoch whose weights are kept; None of an empty history.

    With an inner validation split it is the epoch of the highest score on that split; of several
    (the split can be small), the one of the lowest loss. Without, it is `best_of`.
    """
    if not history or history[-1].inner_loss is None:
        return best_of(history)
    return max(history, key=lambda e: (e.deciding_score, -e.deciding_loss, -e.epoch))


def headline_of(monitor: str) -> Figure:
    """Return the figure that a run is summed up by: the one that is monitored, else accuracy."""
    return next((figure for figure in FIGURES if figure == monitor), "accuracy")


def monitor_of(option: Monitor, results: Iterable[FoldResult]) -> Monitor:
    """Return what chose the epochs of folds, whose histories show a recipe with its own score.

    Args:
        option: the run's ``--monitor``, which a recipe's `score` can override.
        results: of the folds, with their histories.
    """
    for epoch in (epoch for result in results for epoch in result.history):
        expected = -epoch.val_loss if option == "loss" else epoch.figure(headline_of(option))
        if expected is not None and epoch.held_out_score != expected:
            return "score"
    return option


def kept_epochs(select: str) -> KeptEpochs:
    """Return which epochs' weights a run keeps, given its ``--select``."""
    return "chosen" if select == "inner" else "best"


@dataclass(frozen=True)
class FoldResult:
    """The result of one fold; all but the history is the fold's row in ``summary.json``.

    `of` computes a result from its history. A `Summary` that is read from its file has results
    without histories.

    Attributes:
        fold: label of the fold.
        status: ``running``, ``complete`` (trained to its end), or ``failed``.
        n_train, n_val: numbers of training and of held-out samples.
        epochs_run: number of epochs that are complete.
        best_epoch, best_val_accuracy: epoch of the highest validation score, and its accuracy.
        chosen_epoch, chosen_val_accuracy: epoch that an inner validation split chose; None without.
        last_val_accuracy: validation accuracy after the last epoch.
        kept_val_balanced_accuracy, kept_val_macro_f1: of the epoch whose weights are kept.
        stopped_early: whether patience ended the fold before ``--epochs``.
        error: why the fold failed.
        history: metrics of each epoch.
    """

    fold: int
    status: FoldStatus
    n_train: int
    n_val: int
    epochs_run: int = 0
    best_epoch: int | None = None
    best_val_accuracy: float | None = None
    chosen_epoch: int | None = None
    chosen_val_accuracy: float | None = None
    last_val_accuracy: float | None = None
    kept_val_balanced_accuracy: float | None = None
    kept_val_macro_f1: float | None = None
    stopped_early: bool = False
    error: str | None = None
    history: tuple[EpochMetrics, ...] = ()

    @classmethod
    def of(
        cls,
        fold: int,
        status: FoldStatus,
        n_train: int,
        n_val: int,
        history: Sequence[EpochMetrics] = (),
        *,
        stopped_early: bool = False,
        error: str | None = None,
    ) -> FoldResult:
        """Return the result of a fold with this history."""
        best, kept = best_of(history), kept_of(history)
        chosen = None if kept is None or kept.inner_accuracy is None else kept
        return cls(
            fold=fold,
            status=status,
            n_train=n_train,
            n_val=n_val,
            epochs_run=len(history),
            best_epoch=None if best is None else best.epoch,
            best_val_accuracy=None if best is None else best.val_accuracy,
            chosen_epoch=None if chosen is None else chosen.epoch,
            chosen_val_accuracy=None if chosen is None else chosen.val_accuracy,
            last_val_accuracy=history[-1].val_accuracy if history else None,
            kept_val_balanced_accuracy=None if kept is None else kept.val_balanced_accuracy,
            kept_val_macro_f1=None if kept is None else kept.val_macro_f1,
            stopped_early=stopped_early,
            error=error,
            history=tuple(history),
        )

    @property
    def kept_epoch(self) -> int | None:
        """Epoch whose weights are kept."""
        return self.best_epoch if self.chosen_epoch is None else self.chosen_epoch

    @property
    def kept_val_accuracy(self) -> float | None:
        """Validation accuracy of that epoch."""
        return self.best_val_accuracy if self.chosen_epoch is None else self.chosen_val_accuracy

    @property
    def seconds(self) -> float:
        """Wall time of the epochs in the history."""
        return sum(metrics.seconds for metrics in self.history)

    def accuracy(self, epoch: str) -> float | None:
        """Return the validation accuracy of the ``best``, ``chosen`` or ``last`` epoch."""
        value: float | None = getattr(self, f"{epoch}_val_accuracy")
        return value

    def figure(self, name: Figure) -> float | None:
        """Return a figure of the epoch whose weights are kept."""
        value: float | None = getattr(self, f"kept_val_{name}")
        return value

    def to_json(self) -> dict[str, Any]:
        """Return the result with its history; what that implies is left out, except epochs."""
        values = {
            name: getattr(self, name) for name in (*_NOT_IMPLIED, "best_epoch", "chosen_epoch")
        }
        return {**values, "history": [asdict(metrics) for metrics in self.history]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FoldResult:
        """Return the result whose `to_json` is `values`.

        Raises:
            KeyError, TypeError: `values` is not of that form.
        """
        history = [EpochMetrics(**epoch) for epoch in values["history"]]
        return cls.of(**{name: values[name] for name in _NOT_IMPLIED}, history=history)

    def to_row(self) -> dict[str, Any]:
        """Return the fold's row in ``summary.json``."""
        return {name: value for name, value in vars(self).items() if name != "history"}


@dataclass(frozen=True)
class Round:
    """One round of a share, which its worker reports.

    Attributes:
        number: number of the round in its share, from 1.
        epochs: fold → metrics of the epoch that it completed.
        finished: fold → result of each fold that is over, which is on storage.
        failed: fold → why it failed.
        released: folds that the worker hands over because the driver asked for it.
        handed_over: those of them whose state was written, as they had trained an epoch.
        saved: folds in the checkpoint of the round.
        histograms: fold → name → histogram of weights or gradients, with --wandb_watch.
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
        """Return plain Python values, as JSON has them; Ray Train's metrics take no others."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_metrics(cls, values: Mapping[str, Any]) -> Round:
        """Return the round whose `to_metrics` is `values`."""
        found: Round = parse_as(cls, values, "round")
        return found


@dataclass(frozen=True)
class OutOfFoldMetrics:
    """Metrics of all held-out samples together, each predicted by the fold that held it out.

    Attributes:
        accuracy: accuracy over all samples.
        interval: its 95 % interval (`statistics.wilson_interval`).
        classes: metrics of each class, in the order of the network's outputs.
        confusion: samples by true class (row) and predicted class (column), in the same order.
    """

    accuracy: float
    interval: tuple[float, float]
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean recall of the classes that have samples; None without a confusion matrix."""
        return balanced_accuracy(np.array(self.confusion)) if self.confusion else None

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the classes that have samples; None without a confusion matrix."""
        return macro_f1(np.array(self.confusion)) if self.confusion else None

    def figure(self, name: Figure) -> float | None:
        """Return a figure of all samples together."""
        value: float | None = getattr(self, name)
        return value


@dataclass(frozen=True)
class RecordingsOfFold:
    """Results of the recordings that a fold holds out, at the epoch whose weights are kept.

    Attributes:
        fold: label of the fold.
        recordings: number of them.
        accuracy, balanced_accuracy, macro_f1: over recordings.
    """

    fold: int
    recordings: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float

    def figure(self, name: Figure) -> float:
        """Return a figure over the recordings."""
        value: float = getattr(self, name)
        return value


@dataclass(frozen=True)
class ByRecording:
    """Results by recording, where samples are windows of recordings.

    The prediction of a recording is the class of the highest mean probability over its windows.

    Attributes:
        folds: of each complete fold, in fold order.
        pooled: metrics of all recordings together; None unless every fold is complete.
    """

    folds: tuple[RecordingsOfFold, ...]
    pooled: OutOfFoldMetrics | None

    @property
    def recordings(self) -> int:
        """Number of recordings in the complete folds."""
        return sum(each.recordings for each in self.folds)

    def of_fold(self, fold: int) -> RecordingsOfFold | None:
        """Return the results of a fold; None if it is not complete."""
        return next((each for each in self.folds if each.fold == fold), None)

    def over_folds(self, figure: Figure, test_to_train: float) -> Estimate | None:
        """Return a figure over the folds; None unless every fold is complete."""
        if self.pooled is None:
            return None
        return Estimate(tuple(each.figure(figure) for each in self.folds), test_to_train)

    def to_json(self, test_to_train: float) -> dict[str, Any]:
        """Return plain values by attribute, with the figures over the folds."""
        estimates = {name: self.over_folds(name, test_to_train) for name in FIGURES}
        return {
            "recordings": self.recordings,
            "figures": {name: each.to_json() for name, each in estimates.items() if each},
            **json.loads(json.dumps(asdict(self))),
        }


@dataclass(frozen=True)
class Repeats:
    """A cross-validation that was repeated with further seeds.

    Attributes:
        seeds: seed of each repeat, the run's own first.
        folds: results of each repeat, of the same folds in the same order.
    """

    seeds: tuple[int, ...]
    folds: tuple[tuple[FoldResult, ...], ...]


@dataclass(frozen=True)
class PartialMean:
    """The mean accuracy over some folds of a run, those that are complete with every seed.

    Attributes:
        folds: labels of the folds.
        mean: mean accuracy of their kept epochs; None if there is no fold.
    """

    folds: tuple[int, ...]
    mean: float | None


@dataclass(frozen=True)
class Summary:
    """The results of a run that is over, as ``summary.json`` has them.

    Means are over all folds of the run, and are None unless every fold is complete: the mean over
    the folds that happened to succeed is another number (`partial_mean`). In a run with repeats the
    accuracy of a fold is its mean over the seeds.

    Attributes:
        folds: result of each fold, in fold order, with the run's own seed. Their histories are in
            ``fold_results.json``, not in ``summary.json``.
        out_of_fold: metrics of all samples, with the run's own seed; None unless every fold is
            complete.
        classes: label → name, in the order of the network's outputs.
        wall_seconds: time spent on the run, summed over its sessions.
        num_workers: largest number of workers at a time.
        versions: package → version.
        sessions: number of sessions that trained: one more than the run was resumed.
        select: ``inner`` if an inner validation split chose each fold's epoch, else ``best``.
        repeats: results of every seed, if there are several.
        leakage: samples that are in more than one fold.
        monitor: what chose the epochs; ``score`` is a recipe's own.
        by_recording: results by recording, with the run's own seed; None where samples are not
            windows of recordings. All others are by window.
    """

    run_name: str
    folds: tuple[FoldResult, ...]
    out_of_fold: OutOfFoldMetrics | None
    classes: Mapping[int, str]
    wall_seconds: float
    num_workers: int
    versions: Mapping[str, str] = field(default_factory=dict)
    sessions: int = 1
    select: Literal["best", "inner"] = "best"
    repeats: Repeats | None = None
    leakage: Leakage | None = None
    monitor: Monitor = "accuracy"
    by_recording: ByRecording | None = None

    @property
    def by_seed(self) -> list[tuple[int | None, tuple[FoldResult, ...]]]:
        """Each seed with its folds; the seed of a run without repeats is None."""
        if self.repeats is None:
            return [(None, self.folds)]
        return list(zip(self.repeats.seeds, self.repeats.folds, strict=True))

    @property
    def incomplete(self) -> list[tuple[int | None, FoldResult]]:
        """Each fold that is not complete, with its seed as in `by_seed`."""
        return [(s, fold) for s, folds in self.by_seed for fold in folds if not _is_complete(fold)]

    @property
    def status(self) -> Literal["complete", "partial"]:
        return "partial" if self.incomplete else "complete"

    @property
    def best(self) -> Estimate | None:
        """Over each fold's best epoch: the usual protocol, and an optimistic one."""
        return self._estimate(lambda result: result.best_val_accuracy)

    @property
    def last(self) -> Estimate | None:
        """Over each fold's last epoch, which nobody chose."""
        return self._estimate(lambda result: result.last_val_accuracy)

    @property
    def chosen(self) -> Estimate | None:
        """Over the epoch that each fold's inner validation split chose; None without a split."""
        return self._estimate(lambda result: result.chosen_val_accuracy)

    @property
    def kept(self) -> Estimate | None:
        """Over the epochs whose weights are kept."""
        return self.chosen if self.kept_epochs == "chosen" else self.best

    @property
    def headline(self) -> Figure:
        """The figure that the run is summed up by."""
        return headline_of(self.monitor)

    @property
    def other_figures(self) -> list[Figure]:
        """The figures that stand beside the headline."""
        return [figure for figure in FIGURES if figure != self.headline]

    def over_folds(self, figure: Figure) -> Estimate | None:
        """Return a figure over the epochs whose weights are kept; of accuracy, it is `kept`."""
        return self._estimate(lambda result: result.figure(figure))

    @property
    def balanced_accuracy(self) -> Estimate | None:
        """Over the epochs whose weights are kept."""
        return self.over_folds("balanced_accuracy")

    @property
    def macro_f1(self) -> Estimate | None:
        """Over the epochs whose weights are kept."""
        return self.over_folds("macro_f1")

    def recordings_over_folds(self, figure: Figure = "accuracy") -> Estimate | None:
        """Return a figure by recording, of the run's own seed, over the kept epochs."""
        if self.by_recording is None:
            return None
        return self.by_recording.over_folds(figure, self.test_to_train)

    @property
    def samples(self) -> Literal["samples", "windows"]:
        """What the samples are called."""
        return "samples" if self.by_recording is None else "windows"

    @property
    def kept_epochs(self) -> KeptEpochs:
        """Which epochs' weights are kept."""
        return kept_epochs(self.select)

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
    def partial_mean(self) -> PartialMean | None:
        """The mean over the folds that are complete with every seed; None in a complete run."""
        if self.status == "complete":
            return None
        kept = self._by_fold(lambda result: result.kept_val_accuracy)
        return PartialMean(tuple(kept), mean_accuracy(list(kept.values())) if kept else None)

    @property
    def ranked(self) -> list[tuple[int, float]]:
        """The complete folds, the worst first, each with the accuracy of its kept epoch."""
        accuracies = self._by_fold(lambda result: result.kept_val_accuracy)
        return sorted(accuracies.items(), key=lambda pair: (pair[1], pair[0]))

    @property
    def folds_differ(self) -> bool:
        """Whether one fold is the worst and another the best."""
        return bool(self.ranked) and self.ranked[0][1] < self.ranked[-1][1]

    @property
    def worst_fold(self) -> int | None:
        """The fold of the lowest accuracy, unless all are alike."""
        return self.ranked[0][0] if self.folds_differ else None

    @property
    def best_fold(self) -> int | None:
        """The fold of the highest accuracy, unless all are alike."""
        return self.ranked[-1][0] if self.folds_differ else None

    @property
    def outlier_folds(self) -> list[int]:
        """Folds whose accuracy is apart from the others' (`statistics.outliers`)."""
        ranked, sizes = self.ranked, {result.fold: result.n_val for result in self.folds}
        for row in self.by_recording.folds if self.by_recording else ():
            sizes[row.fold] = row.recordings  # windows of one recording are not independent
        apart = outliers([accuracy for _, accuracy in ranked], [sizes[fold] for fold, _ in ranked])
        return sorted(ranked[position][0] for position in apart)

    @property
    def spread(self) -> Spread | None:
        """How the accuracy varies over seeds and over folds; None without repeats."""
        if self.repeats is None or self.status != "complete":
            return None
        return spread([[r.kept_val_accuracy for r in folds] for folds in self.repeats.folds])

    @property
    def test_to_train(self) -> float:
        """Held-out samples to training samples, over all folds."""
        held_out = sum(result.n_val for result in self.folds)
        return held_out / sum(result.n_train for result in self.folds)

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas table with a row for each fold, and for each seed in a run with repeats.

        Its columns are named as in ``summary.json``: ``fold``, ``status``, ``n_train``, ``n_val``,
        ``epochs_run``, ``kept_epoch``, ``kept_val_accuracy``, ``best_epoch``,
        ``best_val_accuracy``, ``last_val_accuracy``, ``kept_val_balanced_accuracy``,
        ``kept_val_macro_f1``, ``stopped_early`` and ``error``. Epochs count from 0. With repeats,
        ``seed`` comes first. Where samples are windows of recordings, ``recordings`` and
        ``kept_val_accuracy_by_recording`` come last; they are missing for further seeds.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "Summary.to_frame needs pandas, which is not installed: pip install pandas"
            ) from None
        rows = []
        for number, (seed, folds) in enumerate(self.by_seed):
            for result in folds:
                row: dict[str, Any] = {} if seed is None else {"seed": seed}
                row |= {name: getattr(result, name) for name in _COLUMNS}
                if self.by_recording is not None:
                    of_fold = self.by_recording.of_fold(result.fold) if number == 0 else None
                    row["recordings"] = of_fold and of_fold.recordings
                    row["kept_val_accuracy_by_recording"] = of_fold and of_fold.accuracy
                rows.append(row)
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the means, the folds, and their curves."""
        kept, by_recording, of_seed = self.kept_epochs, self.by_recording, ""
        if self.repeats is not None:
            of_seed = f", seed {self.repeats.seeds[0]}"
        means = [f"{self.run_name}: {self.status}"]
        if self.incomplete:
            failed = ", ".join(fold_with_seed(each.fold, seed) for seed, each in self.incomplete)
            means.append(f"there is no mean, because folds failed ({failed})")
        estimates = [
            (f"{figure_text(name)} at the {kept} epochs", self.over_folds(name))
            for name in (self.headline, *self.other_figures)
        ]
        estimates.insert(1, (f"by recording{of_seed}", self.recordings_over_folds(self.headline)))
        estimates.append(("accuracy at the last epochs", self.last))
        for name, estimate in estimates:
            if estimate is not None:
                value = plus_minus(estimate.mean, estimate.std, len(self.folds))
                means.append(f"{name} {value}")

        columns = [f"fold{of_seed}", "status", "epochs", f"{kept} epoch", "accuracy", "of last"]
        columns += ["balanced", "macro F1", *(["by recording"] if by_recording else [])]
        rows = []
        for result in self.folds:
            early = " (early)" if result.stopped_early else ""
            error = f": {one_line(result.error)}" if result.error else ""
            row = [str(result.fold), f"{result.status}{early}{error}", str(result.epochs_run)]
            row.append(epoch_text(result.kept_epoch))
            figures = [result.kept_val_accuracy, result.last_val_accuracy]
            figures += [result.kept_val_balanced_accuracy, result.kept_val_macro_f1]
            if by_recording is not None:
                of_fold = by_recording.of_fold(result.fold)
                figures.append(of_fold.accuracy if of_fold else None)
            rows.append([*row, *map(accuracy_text, figures)])

        # A summary that was read from its file has no histories.
        trained = {f"fold {each.fold}": each for each in self.folds if each.history}
        drawn = ""
        if trained:
            drawn = html_parts.curves(
                f"Validation accuracy{of_seed}",
                {name: [row.val_accuracy for row in of.history] for name, of in trained.items()},
                {name: of.kept_epoch for name, of in trained.items()},
            )
        doubt = BEST_EPOCHS if kept == "best" else CHOSEN_EPOCHS
        lines = [means[0] + " · " + " · ".join(means[1:]) if means[1:] else means[0]]
        lines += [doubt] if self.ranked else []
        text = "".join(f"<div>{escape(line)}</div>" for line in lines)
        return f"<div>{text}{html_parts.table(columns, rows)}{drawn}</div>"

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        best, last, pooled, partial = self.best, self.last, self.out_of_fold, self.partial_mean
        estimates = {"best": best, "last": last, "chosen": self.chosen}
        others = {name: self.over_folds(name) for name in FIGURES if name != "accuracy"}
        repeats = self.repeats and {
            "seeds": list(self.repeats.seeds),
            "folds": [[result.to_row() for result in folds] for folds in self.repeats.folds],
            "spread": self.spread and asdict(self.spread),
        }
        recordings = self.by_recording and self.by_recording.to_json(self.test_to_train)
        return {
            "run_name": self.run_name,
            "status": self.status,
            "select": self.select,
            "monitor": self.monitor,
            "folds": [result.to_row() for result in self.folds],
            "mean_accuracy": best.mean if best else None,
            "std_accuracy": best.std if best else None,
            "std_accuracy_sample": best.std_sample if best else None,
            "last_mean_accuracy": last.mean if last else None,
            "last_std_accuracy": last.std if last else None,
            "estimates": {name: each.to_json() for name, each in estimates.items() if each},
            "figures": {name: each.to_json() for name, each in others.items() if each},
            "partial_mean_accuracy": partial
            and {"folds": list(partial.folds), "epochs": self.kept_epochs, "mean": partial.mean},
            "worst_fold": self.worst_fold,
            "best_fold": self.best_fold,
            "outlier_folds": self.outlier_folds,
            "oof_accuracy": pooled.accuracy if pooled else None,
            "oof_interval": list(pooled.interval) if pooled else None,
            "oof_balanced_accuracy": pooled.balanced_accuracy if pooled else None,
            "oof_macro_f1": pooled.macro_f1 if pooled else None,
            "per_class": [asdict(each) for each in pooled.classes] if pooled else None,
            "confusion_matrix": [list(row) for row in pooled.confusion] if pooled else None,
            **({"by_recording": recordings} if recordings else {}),
            "repeats": repeats,
            "leakage": self.leakage and self.leakage.to_json(),
            "classes": {str(label): name for label, name in self.classes.items()},
            "wall_seconds": round(self.wall_seconds, 3),
            "num_workers": self.num_workers,
            "sessions": self.sessions,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, values: Any) -> Summary:
        """Return the summary whose `to_json` is `values`; its folds have no histories.

        What the folds imply, like means and intervals, is computed again, and not read.

        Raises:
            ValueError: `values` is not the content of a ``summary.json``; the text says why.
        """
        if not isinstance(values, dict):
            raise ValueError("it is not an object")

        def part(kind: Any, name: str) -> Any:
            if name not in values:
                raise ValueError(f"it has no {name}")
            return parse_as(kind, values[name], name)

        pooled = None
        if values.get("oof_accuracy") is not None:
            pooled = OutOfFoldMetrics(
                accuracy=part(float, "oof_accuracy"),
                interval=part(tuple[float, float], "oof_interval"),
                classes=part(tuple[ClassMetrics, ...], "per_class"),
                confusion=part(tuple[tuple[int, ...], ...], "confusion_matrix"),
            )
            _check_confusion(pooled)
        kinds = get_type_hints(cls)
        absent = {"out_of_fold"} if "by_recording" in values else {"out_of_fold", "by_recording"}
        names = [each.name for each in fields(cls) if each.name not in absent]
        summary = cls(**{name: part(kinds[name], name) for name in names}, out_of_fold=pooled)
        # A summary that has been edited is refused here, not where a mean is computed from it.
        if summary.repeats and len(summary.repeats.seeds) != len(summary.repeats.folds):
            raise ValueError("repeats has not one list of folds for each seed")
        runs, kept, headline = summary.by_seed, summary.kept_epochs, summary.headline
        labels = [result.fold for result in summary.folds]
        if not labels or any([result.fold for result in folds] != labels for _, folds in runs):
            raise ValueError("it has no folds, or its seeds have different ones")
        for result in (result for _, folds in runs for result in folds):
            if min(result.n_train, result.n_val) < 1:
                raise ValueError(f"fold {result.fold} has no samples")
            if _is_complete(result) and None in (result.accuracy(kept), result.accuracy("last")):
                raise ValueError(f"fold {result.fold} is complete and has no accuracy")
            if _is_complete(result) and result.figure(headline) is None:
                raise ValueError(f"fold {result.fold} is complete and has no {headline}")
        if summary.by_recording is not None:
            complete = [result.fold for result in summary.folds if _is_complete(result)]
            if [each.fold for each in summary.by_recording.folds] != complete:
                raise ValueError("by_recording has other folds than those that are complete")
            if summary.by_recording.pooled is not None:
                _check_confusion(summary.by_recording.pooled)
        return summary

    def _by_fold(self, value_of: Callable[[FoldResult], float | None]) -> dict[int, float]:
        """Fold → a value, the mean over the seeds; of folds that are complete with each."""
        means = {}
        for of_fold in zip(*(folds for _, folds in self.by_seed), strict=True):
            known = [value for value in map(value_of, of_fold) if value is not None]
            if all(map(_is_complete, of_fold)) and len(known) == len(of_fold):
                means[of_fold[0].fold] = mean(known)
        return means

    def _estimate(self, value_of: Callable[[FoldResult], float | None]) -> Estimate | None:
        values = self._by_fold(value_of)
        if len(values) < len(self.folds):
            return None
        return Estimate(tuple(values.values()), self.test_to_train)


def _check_confusion(pooled: OutOfFoldMetrics) -> None:
    rows = pooled.confusion
    if any(len(row) != len(rows) for row in rows) or (rows and not any(map(any, rows))):
        raise ValueError("confusion_matrix is not square, or has no samples")


def _is_complete(result: FoldResult) -> bool:
    return result.status == "complete"
