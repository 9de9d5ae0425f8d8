"""The console: a live line for each fold on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from raykfold.observers import Observer, RunStart
from raykfold.pages.summary_text import SPARKS, fold_line, summary_lines
from raykfold.text import duration
from raykfold.training.results import EpochMetrics, FoldResult, Summary

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


def console(stream: TextIO | None = None) -> Observer:
    """Return the observer that shows progress on `stream`, by default on stdout."""
    stream = stream or sys.stdout
    return LiveProgress(Terminal(stream)) if stream.isatty() else LineProgress(stream)


class LineProgress(Observer):
    """Prints a plain line for each epoch of each fold, without control characters.

    Args:
        stream: where to print.
        repeat: what each line of a repeat begins with.
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
        self._print(f"fold {fold}  {_epoch_line(metrics, self._epochs)}")

    def fold_finished(self, result: FoldResult) -> None:
        self._print(fold_line(result))

    def noticed(self, text: str) -> None:
        self._print(text)

    def run_finished(self, summary: Summary) -> None:
        if not self._repeat:  # the summary of the run has its repeats
            for line in _last_lines(summary, self._stream):
                self._print(line)

    def of_repeat(self, seed: int) -> LineProgress:
        return LineProgress(self._stream, repeat=f"seed {seed}  ")

    def _print(self, text: str) -> None:
        print(f"{self._repeat}{text}", file=self._stream, flush=True)


class LiveProgress(Observer):
    """Shows a line for each fold that changes in place, and the time left.

    Args:
        display: where; a run and its repeats share it.
        repeat: what each line of a repeat begins with.
    """

    def __init__(self, display: Display, repeat: str = "") -> None:
        self._repeat = repeat
        self._display = display
        self._epochs = 0
        self._folds: tuple[int, ...] = ()
        self._newest: dict[int, EpochMetrics] = {}
        self._over: dict[int, FoldResult] = {}

    def run_started(self, start: RunStart) -> None:
        if len(start.finished) == len(start.folds):
            return
        self._epochs, self._folds = start.epochs, start.folds
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
            self._display.finish(summary)

    def of_repeat(self, seed: int) -> LiveProgress:
        return LiveProgress(self._display, f"seed {seed}  ")

    def time_passed(self) -> None:
        self._display.time_passed()

    def close(self) -> None:
        if not self._repeat:
            self._display.close()

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the state of each fold."""
        for fold in self._folds:
            yield f"{self._repeat}fold {fold}", self._state(fold)

    def epochs_left(self) -> int:
        """Return the largest number of epochs that are left to train."""
        left = [fold for fold in self._folds if fold not in self._over]
        return self._epochs * len(left) - self._done(left)

    def epochs_done(self) -> int:
        """Return the number of epochs that are trained, those of earlier sessions too."""
        over = sum(result.epochs_run for result in self._over.values())
        return over + self._done([fold for fold in self._folds if fold not in self._over])

    def _done(self, folds: Sequence[int]) -> int:
        return sum(self._newest[fold].epoch + 1 for fold in folds if fold in self._newest)

    def _state(self, fold: int) -> str:
        if fold in self._over:
            return fold_line(self._over[fold]).partition(": ")[2]
        if fold not in self._newest:
            return "waiting"
        return _epoch_line(self._newest[fold], self._epochs)


class Display:
    """Shows a run and its repeats while they train.

    Attributes:
        runs: the run and its repeats, once they have begun.
        epochs_seen: epochs that were trained since then.
    """

    def __init__(self) -> None:
        self.runs: list[LiveProgress] = []
        self.epochs_seen = 0
        self._began = time.monotonic()

    def add(self, run: LiveProgress) -> None:
        """Show one more run."""
        if not self.runs:
            self._began = time.monotonic()
        self.runs.append(run)
        self.refresh()

    def refresh(self) -> None:
        """Show what has changed."""

    def time_passed(self) -> None:
        """Called several times a second."""

    def print(self, text: str) -> None:
        """Show a line that stays."""

    def finish(self, summary: Summary) -> None:
        """Show the results."""

    def close(self) -> None:
        """Leave what is shown as it is; called once or twice."""

    def time_left(self) -> str:
        """Return about how long it will take."""
        if not self.epochs_seen:
            return "starting"
        left = sum(run.epochs_left() for run in self.runs)
        seconds = (time.monotonic() - self._began) / self.epochs_seen * left
        return f"about {duration(seconds)} to go" if left else "putting the folds together"


class Terminal(Display):
    """The part of a terminal that shows a run and its repeats while they train."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._live: Live | None = None

    def add(self, run: LiveProgress) -> None:
        from rich.console import Console
        from rich.live import Live

        super().add(run)
        if self._live is None:
            console = Console(file=self._stream, highlight=False)
            self._live = Live(self._table(), console=console, refresh_per_second=4)
            self._live.start()

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def finish(self, summary: Summary) -> None:
        self.close()
        for line in _last_lines(summary, self._stream):
            self.print(line)

    def close(self) -> None:
        if self._live is not None:
            self.refresh()
            self._live.stop()
            self._live = None

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for run in self.runs:
            for name, state in run.rows():
                table.add_row(name, Text(state))
        table.add_row("", Text(self.time_left()))
        return table


def _last_lines(summary: Summary, stream: TextIO) -> list[str]:
    """Return the summary below an empty line, with the sparklines if the stream can show them."""
    try:
        SPARKS.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return ["", *summary_lines(summary, sparks=False)]
    return ["", *summary_lines(summary)]


def _epoch_line(metrics: EpochMetrics, epochs: int) -> str:
    inner = "" if metrics.inner_accuracy is None else f"  inner_acc {metrics.inner_accuracy:.4f}"
    if metrics.held_out_score not in (metrics.val_accuracy, -metrics.val_loss):
        inner = f"  val_score {metrics.held_out_score:.4f}{inner}"
    return (
        f"epoch {metrics.epoch + 1}/{epochs}  loss {metrics.loss:.4f}  acc {metrics.accuracy:.4f}  "
        f"val_loss {metrics.val_loss:.4f}  val_acc {metrics.val_accuracy:.4f}{inner}  "
        f"{metrics.seconds:.1f}s"
    )
