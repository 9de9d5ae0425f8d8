"""The Ray Train loop of a share: load its folds, step them round by round, report each round."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import CheckpointUploadMode

from raykfold.checkpoint import (
    WeightsContext,
    load_state,
    save_active_fold,
    save_epoch_weights,
    save_finished_fold,
)
from raykfold.data import Split
from raykfold.errors import FoldError, RaykfoldError, StorageError
from raykfold.events import (
    FoldsStepping,
    NodeIsBlind,
    ShareNotice,
    ShareReady,
    ShareStarted,
    ShareStopping,
)
from raykfold.files import is_seen
from raykfold.pace import Pace
from raykfold.paths import RunDir, fold_name
from raykfold.remote import Place
from raykfold.results import EpochMetrics, FoldResult, Histogram, Round
from raykfold.scratch import scratch_dir
from raykfold.training import FoldTrainer, Snapshot, TrainingSettings, run_epochs


@dataclass(frozen=True)
class ShareTask:
    """Everything that a share's worker is told.

    Attributes:
        share: the share's name.
        board: handle of the event board.
        features: reference to the (N, n_mels, time) array in Ray's object store, which each
            machine holds once.
        class_indices: (N,) int64, 0 to classes - 1.
        splits: fold → its split, for the folds of the share.
        origins: fold → folder of the state it goes on from; folds not named start anew.
        settings: how to train.
        epochs: most epochs of a fold.
        context: what weights are told.
        run_dir: where finished folds and epochs' weights go; of an object store the worker finds
            the credentials by itself, in its environment or in its machine's role.
        marker: token of a file that the worker must find there, to know that it sees what the
            driver does; None where that need not be asked.
        scratch: where checkpoints are made before Ray takes them; the system's place if None.
        checkpoint_every: rounds from one checkpoint to the next.
        threads: CPU threads of the worker.
        use_gpu: train on the GPU that Ray has given the worker.
        watch: report histograms of weights and gradients.
        together: how many folds are stepped together; None to find out what is fastest.
    """

    share: str
    board: Any
    features: Any
    class_indices: np.ndarray
    splits: Mapping[int, Split]
    origins: Mapping[int, Place]
    settings: TrainingSettings
    epochs: int
    context: WeightsContext
    run_dir: RunDir
    marker: str | None
    scratch: Path | None
    checkpoint_every: int
    threads: int
    use_gpu: bool
    watch: bool
    together: int | None


def run_share(config: Mapping[str, Any]) -> None:
    """Work on the `ShareTask` that ``config["task"]`` refers to, until no fold of it is left.

    One round is in flight at a time: round k + 1 is computed while a thread writes round k and Ray
    takes it away, and waits before it is written itself until round k is committed.

    Raises:
        StorageError: a state cannot be written; the driver has been told.
    """
    task: ShareTask = ray.get(config["task"])
    node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
    if task.marker is not None and not is_seen(task.run_dir.marker(task.marker)):
        ray.get(task.board.post.remote(NodeIsBlind(task.share, node, address)))
        return
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if task.use_gpu else ""
    ray.get(task.board.post.remote(ShareStarted(task.share, node, address, os.getpid(), gpu)))
    try:
        with scratch_dir(task.scratch) as scratch, ThreadPoolExecutor(max_workers=1) as writer:
            _run_rounds(task, scratch, writer)
    except RaykfoldError as error:
        ray.get(task.board.post.remote(ShareStopping(task.share, error)))
        raise


def _run_rounds(task: ShareTask, scratch: Path, writer: Executor) -> None:
    active = _trainers(task)
    task.board.post.remote(ShareReady(task.share))
    number = 0
    pace = Pace(task.together)
    in_flight: Future[None] | None = None
    while active:
        number += 1
        round_ = _Stepped(task, number)
        for trainers in pace.groups(list(active.values())):
            epochs = {trainer.fold: trainer.epochs_run for trainer in trainers}
            # Waited for: should a fold end this process, the driver has to know which it was.
            if ray.get(task.board.stepping.remote(task.share, epochs)):
                break
            round_.step(trainers)
        task.board.post.remote(FoldsStepping(task.share, {}))
        if round_.epochs:
            pace.took(round_.epoch_seconds)
        if in_flight is not None:
            in_flight.result()
        wanted = ray.get(task.board.committed.remote(task.share, number - 1))
        over = {*round_.finished, *round_.failed}
        round_.take_in([each for fold, each in active.items() if fold not in round_.failed])
        round_.released = tuple(fold for fold in active if fold in wanted and fold not in over)
        active = {f: t for f, t in active.items() if f not in {*over, *round_.released}}
        in_flight = writer.submit(round_.report, tuple(active), scratch)
    if in_flight is not None:
        in_flight.result()
    ray.get(task.board.committed.remote(task.share, number))


class _Stepped:
    """What becomes of the folds of a share in one round."""

    def __init__(self, task: ShareTask, number: int) -> None:
        self.epochs: dict[int, EpochMetrics] = {}
        self.finished: dict[int, FoldResult] = {}
        self.failed: dict[int, str] = {}
        self.released: tuple[int, ...] = ()
        self._task = task
        self._number = number
        self._histograms: dict[int, dict[str, Histogram]] = {}
        self._snapshots: dict[int, Snapshot] = {}

    @property
    def epoch_seconds(self) -> float:
        """Of a fold, on average."""
        return sum(epoch.seconds for epoch in self.epochs.values()) / len(self.epochs)

    def step(self, trainers: Sequence[FoldTrainer]) -> None:
        """An epoch of each of these folds; one that is over is on storage before this returns."""
        going_on = [trainer for trainer in trainers if not trainer.done(self._task.epochs)]
        for fold, outcome in run_epochs(going_on).items():
            if isinstance(outcome, FoldError):
                self.failed[fold] = str(outcome)
            else:
                self.epochs[fold] = outcome
        for trainer in trainers:
            if trainer.not_recorded is not None:
                self._task.board.post.remote(ShareNotice(self._task.share, _slower(trainer)))
            if trainer.fold in self.epochs and self._task.watch:
                self._histograms[trainer.fold] = trainer.histograms()
            if trainer.fold not in self.failed and trainer.done(self._task.epochs):
                self.finished[trainer.fold] = self._finish(trainer)

    def take_in(self, trainers: Sequence[FoldTrainer]) -> None:
        """What is to be written of these folds, as they are now."""
        self._snapshots = {trainer.fold: trainer.snapshot() for trainer in trainers}

    def report(self, active: tuple[int, ...], scratch: Path) -> None:
        """Write what is new, and report the round to Ray Train.

        Args:
            active: folds that go on here.
            scratch: where the checkpoint is made.

        Raises:
            StorageError: something cannot be written.
        """
        task = self._task
        for fold, metrics in self.epochs.items():
            weights = task.run_dir.epoch_weights(fold, metrics.epoch)
            save_epoch_weights(weights, self._snapshots[fold], task.context)
        kept = tuple(fold for fold in self.released if self._snapshots[fold].epochs_run)
        for fold in kept:
            save_active_fold(task.run_dir.handed_over(fold), self._snapshots[fold], task.context)
        due = active and self._number % task.checkpoint_every == 0
        checkpoint = self._checkpoint(active, scratch) if due else None
        message = Round(
            number=self._number,
            epochs=self.epochs,
            finished=self.finished,
            failed=self.failed,
            released=self.released,
            kept=kept,
            saved=active if checkpoint else (),
            histograms=self._histograms,
        )
        ray.train.report(
            message.to_metrics(), checkpoint, checkpoint_upload_mode=CheckpointUploadMode.ASYNC
        )

    def _finish(self, trainer: FoldTrainer) -> FoldResult:
        task, fold = self._task, trainer.fold
        return save_finished_fold(
            task.run_dir.finished(fold), trainer, task.context, task.splits[fold].validation
        )

    def _checkpoint(self, folds: tuple[int, ...], scratch: Path) -> ray.train.Checkpoint:
        # Not a TemporaryDirectory: the upload, which goes on after the report, deletes the folder.
        try:
            folder = Path(tempfile.mkdtemp(prefix="round-", dir=scratch))
        except OSError as error:
            raise StorageError(f"no room for a checkpoint in {scratch} ({error})") from error
        try:
            for fold in folds:
                save_active_fold(
                    folder / fold_name(fold), self._snapshots[fold], self._task.context
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return ray.train.Checkpoint.from_directory(str(folder))


def _slower(trainer: FoldTrainer) -> str:
    return (
        f"steps cannot be recorded as CUDA graphs ({trainer.not_recorded}): they are started "
        "kernel by kernel, which is slower"
    )


def _trainers(task: ShareTask) -> dict[int, FoldTrainer]:
    torch.set_num_threads(task.threads)  # Ray has set OMP_NUM_THREADS by its own rule
    device = torch.device("cuda" if task.use_gpu else "cpu")
    if task.use_gpu and not torch.cuda.is_available():
        raise RuntimeError(
            f"Ray has given this worker a GPU, and torch {torch.__version__} finds no CUDA on "
            f"{ray.util.get_node_ip_address()}"
        )
    # One set of kernels, whatever else runs: results must not depend on an auto-tuner's timings.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    features = _tensor(ray.get(task.features)).to(device)
    class_indices = _tensor(task.class_indices).to(device)
    trainers = {}
    for fold, split in task.splits.items():
        trainer = FoldTrainer(
            fold, features, class_indices, split, len(task.context.classes), task.settings
        )
        if fold in task.origins:
            trainer.load_state_dict(load_state(task.origins[fold]))
        trainers[fold] = trainer
    return trainers


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # The object store's memory is shared and read-only; the trainer only gathers from it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
