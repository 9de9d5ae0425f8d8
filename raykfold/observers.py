"""Observers: objects that the driver calls when something in a run happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raykfold.errors import RaykfoldError
from raykfold.text import one_line
from raykfold.training.results import EpochMetrics, FoldResult, Histogram, Summary


@dataclass(frozen=True)
class RunStart:
    """What a run is going to do.

    Attributes:
        run_name: name of the run.
        epochs: largest number of epochs of a fold.
        folds: labels of the folds that are held out, in order.
        histories: fold → epochs that earlier sessions completed.
        finished: fold → result of each fold that is already over.
    """

    run_name: str
    epochs: int
    folds: tuple[int, ...]
    histories: Mapping[int, Sequence[EpochMetrics]]
    finished: Mapping[int, FoldResult] = field(default_factory=dict)


class Observer:
    """Base of all observers; the driver calls its methods, in its own process.

    Override the methods that you need. An observer that raises is not called again and the run
    goes on, unless it raises a `RaykfoldError`, which ends the run.
    """

    def run_started(self, start: RunStart) -> None:
        """Called once, before the first epoch of this session, even if no epoch is left."""

    def weights_watched(self, fold: int, epoch: int, histograms: Mapping[str, Histogram]) -> None:
        """Called before `epoch_committed`, with --wandb_watch.

        Args:
            fold: label of the fold.
            epoch: the epoch, from 0.
            histograms: name → histogram of weights or of gradients.
        """

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        """Called after each epoch of each fold, when its weights are on storage."""

    def fold_finished(self, result: FoldResult) -> None:
        """Called when a fold is complete or has failed."""

    def workers_changed(self, at_work: Sequence[Sequence[int]]) -> None:
        """Called with the folds of each worker that runs now."""

    def worker_lost(self, folds: Sequence[int], reason: str) -> None:
        """Called when a worker dies before these folds are over; they wait again, or fail."""

    def noticed(self, text: str) -> None:
        """Called with a line that the user should read."""

    def run_finished(self, summary: Summary) -> None:
        """Called once, when every fold is over."""

    def time_passed(self) -> None:
        """Called several times a second; a thread of the observer can report through it."""

    def pending(self) -> Mapping[str, int]:
        """Return destination → number of files that are still to be sent there.

        It is called every few seconds, from any thread, until all observers are closed, and must
        not wait for a network.
        """
        return {}

    def close(self) -> None:
        """Called at the end of the session, whether or not the run is over."""

    def of_repeat(self, seed: int) -> Observer:
        """Return the observer of a repeat of the run with another seed; by default it does nothing.

        The folds of repeats have the same labels, so each repeat needs an observer of its own.
        """
        return Observer()


class Voice(Observer):
    """Passes on the lines that the user should read, and nothing else.

    Args:
        say: called with each line.
        prefix: what each line begins with.
    """

    def __init__(self, say: Callable[[str], None], prefix: str = "") -> None:
        self._say = say
        self._prefix = prefix

    def noticed(self, text: str) -> None:
        self._say(self._prefix + text)


class Audience(Observer):
    """Calls several observers, and drops those that fail."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)
        self._senders = list(observers)  # they may still send files while they close

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
        """Return the sums over all observers, without those that fail."""
        files: dict[str, int] = {}
        for observer in list(self._senders):
            with suppress(Exception):
                for place, count in observer.pending().items():
                    files[place] = files.get(place, 0) + count
        return files

    def of_repeat(self, seed: int) -> Audience:
        """Return the observers of a repeat, from those of the run."""
        return Audience([observer.of_repeat(seed) for observer in self._observers])

    def close(self) -> None:
        """Close the observers, the last one first, so that the others hear what it reports.

        Each is closed once, even if a signal interrupts this and it is called again.
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
