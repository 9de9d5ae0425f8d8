"""Deals folds to free slots of Ray until none is left, and listens to what becomes of them."""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import ray

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.distributed.deal import Load, WorkerSize, deal, hand_over, slots
from raykfold.distributed.events import (
    Event,
    FoldsStepping,
    NodeIsBlind,
    RoundCommitted,
    ShareNotice,
    ShareReady,
    ShareStarted,
    ShareStopping,
    open_board,
)
from raykfold.distributed.nodes import Request, Watch, all_nodes, free_slots, inventory, is_up
from raykfold.distributed.trainer import ShareTrainer, cause, is_death, is_failure
from raykfold.distributed.worker import ShareTask
from raykfold.errors import BadInput, StorageError
from raykfold.files.remote import Place
from raykfold.observers import Observer
from raykfold.state.checkpoint import WeightsContext
from raykfold.state.deaths import Death
from raykfold.state.ledger import Ledger
from raykfold.training.fold import TrainingSettings

_log = logging.getLogger(__name__)

# What a new worker costs before its first step: 3 s measured on an idle machine, twice that allowed
# for others. A fold is not moved to save less.
_START_SECONDS = 6.0
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_END_SECONDS = 30.0  # for shares to end in order; one takes two
_STOP_SECONDS = 5.0  # or not in order
# Where shares end before their first round, whatever the reason, the next wait grows up to this.
_LONGEST_PAUSE_SECONDS = 30.0
_BLIND_SECONDS = 60.0  # until a node that did not see the storage is tried again
_REMIND_SECONDS = 30.0
_PATIENCE_SECONDS = 3.0  # a slot that has just been left shows as free a moment later
# A shorter cut of the network passes unnoticed; after that, work is better done elsewhere.
_SILENT_SECONDS = 10.0


@dataclass
class _Share:
    """A share that was dealt, as the driver sees it.

    Attributes:
        ledger: of the run that its folds are of.
        trainer: its Ray Train run.
        active: folds that it has not finished.
        slot: id of the node where it has its slot; None until that is known.
        started: its worker runs.
        address: of its node.
        blind: its worker did not see the storage.
        committed: a round of it is.
        stepping: folds that its worker is stepping → the epoch.
        asked: folds that it was asked to give back.
        epoch_seconds: time that an epoch of one fold takes there.
    """

    ledger: Ledger
    trainer: ShareTrainer
    active: set[int]
    slot: str | None = None
    started: bool = False
    address: str = ""
    blind: bool = False
    committed: bool = False
    stepping: Mapping[int, int] = field(default_factory=dict)
    asked: frozenset[int] = frozenset()
    epoch_seconds: float = 0.0

    @property
    def is_asked(self) -> bool:
        """Whether it has still to give back folds that it was asked for."""
        return bool(self.asked & self.active)


class Dealer:
    """Works on the waiting folds of ledgers until every one is over.

    Args:
        config: the run's.
        data: of all ledgers; the features go into Ray's object store, once.
        observer: told of what the user should know.
        size: what a worker takes of a node.
        marker: a file that workers must find; None where that need not be asked.
        own_instance: Ray was started by this process, and ends with it.
    """

    def __init__(
        self,
        config: RunConfig,
        data: FeatureSet,
        observer: Observer,
        *,
        size: WorkerSize,
        marker: Place | None,
        own_instance: bool,
    ) -> None:
        self._config = config
        self._data = data
        self._ledgers: list[Ledger] = []
        self._ranks: dict[Ledger, int] = {}
        self._runs: dict[Ledger, Ledger] = {}  # what each is a part of
        self._observer = observer
        self.size = size
        self._marker = marker
        self._own_instance = own_instance
        self._board = open_board()
        # A memory-mapped array would travel as a pickle, and be a private copy in each worker.
        self._features = ray.put(np.asarray(data.features))
        # An instance of our own is one node, and cannot grow.
        self._watch = None if own_instance else Watch()
        self._request = None if own_instance else Request(_new_name(), size)
        self._taken_in = 0  # events
        self._shares: dict[str, _Share] = {}
        self._ended: queue.Queue[tuple[str, Exception | None]] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._blind: dict[str, float] = {}  # nodes, and until when they are left out
        self._vain = 0  # times in a row that shares ended without a round
        self._vain_reason = ""
        self._deal_after = -math.inf
        self._looked = -math.inf
        self._dealt = -math.inf
        self._waiting_since: float | None = None
        self._reminded = -math.inf
        self._said: set[str] = set()
        self._at_work: dict[Ledger, list[tuple[int, ...]]] = {}  # as observers were told

    def add(self, ledger: Ledger, *, part_of: Ledger | None = None, rank: int = 0) -> None:
        """Work on a ledger, which has begun, too.

        Args:
            ledger: knows its folds, and is told of every committed round.
            part_of: the run that it is a repeat of.
            rank: where slots are short, those of a lower one are first, then those added before.
        """
        self._ranks[ledger] = rank
        self._ledgers.append(ledger)
        self._ledgers.sort(key=self._ranks.__getitem__)
        self._runs[ledger] = part_of or ledger

    def drop(self, ledger: Ledger) -> None:
        """Give a ledger up; its workers end now, and what they have committed stays on storage."""
        self._take_in_all(wait_seconds=0)
        self._ledgers.remove(ledger)
        ledger.waiting.clear()
        for share in self._shares.values():
            if share.ledger is ledger and share.active:
                share.active.clear()
                share.trainer.stop()

    def slots(self) -> int:
        """Workers that there can be: as many as were asked for, else what Ray's nodes now hold."""
        there = slots([node.resources for node in all_nodes() if node.alive], self.size)
        return self._config.num_workers or there

    def has_shares(self, ledger: Ledger) -> bool:
        """Whether a worker of it has still to end."""
        return any(share.ledger is ledger for share in self._shares.values())

    def work(self, tend: Callable[[], bool] = lambda: False) -> None:
        """Return when every fold is over.

        Args:
            tend: called several times a second, to add and drop ledgers; whether more may come.

        Raises:
            StorageError: results cannot be written.
            BadInput: no slot came within --wait_timeout.
        """
        try:
            while tend() or self._is_busy():
                self._look_at_nodes()
                self._deal()
                self._take_in_all(_POLL_SECONDS)
                while not self._ended.empty():
                    self._settle(*self._ended.get())
                for ledger in self._ledgers:
                    self._tell_of_workers(ledger)
                    ledger.observer.time_passed()
            self._let_shares_end(_END_SECONDS)
        except BaseException:
            for share in self._shares.values():
                share.trainer.stop()
            self._let_shares_end(_STOP_SECONDS)
            if not self._own_instance:  # which goes as a whole
                for share in self._shares.values():
                    share.trainer.free_slot()
            raise

    def close(self) -> None:
        """Ask the cluster for nothing more."""
        for aid in (self._watch, self._request):
            if aid is not None:
                aid.close()

    def _is_busy(self) -> bool:
        return bool(self._waiting()) or any(share.active for share in self._shares.values())

    def _waiting(self) -> list[Ledger]:
        """Those with folds that wait."""
        return [ledger for ledger in self._ledgers if ledger.waiting]

    # --- to the shares ---------------------------------------------------------------------

    def _look_at_nodes(self) -> None:
        """Have folds move from nodes that are about to be taken away, and do without the lost."""
        if self._watch is None:
            return
        self._find_slots(self._watch)
        leaving, lost = self._watch.leaving(), self._watch.silent(_SILENT_SECONDS)
        for name, share in self._shares.items():
            if share.slot in lost:
                share.trainer.stop()
            elif share.started and share.slot in leaving and share.active - share.asked:
                folds = tuple(sorted(share.active))
                which = share.ledger.named(folds)
                self._observer.noticed(f"node {share.address} is leaving: {which} will move")
                self._ask(name, folds, leave=True)

    def _find_slots(self, watch: Watch) -> None:
        """A node can be lost while a worker starts there, which would say where it is."""
        now = time.monotonic()
        if not watch.silent() or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for share in self._shares.values():
            if share.slot is None:
                share.slot = share.trainer.slot_node()

    def _deal(self) -> None:
        """Give waiting folds to free slots; if none waits, relieve the shares that have many."""
        now = time.monotonic()
        if now - self._dealt < _POLL_SECONDS:  # events can come faster than slots
            return
        self._dealt = now
        pausing = now < self._deal_after
        free = self._slots_to_deal() if self._has_use_for_slots() and not pausing else 0
        for ledger in self._waiting():
            for folds in deal(sorted(ledger.waiting), free):
                self._start_share(ledger, folds)
                free -= 1
        if self._request is not None:
            unfinished = sum(ledger.unfinished() for ledger in self._ledgers)
            self._request.want(min(unfinished, self._most_workers()))
        if not any(share.started for share in self._shares.values()):
            self._wait()
        elif free > 0 and not self._waiting():
            self._relieve(free)

    def _has_use_for_slots(self) -> bool:
        return bool(self._waiting()) or any(len(s.active) > 1 for s in self._shares.values())

    def _slots_to_deal(self) -> int:
        room = self._most_workers() - len(self._shares)
        if room <= 0:
            return 0
        unplaced = sum(not share.started for share in self._shares.values())
        free = free_slots(self.size, self._shunned)
        return max(0, min(room, free - unplaced))

    @property
    def _shunned(self) -> set[str]:
        """Nodes where no worker is to start."""
        if self._watch is None:
            return set()
        now = time.monotonic()
        blind = {node for node, until in self._blind.items() if until > now}
        return blind | self._watch.leaving() | self._watch.silent()

    def _most_workers(self) -> int:
        return self._config.num_workers or len(self._data.fold_labels) * len(self._ledgers)

    def _wait(self) -> None:
        """Say now and again why no fold is at work, until it takes too long.

        Raises:
            BadInput: it does.
        """
        if not self._is_busy():
            self._waiting_since = None
            return
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        waited, what = now - self._waiting_since, self._what_is_missing()
        if what is None:
            return
        if waited >= _PATIENCE_SECONDS and now - self._reminded >= _REMIND_SECONDS:
            self._reminded = now
            self._observer.noticed(f"for {waited:.0f} s, {what}")
        longest = self._config.wait_timeout
        if longest is not None and waited >= longest:
            raise BadInput(
                f"--wait_timeout {longest:g}: in that time, {what}; want a longer one, or a "
                "cluster with room"
            )

    def _what_is_missing(self) -> str | None:
        """None while shares are on their way."""
        if self._vain > 1:
            return f"no worker has come to a round; the last ended: {self._vain_reason}"
        if self._shares or not self._waiting():
            return None
        waiting = ", ".join(each.named(sorted(each.waiting)) for each in self._waiting())
        return f"no free slot in Ray; {waiting} waiting ({inventory(self.size)})"

    def _relieve(self, free: int) -> None:
        loads = {
            name: Load(
                {fold: share.ledger.epochs_left(fold) for fold in share.active},
                share.epoch_seconds,
            )
            for name, share in self._shares.items()
            if share.active and not share.is_asked
        }
        promised = sum(share.is_asked for share in self._shares.values())
        for name, folds in hand_over(loads, free - promised, _START_SECONDS).items():
            which = self._shares[name].ledger.named(folds)
            self._observer.noticed(f"a slot is free: {which} will move there")
            self._ask(name, folds, leave=False)

    def _ask(self, name: str, folds: tuple[int, ...], *, leave: bool) -> None:
        self._shares[name].asked = frozenset(folds)
        ray.get(self._board.ask.remote(name, folds, leave=leave))

    def _start_share(self, ledger: Ledger, folds: tuple[int, ...]) -> None:
        name = _new_name()
        _log.info("share %s: dealt %s", name, ledger.named(folds))
        ledger.waiting -= set(folds)
        trainer = ShareTrainer(
            self._task(ledger, name, folds),
            self.size,
            ledger.config.run_dir.shares,
            shunned=self._shunned,
            own_instance=self._own_instance,
        )
        self._shares[name] = _Share(ledger, trainer, set(folds))
        thread = threading.Thread(target=self._fit, args=(name, trainer), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _task(self, ledger: Ledger, name: str, folds: tuple[int, ...]) -> ShareTask:
        config, data = ledger.config, self._data
        return ShareTask(
            share=name,
            board=self._board,
            features=self._features,
            class_indices=data.class_indices,
            splits={fold: ledger.split(fold) for fold in folds},
            origins=ledger.origins(folds),
            settings=TrainingSettings.of(config, ledger.precision),
            epochs=config.epochs,
            context=WeightsContext(
                model=config.model,
                classes=data.class_mapping,
                input_shape=(data.n_mels, data.time),
                feature_parameters=data.feature_parameters,
            ),
            run_dir=config.run_dir,
            marker=self._marker,
            checkpoint_every=config.checkpoint_every,
            threads=self.size.cpus,
            use_gpu=bool(self.size.gpus),
            watch=config.wandb_watch and config.wandb_project is not None,
            together=self._together(ledger, folds),
            record=not ledger.has_died(folds),  # recordings take memory
        )

    def _together(self, ledger: Ledger, folds: tuple[int, ...]) -> int | None:
        """How many folds a worker is to step together; None to find out.

        One, where a worker has died: so that the next death tells whose fault it is.
        """
        if ledger.has_died(folds):
            return 1
        return self._config.folds_per_slot or (None if self.size.gpus else 1)

    def _fit(self, name: str, trainer: ShareTrainer) -> None:
        ended: Exception | None = None
        try:
            trainer.fit()
        except Exception as error:  # whatever ends a share, its folds are dealt anew
            ended = error
        finally:
            self._ended.put((name, ended))

    # --- from the shares -------------------------------------------------------------------

    def _take_in_all(self, wait_seconds: float) -> None:
        """Take in what has happened; if nothing has, wait so long for it."""
        events = ray.get(self._board.events_from.remote(self._taken_in, wait_seconds))
        self._taken_in += len(events)
        rounds = [event for event in events if isinstance(event, RoundCommitted)]
        rounds = [event for event in rounds if event.share in self._shares]
        for ledger in self._ledgers:
            theirs = [event for event in rounds if self._shares[event.share].ledger is ledger]
            ledger.take_in_all([(event.round, event.checkpoint) for event in theirs])
        for event in events:
            self._take_in(event)

    def _take_in(self, event: Event) -> None:
        share = self._shares.get(event.share)
        if share is None:
            return  # it was given up, and its folds are elsewhere
        match event:
            case ShareStarted():
                share.started, share.slot, share.address = True, event.node, event.address
                self._waiting_since = None
                self._count_workers(share.ledger)
                gpu = f", GPU {event.gpu}" if event.gpu else ""
                where = f"{event.address}, pid {event.pid}{gpu}"
                _log.info("share %s: worker up on %s", event.share, where)
            case ShareReady():
                _log.info("share %s: first step", event.share)
            case FoldsStepping():
                share.stepping = event.epochs
            case ShareNotice() if event.text not in self._said:
                self._said.add(event.text)
                self._observer.noticed(event.text)
            case NodeIsBlind():
                share.blind = True
                self._shun(event)
            case ShareStopping():
                raise event.error
            case RoundCommitted(round=round_):
                share.committed = True
                self._vain, self._waiting_since, self._reminded = 0, None, -math.inf
                share.active -= {*round_.finished, *round_.failed, *round_.released}
                seconds = [metrics.seconds for metrics in round_.epochs.values()]
                share.epoch_seconds = max(seconds, default=share.epoch_seconds)

    def _count_workers(self, ledger: Ledger) -> None:
        """Of a ledger, and of the run that it is part of."""
        at_work = [s.ledger for s in self._shares.values() if s.started and s.active]
        run = self._runs[ledger]
        ledger.workers(at_work.count(ledger))
        run.workers(sum(self._runs[each] is run for each in at_work))

    def _shun(self, event: NodeIsBlind) -> None:
        known = event.node in self._blind
        self._blind[event.node] = time.monotonic() + _BLIND_SECONDS
        if not known:
            self._observer.noticed(
                f"node {event.address} is left out: it does not see {self._config.run_dir.root}"
            )

    def _settle(self, name: str, error: Exception | None) -> None:
        """A share has ended; what it has not finished is dealt anew."""
        self._take_in_all(wait_seconds=0)
        share = self._shares.pop(name)
        if error is not None:
            share.trainer.free_slot()
            if _is_disk_full(error):
                raise StorageError(
                    f"{self._config.run_dir.root}: the disk is full; what was complete before is "
                    "safe, and the same command resumes from it"
                )
        if share.blind:
            share.ledger.waiting |= share.active
        elif share.active:
            self._take_back(share, error)

    def _take_back(self, share: _Share, error: Exception | None) -> None:
        """Whose fault it was, if anybody's; and not to deal too soon where that leads nowhere."""
        reason = "it ended early" if error is None else cause(error)
        died = error is not None and is_death(error)
        failed = died or (error is not None and is_failure(error))
        if error is not None and share.slot is not None and self._is_gone(share.slot):
            died = failed = False
            reason = f"its node {share.address or share.slot} is gone"
        which = share.ledger.named(sorted(share.active))
        self._observer.noticed(f"the worker of {which} ended: {reason}")
        share.ledger.observer.worker_lost(tuple(sorted(share.active)), reason)
        stepped = share.stepping if died else {}
        for fold in sorted(share.active):
            death = None
            if fold in stepped:
                death = Death(reason, stepped[fold], together=len(stepped) > 1)
            elif failed and not stepped.keys() & share.active:
                death = Death(reason)
            share.ledger.take_back(fold, death)
        now = time.monotonic()
        if not share.committed and now >= self._deal_after:
            self._vain, self._vain_reason = self._vain + 1, reason
            pause = 0.5 * 2 ** min(self._vain - 1, 10)
            self._deal_after = now + min(pause, _LONGEST_PAUSE_SECONDS)

    def _tell_of_workers(self, ledger: Ledger) -> None:
        theirs = [share for share in self._shares.values() if share.ledger is ledger]
        started = [share for share in theirs if share.started and share.active]
        at_work = sorted(tuple(sorted(share.active)) for share in started)
        if at_work != self._at_work.get(ledger, []):
            self._at_work[ledger] = at_work
            ledger.observer.workers_changed(at_work)

    def _is_gone(self, node: str) -> bool:
        leaving = self._watch is not None and node in self._watch.leaving()
        return leaving or not is_up(node)

    def _let_shares_end(self, seconds: float) -> None:
        """Ray is not to be shut down while a thread is about to call it."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _new_name() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"


def _is_disk_full(error: Exception) -> bool:
    """Ray uploads checkpoints in a thread of its own, whose errors come as text only."""
    return any(sign in str(error) for sign in ("No space left on device", "Disk quota exceeded"))
