"""Deals folds to free slots of Ray until none is left, and listens to what becomes of them."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from raykfold.checkpoint import WeightsContext
from raykfold.config import RunConfig
from raykfold.data import FeatureSet
from raykfold.errors import StorageError
from raykfold.events import (
    Event,
    RoundCommitted,
    ShareReady,
    ShareStarted,
    ShareStopping,
    open_board,
)
from raykfold.ledger import Ledger, named
from raykfold.observers import Observer
from raykfold.shares import Load, WorkerSize, deal, hand_over, slots
from raykfold.trainer import ShareTrainer
from raykfold.training import TrainingSettings
from raykfold.worker import ShareTask

_log = logging.getLogger(__name__)

# What a new worker costs before its first step, measured; a fold is not moved to save less.
_START_SECONDS = 20.0
_POLL_SECONDS = 0.2
_END_SECONDS = 5.0


@dataclass
class _Share:
    """A share that was dealt, as the driver sees it."""

    name: str
    active: set[int]
    placed: bool = False
    asked: frozenset[int] = frozenset()
    epoch_seconds: float = 0.0

    @property
    def is_asked(self) -> bool:
        """Whether it has still to give back folds that it was asked for."""
        return bool(self.asked & self.active)


class Dealer:
    """Works on the waiting folds of a ledger until every one is over.

    Args:
        config: the run's.
        data: the run's; the features go into Ray's object store, once.
        ledger: knows the folds, and is told of every committed round.
        observer: told of what the user should know.
        size: what a worker takes of a node.
        scratch: where workers make checkpoints; the system's place if None.
        own_instance: Ray was started by this process, and ends with it.
    """

    def __init__(
        self,
        config: RunConfig,
        data: FeatureSet,
        ledger: Ledger,
        observer: Observer,
        *,
        size: WorkerSize,
        scratch: Path | None,
        own_instance: bool,
    ) -> None:
        self._config = config
        self._data = data
        self._ledger = ledger
        self._observer = observer
        self._size = size
        self._scratch = scratch
        self._own_instance = own_instance
        self._board = open_board()
        # A memory-mapped array would travel as a pickle, and be a private copy in each worker.
        self._features = ray.put(np.asarray(data.features))
        self._shares: dict[str, _Share] = {}
        self._ended: queue.Queue[tuple[str, Exception | None]] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._trainers: list[ShareTrainer] = []
        self._said_waiting = False

    def work(self) -> None:
        """Return when every fold is over.

        Raises:
            StorageError: the disk is full.
        """
        try:
            while self._ledger.waiting or any(share.active for share in self._shares.values()):
                self._deal()
                for event in ray.get(self._board.drain.remote(_POLL_SECONDS)):
                    self._take_in(event)
                while not self._ended.empty():
                    self._settle(*self._ended.get())
                self._observer.time_passed()
        except BaseException:
            for trainer in self._trainers:
                trainer.stop()
            raise
        finally:
            self._let_shares_end()

    # --- to the shares ---------------------------------------------------------------------

    def _deal(self) -> None:
        """Give waiting folds to free slots; if none waits, relieve the shares that have many."""
        free = self._slots_to_deal()
        for folds in deal(sorted(self._ledger.waiting), free):
            self._start_share(folds)
            free -= 1
        waiting = sorted(self._ledger.waiting)
        if waiting and not self._shares and not self._said_waiting:
            self._observer.noticed(f"no free slot in Ray; {named(waiting)} waiting for one")
            self._said_waiting = True
        if free > 0 and not waiting:
            self._relieve(free)

    def _slots_to_deal(self) -> int:
        allowed = self._config.num_workers
        free = free_slots(self._size) if allowed is None or len(self._shares) < allowed else 0
        unplaced = sum(not share.placed for share in self._shares.values())
        room = free if allowed is None else allowed - len(self._shares)
        return max(0, min(room, free - unplaced))

    def _relieve(self, free: int) -> None:
        loads = {
            share.name: Load(
                {fold: self._ledger.epochs_left(fold) for fold in share.active},
                share.epoch_seconds,
            )
            for share in self._shares.values()
            if share.active and not share.is_asked
        }
        promised = sum(share.is_asked for share in self._shares.values())
        for name, folds in hand_over(loads, free - promised, _START_SECONDS).items():
            self._observer.noticed(f"a slot is free: {named(folds)} will move there")
            self._shares[name].asked = frozenset(folds)
            ray.get(self._board.ask.remote(name, folds))

    def _start_share(self, folds: tuple[int, ...]) -> None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"
        _log.info("share %s: dealt %s", name, named(folds))
        self._ledger.waiting -= set(folds)
        self._shares[name] = _Share(name, set(folds))
        trainer = ShareTrainer(
            self._task(name, folds),
            self._size,
            self._config.run_dir.shares,
            own_instance=self._own_instance,
        )
        self._trainers.append(trainer)
        thread = threading.Thread(target=self._fit, args=(name, trainer), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _task(self, name: str, folds: tuple[int, ...]) -> ShareTask:
        config, data = self._config, self._data
        return ShareTask(
            share=name,
            board=self._board,
            features=self._features,
            class_indices=data.class_indices,
            splits={fold: data.split(fold) for fold in folds},
            origins=self._ledger.origins(folds),
            settings=TrainingSettings(
                model=config.model,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                patience=config.early_stopping_patience,
                seed=config.seed,
            ),
            epochs=config.epochs,
            context=WeightsContext(
                model=config.model,
                classes=data.class_mapping,
                input_shape=(data.n_mels, data.time),
                feature_parameters=data.feature_parameters,
            ),
            run_dir=config.run_dir,
            scratch=self._scratch,
            checkpoint_every=config.checkpoint_every,
            threads=self._size.cpus,
            use_gpu=bool(self._size.gpus),
            watch=config.wandb_watch and config.wandb_project is not None,
        )

    def _fit(self, name: str, trainer: ShareTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever ends a share, its folds are dealt anew
            self._ended.put((name, error))
        else:
            self._ended.put((name, None))

    # --- from the shares -------------------------------------------------------------------

    def _take_in(self, event: Event) -> None:
        share = self._shares.get(event.share)
        if share is None:
            return  # it was given up, and its folds are elsewhere
        match event:
            case ShareStarted():
                share.placed = True
                at_work = [each for each in self._shares.values() if each.placed and each.active]
                self._ledger.workers(len(at_work))
                _log.info("share %s: worker up on %s, pid %d", share.name, event.node, event.pid)
            case ShareReady():
                _log.info("share %s: first step", share.name)
            case ShareStopping():
                raise event.error
            case RoundCommitted():
                round_ = event.round
                self._ledger.take_in(round_, event.checkpoint)
                share.active -= {*round_.finished, *round_.failed, *round_.released}
                seconds = [metrics.seconds for metrics in round_.epochs.values()]
                share.epoch_seconds = max(seconds, default=share.epoch_seconds)

    def _settle(self, name: str, error: Exception | None) -> None:
        """A share has ended; what it has not finished is dealt anew."""
        for event in ray.get(self._board.drain.remote(0)):
            self._take_in(event)
        share = self._shares.pop(name)
        self._said_waiting = False
        if error is not None and _is_disk_full(error):
            raise StorageError(
                f"{self._config.run_dir.root}: the disk is full; what was complete before is "
                "safe, and the same command resumes from it"
            )
        if not share.active:
            return
        reason = "it ended early" if error is None else _last_line(error)
        self._observer.noticed(f"the worker of {named(sorted(share.active))} ended: {reason}")
        for fold in sorted(share.active):
            self._ledger.take_back(fold, None if _found_no_place(error) else reason)

    def _let_shares_end(self) -> None:
        """Ray ends the process if a thread calls it just after it was shut down."""
        deadline = time.monotonic() + _END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def free_slots(size: WorkerSize) -> int:
    """Workers of this size for which Ray has room now, node by node."""
    # Ray's public call adds the nodes up, and a worker cannot be split over two.
    from ray._private.state import available_resources_per_node

    return slots(list(available_resources_per_node().values()), size)


def _found_no_place(error: Exception | None) -> bool:
    """The slot was taken by somebody else meanwhile, which is no fault of the folds."""
    cause = getattr(error, "controller_failure", None)
    return type(cause).__name__ == "WorkerGroupStartupTimeoutError"


def _is_disk_full(error: Exception) -> bool:
    """Ray uploads checkpoints in a thread of its own, whose errors come as text only."""
    return any(sign in str(error) for sign in ("No space left on device", "Disk quota exceeded"))


def _last_line(error: Exception) -> str:
    """The last line of an error that says something: Ray's are tracebacks within tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
