"""Where features are in training: on the device, if it has room, or streamed to it."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from raykfold.data.feature_set import Split
from raykfold.errors import FoldError
from raykfold.training.feature_stream import FeatureStream
from raykfold.training.fold import EVALUATION_BATCH, FoldTrainer
from raykfold.training.recipe import TrainingSettings

# Features that take no more than this share of the free memory are put there unmeasured.
_SMALL_SHARE = 0.25
# What a fold keeps, and its recorded steps hold, of what one step takes at its peak.
_TIMES_PEAK = 2.0


def place_features(
    stream: FeatureStream,
    where: Literal["auto", "device", "host"],
    class_indices: Tensor,
    splits: Sequence[Split],
    num_classes: int,
    settings: TrainingSettings,
    on_batch: Callable[[], None] = lambda: None,
) -> Tensor | FeatureStream:
    """Return the features for the trainers of `splits`: all on the device, or the stream.

    Args:
        stream: of the features, to the device that trains.
        where: as the option ``features_on`` of `RunConfig`.
        class_indices: as `FoldTrainer` takes them, like `num_classes` and `settings`.
        splits: of the folds that are trained side by side.
        on_batch: called after each part that is copied to the device.

    Raises:
        torch.OutOfMemoryError, RuntimeError: with ``device``, there is too little memory.
    """
    if where == "device":
        return stream.on_device(on_batch)
    if where == "auto" and fits_on_gpu(stream, class_indices, splits, num_classes, settings):
        try:
            return stream.on_device(on_batch)
        except torch.OutOfMemoryError:  # another process has taken the memory meanwhile
            torch.cuda.empty_cache()
    return stream


def fits_on_gpu(
    stream: FeatureStream,
    class_indices: Tensor,
    splits: Sequence[Split],
    num_classes: int,
    settings: TrainingSettings,
) -> bool:
    """Return whether features and the training of all `splits` fit in a GPU's free memory.

    Unless features are small, the first batch of the first split is trained and evaluated to
    measure what a step takes; no fold's results depend on it.

    Args:
        stream: of the features, to the device that trains. If that is no GPU, they do not fit.
        class_indices, splits, num_classes, settings: as `place_features` takes them.
    """
    if stream.device.type != "cuda":
        return False
    size = stream.nbytes
    free, _ = torch.cuda.mem_get_info(stream.device)
    if size <= _SMALL_SHARE * free:
        return True
    torch.cuda.reset_peak_memory_stats(stream.device)
    if size > free or not try_step(stream, class_indices, splits[0], num_classes, settings):
        return False
    peak = torch.cuda.max_memory_allocated(stream.device)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(stream.device)  # without what CUDA's libraries have loaded
    return has_room(size, free, peak, len(splits))


def has_room(features: int, free: int, peak: int, folds: int) -> bool:
    """Return whether memory is left for features and steps.

    Args:
        features: bytes.
        free: bytes of free memory.
        peak: bytes that a step of one fold takes, its weights and optimizer included.
        folds: number of folds that are trained side by side.
    """
    return features + _TIMES_PEAK * peak * folds <= free


def try_step(
    stream: FeatureStream,
    class_indices: Tensor,
    split: Split,
    num_classes: int,
    settings: TrainingSettings,
) -> bool:
    """Train and evaluate one batch of a split, and forget it; return whether that succeeded."""
    batch = dataclasses.replace(
        split,
        train=split.train[: settings.batch_size],
        validation=split.validation[:EVALUATION_BATCH],
        inner=split.inner[:EVALUATION_BATCH],
    )
    try:
        FoldTrainer(split.fold, stream, class_indices, batch, num_classes, settings).run_epoch()
    except (FoldError, torch.OutOfMemoryError):
        return False
    finally:
        gc.collect()  # the trainer's steps refer to it, and it to them
    return True
