"""Who is told what happens in a run; the console is one of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from raykfold.errors import RaykfoldError, one_line
from raykfold.results import EpochMetrics, FoldResult, Histogram, Summary

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


@dataclass(frozen=True)
class RunStart:
    """What a run is about to do.

    Attributes:
        run_name: the run's name.
        epochs: most epochs of a fold.
        folds: the folds held out, in order.
        histories: fold → epochs that an earlier session completed.
        finished: results of folds that are over already.
    """

    run_name: str
    epochs: int
    folds: tuple[int, ...]
    histories: Mapping[int, Sequence[EpochMetrics]]
    finished: Mapping[int, FoldResult] = field(default_factory=dict)


class Observer:
    """Told, in the driver's process, of everything that is committed.

    Override what you need. An observer that raises is not told any more, and the run goes on,
    unless it raises a `RaykfoldError`, which ends the run.
    """

    def run_started(self, start: RunStart) -> None:
        """Once, before the first epoch of this session; also when none is left to train."""

    def weights_watched(self, fold: int, epoch: int, histograms: Mapping[str, Histogram]) -> None:
        """Before `epoch_committed`, with --wandb_watch: histograms of weights and gradients."""

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        """After each epoch of each fold; its weights are on storage."""

    def fold_finished(self, result: FoldResult) -> None:
        """A fold is complete, or has failed."""

    def workers_changed(self, at_work: Sequence[Sequence[int]]) -> None:
        """Which workers run now: the folds of each."""

    def worker_lost(self, folds: Sequence[int], reason: str) -> None:
        """A worker has ended before these folds were over; they wait again, or fail."""

    def noticed(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def run_finished(self, summary: Summary) -> None:
        """Once, when every fold is over."""

    def time_passed(self) -> None:
        """Several times a second: say what a thread of your own has found meanwhile."""

    def pending(self) -> Mapping[str, int]:
        """Where to → how many files have still to be sent there; nothing if you send none.

        Asked every few seconds, from any thread, and until all observers are closed: count what
        you know, and contact nobody.
        """
        return {}

    def close(self) -> None:
        """The session ends, whether or not the run is over."""


class Audience(Observer):
    """Passes everything on to several observers, and shields the run from their failures."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)
        self._senders = list(observers)  # also while they are closed, which is when they wait

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)
        self._senders.append(observer)

    def run_started(self, start: RunStart) -> None:
        self._tell("run_started", start)

    def weights_watched(self, fold: int, epoch: int, histograms: Mapping[str, Histogram]) -> None:
        self._tell("weights_watched", fold, epoch, histograms)

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._tell("epoch_committed", fold, metrics)

    def fold_finished(self, result: FoldResult) -> None:
        self._tell("fold_finished", result)

    def workers_changed(self, at_work: Sequence[Sequence[int]]) -> None:
        self._tell("workers_changed", at_work)

    def worker_lost(self, folds: Sequence[int], reason: str) -> None:
        self._tell("worker_lost", folds, reason)

    def noticed(self, text: str) -> None:
        self._tell("noticed", text)

    def run_finished(self, summary: Summary) -> None:
        self._tell("run_finished", summary)

    def time_passed(self) -> None:
        self._tell("time_passed")

    def pending(self) -> Mapping[str, int]:
        """What they have to send, summed; one that cannot say is left out."""
        files: dict[str, int] = {}
        for observer in list(self._senders):
            with suppress(Exception):
                for place, count in observer.pending().items():
                    files[place] = files.get(place, 0) + count
        return files

    def close(self) -> None:
        """The last that came goes first: what it has still to say is for those before it.

        Each is closed once, also when a signal cuts one short and this is called again.
        """
        while self._observers:
            self._tell_one(self._observers.pop(), "close")

    def _tell(self, what: str, *args: Any) -> None:
        for observer in list(self._observers):
            self._tell_one(observer, what, *args)

    def _tell_one(self, observer: Observer, what: str, *args: Any) -> None:
        try:
            getattr(observer, what)(*args)
        except RaykfoldError:
            raise
        except Exception as error:
            self._observers = [each for each in self._observers if each is not observer]
            name = type(observer).__name__
            self.noticed(f"{name} failed and is not told any more: {one_line(error)}")


def console(stream: TextIO | None = None) -> Observer:
    """Progress for people: a live line a fold on a terminal, plain lines elsewhere."""
    stream = stream or sys.stdout
    return LiveProgress(stream) if stream.isatty() else LineProgress(stream)


class LineProgress(Observer):
    """One plain line for each epoch of each fold, without control characters."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._epochs = 0

    def run_started(self, start: RunStart) -> None:
        self._epochs = start.epochs
        left = [str(fold) for fold in start.folds if fold not in start.finished]
        if not left:
            return
        self._print(
            f"run {start.run_name}: training folds {', '.join(left)}, "
            f"at most {start.epochs} epochs each"
        )

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._print(
            f"fold {fold}  epoch {metrics.epoch + 1}/{self._epochs}  "
            f"{_losses(metrics)}  {metrics.seconds:.1f}s"
        )

    def fold_finished(self, result: FoldResult) -> None:
        self._print(fold_line(result))

    def noticed(self, text: str) -> None:
        self._print(text)

    def run_finished(self, summary: Summary) -> None:
        for line in ("", *summary_lines(summary)):
            self._print(line)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveProgress(Observer):
    """A line for each fold that changes in place, and the time that is left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None
        self._start: RunStart | None = None
        self._newest: dict[int, EpochMetrics] = {}
        self._over: dict[int, FoldResult] = {}
        self._began = time.monotonic()
        self._epochs_seen = 0

    def run_started(self, start: RunStart) -> None:
        from rich.console import Console
        from rich.live import Live

        if len(start.finished) == len(start.folds):
            return
        self._start = start
        self._newest = {fold: rows[-1] for fold, rows in start.histories.items() if rows}
        self._over = dict(start.finished)
        self._began = time.monotonic()
        console = Console(file=self._stream, highlight=False)
        self._live = Live(self._table(), console=console, refresh_per_second=4)
        self._live.start()

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._newest[fold] = metrics
        self._epochs_seen += 1
        self._refresh()

    def fold_finished(self, result: FoldResult) -> None:
        self._over[result.fold] = result
        self._refresh()

    def noticed(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def run_finished(self, summary: Summary) -> None:
        self.close()
        for line in ("", *summary_lines(summary)):
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._live is not None:
            self._refresh()
            self._live.stop()
            self._live = None

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        assert self._start is not None
        table = Table.grid(padding=(0, 2))
        for fold in self._start.folds:
            table.add_row(f"fold {fold}", Text(self._state(fold)))
        table.add_row("", Text(self._time_left()))
        return table

    def _state(self, fold: int) -> str:
        assert self._start is not None
        if fold in self._over:
            return fold_line(self._over[fold]).partition(": ")[2]
        if fold not in self._newest:
            return "waiting"
        metrics = self._newest[fold]
        epoch = f"epoch {metrics.epoch + 1}/{self._start.epochs}"
        return f"{epoch}  {_losses(metrics)}  {metrics.seconds:.1f}s"

    def _time_left(self) -> str:
        assert self._start is not None
        if not self._epochs_seen:
            return "starting"
        left = sum(
            self._start.epochs - (self._newest[fold].epoch + 1 if fold in self._newest else 0)
            for fold in self._start.folds
            if fold not in self._over
        )
        seconds = (time.monotonic() - self._began) / self._epochs_seen * left
        return f"at most {duration(seconds)} to go" if left else "putting the folds together"


def _losses(metrics: EpochMetrics) -> str:
    return (
        f"loss {metrics.loss:.4f}  acc {metrics.accuracy:.4f}  "
        f"val_loss {metrics.val_loss:.4f}  val_acc {metrics.val_accuracy:.4f}"
    )


def fold_line(result: FoldResult) -> str:
    """One line on a fold that is over."""
    if result.status == "failed" or result.best_epoch is None:
        return f"fold {result.fold}: failed: {result.error}"
    ended = "stopped early" if result.stopped_early else "ran to the end"
    return (
        f"fold {result.fold}: best accuracy {result.best_val_accuracy:.4f} at epoch "
        f"{result.best_epoch + 1} of {result.epochs_run}, {ended}"
    )


def duration(seconds: float) -> str:
    """3 s, 2 min 05 s, 1 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary_lines(summary: Summary) -> list[str]:
    """The table of folds and the mean, as printed at the end of a run."""
    header = ("fold", "status", "train", "val", "epochs", "best", "accuracy", "last")
    rows = [header, *(_row(result) for result in summary.folds)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines += [fold_line(result) for result in summary.folds if result.status == "failed"]
    return [*lines, "", *_mean_lines(summary)]


def _mean_lines(summary: Summary) -> list[str]:
    partial = summary.partial_mean_accuracy
    if partial is not None:
        folds = ", ".join(map(str, partial["folds"])) or "none"
        mean = "no mean" if partial["mean"] is None else f"mean {partial['mean']:.4f}"
        return [f"Partial run: {mean} over the complete folds only (folds {folds})"]
    lines = [
        "Average Best Validation Accuracy: "
        f"{summary.mean_accuracy:.4f} (+/- {summary.std_accuracy:.4f})",
        "Average Last Validation Accuracy: "
        f"{summary.last_mean_accuracy:.4f} (+/- {summary.last_std_accuracy:.4f})",
    ]
    if summary.oof_accuracy is not None:
        lines.append(f"Out-of-fold accuracy, all samples pooled: {summary.oof_accuracy:.4f}")
    return lines


def _row(result: FoldResult) -> tuple[str, ...]:
    best, last = result.best_val_accuracy, result.last_val_accuracy
    return (
        str(result.fold),
        result.status + (" (early)" if result.stopped_early else ""),
        str(result.n_train),
        str(result.n_val),
        str(result.epochs_run),
        "-" if result.best_epoch is None else str(result.best_epoch + 1),
        "-" if best is None else f"{best:.4f}",
        "-" if last is None else f"{last:.4f}",
    )
