"""The record from which a search resumes: its trials, and what its scheduler decided. Without Ray.

What a kill leaves unwritten is recovered: scores from the trials' own checkpoints, decisions by
asking the scheduler again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from raykfold.errors import BadInput
from raykfold.files.atomic import write_json
from raykfold.files.remote import Place
from raykfold.text import one_line
from raykfold.training.search_results import Trial, TrialStatus
from raykfold.tuning.scores import Score


class Decision(NamedTuple):
    """What the scheduler decided when it was told the score of a trial after an epoch."""

    trial: int
    epoch: int
    stops: bool


class Journal:
    """The trials of a search, written to storage as they begin, are scored and end.

    Trials are numbered from 1 and immutable: each change replaces one. Several threads may use a
    journal. A method raises `StorageError` if the journal cannot be written; `add_decision` and
    `revoke_stop` leave writing to the next change.

    Args:
        place: its file.

    Raises:
        BadInput: the file is not a journal.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._trials: list[Trial] = []
        self._decisions: list[Decision] = []
        self._outer: Mapping[int, float | None] = {}  # of one trial at most
        self._earlier_seconds = 0.0
        self._earlier_sessions = 0
        self._began: float | None = None
        self._ended: float | None = None
        try:
            self._load(json.loads(place.read_bytes()))
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{place}: is not the journal of a search ({one_line(error)}); set the search "
                "aside with --fresh"
            ) from None

    def _load(self, content: Mapping[str, Any]) -> None:
        self._earlier_seconds = float(content["wall_seconds"])
        self._earlier_sessions = int(content["sessions"])
        self._outer = {int(trial): each for trial, each in content["outer_value"].items()}
        self._decisions = [Decision(*row) for row in content["decisions"]]
        stopped = {decision.trial for decision in self._decisions if decision.stops}
        for row in content["trials"]:
            folds = {int(fold): float(value) for fold, value in row["folds"].items()}
            trial = Trial(**{**row, "history": tuple(row["history"]), "folds": folds})
            if trial.status == "failed":  # its cause may have been removed: train it again
                trial = replace(trial, status="running", error=None)
            if trial.status == "running" and trial.number in stopped:
                trial = replace(trial, status="stopped")
            self._trials.append(trial)

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials))

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number - 1]

    @property
    def decisions(self) -> Sequence[Decision]:
        """The scheduler's decisions, in the order in which it made them."""
        return tuple(self._decisions)

    @property
    def sessions(self) -> int:
        """How many sessions had trials to train."""
        return self._earlier_sessions + (self._began is not None)

    @property
    def wall_seconds(self) -> float:
        """Time, summed over these sessions."""
        if self._began is None:
            return self._earlier_seconds
        return self._earlier_seconds + (self._ended or time.monotonic()) - self._began

    def start_clock(self) -> None:
        """Count time from here on, until `stop_clock`."""
        self._began = self._began or time.monotonic()

    def stop_clock(self) -> None:
        """Stop counting time, and write it."""
        with self._lock:
            self._ended = time.monotonic()
            self._write()

    def add_trial(self, values: Mapping[str, Any]) -> Trial:
        """Begin a new trial."""
        with self._lock:
            trial = Trial(len(self._trials) + 1, dict(values))
            self._trials.append(trial)
            self._write()
        return trial

    def add_score(self, number: int, score: Score, epochs_run: int) -> bool:
        """Record a trial's score; return whether it is a new one."""
        with self._lock:
            trial = self[number]
            self._change(number, epochs_run=max(trial.epochs_run, epochs_run))
            is_new = score.epoch > len(trial.history)
            if is_new:
                history = (*trial.history, score.mean)
                self._change(number, history=history, folds=dict(score.folds))
                self._write()
        return is_new

    def add_decision(self, decision: Decision) -> None:
        """Record a decision; it is written with the next change.

        If a kill comes before that, the scheduler is asked again.
        """
        with self._lock:
            self._decisions.append(decision)
            if decision.stops and self[decision.trial].status == "running":
                self._change(decision.trial, status="stopped")

    def revoke_stop(self, number: int) -> None:
        """Let a trial that the scheduler stopped count on: it had reached its end before that."""
        with self._lock:
            last = max(i for i, each in enumerate(self._decisions) if each.trial == number)
            self._decisions[last] = self._decisions[last]._replace(stops=False)
            self._change(number, status="running")

    def end_trial(
        self, number: int, status: TrialStatus, epochs_run: int, error: str | None = None
    ) -> None:
        """Record how a trial ended."""
        with self._lock:
            epochs_run = max(self[number].epochs_run, epochs_run)
            self._change(number, status=status, error=error, epochs_run=epochs_run)
            self._write()

    def outer_value(self, number: int) -> float | None:
        """Return what a trial reaches on the fold that the search left out, if measured."""
        return self._outer.get(number)

    def set_outer_value(self, number: int, value: float | None) -> None:
        """Record `outer_value` for one trial, in place of any other."""
        with self._lock:
            self._outer = {number: value}
            self._write()

    def _change(self, number: int, **changes: Any) -> None:
        self._trials[number - 1] = replace(self._trials[number - 1], **changes)

    def _write(self) -> None:
        write_json(
            self._place,
            {
                "wall_seconds": round(self.wall_seconds, 3),
                "sessions": self.sessions,
                "outer_value": self._outer,
                "decisions": self._decisions,
                "trials": [asdict(trial) for trial in self._trials],
            },
        )
