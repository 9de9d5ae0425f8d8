"""An observer: writes to storage how the run is doing, for those who look from outside.

``heartbeat.json`` tells what no other file of a run does: whether a driver is at work, what failed
last, what is still to be sent. Nothing is resumed from it, and a run does not need it: a beat that
cannot be written is left out, without a message, until the next one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from raykfold.errors import StorageError
from raykfold.files.atomic import write_json
from raykfold.files.json_values import parse_as
from raykfold.files.paths import RunDir
from raykfold.files.remote import RemotePath, impatient
from raykfold.observers import Observer, RunStart
from raykfold.state.claim import machine
from raykfold.text import fold_names, one_line
from raykfold.training.results import EpochMetrics, FoldResult, Summary

PAUSE_SECONDS = 2.0  # least time from one beat to the next, however much happens
BEAT_SECONDS = 10.0  # most time, also when nothing happens
# On an object store each beat is a request that is paid for.
_REMOTE_PAUSE_SECONDS = 5.0
_REMOTE_BEAT_SECONDS = 20.0
_CLOSE_SECONDS = 5.0  # to write the last one

Phase = Literal["at work", "sending", "over", "stopped"]


@dataclass(frozen=True)
class Beat:
    """How a run is doing. Times are in seconds, by the clock of the driver's host.

    Attributes:
        time: of this beat, since 1970.
        host: name of the driver's host.
        pid: process id of the driver.
        machine: name of the machine within which that id is unique.
        every: most seconds to the next beat.
        phase: ``at work``; ``sending`` files once every fold is over; then ``over``, or ``stopped``
            before that.
        began: start of the session, since 1970.
        epochs: epochs that this session committed, of all folds.
        epoch_seconds: mean time from one of them to the next, since the first worker ran; None
            before the first epoch.
        workers: the folds of each worker that runs.
        failed: fold → why it failed in this session.
        last_failure: last failure of a worker or a fold, also of an earlier session.
        failure_time: its time, since 1970.
        pending: destination → number of files still to be sent there.
        resume: the command that resumes the run; empty where only a notebook can.
        result: `outcome`, once the run is over.
    """

    time: float
    host: str
    pid: int
    machine: str
    every: float
    phase: Phase
    began: float
    epochs: int
    epoch_seconds: float | None
    resume: str
    workers: tuple[tuple[int, ...], ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    last_failure: str | None = None
    failure_time: float | None = None
    pending: Mapping[str, int] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def outcome(summary: Summary) -> dict[str, Any]:
    """Return the status of a run that is over, its mean accuracy, and its headline."""
    kept, headline = summary.kept, summary.over_folds(summary.headline)
    return {
        "status": summary.status,
        "mean_accuracy": kept.mean if kept else None,
        "std_accuracy": kept.std if kept else None,
        "headline": summary.headline,
        "headline_mean": headline.mean if headline else None,
        "headline_std": headline.std if headline else None,
    }


def read_heartbeat(run_dir: RunDir) -> Beat | None:
    """Return the last beat; None if there is none, or none that can be read.

    Raises:
        StorageError: the store cannot be reached.
    """
    try:
        beat: Beat = parse_as(Beat, json.loads(run_dir.heartbeat.read_bytes()), "heartbeat")
        return beat
    except (OSError, ValueError):
        return None


class Heartbeat(Observer):
    """Writes `RunDir.heartbeat` in a background thread, from the session's start to its close.

    Only `close` waits for the disk or the store, and for seconds at most. The thread goes on while
    the driver waits for uploads at the end.

    Args:
        run_dir: the run's.
        resume: the command that resumes the run.
        pending: returns what is still to be sent, as `Observer.pending`; called in the thread.
        pause: least seconds from one beat to the next; the default depends on the storage.
        every: most seconds from one beat to the next.
    """

    def __init__(
        self,
        run_dir: RunDir,
        resume: Sequence[str],
        pending: Callable[[], Mapping[str, int]],
        *,
        pause: float | None = None,
        every: float | None = None,
    ) -> None:
        remote = isinstance(run_dir.root, RemotePath)
        # A beat that is late is worth nothing: it is not retried for long.
        self._run_dir = RunDir(impatient(run_dir.root))
        self._pending = pending
        self._pause = pause or (_REMOTE_PAUSE_SECONDS if remote else PAUSE_SECONDS)
        self._beat = Beat(
            time=0.0,
            host=platform.node(),
            pid=os.getpid(),
            machine=machine(),
            every=every or (_REMOTE_BEAT_SECONDS if remote else BEAT_SECONDS),
            phase="at work",
            began=0.0,
            epochs=0,
            epoch_seconds=None,
            resume=shlex.join(resume),
        )
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._changed = threading.Condition()
        self._started = False
        self._news = False
        self._closed = False
        self._timed_from = 0.0
        self._timed = False  # from the first worker on

    def run_started(self, start: RunStart) -> None:
        self._timed_from = time.monotonic()
        self._tell(began=time.time())
        if not self._started:
            self._started = True
            self._thread.start()

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        epochs = self._beat.epochs + 1
        self._tell(epochs=epochs, epoch_seconds=(time.monotonic() - self._timed_from) / epochs)

    def fold_finished(self, result: FoldResult) -> None:
        changes: dict[str, Any] = {}
        if result.status == "failed":
            reason = one_line(result.error)
            changes = _failure(f"fold {result.fold} failed: {reason}")
            changes["failed"] = {**self._beat.failed, result.fold: reason}
        self._tell(**changes)

    def workers_changed(self, at_work: Sequence[Sequence[int]]) -> None:
        if at_work and not self._timed and not self._beat.epochs:
            # Ray's start and a wait for slots do not predict the epochs to come.
            self._timed_from, self._timed = time.monotonic(), True
        self._tell(workers=tuple(map(tuple, at_work)))

    def worker_lost(self, folds: Sequence[int], reason: str) -> None:
        self._tell(**_failure(f"the worker of {fold_names(folds)} ended: {one_line(reason)}"))

    def run_finished(self, summary: Summary) -> None:
        self._tell(phase="sending", workers=(), result=outcome(summary))

    def close(self) -> None:
        if not self._started:
            return
        with self._changed:
            self._closed = True
            self._tell(phase="over" if self._beat.phase == "sending" else "stopped", workers=())
        self._thread.join(_CLOSE_SECONDS)

    def _tell(self, **changes: Any) -> None:
        """Change the next beat, and write it soon."""
        with self._changed:
            self._beat = dataclasses.replace(self._beat, **changes)
            self._news = True
            self._changed.notify_all()

    # --- in the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        # The last failure of the session before stays until there is a newer one.
        with suppress(StorageError):
            before = read_heartbeat(self._run_dir)
            with self._changed:
                if before and self._beat.last_failure is None:
                    self._tell(last_failure=before.last_failure, failure_time=before.failure_time)
        while True:
            with self._changed:
                beat, closed, self._news = self._beat, self._closed, False
            # Neither an outage, nor a full disk, nor a bug here may stop training.
            with suppress(Exception):
                pending = {place: count for place, count in self._pending().items() if count}
                beat = dataclasses.replace(beat, time=time.time(), pending=pending)
                write_json(self._run_dir.heartbeat, beat.to_json())
            if closed:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._pause)
                rest = max(0.0, beat.every - self._pause)
                self._changed.wait_for(lambda: self._closed or self._news, rest)


def _failure(text: str) -> dict[str, Any]:
    return {"last_failure": text, "failure_time": time.time()}
