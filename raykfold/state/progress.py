"""How a run is doing, as its files on storage tell; nothing is written."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raykfold.state.archive import Archive, Known, open_run
from raykfold.state.claim import is_dead
from raykfold.state.heartbeat import Beat, outcome, read_heartbeat
from raykfold.training.results import FoldResult, Summary, kept_epochs

FoldStatus = Literal["waiting", "running", "stopped", "complete", "failed"]
RunState = Literal["at work", "silent", "stopped", "sending", "over", "unknown"]

_MISSED_BEATS = 3  # after which a driver counts as silent


@dataclass(frozen=True)
class FoldProgress:
    """How a fold is doing.

    Attributes:
        fold: the fold's label.
        status: ``waiting``, ``running``, ``stopped``, ``complete`` or ``failed``.
        epochs_run: epochs that are committed.
        epochs: most epochs.
        val_accuracy: of the last epoch.
        kept_val_accuracy: of the epoch whose weights are kept.
        kept_epoch: that epoch, from 0: the best, or the one that an inner split chose.
        epoch_seconds: mean time of an epoch.
        error: why the fold failed.
    """

    fold: int
    status: FoldStatus
    epochs_run: int
    epochs: int
    val_accuracy: float | None = None
    kept_val_accuracy: float | None = None
    kept_epoch: int | None = None
    epoch_seconds: float | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        return self.status in ("complete", "failed")


@dataclass(frozen=True)
class Progress:
    """How a run is doing at one moment. Times are in seconds.

    Attributes:
        run_name: the run's name.
        seed: its first seed.
        state: ``at work``; ``silent`` (nothing was heard from the driver for long, and it may
            be dead); ``stopped``; ``sending`` (every fold is over, and files are still sent);
            ``over``; ``unknown`` (nothing is known of its driver).
        folds: of the first seed.
        complete: number of complete folds, of all seeds.
        total: number of folds, of all seeds.
        driver: host, pid, and seconds_ago since it was last heard from; None if it never was.
        seconds_left: most time until the run is over; None until this session commits an epoch.
        seconds_an_epoch: mean time from one epoch to the next, over all folds.
        epochs_left: most epochs to train.
        last_failure: text and seconds_ago; None if nothing failed.
        uploads_pending: destination → number of files.
        resume: the command that resumes the run, or tries failed folds again, if there is
            something to do; empty where only a script or a notebook can.
        mean_accuracy: over the kept epochs of all folds; None until all are complete.
        std_accuracy: over the same.
        headline: the figure that the run is summed up by, like ``accuracy``; None before that.
        headline_mean: like `mean_accuracy`, of that figure.
        headline_std: like `std_accuracy`, of that figure.
        kept_epochs: which epochs these are, ``best`` or ``chosen``.
        repeats: the same of each further seed. What is left, failed and pending above includes
            them.
    """

    run_name: str
    seed: int
    state: RunState
    folds: tuple[FoldProgress, ...]
    complete: int
    total: int
    driver: Mapping[str, Any] | None
    seconds_left: float | None
    seconds_an_epoch: float | None
    epochs_left: int
    last_failure: Mapping[str, Any] | None
    uploads_pending: Mapping[str, int]
    resume: str | None
    mean_accuracy: float | None
    std_accuracy: float | None
    headline: str | None
    headline_mean: float | None
    headline_std: float | None
    kept_epochs: str
    repeats: tuple[Progress, ...] = ()

    @property
    def events(self) -> tuple[Any, ...]:
        """What does not change while only time passes; to tell whether something happened."""
        failure = self.last_failure and self.last_failure["text"]
        repeats = [(repeat.state, repeat.folds) for repeat in self.repeats]
        pending = dict(self.uploads_pending)
        return self.state, self.folds, failure, pending, self.mean_accuracy, repeats

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Watcher:
    """Looks at a run, once or several times.

    The clocks of two machines differ. A second look tells what one cannot: that the driver's time
    has moved on.

    Args:
        run: path or URI of the run's outputs, or of its folder on storage.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._known: Known = {}
        self._beat_time: float | None = None
        self._changed = -math.inf

    def look(self) -> Progress:
        """Return how the run is doing now.

        Raises:
            BadInput: no run is there, or it cannot be read.
            StorageError: the store cannot be reached.
        """
        archive = open_run(self._run, self._known)
        beat = read_heartbeat(archive.run_dir)
        now = time.monotonic()
        if beat is not None:
            if self._beat_time is not None and beat.time != self._beat_time:
                self._changed = now
            self._beat_time = beat.time
        age = min(_seconds_since(beat.time), now - self._changed) if beat else math.inf
        repeats = [_progress(each, read_heartbeat(each.run_dir), age) for each in archive.repeats()]
        progress = _with_repeats(_progress(archive, beat, age), repeats, archive.summary)

        # Whether the command that started the run has something to do now.
        failed = any(
            row.status == "failed" for each in (progress, *progress.repeats) for row in each.folds
        )
        resumable = progress.state in ("silent", "stopped") or (progress.state == "over" and failed)
        return progress if resumable else dataclasses.replace(progress, resume=None)


def _seconds_since(moment: float) -> float:
    """Return the time since a moment by this machine's clock, which may be behind another's."""
    return max(0.0, time.time() - moment)


def _progress(archive: Archive, beat: Beat | None, age: float) -> Progress:
    """Return the progress of a run, or of one of its repeats, by itself.

    Args:
        archive: the run.
        beat: its last heartbeat.
        age: seconds since the driver was last heard from.
    """
    state, summary = _state(archive, beat, age), archive.summary

    # Each fold, as storage has it; the driver's last word says what failed, and what is at work.
    failed = dict(beat.failed) if beat else {}
    at_work = {fold for folds in beat.workers for fold in folds} if beat else set()
    folds = []
    for fold in sorted({*archive.record.folds, *archive.folds}):
        result = archive.folds.get(fold, FoldResult(fold, "running", 0, 0))
        if fold in failed and result.status == "running":
            result = dataclasses.replace(result, status="failed", error=failed[fold])
        history = result.history
        folds.append(
            FoldProgress(
                fold=fold,
                status=_status(result, state, fold in at_work),
                epochs_run=len(history),
                epochs=archive.record.epochs,
                val_accuracy=result.last_val_accuracy,
                kept_val_accuracy=result.kept_val_accuracy,
                kept_epoch=result.kept_epoch,
                epoch_seconds=result.seconds / len(history) if history else None,
                error=result.error,
            )
        )

    # The time left: as fast as until now, but no fold faster than its own epochs in a row.
    pace = beat.epoch_seconds if beat and state == "at work" else None
    unfinished = [row for row in folds if not row.is_over]
    epochs_left = sum(row.epochs - row.epochs_run for row in unfinished)
    alone = [(row.epochs - row.epochs_run) * (row.epoch_seconds or 0.0) for row in unfinished]

    failure = None
    if beat is not None and beat.last_failure is not None and beat.failure_time is not None:
        before = max(0.0, beat.time - beat.failure_time)  # both by the driver's clock
        failure = {"text": beat.last_failure, "seconds_ago": before + _seconds_since(beat.time)}
    ended: Mapping[str, Any] = {}
    if summary is not None:
        ended = outcome(summary)
    elif beat is not None and beat.result and state in ("sending", "over"):
        ended = beat.result
    return Progress(
        run_name=archive.run_name,
        seed=archive.record.seed,
        state=state,
        folds=tuple(folds),
        complete=sum(row.status == "complete" for row in folds),
        total=len(folds) * archive.record.repeats,
        driver={"host": beat.host, "pid": beat.pid, "seconds_ago": age} if beat else None,
        seconds_left=None if pace is None else max([pace * epochs_left, *alone]),
        seconds_an_epoch=pace,
        epochs_left=epochs_left,
        last_failure=failure,
        uploads_pending=dict(beat.pending) if beat else {},
        resume=beat.resume if beat else None,
        mean_accuracy=ended.get("mean_accuracy"),
        std_accuracy=ended.get("std_accuracy"),
        headline=ended.get("headline"),
        headline_mean=ended.get("headline_mean"),
        headline_std=ended.get("headline_std"),
        kept_epochs=kept_epochs(archive.record.config["select"]),
    )


def _state(archive: Archive, beat: Beat | None, age: float) -> RunState:
    """Return the state of a run; its results count for more than the driver's last word."""
    if beat is None:
        return "unknown" if archive.summary is None else "over"
    lives = beat.phase in ("at work", "sending") and not is_dead(dataclasses.asdict(beat))
    heard = age <= _MISSED_BEATS * beat.every
    if archive.summary is not None or beat.phase in ("sending", "over"):
        return "sending" if lives and heard and beat.pending else "over"
    if not lives:
        return "stopped"
    return "at work" if heard else "silent"


def _status(result: FoldResult, state: RunState, at_work: bool) -> FoldStatus:
    if result.status == "complete" or result.status == "failed":
        return result.status
    if state == "unknown":  # whether it has begun is all that is known
        return "running" if result.history else "waiting"
    if state in ("at work", "silent"):
        return "running" if at_work else "waiting"
    return "stopped" if result.history else "waiting"


def _with_repeats(run: Progress, repeats: Sequence[Progress], summary: Summary | None) -> Progress:
    """Return a run with its repeats: one driver trains them together, one command resumes them."""
    seeds = [run, *repeats]
    complete = sum(each.complete for each in seeds)
    if summary is not None:  # also where the repeats themselves are out of reach
        complete = sum(len(folds) for _, folds in summary.by_seed) - len(summary.incomplete)
    if not repeats:
        return dataclasses.replace(run, complete=complete)
    paces = [each.seconds_an_epoch for each in seeds if each.seconds_an_epoch]
    pace = 1 / sum(1 / each for each in paces) if paces else None
    epochs_left = sum(each.epochs_left for each in seeds)
    alone = [each.seconds_left for each in seeds if each.seconds_left is not None]
    failures = [each.last_failure for each in seeds if each.last_failure is not None]
    pending = sum((Counter(each.uploads_pending) for each in seeds), Counter[str]())
    return dataclasses.replace(
        run,
        complete=complete,
        seconds_left=None if pace is None else max([pace * epochs_left, *alone]),
        seconds_an_epoch=pace,
        epochs_left=epochs_left,
        last_failure=min(failures, key=lambda failure: failure["seconds_ago"], default=None),
        uploads_pending=dict(pending),
        repeats=tuple(dataclasses.replace(each, resume=None) for each in repeats),
    )
