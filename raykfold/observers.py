"""The observers of a run: whoever is told, in the driver's process, of what is committed."""

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
