"""Features that are streamed to the device: the same samples, the same bits, a few at a time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.folds import assert_same
from support.recipes import ALL_ON
from support.small_data import SHAPES, shaped_data

from raykfold.data.feature_set import FeatureSet
from raykfold.training.feature_placement import fits_on_gpu, has_room, place_features, try_step
from raykfold.training.feature_stream import FeatureStream
from raykfold.training.fold import FoldTrainer, run_epochs
from raykfold.training.recipe import TrainingSettings
from raykfold.training.steps import Step

CPU = torch.device("cpu")
SETTINGS = TrainingSettings("raykfold.models:AudioCNN", 20, 0.003, 9, 0, epochs=6)


def mapped(features: np.ndarray, path: Path) -> np.ndarray:
    np.save(path, features)
    return np.load(path, mmap_mode="r")


def paged(features: np.ndarray) -> np.ndarray:
    """Return features whose samples have a page of memory or more each, and so are read ahead."""
    return features.astype(np.float64) if features.dtype == np.float32 else features


def two_folds(
    data: FeatureSet, path: Path, device: str = "cpu", recorder: Any = None, **changes: Any
) -> tuple[FoldTrainer, FoldTrainer]:
    """Return a fold whose features are on the device, and one whose are streamed from a file."""
    settings = dataclasses.replace(SETTINGS, **changes)
    stream = FeatureStream(mapped(paged(data.features), path), torch.device(device))
    classes = torch.from_numpy(data.class_indices).to(device)
    split = data.split(1, inner=True)
    resident, streamed = (
        FoldTrainer(1, each, classes, split, data.num_classes, settings, recorder)
        for each in (stream.on_device(), stream)
    )
    return resident, streamed


@pytest.mark.parametrize("shape", [(3,), (2, 5), (40, 32), (3, 40, 16)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint16", "int64", "bool"])
def test_batches_have_the_samples_that_they_name(
    tmp_path: Path, shape: tuple[int, ...], dtype: str
) -> None:
    """Samples of a page and more, of which the kernel is told, and smaller ones."""
    features = np.random.default_rng(0).uniform(0, 99, (90, *shape)).astype(dtype)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    for given in (features, mapped(features, tmp_path / "a.npy")):
        stream = FeatureStream(given, CPU)
        batches = list(stream.read(order.split(7)))
        assert [len(batch) for batch in batches] == [7] * 12 + [6]
        assert np.array_equal(torch.cat(batches).numpy(), features[order.numpy()])
        assert np.array_equal(stream.on_device().numpy(), features)
    assert list(stream.read([])) == []


def test_the_first_and_the_last_sample_of_a_file_can_be_read(tmp_path: Path) -> None:
    features = np.arange(5 * 4096, dtype=np.float32).reshape(5, 4096)
    stream = FeatureStream(mapped(features, tmp_path / "a.npy"), CPU)
    (batch,) = stream.read([torch.tensor([4, 0, 4])])
    assert np.array_equal(batch.numpy(), features[[4, 0, 4]])


def test_no_more_than_a_few_batches_are_read_ahead(tmp_path: Path) -> None:
    features, pulled = mapped(np.arange(50 * 512.0).reshape(50, 512), tmp_path / "a.npy"), 0

    def batches() -> Iterator[torch.Tensor]:
        nonlocal pulled
        for row in range(50):
            pulled += 1
            yield torch.tensor([row])

    for number, batch in enumerate(FeatureStream(features, CPU).read(batches())):
        assert batch[0, 0] == 512 * number
        assert pulled <= number + 5


def test_a_reader_that_is_given_up_leaves_the_stream_usable(tmp_path: Path) -> None:
    features = np.repeat(np.arange(50.0)[:, None], 512, axis=1)
    stream = FeatureStream(mapped(features, tmp_path / "a.npy"), CPU)
    given_up = stream.read(torch.arange(50).split(2))
    next(given_up)
    others = [stream.read(torch.arange(start, 50).split(5)) for start in (0, 10)]
    for one, other in zip(*others, strict=False):  # of two folds in turns
        assert torch.equal(one, other - 10)


@pytest.mark.parametrize("size", [1, 512])
def test_what_goes_wrong_is_raised_where_a_batch_is_wanted(tmp_path: Path, size: int) -> None:
    stream = FeatureStream(mapped(np.zeros((3, size)), tmp_path / "a.npy"), CPU)
    reader = stream.read([torch.tensor([1]), torch.tensor([7])])
    next(reader)
    with pytest.raises(IndexError):
        next(reader)


@pytest.mark.parametrize("recipe", [{}, ALL_ON, {"normalize": "global"}])
def test_a_fold_that_is_streamed_has_equal_bits(
    small_data: FeatureSet, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    resident, streamed = two_folds(small_data, tmp_path / "a.npy", **recipe)
    _, other = two_folds(small_data, tmp_path / "a.npy", **recipe)
    for epoch in range(3):
        resident.run_epoch()
        streamed.run_epoch()
        if epoch == 0:
            other.load_state_dict(copy.deepcopy(streamed.state_dict()))
        else:
            other.run_epoch()
    assert_same(resident, streamed)
    assert_same(resident, other)


@pytest.mark.parametrize("kind", SHAPES)
def test_samples_of_any_shape_and_type_are_streamed(kind: str, tmp_path: Path) -> None:
    model = f"support.networks:Of{kind.capitalize()}"
    resident, streamed = two_folds(shaped_data(kind), tmp_path / "a.npy", model=model)
    for fold in (resident, streamed):
        fold.run_epoch()
    assert_same(resident, streamed)


def test_folds_that_are_stepped_together_share_a_stream(
    small_data: FeatureSet, tmp_path: Path
) -> None:
    stream = FeatureStream(mapped(paged(small_data.features), tmp_path / "a.npy"), CPU)
    classes = torch.from_numpy(small_data.class_indices)
    settings = dataclasses.replace(SETTINGS, batch_size=5)  # more batches than a turn has
    alone, together = (
        [
            FoldTrainer(fold, features, classes, small_data.split(fold), 4, settings)
            for fold in (1, 2)
        ]
        for features in (stream.on_device(), stream)
    )
    for fold in alone:
        fold.run_epoch()
    run_epochs(together)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_recorded_steps_take_streamed_samples(small_data: FeatureSet, tmp_path: Path) -> None:
    """A recording has inputs of its own, into which each batch is copied."""

    def recorder(step: Step, *example: torch.Tensor) -> Step:
        inputs = [tensor.clone() for tensor in example]

        def replay(*batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            for there, new in zip(inputs, batch, strict=True):
                there.copy_(new)
            return step(*inputs)

        return replay

    resident, streamed = two_folds(small_data, tmp_path / "a.npy", recorder=recorder)
    plain, _ = two_folds(small_data, tmp_path / "a.npy")
    for fold in (resident, streamed, plain):
        for _ in range(2):
            fold.run_epoch()
        assert fold.why_not_recorded is None
    assert_same(plain, resident)
    assert_same(plain, streamed)


def test_a_step_that_is_tried_leaves_no_trace(small_data: FeatureSet) -> None:
    before = torch.get_rng_state()
    stream = FeatureStream(small_data.features, CPU)
    classes, split = torch.from_numpy(small_data.class_indices), small_data.split(1, inner=True)
    settings = dataclasses.replace(SETTINGS, batch_size=1000)
    assert try_step(stream, classes, split, 4, settings)
    assert torch.equal(torch.get_rng_state(), before)
    # What fails is reported by the folds themselves.
    failing = dataclasses.replace(SETTINGS, learning_rate=1e30)
    assert not try_step(stream, classes, split, 4, failing)


def test_features_are_where_the_option_says(small_data: FeatureSet) -> None:
    stream = FeatureStream(small_data.features, CPU)
    classes, splits = torch.from_numpy(small_data.class_indices), [small_data.split(1)]
    places: dict[Any, type] = {"auto": FeatureStream, "host": FeatureStream, "device": torch.Tensor}
    for where, kind in places.items():
        placed = place_features(stream, where, classes, splits, 4, SETTINGS)
        assert isinstance(placed, kind)


def test_features_fit_if_steps_have_room_beside_them(small_data: FeatureSet) -> None:
    assert has_room(features=10, free=30, peak=5, folds=2)
    assert not has_room(features=10, free=29, peak=5, folds=2)
    stream = FeatureStream(small_data.features, CPU)
    classes, splits = torch.from_numpy(small_data.class_indices), [small_data.split(1)]
    assert not fits_on_gpu(stream, classes, splits, 4, SETTINGS)  # there is none


# --- on a GPU ----------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_a_gpu
@pytest.mark.parametrize("batch_size", [5, 32])
@pytest.mark.parametrize("recipe", [{}, ALL_ON], ids=["plain", "all_on"])
def test_streamed_to_a_gpu_bits_are_equal(
    small_data: FeatureSet, tmp_path: Path, recipe: dict[str, Any], batch_size: int
) -> None:
    torch.backends.cudnn.deterministic = True
    resident, streamed = two_folds(
        small_data, tmp_path / "a.npy", device="cuda", batch_size=batch_size, **recipe
    )
    for _ in range(6):
        resident.run_epoch()
        streamed.run_epoch()
    assert streamed.why_not_recorded == resident.why_not_recorded
    assert_same(resident, streamed)


@on_a_gpu
def test_what_fits_on_a_gpu_is_measured(
    small_data: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    stream = FeatureStream(small_data.features, device)
    classes, split = torch.from_numpy(small_data.class_indices).to(device), small_data.split(1)
    assert try_step(stream, classes, split, 4, SETTINGS)  # what CUDA's libraries take, is taken
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    # Between a quarter of what is free and all of it, a step decides.
    for size, fits in {free // 8: True, free // 2: True, free - 2**16: False, free: False}.items():
        monkeypatch.setattr(FeatureStream, "nbytes", size)
        assert fits_on_gpu(stream, classes, [split], 4, SETTINGS) is fits
