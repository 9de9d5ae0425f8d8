"""The training loop of a share's worker: rounds of one epoch of each fold, each reported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
import ray.train
import torch

from raykfold.config.class_spec import RecipeSpec
from raykfold.data.feature_file import FeatureFile
from raykfold.data.feature_set import Split
from raykfold.distributed.code import DriverCode
from raykfold.distributed.deal import WorkerSize
from raykfold.distributed.events import (
    CopyBegun,
    CopyEnded,
    FoldsStepping,
    NodeUnfit,
    ShareNotice,
    ShareReady,
    ShareStarted,
    ShareStopping,
    WorkerAlive,
)
from raykfold.distributed.feature_copy import FeatureSource, ScratchError
from raykfold.distributed.pace import Pace
from raykfold.distributed.ray_private import report_in_place
from raykfold.distributed.stall import StallWatch
from raykfold.errors import FoldError, RaykfoldError
from raykfold.files.atomic import is_seen, write_file
from raykfold.files.paths import RunDir, fold_name
from raykfold.files.remote import Place, same_store
from raykfold.files.scratch import one_at_a_time
from raykfold.state.checkpoint import (
    WeightsContext,
    load_state,
    save_active_fold,
    save_finished_fold,
    weights_bytes,
)
from raykfold.text import size_text
from raykfold.training.classes import find_class
from raykfold.training.feature_placement import place_features
from raykfold.training.feature_stream import FeatureStream
from raykfold.training.fold import FoldTrainer, Snapshot, run_epochs
from raykfold.training.recipe import Recipe, TrainingSettings, build_network
from raykfold.training.results import EpochMetrics, Histogram, Round
from raykfold.training.steps import no_recordings


@dataclass(frozen=True)
class ShareTask:
    """Everything that a share's worker is told.

    Attributes:
        share: the share's name.
        board: handle of the `EventBoard`.
        code: the driver's, for the networks.
        features: where to find the (N, *input_shape) array.
        class_indices: (N,) int64, 0 to classes - 1.
        splits: fold → its split, for the folds of the share.
        origins: fold → folder of the state it resumes from; other folds start anew.
        settings: how to train.
        epochs: most epochs of a fold.
        context: what every file of weights tells about the run.
        run_dir: where finished folds and the weights of epochs go. For an object store the worker
            finds credentials itself, in its environment or its machine's role.
        marker: a file on the run's storage; a worker that does not see it ends. None: don't look.
        checkpoint_every: rounds from one checkpoint to the next.
        size: how many CPU threads to use, and whether to train on the GPU that Ray has given.
        watch: report histograms of weights and gradients.
        together: how many folds are stepped together; None to find out what is fastest.
        record: record steps as CUDA graphs where possible.
        features_on: as the option of `RunConfig`.
        stall_timeout: as the option of `RunConfig`; 0 for no watch.
    """

    share: str
    board: Any
    code: DriverCode
    features: FeatureSource
    class_indices: np.ndarray
    splits: Mapping[int, Split]
    origins: Mapping[int, Place]
    settings: TrainingSettings
    epochs: int
    context: WeightsContext
    run_dir: RunDir
    marker: Place | None
    checkpoint_every: int
    size: WorkerSize
    watch: bool
    together: int | None
    record: bool
    features_on: Literal["auto", "device", "host"]
    stall_timeout: float | None


def run_share(config: Mapping[str, Any]) -> None:
    """Train the folds of the `ShareTask` that ``config["task"]`` refers to, until none is left.

    Raises:
        StorageError: a state cannot be written. The driver has been told.
    """
    task: ShareTask = ray.get(config["task"])
    node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
    unfit = _why_unfit(task)
    if unfit is not None:
        ray.get(task.board.post.remote(NodeUnfit(task.share, node, address, unfit)))
        return
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if task.size.gpus else ""
    ray.get(task.board.post.remote(ShareStarted(task.share, node, address, os.getpid(), gpu)))
    stall_watch = StallWatch(
        lambda pulse: task.board.post.remote(WorkerAlive(task.share, pulse)), task.stall_timeout
    )
    try:
        # The process reports until the last round is written.
        with stall_watch, ThreadPoolExecutor(max_workers=1) as writer:
            task.code.load()
            _fetch_network(task)
            with _features_here(task, node, address, stall_watch) as features:
                _run_rounds(task, features, writer, stall_watch)
    except ScratchError as error:  # the disk has filled up meanwhile
        unfit = _about_scratch(task, str(error))
        ray.get(task.board.post.remote(NodeUnfit(task.share, node, address, unfit)))
    except RaykfoldError as error:
        ray.get(task.board.post.remote(ShareStopping(task.share, error)))
        raise


def _why_unfit(task: ShareTask) -> str | None:
    """Return why this node cannot train the share, or None if it can."""
    if task.marker is not None and not is_seen(task.marker):
        return f"it does not see {task.run_dir.root}"
    obstacle = task.features.obstacle()
    return obstacle and _about_scratch(task, obstacle)


def _about_scratch(task: ShareTask, obstacle: str) -> str:
    file = task.features.file
    return (
        f"it does not see {file.path}, {obstacle}, and a copy of the features takes "
        f"{size_text(file.nbytes)} (--scratch_dir)"
    )


@contextmanager
def _features_here(
    task: ShareTask, node: str, address: str, stall_watch: StallWatch
) -> Iterator[FeatureFile]:
    """Yield the file that holds the features on this node; make a copy if it needs one."""
    folder, post = str(task.features.folder), task.board.post.remote
    source = task.features.on_this_node(
        stall_watch.count,
        copying=lambda: ray.get(post(CopyBegun(task.share, node, address, folder))),
        copied=lambda seconds: post(CopyEnded(task.share, address, seconds)),
    )
    with ExitStack() as stack:
        with stall_watch.expect("start"):
            file = stack.enter_context(source)
        yield file


def _run_rounds(
    task: ShareTask, features: FeatureFile, writer: Executor, stall_watch: StallWatch
) -> None:
    """Train in rounds, one epoch of every active fold each.

    One round is in flight at a time. The writer's thread writes and reports round k while this one
    trains round k + 1, which is not written before round k is committed.
    """
    active, unbuilt = _trainers(task, features, stall_watch)
    task.board.post.remote(ShareReady(task.share))
    number = 0
    pace = Pace(task.together)
    told: set[str | None] = {None}  # why steps are not recorded
    trained: set[int] = set()  # folds with an epoch in this process
    most_together = 0
    in_flight: Future[None] = writer.submit(lambda: None)  # nothing, before the first round
    while active or unbuilt:
        number += 1
        epochs: dict[int, EpochMetrics] = {}
        failed, unbuilt = unbuilt, {}
        probabilities: dict[int, np.ndarray] = {}  # of the folds that are over
        histograms: dict[int, dict[str, Histogram]] = {}

        # Train one epoch of each fold, group by group: a group's folds are stepped together.
        for trainers in pace.groups(list(active.values())):
            if in_flight.done():
                in_flight.result()  # do not train another epoch if writing has failed
            # Wait for the board. Should a fold end this process, the driver has to know which fold
            # it was. The answer is whether the share is to leave its node now.
            begun = {trainer.fold: trainer.epochs_run for trainer in trainers}
            if ray.get(task.board.stepping.remote(task.share, begun)):
                break
            unfinished = [trainer for trainer in trainers if not trainer.done(task.epochs)]
            is_new = not trained.issuperset(begun) or len(begun) > most_together
            with stall_watch.expect("first" if is_new else "later"):
                outcomes = run_epochs(unfinished)
            trained.update(begun)
            most_together = max(most_together, len(begun))
            failed |= {f: str(each) for f, each in outcomes.items() if isinstance(each, FoldError)}
            epochs |= {f: each for f, each in outcomes.items() if not isinstance(each, FoldError)}
            del outcomes, unfinished  # an error's traceback holds the memory of a step
            for trainer in trainers:
                if trainer.fold in epochs and task.watch:
                    histograms[trainer.fold] = trainer.histograms()
                if trainer.fold not in failed and trainer.done(task.epochs):
                    with stall_watch.expect("first"):
                        probabilities[trainer.fold] = trainer.held_out_probabilities()
        task.board.post.remote(FoldsStepping(task.share, {}))
        if epochs:
            pace.took(sum(epoch.seconds for epoch in epochs.values()) / len(epochs))

        # Say once for each reason that steps are slower than they could be.
        for reason in {trainer.why_not_recorded for trainer in active.values()} - told:
            told.add(reason)
            text = (
                f"steps cannot be recorded as CUDA graphs ({reason}): they are started kernel "
                "by kernel, which is slower"
            )
            task.board.post.remote(ShareNotice(task.share, text))

        # Wait until the round before is committed. The answer names folds that the driver wants
        # back: they are released, and those with an epoch behind them are handed over with a state.
        in_flight.result()
        wanted = ray.get(task.board.committed.remote(task.share, number - 1))
        over = failed.keys() | probabilities.keys()
        released = tuple(fold for fold in active if fold in wanted and fold not in over)
        handed_over = tuple(fold for fold in released if active[fold].epochs_run)
        staying = {f: trainer for f, trainer in active.items() if f not in {*over, *released}}
        saved = tuple(staying) if number % task.checkpoint_every == 0 else ()

        # Copy the states that have to be written. The folds can then be trained on meanwhile.
        written = {*epochs, *probabilities, *handed_over, *saved}
        snapshots = {fold: active[fold].snapshot() for fold in sorted(written)}
        round_ = Round(
            number=number,
            epochs=epochs,
            finished={fold: snapshots[fold].result("complete") for fold in probabilities},
            failed=failed,
            released=released,
            handed_over=handed_over,
            saved=saved,
            histograms=histograms,
        )
        in_flight = writer.submit(_write_round, task, features, round_, snapshots, probabilities)
        del snapshots, round_, probabilities  # the writer frees them before the next are made
        active = staying
    in_flight.result()
    ray.get(task.board.committed.remote(task.share, number))


def _write_round(
    task: ShareTask,
    features: FeatureFile,
    round_: Round,
    snapshots: Mapping[int, Snapshot],
    probabilities: Mapping[int, np.ndarray],
) -> None:
    """Write what a round has brought, then report the round to Ray Train.

    Raises:
        StorageError: something cannot be written, or the features have changed.
    """
    # The epochs of this round may be of other data by now: then they are not committed.
    features.check()
    # States go where Ray Train keeps the share's checkpoints, so it need not copy them.
    storage = ray.train.get_context().get_storage()
    path = f"{storage.experiment_fs_path}/checkpoint_{round_.number:06}"
    checkpoint = ray.train.Checkpoint(path, storage.storage_filesystem)
    for fold, snapshot in snapshots.items():
        weights = weights_bytes(snapshot, task.context)
        # An epoch's weights come first: once a later state is on storage, nothing makes them again.
        if fold in round_.epochs:
            write_file(task.run_dir.epoch_weights(fold, round_.epochs[fold].epoch), weights)
        if fold in round_.handed_over:
            save_active_fold(task.run_dir.handed_over(fold), snapshot, weights)
        if fold in round_.saved:
            folder = same_store(task.run_dir.root, path) / fold_name(fold)
            save_active_fold(folder, snapshot, weights)
        if fold in probabilities:
            place, held_out = task.run_dir.finished(fold), task.splits[fold].validation
            save_finished_fold(place, snapshot, task.context, held_out, probabilities[fold])
    report_in_place(round_.to_metrics(), checkpoint if round_.saved else None)


def _fetch_network(task: ShareTask) -> None:
    """Build the network once, if the recipe builds one: it may download weights.

    One worker of a node after the other does it, and the watch for stalls does not count the time.
    What is downloaded has to lie in a cache then, as that of the Hub's client or of torch.hub.
    """
    spec = RecipeSpec.parse(task.settings.recipe)
    if find_class("recipe", spec.name, Recipe).network is not Recipe.network:
        context = task.context
        with one_at_a_time("network"):
            build_network(spec, task.settings.model, context.input_shape, len(context.classes))


def _trainers(
    task: ShareTask, file: FeatureFile, stall_watch: StallWatch
) -> tuple[dict[int, FoldTrainer], dict[int, str]]:
    """Build a trainer for each fold of the share, in the state that the fold goes on from.

    Returns:
        Fold → its trainer; and fold → why its recipe could not begin.
    """
    torch.set_num_threads(task.size.cpus)  # Ray has set OMP_NUM_THREADS by a rule of its own
    device = torch.device("cuda" if task.size.gpus else "cpu")
    if task.size.gpus and not torch.cuda.is_available():
        raise RuntimeError(
            f"Ray has given this worker a GPU, and torch {torch.__version__} finds no CUDA on "
            f"{ray.util.get_node_ip_address()}"
        )
    # Always the same kernels: results must not depend on the timings of an auto-tuner.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    array = file.open()
    recorder = None if task.record or not task.size.gpus else no_recordings("a worker has died")
    classes, count = len(task.context.classes), stall_watch.count
    trainers, failed = {}, {}
    with stall_watch.expect("start"):
        class_indices = torch.tensor(task.class_indices, device=device)
        stream = FeatureStream(array, device)
        splits = list(task.splits.values())
        features = place_features(
            stream, task.features_on, class_indices, splits, classes, task.settings, count
        )
        for fold, split in task.splits.items():
            state = load_state(task.origins[fold]) if fold in task.origins else None
            try:
                trainers[fold] = FoldTrainer(
                    fold,
                    features,
                    class_indices,
                    split,
                    classes,
                    task.settings,
                    recorder,
                    count,
                    state,
                )
            except FoldError as error:
                failed[fold] = str(error)
            count()
    return trainers, failed
