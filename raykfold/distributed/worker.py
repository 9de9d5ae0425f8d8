"""The Ray Train loop of a share: load its folds, step them round by round, report each round."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import CheckpointUploadMode

from raykfold.data.feature_set import Split
from raykfold.distributed.events import (
    FoldsStepping,
    NodeIsBlind,
    ShareNotice,
    ShareReady,
    ShareStarted,
    ShareStopping,
)
from raykfold.distributed.pace import Pace
from raykfold.errors import FoldError, RaykfoldError
from raykfold.files.atomic import is_seen, write_file
from raykfold.files.paths import RunDir, fold_name
from raykfold.files.remote import Place, same_store
from raykfold.state.checkpoint import (
    WeightsContext,
    load_state,
    result_of,
    save_active_fold,
    save_finished_fold,
    weights_bytes,
)
from raykfold.training.fold import FoldTrainer, Snapshot, TrainingSettings, run_epochs
from raykfold.training.results import EpochMetrics, Histogram, Round
from raykfold.training.steps import no_recordings


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
        marker: a file that the worker must find, to know that it sees what the driver does; None
            where that need not be asked.
        checkpoint_every: rounds from one checkpoint to the next.
        threads: CPU threads of the worker.
        use_gpu: train on the GPU that Ray has given the worker.
        watch: report histograms of weights and gradients.
        together: how many folds are stepped together; None to find out what is fastest.
        record: record steps as CUDA graphs, where that can be.
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
    marker: Place | None
    checkpoint_every: int
    threads: int
    use_gpu: bool
    watch: bool
    together: int | None
    record: bool


def run_share(config: Mapping[str, Any]) -> None:
    """Work on the `ShareTask` that ``config["task"]`` refers to, until no fold of it is left.

    One round is in flight at a time: round k + 1 is computed while a thread writes and reports
    round k, and waits before it is written itself until round k is committed.

    Raises:
        StorageError: a state cannot be written; the driver has been told.
    """
    task: ShareTask = ray.get(config["task"])
    node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
    if task.marker is not None and not is_seen(task.marker):
        ray.get(task.board.post.remote(NodeIsBlind(task.share, node, address)))
        return
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if task.use_gpu else ""
    ray.get(task.board.post.remote(ShareStarted(task.share, node, address, os.getpid(), gpu)))
    try:
        with ThreadPoolExecutor(max_workers=1) as writer:
            _run_rounds(task, writer)
    except RaykfoldError as error:
        ray.get(task.board.post.remote(ShareStopping(task.share, error)))
        raise


def _run_rounds(task: ShareTask, writer: Executor) -> None:
    active = _trainers(task)
    task.board.post.remote(ShareReady(task.share))
    number = 0
    pace = Pace(task.together)
    told: set[int] = set()
    in_flight: Future[None] = writer.submit(lambda: None)  # nothing, before the first round
    while active:
        number += 1
        round_ = _Stepped(task, number)
        for trainers in pace.groups(list(active.values())):
            if in_flight.done():
                in_flight.result()  # after what cannot be written, an epoch would be for nothing
            epochs = {trainer.fold: trainer.epochs_run for trainer in trainers}
            # Waited for: should a fold end this process, the driver has to know which it was.
            if ray.get(task.board.stepping.remote(task.share, epochs)):
                break
            round_.step(trainers)
        task.board.post.remote(FoldsStepping(task.share, {}))
        if round_.epochs:
            pace.took(round_.epoch_seconds)
        for fold in sorted(active.keys() - told):
            if active[fold].why_not_recorded is not None:
                told.add(fold)
                task.board.post.remote(ShareNotice(task.share, _slower(active[fold])))
        in_flight.result()
        wanted = ray.get(task.board.committed.remote(task.share, number - 1))
        active = round_.conclude(active, wanted)
        in_flight = writer.submit(round_.report)
    in_flight.result()
    ray.get(task.board.committed.remote(task.share, number))


class _Stepped:
    """What becomes of the folds of a share in one round.

    The thread that trains steps and concludes it; the one that writes reports it.
    """

    def __init__(self, task: ShareTask, number: int) -> None:
        self.epochs: dict[int, EpochMetrics] = {}
        self._task = task
        self._number = number
        self._failed: dict[int, str] = {}
        self._probabilities: dict[int, np.ndarray] = {}  # of the folds that are over
        self._histograms: dict[int, dict[str, Histogram]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._released: tuple[int, ...] = ()
        self._kept: tuple[int, ...] = ()
        self._saved: tuple[int, ...] = ()

    @property
    def epoch_seconds(self) -> float:
        """Of a fold, on average."""
        return sum(epoch.seconds for epoch in self.epochs.values()) / len(self.epochs)

    def step(self, trainers: Sequence[FoldTrainer]) -> None:
        """An epoch of each of these folds."""
        going_on = [trainer for trainer in trainers if not trainer.done(self._task.epochs)]
        for fold, outcome in run_epochs(going_on).items():
            if isinstance(outcome, FoldError):
                self._failed[fold] = str(outcome)
            else:
                self.epochs[fold] = outcome
        for trainer in trainers:
            if trainer.fold in self.epochs and self._task.watch:
                self._histograms[trainer.fold] = trainer.histograms()
            if trainer.fold not in self._failed and trainer.done(self._task.epochs):
                self._probabilities[trainer.fold] = trainer.held_out_probabilities()

    def conclude(
        self, active: Mapping[int, FoldTrainer], wanted: tuple[int, ...]
    ) -> dict[int, FoldTrainer]:
        """Take down what is to be written; which of the `active` folds go on here.

        Args:
            wanted: folds that the driver wants back.
        """
        over = self._failed.keys() | self._probabilities.keys()
        self._released = tuple(fold for fold in active if fold in wanted and fold not in over)
        self._kept = tuple(fold for fold in self._released if active[fold].epochs_run)
        going_on = {f: t for f, t in active.items() if f not in {*over, *self._released}}
        if self._number % self._task.checkpoint_every == 0:
            self._saved = tuple(going_on)
        written = {*self.epochs, *self._probabilities, *self._kept, *self._saved}
        self._snapshots = {fold: active[fold].snapshot() for fold in sorted(written)}
        return going_on

    def report(self) -> None:
        """Write what is new, and tell Ray Train of the round.

        Raises:
            StorageError: something cannot be written.
        """
        for snapshot in self._snapshots.values():
            self._write(snapshot)
        message = Round(
            number=self._number,
            epochs=self.epochs,
            finished={f: result_of(self._snapshots[f], "complete") for f in self._probabilities},
            failed=self._failed,
            released=self._released,
            kept=self._kept,
            saved=self._saved,
            histograms=self._histograms,
        )
        ray.train.report(
            message.to_metrics(),
            self._checkpoint if self._saved else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def _write(self, fold: Snapshot) -> None:
        """An epoch's weights come first: with a later state on storage, nobody makes them again."""
        task, number = self._task, fold.fold
        weights = weights_bytes(fold, task.context)
        if number in self.epochs:
            write_file(task.run_dir.epoch_weights(number, self.epochs[number].epoch), weights)
        if number in self._kept:
            save_active_fold(task.run_dir.handed_over(number), fold, weights)
        if number in self._saved:
            checkpoint = same_store(task.run_dir.root, self._checkpoint.path)
            save_active_fold(checkpoint / fold_name(number), fold, weights)
        if number in self._probabilities:
            save_finished_fold(
                task.run_dir.finished(number),
                fold,
                task.context,
                task.splits[number].validation,
                self._probabilities[number],
            )

    @property
    def _checkpoint(self) -> ray.train.Checkpoint:
        """Where Ray Train keeps the share's: what is written there need not be copied."""
        storage = ray.train.get_context().get_storage()
        path = f"{storage.experiment_fs_path}/checkpoint_{self._number:06}"
        return ray.train.Checkpoint(path, storage.storage_filesystem)


def _slower(trainer: FoldTrainer) -> str:
    return (
        f"steps cannot be recorded as CUDA graphs ({trainer.why_not_recorded}): they are started "
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
            fold,
            features,
            class_indices,
            split,
            len(task.context.classes),
            task.settings,
            None if task.record or not task.use_gpu else no_recordings("a worker has died"),
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
