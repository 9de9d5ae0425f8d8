"""Who is told what happens in a run; the console is one of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from raykfold.errors import RaykfoldError, one_line
from raykfold.training.results import EpochMetrics, FoldResult, Histogram, Summary
from raykfold.training.statistics import mean

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 25


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

    def of_repeat(self, seed: int) -> Observer:
        """Who is told of a further repeat of the run; by default, nobody.

        Folds of repeats have the same labels: one observer of all could not tell them apart.
        """
        return Observer()


class Voice(Observer):
    """Says what the user should know, and nothing else.

    Args:
        say: takes a line.
        prefix: before each.
    """

    def __init__(self, say: Callable[[str], None], prefix: str = "") -> None:
        self._say = say
        self._prefix = prefix

    def noticed(self, text: str) -> None:
        self._say(self._prefix + text)


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

    def of_repeat(self, seed: int) -> Audience:
        """Those who are told of a repeat, by those who are told of the run."""
        return Audience([observer.of_repeat(seed) for observer in self._observers])

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
    """One plain line for each epoch of each fold, without control characters.

    Args:
        stream: where they go.
        repeat: what the lines of a repeat begin with.
    """

    def __init__(self, stream: TextIO, repeat: str = "") -> None:
        self._stream = stream
        self._repeat = repeat
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
        if not self._repeat:  # the run's own lines are on its repeats, too
            for line in ("", *summary_lines(summary, sparks=_shows_sparks(self._stream))):
                self._print(line)

    def of_repeat(self, seed: int) -> LineProgress:
        return LineProgress(self._stream, repeat=f"seed {seed}  ")

    def _print(self, text: str) -> None:
        print(f"{self._repeat}{text}", file=self._stream, flush=True)


class LiveProgress(Observer):
    """A line for each fold that changes in place, and the time that is left.

    Args:
        stream: a terminal.
        repeat: what the lines of a repeat begin with.
        display: that of the run, which its repeats are shown on.
    """

    def __init__(self, stream: TextIO, repeat: str = "", display: _Display | None = None) -> None:
        self._stream = stream
        self._repeat = repeat
        self._display = display or _Display(stream)
        self._start: RunStart | None = None
        self._newest: dict[int, EpochMetrics] = {}
        self._over: dict[int, FoldResult] = {}

    def run_started(self, start: RunStart) -> None:
        if len(start.finished) == len(start.folds):
            return
        self._start = start
        self._newest = {fold: rows[-1] for fold, rows in start.histories.items() if rows}
        self._over = dict(start.finished)
        self._display.add(self)

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._newest[fold] = metrics
        self._display.epochs_seen += 1
        self._display.refresh()

    def fold_finished(self, result: FoldResult) -> None:
        self._over[result.fold] = result
        self._display.refresh()

    def noticed(self, text: str) -> None:
        self._display.print(f"{self._repeat}{text}")

    def run_finished(self, summary: Summary) -> None:
        if not self._repeat:
            self.close()
            for line in ("", *summary_lines(summary, sparks=_shows_sparks(self._stream))):
                self._display.print(line)

    def of_repeat(self, seed: int) -> LiveProgress:
        return LiveProgress(self._stream, f"seed {seed}  ", self._display)

    def close(self) -> None:
        if not self._repeat:
            self._display.close()

    def rows(self) -> Iterator[tuple[str, str]]:
        """Of each fold its name, and how far it is."""
        assert self._start is not None
        for fold in self._start.folds:
            yield f"{self._repeat}fold {fold}", self._state(fold)

    def epochs_left(self) -> int:
        """At most."""
        assert self._start is not None
        return sum(
            self._start.epochs - (self._newest[fold].epoch + 1 if fold in self._newest else 0)
            for fold in self._start.folds
            if fold not in self._over
        )

    def _state(self, fold: int) -> str:
        assert self._start is not None
        if fold in self._over:
            return fold_line(self._over[fold]).partition(": ")[2]
        if fold not in self._newest:
            return "waiting"
        metrics = self._newest[fold]
        epoch = f"epoch {metrics.epoch + 1}/{self._start.epochs}"
        return f"{epoch}  {_losses(metrics)}  {metrics.seconds:.1f}s"


class _Display:
    """What a terminal shows of a run and its repeats, from the first that trains to the end."""

    def __init__(self, stream: TextIO) -> None:
        self.epochs_seen = 0
        self._stream = stream
        self._live: Live | None = None
        self._runs: list[LiveProgress] = []
        self._began = time.monotonic()

    def add(self, run: LiveProgress) -> None:
        from rich.console import Console
        from rich.live import Live

        self._runs.append(run)
        if self._live is None:
            self._began = time.monotonic()
            console = Console(file=self._stream, highlight=False)
            self._live = Live(self._table(), console=console, refresh_per_second=4)
            self._live.start()
        self.refresh()

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._live is not None:
            self.refresh()
            self._live.stop()
            self._live = None

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for run in self._runs:
            for name, state in run.rows():
                table.add_row(name, Text(state))
        table.add_row("", Text(self._time_left()))
        return table

    def _time_left(self) -> str:
        if not self.epochs_seen:
            return "starting"
        left = sum(run.epochs_left() for run in self._runs)
        seconds = (time.monotonic() - self._began) / self.epochs_seen * left
        return f"about {duration(seconds)} to go" if left else "putting the folds together"


def _losses(metrics: EpochMetrics) -> str:
    inner = "" if metrics.inner_accuracy is None else f"  inner_acc {metrics.inner_accuracy:.4f}"
    return (
        f"loss {metrics.loss:.4f}  acc {metrics.accuracy:.4f}  "
        f"val_loss {metrics.val_loss:.4f}  val_acc {metrics.val_accuracy:.4f}{inner}"
    )


def fold_line(result: FoldResult) -> str:
    """One line on a fold that is over."""
    if result.status == "failed" or result.kept_epoch is None:
        return f"fold {result.fold}: failed: {one_line(result.error)}"
    ended = "stopped early" if result.stopped_early else "ran to the end"
    kept = "best accuracy" if result.chosen_epoch is None else "accuracy of the chosen epoch"
    return (
        f"fold {result.fold}: {kept} {result.kept_val_accuracy:.4f} at epoch "
        f"{result.kept_epoch + 1} of {result.epochs_run}, {ended}"
    )


def mean_text(mean: float, std: float, folds: int) -> str:
    """``0.7163 (+/- 0.1464)``; of one fold there is no spread."""
    return f"{mean:.4f} (+/- {std:.4f})" if folds > 1 else f"{mean:.4f}"


def plus_minus(mean: float, std: float, folds: int) -> str:
    """``0.7163 ± 0.1464``, as pages have it."""
    return f"{mean:.4f} ± {std:.4f}" if folds > 1 else f"{mean:.4f}"


def counted(number: int, noun: str) -> str:
    """``1 fold``, ``2 folds``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def named(folds: Sequence[int]) -> str:
    """``fold 3``, ``folds 1, 2``."""
    return f"fold{'s' * (len(folds) != 1)} {', '.join(map(str, folds))}"


def duration(seconds: float) -> str:
    """3 s, 2 min 05 s, 1 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary_lines(summary: Summary, *, sparks: bool = True) -> list[str]:
    """The table of folds and what they say together, as printed at the end of a run.

    Args:
        sparks: draw each fold's validation accuracy, epoch by epoch, in characters of Unicode.
    """
    inner = summary.select == "inner"
    accuracies = ["best epoch", "accuracy"]
    if inner:
        accuracies = ["chosen epoch", "accuracy", "best epoch", "of best"]
    header = [
        f"fold{_of_seed(summary)}",
        "status",
        "train",
        "val",
        "epochs",
        *accuracies,
        "of last",
    ]
    rows = [header, *(_row(result, inner) for result in summary.folds)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    if sparks:
        drawn = ["", *_sparklines(summary.folds)]
        lines = [f"{line}  {spark}".rstrip() for line, spark in zip(lines, drawn, strict=True)]
    lines += [fold_line(result) for result in summary.folds if result.status == "failed"]
    return [*lines, *_repeat_lines(summary), "", *_mean_lines(summary), *_doubts(summary)]


def _repeat_lines(summary: Summary) -> Iterator[str]:
    """A table of the seeds: each with its mean over folds, and its folds."""
    if summary.repeats is None:
        return
    yield ""
    yield f"seed    mean  folds, {summary.kept_epochs} epochs"
    for seed, folds in zip(summary.repeats.seeds, summary.repeats.folds, strict=True):
        accuracies = [result.kept_val_accuracy for result in folds]
        known = [x for x in accuracies if x is not None]
        whole = all(result.status == "complete" for result in folds)
        shown = _accuracy(mean(known) if whole else None)
        yield f"{seed:4}  {shown:>6}  {'  '.join(map(_accuracy, accuracies))}"
    for seed, folds in zip(summary.repeats.seeds[1:], summary.repeats.folds[1:], strict=True):
        for result in folds:
            if result.status == "failed":
                yield f"seed {seed}, {fold_line(result)}"


def _mean_lines(summary: Summary) -> list[str]:
    partial = summary.partial_mean_accuracy
    if partial is not None:
        seeds = " with every seed" if summary.repeats else ""
        if partial["mean"] is None:
            return [f"Partial run: no fold is complete{seeds}"]
        folds = ", ".join(map(str, partial["folds"]))
        return [
            f"Partial run: mean {partial['mean']:.4f} over the complete folds only (folds {folds}"
            f"{seeds}), {partial['epochs']} epochs"
        ]
    estimates = {
        "Average Accuracy of the Chosen Epoch": summary.chosen,
        "Average Best Validation Accuracy": summary.best,
        "Average Last Validation Accuracy": summary.last,
    }
    lines = [
        f"{name}: {mean_text(each.mean, each.std, len(summary.folds))}"
        for name, each in estimates.items()
        if each
    ]
    if summary.oof_accuracy is not None:
        samples = sum(result.n_val for result in summary.folds)
        lines.append(
            f"Out-of-fold accuracy, {samples} samples pooled, {summary.kept_epochs} epochs"
            f"{_of_seed(summary)}: {summary.oof_accuracy:.4f}"
        )
    return lines


def _of_seed(summary: Summary) -> str:
    """Which seed it is that figures of one are of, where there are several."""
    return f", seed {summary.repeats.seeds[0]}" if summary.repeats else ""


def _doubts(summary: Summary) -> Iterator[str]:
    """How far to trust the numbers above."""
    estimates = {"chosen": summary.chosen, "best": summary.best, "last": summary.last}
    intervals = [
        f"{name} {_interval(each.interval)}"
        for name, each in estimates.items()
        if each and each.interval
    ]
    if intervals:
        yield (
            f"95 % intervals of the mean, approximate (Nadeau and Bengio): {', '.join(intervals)}"
        )
    if summary.out_of_fold is not None:
        yield (
            "95 % interval of the pooled accuracy, as if samples were independent (Wilson): "
            f"{_interval(summary.out_of_fold.interval)}"
        )
    yield from _apart(summary)
    yield from _spread(summary)
    if not summary.ranked:
        return
    if summary.kept_epochs == "chosen":
        yield (
            "Chosen: on an inner validation split. Best: by the samples that are held out, and "
            "so optimistic"
        )
    else:
        yield (
            "The best epoch is chosen by the samples that it is measured on, and so optimistic; "
            "the last is where training ended; --select inner chooses on other samples"
        )


def _spread(summary: Summary) -> Iterator[str]:
    if summary.spread is None or summary.repeats is None:
        return
    apart = summary.spread
    line = f"Standard deviation from seed to seed: {apart.over_seeds:.4f} of a fold"
    if apart.over_folds is not None:
        line += f", {apart.of_means:.4f} of the mean; from fold to fold: {apart.over_folds:.4f}"
    yield f"Each fold's accuracy is the mean over {len(summary.repeats.seeds)} seeds. {line}"


def _apart(summary: Summary) -> Iterator[str]:
    ranked = summary.ranked
    if not summary.folds_differ:
        return
    (worst, lowest), (best, highest) = ranked[0], ranked[-1]
    line = f"Worst: fold {worst} ({lowest:.4f}), best: fold {best} ({highest:.4f})"
    if summary.repeats is not None:
        line += ", means over the seeds"
    outlying = summary.outlier_folds
    if outlying:
        line += f"; apart from the others: fold {', '.join(map(str, outlying))}"
    yield line


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _sparklines(folds: Sequence[FoldResult]) -> list[str]:
    """Validation accuracy of each fold, all on one scale, at most so many epochs wide."""
    series = [[metrics.val_accuracy for metrics in result.history] for result in folds]
    values = [value for each in series for value in each]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    span = highest - lowest or 1.0
    return [
        "".join(_SPARKS[round((value - lowest) / span * (len(_SPARKS) - 1))] for value in shown)
        for shown in map(_thinned, series)
    ]


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """At most `_SPARK_WIDTH` of them, evenly spread, the first and the last among them."""
    if len(values) <= _SPARK_WIDTH:
        return values
    step = (len(values) - 1) / (_SPARK_WIDTH - 1)
    return [values[round(number * step)] for number in range(_SPARK_WIDTH)]


def _shows_sparks(stream: TextIO) -> bool:
    try:
        _SPARKS.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _row(result: FoldResult, inner: bool) -> list[str]:
    best = [_from_1(result.best_epoch), _accuracy(result.best_val_accuracy)]
    chosen = [_from_1(result.chosen_epoch), _accuracy(result.chosen_val_accuracy)]
    return [
        str(result.fold),
        result.status + (" (early)" if result.stopped_early else ""),
        str(result.n_train),
        str(result.n_val),
        str(result.epochs_run),
        *(chosen if inner else ()),
        *best,
        _accuracy(result.last_val_accuracy),
    ]


def _from_1(epoch: int | None) -> str:
    return "-" if epoch is None else str(epoch + 1)


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
