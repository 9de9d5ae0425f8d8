"""The driver: finds the data, connects to Ray, deals folds to slots, and brings them together."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raykfold.artifacts import Artifacts, out_of_fold, write_results
from raykfold.checkpoint import (
    FinishedFold,
    WeightsContext,
    load_finished_fold,
    load_result,
)
from raykfold.config import RunConfig
from raykfold.data import FeatureSet, read_feature_set
from raykfold.demo import demo_feature_set
from raykfold.errors import BadInput, RaykfoldError, StorageError
from raykfold.models import check_model
from raykfold.observers import Observer, RunStart
from raykfold.paths import fold_name
from raykfold.results import EpochMetrics, FoldResult, Summary
from raykfold.scratch import scratch_dir
from raykfold.session import ray_session
from raykfold.shares import Load, WorkerSize, deal, hand_over, slots
from raykfold.storage import (
    FoldState,
    Index,
    check_identity,
    check_writable,
    identity,
    locked,
    newest_states,
    read_index,
    set_aside,
    sweep,
    versions,
    write_record,
)
from raykfold.training import TrainingSettings

_log = logging.getLogger(__name__)

# Ray Train's controller takes one report away per interval; two seconds by default.
_HEALTH_CHECK_SECONDS = "0.1"
# What a new worker costs before its first step, measured; a fold is not moved to save less.
_START_SECONDS = 20.0
_POLL_SECONDS = 0.2
_END_SECONDS = 10.0


def cross_validate(
    config: RunConfig,
    *,
    data: FeatureSet | None = None,
    observers: Sequence[Observer] = (),
) -> Summary:
    """Train every fold that `config` names, or go on with those that are not complete.

    Args:
        config: what to do.
        data: the samples, instead of those in ``config.processed_dir``.
        observers: told of everything that is committed.

    Returns:
        The summary; its status is ``partial`` if folds failed.

    Raises:
        BadInput: a value, a file or an earlier run does not fit; nothing has been written.
        StorageError: the disk is full.
    """
    audience = _Audience(observers)
    try:
        data = data or _read_data(config)
        folds = _chosen_folds(config, data)
        for line in (*data.notes, *data.warnings()):
            audience.noticed(line)
        check_model(config.model, data.n_mels, data.num_classes, data.time)
        check_writable(config)
        with _undone_if_refused(config), locked(config):
            if config.fresh:
                for place in set_aside(config):
                    audience.noticed(f"the earlier run was set aside in {place}")
            check_identity(config, identity(config, data.fingerprint))
            run = _Run(config, data, folds, audience)
            run.find_states()
            if run.waiting:
                run.train()
            return run.conclude()
    finally:
        audience.close()


def _read_data(config: RunConfig) -> FeatureSet:
    return demo_feature_set() if config.demo else read_feature_set(config.processed_dir)


def _chosen_folds(config: RunConfig, data: FeatureSet) -> tuple[int, ...]:
    if config.folds is None:
        return data.fold_labels
    unknown = [fold for fold in config.folds if fold not in data.fold_labels]
    if unknown:
        there = ", ".join(map(str, data.fold_labels))
        raise BadInput(f"--folds {','.join(map(str, unknown))}: not in the data, which has {there}")
    return config.folds


@contextmanager
def _undone_if_refused(config: RunConfig) -> Iterator[None]:
    """Take away the folders that were made to hold the lock, when the input turns out bad."""
    wanted = [config.run_dir.root, *config.run_dir.root.parents]
    made = [folder for folder in wanted if not folder.exists()]
    try:
        yield
    except BadInput:
        config.run_dir.lock.unlink(missing_ok=True) if made else None
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


class _Audience(Observer):
    """Passes everything on to several observers, and shields the run from their failures."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def run_started(self, start: RunStart) -> None:
        self._tell("run_started", start)

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._tell("epoch_committed", fold, metrics)

    def fold_finished(self, result: FoldResult) -> None:
        self._tell("fold_finished", result)

    def noticed(self, text: str) -> None:
        self._tell("noticed", text)

    def run_finished(self, summary: Summary) -> None:
        self._tell("run_finished", summary)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, what: str, *args: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, what)(*args)
            except RaykfoldError:
                raise
            except Exception as error:
                self._observers.remove(observer)
                name = type(observer).__name__
                self.noticed(f"{name} failed and is not told any more: {_one_line(error)}")


@dataclass
class _Share:
    """A share that was dealt, as the driver sees it."""

    name: str
    active: set[int]
    dealt_at: float = field(default_factory=time.monotonic)
    placed: bool = False
    asked: bool = False
    epoch_seconds: float = 0.0


class _Run:
    """One session's work on a run: from what is on storage to a summary."""

    def __init__(
        self, config: RunConfig, data: FeatureSet, folds: tuple[int, ...], audience: _Audience
    ) -> None:
        self.config = config
        self.data = data
        self.folds = folds
        self.audience = audience
        self.waiting: set[int] = set()
        self._histories: dict[int, list[EpochMetrics]] = {}
        self._results: dict[int, FoldResult] = {}
        self._origins: dict[int, Path] = {}
        self._deaths: dict[int, int] = dict.fromkeys(folds, 0)
        self._shares: dict[str, _Share] = {}
        self._ended: queue.Queue[tuple[str, Exception | None]] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._index = Index()
        self._began: float | None = None
        self._seconds_before = 0.0
        self._said_waiting = False

    # --- before training -----------------------------------------------------------------

    def find_states(self) -> None:
        """Learn from storage what an earlier session has done."""
        sweep(self.config.run_dir)
        index, notes = read_index(self.config.run_dir)
        states, damage = newest_states(self.config.run_dir, index, self.folds)
        self._index = replace(index, folds={f: state.folder for f, state in states.items()})
        for fold, state in states.items():
            self._take_up(fold, state)
        self.waiting = {fold for fold in self.folds if fold not in self._results}
        for line in (*notes, *damage, *self._resume_lines(states)):
            self.audience.noticed(line)

    def _take_up(self, fold: int, state: FoldState) -> None:
        result = load_result(state.folder)
        self._histories[fold] = list(result.history)
        if state.done(self.config.epochs):
            self._results[fold] = result
        else:
            self._origins[fold] = state.folder

    def _resume_lines(self, states: dict[int, FoldState]) -> Iterator[str]:
        complete = sorted(self._results)
        if complete:
            done = "" if self.waiting else "; nothing is left to train"
            yield f"complete already, skipped: {_named(complete)}{done}"
        for fold in sorted(self.waiting & states.keys()):
            yield f"fold {fold}: resumes after epoch {states[fold].epochs_run}"

    # --- training ------------------------------------------------------------------------

    def train(self) -> None:
        """Connect to Ray and work until every fold is over.

        Raises:
            BadInput: Ray has not what the flags ask for; the run is another one on this device.
            StorageError: the disk is full.
        """
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _HEALTH_CHECK_SECONDS)
        self._began, self._seconds_before = time.monotonic(), self._index.wall_seconds
        config = self.config
        with ray_session(
            config.address, local_cpus=config.local_cpus, verbose=config.verbose
        ) as own_instance:
            import ray

            from raykfold.events import open_board

            _log.info("connected to Ray")
            size = self._worker_size()
            self._own_instance = own_instance
            self._check_slots(size)
            current = identity(config, self.data.fingerprint, _device_name(size))
            check_identity(config, current)
            write_record(config, current)
            self.audience.add(Artifacts(config.outputs, config.run_dir))
            self._announce()
            with scratch_dir() as scratch:
                self._scratch = scratch if own_instance else None
                self._size = size
                self._board = open_board()
                self._features = ray.put(_plain_array(self.data))
                self._until_all_are_over()

    def _worker_size(self) -> WorkerSize:
        import ray

        has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
        if self.config.use_gpu and not has_gpu:
            raise BadInput("--use_gpu true: Ray has no GPU here; want false or auto")
        use_gpu = has_gpu if self.config.use_gpu is None else self.config.use_gpu
        return WorkerSize(cpus=self.config.cpus_per_worker, gpus=int(use_gpu))

    def _check_slots(self, size: WorkerSize) -> None:
        """A local instance never grows; on a cluster what is missing may still come."""
        if not self._own_instance:
            return
        there = self._free_slots(size)
        if there == 0:
            raise BadInput(
                f"--cpus_per_worker {size.cpus}: the local Ray instance has room for no such "
                "worker; want fewer, or more --local_cpus"
            )
        if self.config.num_workers is not None and self.config.num_workers > there:
            raise BadInput(
                f"--num_workers {self.config.num_workers}: the local Ray instance has {there} "
                f"slot{'s' * (there != 1)} of {_size_text(size)}; want at most that, or more "
                "--local_cpus"
            )

    def _announce(self) -> None:
        self.audience.run_started(
            RunStart(
                run_name=self.config.run_name,
                epochs=self.config.epochs,
                folds=self.folds,
                histories={fold: tuple(rows) for fold, rows in self._histories.items()},
                finished=dict(self._results),
            )
        )

    def _until_all_are_over(self) -> None:
        import ray

        while self.waiting or any(share.active for share in self._shares.values()):
            self._deal()
            for event in ray.get(self._board.drain.remote(_POLL_SECONDS)):
                self._take_in(event)
            while not self._ended.empty():
                self._settle(*self._ended.get())
        self._let_shares_end()

    def _let_shares_end(self) -> None:
        """Ray ends the process if a thread calls it just after it was shut down."""
        deadline = time.monotonic() + _END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _deal(self) -> None:
        """Give waiting folds to free slots; if none waits, relieve the shares that have many."""
        free = self._slots_to_deal()
        for folds in deal(sorted(self.waiting), free):
            self._start_share(folds)
            free -= 1
        if self.waiting and not self._shares and not self._said_waiting:
            self.audience.noticed(f"no free slot in Ray; {_named(sorted(self.waiting))} waiting")
            self._said_waiting = True
        if free > 0 and not self.waiting:
            self._relieve(free)

    def _slots_to_deal(self) -> int:
        allowed = self.config.num_workers
        room = len(self.folds) if allowed is None else allowed - len(self._shares)
        if room <= 0 or not (self.waiting or self._shares):
            return 0
        unplaced = sum(not share.placed for share in self._shares.values())
        return max(0, min(room, self._free_slots(self._size) - unplaced))

    def _free_slots(self, size: WorkerSize) -> int:
        # Ray's public call adds the nodes up, and a worker cannot be split over two.
        from ray._private.state import available_resources_per_node

        return slots(list(available_resources_per_node().values()), size)

    def _relieve(self, free: int) -> None:
        import ray

        loads = {
            share.name: Load(
                {fold: self.config.epochs - self._epochs_done(fold) for fold in share.active},
                share.epoch_seconds,
            )
            for share in self._shares.values()
            if share.active and not share.asked
        }
        for name, folds in hand_over(loads, free, _START_SECONDS).items():
            self._shares[name].asked = True
            ray.get(self._board.ask.remote(name, folds))

    def _epochs_done(self, fold: int) -> int:
        return len(self._histories.get(fold, ()))

    def _start_share(self, folds: tuple[int, ...]) -> None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"
        _log.info("share %s: dealt %s", name, _named(folds))
        self.waiting -= set(folds)
        self._shares[name] = _Share(name, set(folds))
        self._index.num_workers = max(self._index.num_workers, len(self._shares))
        trainer = self._trainer(name, folds)
        thread = threading.Thread(target=self._fit, args=(name, trainer), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _trainer(self, name: str, folds: tuple[int, ...]) -> Any:
        from raykfold.trainer import ShareTrainer
        from raykfold.worker import ShareTask

        config, size = self.config, self._size
        task = ShareTask(
            share=name,
            board=self._board,
            features=self._features,
            class_indices=self.data.class_indices,
            splits={fold: self.data.split(fold) for fold in folds},
            origins={fold: self._origins[fold] for fold in folds if fold in self._origins},
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
                classes=_classes(self.data),
                input_shape=(self.data.n_mels, self.data.time),
                feature_parameters=self.data.feature_parameters,
            ),
            run_dir=config.run_dir,
            scratch=self._scratch,
            checkpoint_every=config.checkpoint_every,
            threads=size.cpus,
            use_gpu=bool(size.gpus),
        )
        return ShareTrainer(task, size, config.run_dir.shares, own_instance=self._own_instance)

    def _fit(self, name: str, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever ends a share, its folds are dealt anew
            self._ended.put((name, error))
        else:
            self._ended.put((name, None))

    # --- what the shares say --------------------------------------------------------------

    def _take_in(self, event: Any) -> None:
        from raykfold.events import RoundCommitted, ShareReady, ShareStarted, ShareStopping

        share = self._shares.get(event.share)
        if share is None:
            return  # it was given up, and its folds are elsewhere
        if isinstance(event, ShareStarted):
            share.placed = True
            _log.info("share %s: worker up on %s, pid %d", share.name, event.node, event.pid)
        elif isinstance(event, ShareReady):
            _log.info("share %s: first step", share.name)
        elif isinstance(event, ShareStopping):
            raise StorageError(event.message)
        elif isinstance(event, RoundCommitted):
            self._take_in_round(share, event)

    def _take_in_round(self, share: _Share, event: Any) -> None:
        round_ = event.round
        for fold in round_.saved:
            self._note_state(fold, Path(event.checkpoint) / fold_name(fold))
        for fold in round_.finished:
            self._note_state(fold, self.config.run_dir.finished(fold))
        self._write_index()
        for fold, metrics in round_.epochs.items():
            self._deaths[fold] = 0
            history = self._histories.setdefault(fold, [])
            del history[metrics.epoch :]  # an epoch that was trained again after a death
            history.append(metrics)
            self.audience.epoch_committed(fold, metrics)
        if round_.epochs:
            share.epoch_seconds = max(m.seconds for m in round_.epochs.values())
        for result in round_.finished.values():
            self._is_over(result)
        for fold, message in round_.failed.items():
            self._is_over(self._failure(fold, message))
        share.active -= {*round_.finished, *round_.failed, *round_.released}
        self.waiting |= set(round_.released)

    def _note_state(self, fold: int, folder: Path) -> None:
        self._origins[fold] = folder
        self._index.folds[fold] = folder

    def _write_index(self) -> None:
        if self._began is not None:  # a session that found nothing to train takes no time
            self._index.wall_seconds = self._seconds_before + time.monotonic() - self._began
        self._index.write(self.config.run_dir)

    def _is_over(self, result: FoldResult) -> None:
        self._results[result.fold] = result
        self.audience.fold_finished(result)

    def _failure(self, fold: int, message: str) -> FoldResult:
        split = self.data.split(fold)
        history = tuple(self._histories.get(fold, ()))
        best = max(history, key=lambda m: (m.val_accuracy, -m.epoch)) if history else None
        return FoldResult(
            fold=fold,
            status="failed",
            n_train=len(split.train),
            n_val=len(split.validation),
            history=history,
            best_epoch=best.epoch if best else None,
            error=message,
        )

    def _settle(self, name: str, error: Exception | None) -> None:
        """A share has ended; what it has not finished waits again, or has failed too often."""
        import ray

        for event in ray.get(self._board.drain.remote(0)):
            self._take_in(event)
        share = self._shares.pop(name)
        self._said_waiting = False
        if error is not None and _is_disk_full(error):
            raise StorageError(
                f"{self.config.run_dir.root}: the disk is full; what was complete before is safe, "
                "and the same command resumes from it"
            )
        if not share.active:
            return
        reason = "it ended early" if error is None else _one_line(error)
        self.audience.noticed(f"the worker of {_named(sorted(share.active))} ended: {reason}")
        for fold in sorted(share.active):
            self._count_death(fold, reason, placed=share.placed)

    def _count_death(self, fold: int, reason: str, *, placed: bool) -> None:
        self._deaths[fold] += placed
        if self._deaths[fold] >= self.config.max_failures:
            message = f"its worker died {self._deaths[fold]} times in a row; the last: {reason}"
            self._is_over(self._failure(fold, message))
        else:
            self.waiting.add(fold)

    # --- after training ------------------------------------------------------------------

    def conclude(self) -> Summary:
        """Put the folds together, and write the outputs.

        Raises:
            StorageError: they cannot be written.
        """
        finished: dict[int, FinishedFold] = {
            fold: load_finished_fold(self.config.run_dir.finished(fold))
            for fold in self.folds
            if self._results[fold].status == "complete"
        }
        predictions = out_of_fold(finished.values(), self.data)
        self._write_index()
        summary = Summary(
            run_name=self.config.run_name,
            folds=tuple(self._results[fold] for fold in self.folds),
            oof_accuracy=predictions.accuracy if predictions else None,
            classes=_classes(self.data),
            wall_seconds=self._index.wall_seconds,
            num_workers=self._index.num_workers,
            versions=versions(),
        )
        write_results(self.config.outputs, summary, finished, predictions)
        if summary.status == "complete":
            # Every fold's last state is among those of finished folds: what rounds have left is
            # of no more use.
            shutil.rmtree(self.config.run_dir.shares, ignore_errors=True)
        self.audience.run_finished(summary)
        return summary


def _plain_array(data: FeatureSet) -> Any:
    import numpy as np

    # A memory-mapped array would travel as a pickle, and be a private copy in each worker.
    return np.asarray(data.features)


def _classes(data: FeatureSet) -> dict[int, str]:
    return dict(zip(data.class_labels, data.class_names, strict=True))


def _device_name(size: WorkerSize) -> str:
    return "gpu" if size.gpus else f"cpu x{size.cpus}"


def _size_text(size: WorkerSize) -> str:
    cpus = f"{size.cpus} CPU{'s' * (size.cpus != 1)}"
    return f"{cpus} and a GPU" if size.gpus else cpus


def _named(folds: Sequence[int]) -> str:
    return f"fold{'s' * (len(folds) != 1)} {', '.join(map(str, folds))}"


def _is_disk_full(error: Exception) -> bool:
    """Ray uploads checkpoints in a thread of its own, whose errors come as text only."""
    return any(sign in str(error) for sign in ("No space left on device", "Disk quota exceeded"))


def _one_line(error: Exception) -> str:
    """The last line of an error that says something: Ray's are tracebacks within tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
