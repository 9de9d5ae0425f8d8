"""The trials of a search: what each was told, how it fared, and which of them won. No Ray."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raykfold.errors import BadInput
from raykfold.files.atomic import write_json
from raykfold.files.remote import Place
from raykfold.observers import Observer, RunStart
from raykfold.text import one_line
from raykfold.training.results import EpochMetrics, FoldResult, kept_of
from raykfold.training.statistics import mean_accuracy, population_std

TrialStatus = Literal["running", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Score:
    """What a trial had reached when each of its folds had so many epochs behind it.

    Attributes:
        epoch: how many, from 1; a fold that has stopped early counts with its last.
        folds: fold → held-out accuracy of the epoch whose weights it would have kept.
    """

    epoch: int
    folds: Mapping[int, float]

    @property
    def mean(self) -> float:
        return mean_accuracy(list(self.folds.values()))

    @property
    def std(self) -> float:
        """Over the folds, ddof 0."""
        return population_std(list(self.folds.values()))


class ScoreKeeper(Observer):
    """Tells a trial's score each time that all of its folds have one more epoch behind them.

    Folds are trained at different times and paces: means over those that happen to be there would
    compare one trial's easy folds with another's hard ones.

    Args:
        tell: takes the score, also of epochs that an earlier session has trained.
    """

    def __init__(self, tell: Callable[[Score], None]) -> None:
        self._tell = tell
        self._histories: dict[int, list[EpochMetrics]] = {}
        self._complete: set[int] = set()
        self._told = 0
        self.failure: FoldResult | None = None

    @property
    def epochs_run(self) -> int:
        """Summed over the folds."""
        return sum(map(len, self._histories.values()))

    def run_started(self, start: RunStart) -> None:
        self._histories = {fold: list(start.histories.get(fold, ())) for fold in start.folds}
        self._complete = {f for f, each in start.finished.items() if each.status == "complete"}
        self._tell_new()

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        history = self._histories[fold]
        del history[metrics.epoch :]  # an epoch that was trained again after a death
        history.append(metrics)
        self._tell_new()

    def fold_finished(self, result: FoldResult) -> None:
        if result.status == "failed":
            self.failure = self.failure or result
            return
        self._complete.add(result.fold)
        self._tell_new()

    def _tell_new(self) -> None:
        while self._is_reached(self._told + 1):
            self._told += 1
            self._tell(self._score(self._told))

    def _is_reached(self, epoch: int) -> bool:
        """Whether all folds have so many, or have ended before; and one of them has."""
        lengths = {fold: len(history) for fold, history in self._histories.items()}
        there = all(lengths[f] >= epoch or (lengths[f] and f in self._complete) for f in lengths)
        return there and epoch <= max(lengths.values())

    def _score(self, epoch: int) -> Score:
        kept = {fold: kept_of(rows[:epoch]) for fold, rows in self._histories.items()}
        return Score(epoch, {fold: each.val_accuracy for fold, each in kept.items() if each})


@dataclass
class Trial:
    """One configuration, and what has become of its cross-validation.

    Attributes:
        number: from 1.
        values: what is searched → what this trial has of it.
        status: `stopped` is by the scheduler.
        history: mean over the folds after each epoch, as in `Score`.
        folds: fold → accuracy, as in the newest `Score`.
        epochs_run: summed over the folds.
        error: why it failed.
    """

    number: int
    values: Mapping[str, Any]
    status: TrialStatus = "running"
    history: list[float] = field(default_factory=list)
    folds: dict[int, float] = field(default_factory=dict)
    epochs_run: int = 0
    error: str | None = None

    @property
    def mean(self) -> float | None:
        """None without one epoch of all folds, and of a trial that failed: it is no result."""
        return self.history[-1] if self.history and self.status != "failed" else None

    @property
    def std(self) -> float | None:
        return None if self.mean is None else population_std(list(self.folds.values()))

    def to_json(self) -> dict[str, Any]:
        """A row of ``search.json``."""
        scored = self.mean is not None
        return {
            "trial": self.number,
            "config": dict(self.values),
            "status": self.status,
            "rounds": len(self.history),
            "epochs_run": self.epochs_run,
            "fold_scores": {str(f): score for f, score in self.folds.items()} if scored else {},
            "mean_accuracy": self.mean,
            "std_accuracy": self.std,
            "history": list(self.history),
            "error": self.error,
        }

    def to_journal(self) -> dict[str, Any]:
        """With what it had reached also where that is no result."""
        return {**self.to_json(), "folds": {str(fold): score for fold, score in self.folds.items()}}

    @classmethod
    def from_journal(cls, row: Mapping[str, Any]) -> Trial:
        return cls(
            number=int(row["trial"]),
            values=dict(row["config"]),
            status=row["status"],
            history=[float(each) for each in row["history"]],
            folds={int(fold): float(score) for fold, score in row["folds"].items()},
            epochs_run=int(row["epochs_run"]),
            error=row["error"],
        )


class SearchObserver:
    """Told, in the driver's process, of what becomes of trials. Override what you need."""

    def trial_began(self, trial: Trial) -> None:
        """Or goes on."""

    def trial_scored(self, trial: Trial, score: Score) -> None:
        """All of its folds have one more epoch behind them."""

    def trial_ended(self, trial: Trial) -> None:
        """It is complete, was stopped, or has failed."""

    def noticed(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def of_outer(self, fold: int) -> SearchObserver:
        """Who is told of the search within an outer fold; by default, nobody."""
        return SearchObserver()


class Journal:
    """The trials of a search, kept on storage as they begin, are scored and end.

    A search goes on from it. What a kill finds unwritten is found again: scores in the runs of the
    trials, a decision of the scheduler by asking it again. It can be used by several threads.

    Args:
        place: its file.

    Raises:
        BadInput: that is something else.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._trials: list[Trial] = []
        self._judged: list[tuple[int, int, bool]] = []
        self._seconds_before = 0.0
        self._sessions_before = 0
        self._began: float | None = None
        self._ended: float | None = None
        self._measured: tuple[int, float | None] = (0, None)
        try:
            self._take_up(json.loads(place.read_bytes()))
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{place}: is no journal of a search ({one_line(error)}); set the search aside "
                "with --fresh"
            ) from None

    def _take_up(self, content: Mapping[str, Any]) -> None:
        """What an earlier session has put down."""
        self._trials = [Trial.from_journal(row) for row in content["trials"]]
        self._judged = [(int(n), int(epoch), bool(stops)) for n, epoch, stops in content["judged"]]
        self._seconds_before = float(content["wall_seconds"])
        self._sessions_before = int(content["sessions"])
        self._measured = (int(content["measured"][0]), content["measured"][1])
        for trial in self._trials:
            if trial.status == "failed":  # what was wrong may have been put right
                trial.status, trial.error = "running", None
        for number, _, stops in self._judged:
            if stops and self[number].status == "running":
                self[number].status = "stopped"

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials))

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number - 1]

    @property
    def sessions(self) -> int:
        """How many have had something to do."""
        return self._sessions_before + (self._began is not None)

    @property
    def wall_seconds(self) -> float:
        """Summed over these sessions."""
        if self._began is None:
            return self._seconds_before
        return self._seconds_before + (self._ended or time.monotonic()) - self._began

    @property
    def judged(self) -> Sequence[tuple[int, int, bool]]:
        """Trial and epoch of each score that the scheduler was told, in that order; whether it
        stopped the trial.
        """
        return tuple(self._judged)

    def start(self) -> None:
        """From here on time counts, up to `stop`."""
        self._began = self._began or time.monotonic()

    def begin(self, values: Mapping[str, Any]) -> Trial:
        """Put down a further trial.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            trial = Trial(len(self._trials) + 1, dict(values))
            self._trials.append(trial)
            self._write()
        return trial

    def score(self, number: int, score: Score, epochs_run: int) -> bool:
        """Put down what a trial has reached; whether that was news.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            trial = self[number]
            is_new = score.epoch > len(trial.history)
            trial.epochs_run = max(trial.epochs_run, epochs_run)
            if is_new:
                trial.folds = dict(score.folds)  # first: others read without the lock
                trial.history.append(score.mean)
                self._write()
        return is_new

    def judge(self, number: int, epoch: int, *, stops: bool) -> None:
        """The scheduler has been told that score, and whether it stops the trial.

        Written with what comes next: if a kill is faster, the scheduler is asked again.
        """
        with self._lock:
            self._judged.append((number, epoch, stops))
            if stops and self[number].status == "running":
                self[number].status = "stopped"

    def go_on(self, number: int) -> None:
        """A trial that the scheduler has stopped was faster: it has come to its end."""
        with self._lock:
            last = max(i for i, (trial, _, _) in enumerate(self._judged) if trial == number)
            self._judged[last] = (*self._judged[last][:2], False)
            self[number].status = "running"

    def end(
        self, number: int, status: TrialStatus, epochs_run: int, error: str | None = None
    ) -> None:
        """A trial is over.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            trial = self[number]
            trial.status, trial.error = status, error
            trial.epochs_run = max(trial.epochs_run, epochs_run)
            self._write()

    def measured(self, number: int) -> float | None:
        """Accuracy of a trial on the fold that the search left out; None if it is not known."""
        return self._measured[1] if self._measured[0] == number else None

    def measure(self, number: int, accuracy: float | None) -> None:
        """Put down `measured`, of one trial.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            self._measured = (number, accuracy)
            self._write()

    def stop(self) -> None:
        """Put down the time that the session has taken.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            self._ended = time.monotonic()
            self._write()

    def _write(self) -> None:
        write_json(
            self._place,
            {
                "wall_seconds": round(self.wall_seconds, 3),
                "sessions": self.sessions,
                "measured": self._measured,
                "judged": self._judged,
                "trials": [trial.to_journal() for trial in self._trials],
            },
        )


def ranked(trials: Iterator[Trial] | Sequence[Trial]) -> list[Trial]:
    """Best first: those trained to the end, then those that were stopped, then the rest.

    One that was stopped has a score of fewer epochs, which is not comparable with those of more.
    """
    order = {"complete": 0, "stopped": 1, "running": 2, "failed": 3}
    return sorted(trials, key=lambda each: (order[each.status], -(each.mean or 0.0), each.number))


def best_of_trials(trials: Iterator[Trial] | Sequence[Trial]) -> Trial | None:
    """The complete trial of the highest mean, the first of equals; None if none is complete."""
    first = next(iter(ranked(trials)), None)
    return first if first is not None and first.status == "complete" else None


def values_text(values: Mapping[str, Any]) -> str:
    """``learning_rate 0.00123, batch_size 16``."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items())


def value_text(value: Any) -> str:
    """A number with four figures; what it is exactly stands in ``search.json``."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
