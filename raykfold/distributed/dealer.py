"""Deals folds to free slots of Ray until every fold is over, and listens to the shares."""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ray

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.distributed.code import DriverCode
from raykfold.distributed.deal import Load, WorkerSize, deal, hand_over, slots
from raykfold.distributed.events import (
    CopyBegun,
    CopyEnded,
    Event,
    EventBoard,
    FoldsStepping,
    NodeUnfit,
    RoundCommitted,
    ShareNotice,
    ShareReady,
    ShareStarted,
    ShareStopping,
    WorkerAlive,
)
from raykfold.distributed.feature_copy import FeatureSource, remove_copies
from raykfold.distributed.nodes import (
    Request,
    Watch,
    all_nodes,
    free_slots,
    inventory,
    is_up,
    kill_process,
    run_on,
    start_actor,
)
from raykfold.distributed.stall import NO_PULSE, AwakeClock, Pulse, stall_of
from raykfold.distributed.start_mode import StartMode
from raykfold.distributed.trainer import End, ShareTrainer, end_of
from raykfold.distributed.worker import ShareTask
from raykfold.errors import BadInput, StorageError
from raykfold.files.remote import Place
from raykfold.observers import Observer
from raykfold.state.checkpoint import WeightsContext
from raykfold.state.deaths import Death
from raykfold.state.ledger import Ledger
from raykfold.text import size_text
from raykfold.training.recipe import TrainingSettings

_log = logging.getLogger(__name__)

# What a new worker costs before its first step: 3 s measured on an idle machine, and as much again
# for others. A fold is not moved to save less.
_START_SECONDS = 6.0
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_END_SECONDS = 30.0  # how long shares may take to end in order; one takes two
_STOP_SECONDS = 5.0  # how long shares may take to end when they are stopped
# When shares end before their first round, the next wait is longer, up to this.
_LONGEST_PAUSE_SECONDS = 30.0
_UNFIT_SECONDS = 60.0  # until a node that lacked storage or room is tried again
_REMOVE_SECONDS = 5.0  # how long the nodes may take to remove their copies of the features
_LARGE_BYTES = 10**9  # a copy of so much takes long enough to be told
_REMIND_SECONDS = 30.0
_PATIENCE_SECONDS = 3.0  # a slot that has just been left shows as free a moment later
# A shorter break of the network passes unnoticed. After this, the work is better done elsewhere.
_SILENT_SECONDS = 10.0


@dataclass(eq=False)
class _Entry:
    """A ledger that the dealer works on; it knows the folds of a run, or of a part of one."""

    ledger: Ledger
    rank: int  # when slots are short, entries of lower rank come first
    run: _Entry | None  # that of the run that this one repeats; None for a run by itself
    workers: list[tuple[int, ...]] = field(default_factory=list)  # as the observer was last told


@dataclass
class _Share:
    """A share that was dealt, as the driver sees it."""

    entry: _Entry  # what its folds belong to
    trainer: ShareTrainer  # its Ray Train run
    active: set[int]  # folds that it has not finished
    attempt: int  # of `StartMode`, in which it was started
    slot: str | None = None  # id of the node where it has its slot; None until that is known
    started: bool = False  # its worker runs
    address: str = ""  # of its node
    unfit: bool = False  # its worker found that its node cannot train it
    copying: bool = False  # its worker copies the features to its node
    committed: bool = False  # at least one round of it is committed
    stepping: Mapping[int, int] = field(default_factory=dict)  # fold being trained → its epoch
    asked: frozenset[int] = frozenset()  # folds that it was asked to give back
    epoch_seconds: float = 0.0  # how long an epoch of one fold takes there
    pid: int = 0  # of its worker's process
    pulse: Pulse = NO_PULSE  # what its worker has reported last
    heard_at: float = 0.0  # when that was, by the dealer's clock
    stall: str | None = None  # how it has stalled

    @property
    def ledger(self) -> Ledger:
        return self.entry.ledger

    @property
    def is_asked(self) -> bool:
        """Whether it still has to give back folds that it was asked for."""
        return bool(self.asked & self.active)


@dataclass(eq=False)
class Dealer:
    """Trains the waiting folds of ledgers until every one is over.

    Args:
        config: of the run.
        data: of all ledgers.
        features: where workers find the data's features.
        observer: told of what the user should know.
        size: what a worker takes of a node.
        code: what workers need of the driver's.
        marker: a file on the run's storage that workers must see; None if they need not look.
        own_instance: Ray was started by this process, and ends with it.
    """

    config: RunConfig
    data: FeatureSet
    features: FeatureSource
    observer: Observer
    size: WorkerSize
    code: DriverCode
    marker: Place | None
    own_instance: bool

    def __post_init__(self) -> None:
        self._entries: list[_Entry] = []  # those of lower rank first
        self._shares: dict[str, _Share] = {}
        self._threads: list[threading.Thread] = []
        self._ended: queue.Queue[tuple[str, Exception | None]] = queue.Queue()
        self._board = start_actor(EventBoard)
        self._received = 0  # events
        self._clock = AwakeClock()
        # An instance of our own is one node, and cannot grow.
        self._watch = None if self.own_instance else Watch()
        self._request = None if self.own_instance else Request(_new_name(), self.size)
        # Node → until when no worker is to start there, and what the user was told.
        self._unfit: dict[str, tuple[float, str]] = {}
        # Nodes that have a copy of the features, or make one, and the folders of copies there.
        self._with_copy: set[str] = set()
        self._copy_folders: set[Path] = set()
        self._failed_starts = 0  # shares in a row that ended without a round
        self._last_reason = ""  # why the last of them did
        self._start_mode = StartMode()
        self._deal_after = -math.inf
        self._dealt = -math.inf
        self._looked = -math.inf
        self._waiting_since: float | None = None
        self._reminded = -math.inf
        self._noticed: set[str] = set()

    def add(self, ledger: Ledger, *, part_of: Ledger | None = None, rank: int = 0) -> None:
        """Also work on this ledger, which must have begun.

        Args:
            ledger: knows its folds, and is told of every committed round.
            part_of: the ledger of the run that it is a repeat of.
            rank: when slots are short, ledgers of lower rank come first, then those added before.
        """
        run = next((entry for entry in self._entries if entry.ledger is part_of), None)
        self._entries.append(_Entry(ledger, rank, run))
        self._entries.sort(key=lambda entry: entry.rank)

    def drop(self, ledger: Ledger) -> None:
        """Give a ledger up. Its workers end now, and what they have committed stays on storage."""
        self._receive(wait_seconds=0)
        self._entries = [entry for entry in self._entries if entry.ledger is not ledger]
        ledger.waiting.clear()
        for share in self._shares.values():
            if share.ledger is ledger and share.active:
                share.active.clear()
                share.trainer.stop()

    def slots(self) -> int:
        """Return how many workers there can be: --num_workers, or what Ray's nodes hold now."""
        there = slots([node.resources for node in all_nodes()], self.size)
        return self.config.num_workers or there

    def has_shares(self, ledger: Ledger) -> bool:
        """Return whether a worker of this ledger has still to end."""
        return any(share.ledger is ledger for share in self._shares.values())

    def work(self, tend: Callable[[], bool] = lambda: False) -> None:
        """Deal folds, and listen to the shares, until every fold is over.

        Args:
            tend: called several times a second, to add and drop ledgers. It returns whether more
                may come.

        Raises:
            StorageError: results cannot be written.
            BadInput: no slot came within --wait_timeout.
        """
        try:
            while tend() or self._is_busy():
                self._leave_nodes()
                self._deal()
                self._receive(_POLL_SECONDS)
                self._end_stalled()
                while not self._ended.empty():
                    self._settle(*self._ended.get())
                for entry in self._entries:
                    self._announce_workers(entry)
                    entry.ledger.observer.time_passed()
            self._join_threads(_END_SECONDS)
        except BaseException:
            for share in self._shares.values():
                share.trainer.stop()
            self._join_threads(_STOP_SECONDS)
            if not self.own_instance:  # which ends as a whole
                for share in self._shares.values():
                    share.trainer.free_slot()
            raise

    def close(self) -> None:
        """Withdraw the request for more nodes, stop watching the cluster, and remove copies.

        The request comes first: `ray job stop` gives this process three seconds.
        """
        lost = self._watch.silent() if self._watch is not None else set()
        try:
            for aid in (self._request, self._watch):
                if aid is not None:
                    aid.close()
        finally:
            if not self.own_instance:
                self._remove_copies(lost)

    def _remove_copies(self, lost: set[str]) -> None:
        """Remove the copies of the features from the nodes that answer.

        Args:
            lost: ids of nodes that do not.
        """
        try:
            self._take_events(wait_seconds=0)  # a copy may just have begun
            with_copy = self._with_copy - lost
            if with_copy:
                nodes = [node for node in all_nodes() if node.id in with_copy]
                where = self.features.session, self._copy_folders
                run_on(nodes, remove_copies, *where, seconds=_REMOVE_SECONDS)
        except Exception as error:  # the cluster is ending; a later session there removes them
            _log.info("cannot remove copies of the features: %s", error)

    def _is_busy(self) -> bool:
        return bool(self._waiting_ledgers()) or any(share.active for share in self._shares.values())

    def _waiting_ledgers(self) -> list[Ledger]:
        """Return the ledgers with folds that wait."""
        return [entry.ledger for entry in self._entries if entry.ledger.waiting]

    # --- to the shares ---------------------------------------------------------------------

    def _leave_nodes(self) -> None:
        """Move folds away from nodes that are about to go, and stop shares on lost nodes."""
        if self._watch is None:
            return
        # A node can be lost while a worker starts there that has not said yet where it is. So when
        # a node is silent, ask Ray where the slots are.
        now = time.monotonic()
        if self._watch.silent() and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            for share in self._shares.values():
                share.slot = share.slot or share.trainer.slot_node()
        leaving, lost = self._watch.leaving(), self._watch.silent(_SILENT_SECONDS)
        for name, share in self._shares.items():
            if share.slot in lost:
                share.trainer.stop()
            elif share.started and share.slot in leaving and share.active - share.asked:
                folds = tuple(sorted(share.active))
                which = share.ledger.fold_names(folds)
                self.observer.noticed(f"node {share.address} is leaving: {which} will move")
                self._ask(name, folds, leave=True)

    def _end_stalled(self) -> None:
        """Stop shares whose workers hang; their folds are dealt again."""
        now = self._clock.tick()
        for share in self._shares.values():
            if share.stall is None:
                share.stall = stall_of(share.pulse, now - share.heard_at)
                if share.stall is not None and not share.trainer.stop() and share.slot is not None:
                    kill_process(share.slot, share.pid)

    def _deal(self) -> None:
        """Give waiting folds to free slots. If none waits, relieve the shares that have many."""
        now = time.monotonic()
        if now - self._dealt < _POLL_SECONDS:  # events can come faster than slots
            return
        self._dealt = now

        # Count the free slots. A share that has not started will take one of them.
        free = 0
        most = self.config.num_workers or len(self.data.fold_labels) * len(self._entries)
        room = most - len(self._shares)
        is_useful = self._waiting_ledgers() or any(
            len(share.active) > 1 for share in self._shares.values()
        )
        if is_useful and room > 0 and now >= self._deal_after:
            unplaced = sum(not share.started for share in self._shares.values())
            free = max(0, min(room, free_slots(self.size, self._unusable_nodes()) - unplaced))

        for entry in self._entries:
            for folds in deal(sorted(entry.ledger.waiting), free):
                self._start_share(entry, folds)
                free -= 1
        if self._request is not None:
            unfinished = sum(entry.ledger.unfinished() for entry in self._entries)
            self._request.want(min(unfinished, most))
        if not any(share.started for share in self._shares.values()):
            self._wait()
        elif free > 0 and not self._waiting_ledgers():
            self._relieve(free)

    def _unusable_nodes(self) -> set[str]:
        """Return the ids of nodes where no worker is to start."""
        if self._watch is None:
            return set()
        now = time.monotonic()
        unfit = {node for node, (until, _) in self._unfit.items() if until > now}
        return unfit | self._watch.leaving() | self._watch.silent()

    def _wait(self) -> None:
        """Say from time to time why no fold is trained, until that has lasted too long.

        Raises:
            BadInput: it has lasted for --wait_timeout.
        """
        if not self._is_busy():
            self._waiting_since = None
            return
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        waited = now - self._waiting_since
        if self._failed_starts > 1:
            what = f"no worker has come to a round; the last ended: {self._last_reason}"
        elif self._shares or not self._waiting_ledgers() or now < self._deal_after:
            return  # shares are on their way, or soon will be
        else:
            waiting = ", ".join(
                each.fold_names(sorted(each.waiting)) for each in self._waiting_ledgers()
            )
            what = f"no free slot in Ray; {waiting} waiting ({inventory(self.size)})"
            what += "".join(f"; {told}" for until, told in self._unfit.values() if until > now)
        if waited >= _PATIENCE_SECONDS and now - self._reminded >= _REMIND_SECONDS:
            self._reminded = now
            self.observer.noticed(f"for {waited:.0f} s, {what}")
        longest = self.config.wait_timeout
        if longest is not None and waited >= longest:
            raise BadInput(
                f"--wait_timeout {longest:g}: in that time, {what}; expected a longer one, or a "
                "cluster with room"
            )

    def _relieve(self, free: int) -> None:
        """Ask loaded shares for folds that free slots could train."""
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
            which = self._shares[name].ledger.fold_names(folds)
            self.observer.noticed(f"a slot is free: {which} will move there")
            self._ask(name, folds, leave=False)

    def _ask(self, name: str, folds: tuple[int, ...], *, leave: bool) -> None:
        self._shares[name].asked = frozenset(folds)
        ray.get(self._board.ask.remote(name, folds, leave=leave))

    def _start_share(self, entry: _Entry, folds: tuple[int, ...]) -> None:
        """Start a Ray Train run for these folds, in a thread that waits for its end."""
        name = _new_name()
        _log.info("share %s: dealt %s", name, entry.ledger.fold_names(folds))
        entry.ledger.waiting -= set(folds)
        task, storage = self._task(entry.ledger, name, folds), entry.ledger.config.run_dir.shares
        trainer = ShareTrainer(
            task,
            storage,
            self._unusable_nodes(),
            own_instance=self.own_instance,
            plain=self._start_mode.is_plain,
        )
        self._shares[name] = _Share(entry, trainer, set(folds), self._start_mode.attempt)

        def fit() -> None:
            error: Exception | None = None
            try:
                trainer.fit()
            except Exception as raised:  # whatever ends a share, its folds are dealt again
                error = raised
            finally:
                self._ended.put((name, error))

        thread = threading.Thread(target=fit, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _task(self, ledger: Ledger, name: str, folds: tuple[int, ...]) -> ShareTask:
        config, data = ledger.config, self.data
        # After a death, folds are stepped one by one, so that the next death tells whose fault it
        # was. And no steps are recorded, nor features kept on a GPU unless that is asked for: both
        # take memory.
        has_died = ledger.has_died(folds)
        together = self.config.folds_per_slot or (None if self.size.gpus else 1)
        return ShareTask(
            share=name,
            board=self._board,
            code=self.code,
            features=self.features,
            class_indices=data.class_indices,
            splits={fold: ledger.split(fold) for fold in folds},
            origins=ledger.origins(folds),
            settings=TrainingSettings.of(config, ledger.precision),
            epochs=config.epochs,
            context=WeightsContext(
                model=config.model,
                classes=data.class_mapping,
                input_shape=data.sample_shape,
                feature_parameters=data.feature_parameters,
            ),
            run_dir=config.run_dir,
            marker=self.marker,
            checkpoint_every=config.checkpoint_every,
            size=self.size,
            watch=config.wandb_watch and config.wandb_project is not None,
            together=1 if has_died else together,
            record=not has_died,
            features_on="host" if has_died and config.features_on == "auto" else config.features_on,
            stall_timeout=config.stall_timeout,
        )

    # --- from the shares -------------------------------------------------------------------

    def _receive(self, wait_seconds: float) -> None:
        """Act on what has happened in the shares; if nothing has, wait so long for something."""
        events = self._take_events(wait_seconds)
        # A share that is not known any more was given up, and its folds are elsewhere.
        events = [event for event in events if event.share in self._shares]

        # Committed rounds first, those of a ledger all at once: it then writes its index once.
        committed = defaultdict(list)
        for event in events:
            if isinstance(event, RoundCommitted):
                ledger = self._shares[event.share].ledger
                committed[ledger].append((event.round, event.checkpoint))
        for entry in self._entries:
            entry.ledger.take_in(committed[entry.ledger])

        for event in events:
            share = self._shares[event.share]
            match event:
                case ShareStarted():
                    share.started = True
                    share.pid = event.pid
                    share.slot, share.address = event.node, event.address
                    self._count_workers(share.entry)
                    gpu = f", GPU {event.gpu}" if event.gpu else ""
                    where = f"{event.address}, pid {event.pid}{gpu}"
                    _log.info("share %s: worker up on %s", event.share, where)
                case ShareReady():
                    _log.info("share %s: first step", event.share)
                case FoldsStepping():
                    share.stepping = event.epochs
                case WorkerAlive():
                    share.pulse, share.heard_at = event.pulse, self._clock.seconds
                case ShareNotice() if event.text not in self._noticed:
                    self._noticed.add(event.text)
                    self.observer.noticed(event.text)
                case NodeUnfit():
                    share.unfit = True
                    told = f"node {event.address} is left out: {event.reason}"
                    if event.node not in self._unfit:
                        self.observer.noticed(told)
                    self._unfit[event.node] = time.monotonic() + _UNFIT_SECONDS, told
                case CopyBegun():
                    share.copying = True
                    count = self.features.file.nbytes
                    what = f"{size_text(count)} of features to {event.folder}"
                    text = f"node {event.address} copies {what}"
                    _log.info("share %s: %s", event.share, text)
                    if count >= _LARGE_BYTES:
                        self.observer.noticed(text)
                case CopyEnded():
                    share.copying = False
                    text = f"node {event.address} has its copy after {event.seconds:.1f} s"
                    _log.info("share %s: %s", event.share, text)
                case ShareStopping():
                    raise event.error
                case RoundCommitted(round=round_):
                    share.committed = True
                    self._start_mode.round_committed(share.attempt)
                    self._failed_starts, self._waiting_since = 0, None
                    self._reminded = -math.inf
                    share.active -= {*round_.finished, *round_.failed, *round_.released}
                    seconds = [metrics.seconds for metrics in round_.epochs.values()]
                    share.epoch_seconds = max(seconds, default=share.epoch_seconds)

    def _take_events(self, wait_seconds: float) -> list[Event]:
        """Return what has happened in the shares, and note which nodes have copies."""
        events = ray.get(self._board.events_from.remote(self._received, wait_seconds))
        self._received += len(events)
        # Whatever became of a share since, a copy that it began is to be removed.
        for event in events:
            if isinstance(event, CopyBegun):
                self._with_copy.add(event.node)
                self._copy_folders.add(Path(event.folder))
        return list(events)

    def _settle(self, name: str, error: Exception | None) -> None:
        """Let the folds that an ended share has not finished wait again, or fail those to blame.

        Raises:
            StorageError: the disk is full.
        """
        self._receive(wait_seconds=0)
        share = self._shares.pop(name)
        if error is not None:
            share.trainer.free_slot()
            # The worker's own StorageError has come as an event. This is one of Ray's.
            if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
                raise StorageError(
                    f"{self.config.run_dir.root}: the disk is full; what was complete before is "
                    "safe, and the same command resumes from it"
                )
        # A slot on a node that cannot have the features, or where their copy fails, is none.
        if share.unfit:
            share.ledger.waiting |= share.active
        elif share.started and not (share.copying and share.active):
            self._waiting_since = None
        if share.unfit or not share.active:
            return

        # Find out what the end tells: of a death, of a failure, or of neither.
        if error is None:
            end = End("it ended early")
        elif share.slot is not None and self._is_gone(share.slot):
            end = End(f"its node {share.address or share.slot} is gone", displaced=True)
            self._waiting_since = None
        elif share.stall is not None:
            end = End(share.stall, died=True, failed=True)
        else:
            end = end_of(error)
        folds = tuple(sorted(share.active))
        self.observer.noticed(f"the worker of {share.ledger.fold_names(folds)} ended: {end.reason}")
        share.ledger.observer.worker_lost(folds, end.reason)

        # Find out whether the way in which the worker was started can be why, as in a later Ray.
        # Once it has started, only its own errors can tell of that; before, whatever ends it.
        excused = False
        if not end.displaced and (end.unexplained or not share.started):
            excused = self._start_mode.excuses(share.attempt)
            if self._start_mode.share_failed(share.attempt):
                self._say_switch("complete a round" if share.started else "start")

        # Blame a death on the folds that were being trained. If none was, or it was a failure, all
        # folds of the share may have caused it; but none did before the features were there.
        stepped = share.stepping if end.died else {}
        for fold in folds:
            death = None
            if fold in stepped:
                death = Death(end.reason, stepped[fold], together=len(stepped) > 1)
            elif end.failed and not (excused or share.copying or stepped.keys() & share.active):
                death = Death(end.reason)
            share.ledger.take_back(fold, death)

        # Where shares end before their first round, deal again only after a pause.
        now = time.monotonic()
        if not share.committed and now >= self._deal_after:
            self._failed_starts, self._last_reason = self._failed_starts + 1, end.reason
            pause = 0.5 * 2 ** min(self._failed_starts - 1, 10)
            self._deal_after = now + min(pause, _LONGEST_PAUSE_SECONDS)

    def _say_switch(self, failed_to: str) -> None:
        plain = "Ray Train's default start (slower)"
        way = plain if self._start_mode.is_plain else "the faster start again"
        self.observer.noticed(f"workers did not {failed_to}; trying {way}")

    def _is_gone(self, node: str) -> bool:
        leaving = self._watch is not None and node in self._watch.leaving()
        return leaving or not is_up(node)

    def _count_workers(self, entry: _Entry) -> None:
        """Tell a ledger, and that of its run, how many workers are at work."""
        at_work = [share.entry for share in self._shares.values() if share.started and share.active]
        run = entry.run or entry
        entry.ledger.workers(at_work.count(entry))
        run.ledger.workers(sum((each.run or each) is run for each in at_work))

    def _announce_workers(self, entry: _Entry) -> None:
        """Tell the observer of a ledger which folds each worker has, when that has changed."""
        workers = sorted(
            tuple(sorted(share.active))
            for share in self._shares.values()
            if share.entry is entry and share.started and share.active
        )
        if workers != entry.workers:
            entry.workers = workers
            entry.ledger.observer.workers_changed(workers)

    def _join_threads(self, seconds: float) -> None:
        """Wait for the threads of the shares: none may call Ray while it is shut down."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _new_name() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"
