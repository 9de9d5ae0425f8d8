"""Classes, splits and samples of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.data_files import FEATURES, FOLDS, FRAMES, LABELS, MELS, N, save

from raykfold.data.feature_set import FeatureSet, SoundDataset, Split
from raykfold.data.reading import read_feature_set
from raykfold.errors import BadInput


def test_class_indices_count_classes_without_samples(tmp_path: Path) -> None:
    save(tmp_path, class_mapping_json={"-1": "none", "3": "a", "7": "b", "8": "c", "9": "d"})
    data = read_feature_set(tmp_path)
    assert data.class_labels == (-1, 3, 7, 8, 9)
    assert data.class_indices.tolist() == [1, 2, 4] * 4


def test_splits_hold_one_fold_out_in_sample_order() -> None:
    folds = np.array([2, 1] * 6)
    data = FeatureSet.from_arrays(FEATURES, LABELS, folds)
    split = data.split(2)
    assert split.fold == 2
    assert split.validation.tolist() == [0, 2, 4, 6, 8, 10]
    assert split.train.tolist() == [1, 3, 5, 7, 9, 11]
    assert split.train.dtype == split.validation.dtype == np.int64
    with pytest.raises(BadInput, match=r"fold 3.* 1, 2"):
        data.split(3)


def test_warns_of_folds_whose_training_lacks_a_class() -> None:
    labels = np.array([0, 1] * 4 + [0, 2, 4, 2])
    names = {0: "dog", 1: "rain", 2: "siren", 3: "cat", 4: "hen"}
    lines = FeatureSet.from_arrays(FEATURES, labels, FOLDS, class_mapping=names).warnings()
    assert lines == [
        "no sample in any fold is of class 3 (cat)",
        "fold 5: its training split has no sample of classes 2 (siren), 4 (hen)",
    ]
    assert FeatureSet.from_arrays(FEATURES, LABELS, FOLDS).warnings() == []


# ---- SoundDataset


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64"])
@pytest.mark.filterwarnings("error")
def test_dataset_gives_float32_samples_and_long_labels(tmp_path: Path, dtype: str) -> None:
    data = read_feature_set(save(tmp_path, features_npy=FEATURES.astype(dtype)))
    dataset = SoundDataset(data.features, data.class_indices)
    assert len(dataset) == N
    sample, label = dataset[4]
    assert (sample.dtype, sample.shape) == (torch.float32, (MELS, FRAMES))
    assert (label.dtype, label.shape, label.item()) == (torch.long, (), 1)
    np.testing.assert_allclose(sample.numpy(), FEATURES[4], atol=2e-3)
    with pytest.raises(IndexError):
        dataset[N]


def test_dataset_through_a_loader_on_a_device() -> None:
    dataset = SoundDataset(FEATURES, LABELS, device="cpu")
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=5))
    assert [batch[0].shape[0] for batch in batches] == [5, 5, 2]
    features, labels = batches[0]
    assert features.dtype == torch.float32
    assert features.shape == (5, MELS, FRAMES)
    assert labels.dtype == torch.long
    assert labels.tolist() == LABELS[:5].tolist()
    np.testing.assert_array_equal(torch.cat([batch[0] for batch in batches]).numpy(), FEATURES)
    assert SoundDataset(FEATURES, LABELS, device="meta")[0][0].device.type == "meta"


def test_dataset_samples_are_copies() -> None:
    features = FEATURES.copy()
    SoundDataset(features, LABELS)[0][0].zero_()
    np.testing.assert_array_equal(features, FEATURES)


def test_dataset_wants_a_label_for_each_sample() -> None:
    with pytest.raises(ValueError, match="12 features, but 11 labels"):
        SoundDataset(FEATURES, LABELS[:11])


# --- inner validation -------------------------------------------------------------------------


def data_with_folds(folds: Sequence[int], labels: Sequence[int]) -> FeatureSet:
    features = np.zeros((len(folds), 2, 2), dtype=np.float32)
    return FeatureSet.from_arrays(features, np.array(labels), np.array(folds))


def test_the_inner_split_is_the_fold_after_the_one_that_is_held_out() -> None:
    folds = [1, 2, 3, 7, 9] * 4
    data = data_with_folds(folds, [0] * 10 + [1] * 10)
    for fold, following in {1: 2, 2: 3, 3: 7, 7: 9, 9: 1}.items():
        split = data.split(fold, inner=True)
        assert set(data.folds[split.inner].tolist()) == {following}
        assert len(split.inner) == len(split.validation) == 4
        assert_apart_and_whole(split, len(folds))


def assert_apart_and_whole(split: Split, samples: int) -> None:
    """Each sample is in one of the three."""
    together = np.concatenate([split.train, split.validation, split.inner])
    assert sorted(together.tolist()) == list(range(samples))
    for part in (split.train, split.validation, split.inner):
        assert part.tolist() == sorted(part.tolist())


def test_with_few_folds_the_inner_split_is_a_fifth_of_each_class() -> None:
    data = data_with_folds([1, 2, 3, 4] * 20, [0] * 40 + [1] * 36 + [2] * 4)
    split = data.split(2, inner=True, seed=5)
    assert_apart_and_whole(split, 80)
    counts = np.bincount(data.labels[split.inner])
    assert counts.tolist() == [6, 5, 1]  # of 30, 27 and 3
    assert not np.isin(2, data.folds[split.inner])
    again, other = data.split(2, inner=True, seed=5), data.split(2, inner=True, seed=6)
    assert again.inner.tolist() == split.inner.tolist() != other.inner.tolist()


def test_with_windows_the_inner_split_draws_whole_recordings() -> None:
    recordings = np.repeat(np.arange(40), 3)  # of each class 20; ten in each fold
    labels, folds = recordings % 2, recordings // 10 + 1
    features = np.random.default_rng(0).standard_normal((120, 2, 3)).astype(np.float32)
    data = FeatureSet.from_arrays(features, labels, folds, recordings=recordings)
    for fold in data.fold_labels:
        split = data.split(fold, inner=True, seed=5)
        assert_apart_and_whole(split, 120)
        assert not np.isin(recordings[split.inner], recordings[split.train]).any()
        assert np.bincount(labels[split.inner]).tolist() == [9, 9]  # windows of 3 of 15
    others = data.split(2, inner=True, seed=6).inner.tolist()
    assert data.split(2, inner=True, seed=5).inner.tolist() != others
    # One recording of a class stays in training, however many windows it has.
    few = FeatureSet.from_arrays(features, folds % 2, folds // 3, recordings=folds)
    with pytest.raises(BadInput, match="no class with two recordings to train on"):
        few.split(1, inner=True)


def test_a_class_of_one_sample_stays_in_training() -> None:
    data = data_with_folds([1, 1, 1, 1, 2, 2], [0, 0, 0, 1, 0, 1])
    split = data.split(2, inner=True)
    assert data.labels[split.inner].tolist() == [0]
    assert 1 in data.labels[split.train]


def test_a_fold_that_is_left_out_has_no_part_in_any_split(small_data: FeatureSet) -> None:
    rest = small_data.without(2)
    assert rest.fold_labels == (1, 3, 4, 5)
    assert rest.features is small_data.features
    for fold in rest.fold_labels:
        split = rest.split(fold, inner=True)
        parts = np.concatenate([split.train, split.validation, split.inner])
        assert sorted(parts.tolist()) == np.flatnonzero(small_data.folds != 2).tolist()
        assert set(small_data.folds[split.validation].tolist()) == {fold}


def test_a_fold_that_is_left_out_cannot_be_held_out(small_data: FeatureSet) -> None:
    with pytest.raises(BadInput, match=r"fold 2: not in the data, whose folds are 1, 3, 4, 5$"):
        small_data.without(2).split(2)
    with pytest.raises(BadInput, match="fold 7: not in the data"):
        small_data.without(7)


def test_data_without_a_fold_has_a_fingerprint_of_its_own(small_data: FeatureSet) -> None:
    prints = {each.fingerprint for each in (small_data, *map(small_data.without, (1, 2)))}
    assert len(prints) == 3
    assert small_data.without(1).fingerprint in prints


def test_an_inner_split_that_lacks_a_class_is_said_in_a_line() -> None:
    """One sample would choose the epoch, and nobody had been told."""
    folds = np.array([1] + [2] * 2 + [3] * 3 + [4] * 3 + [5] * 3)
    labels = np.array([0, 0, 1] + [0, 1, 2] * 3)
    data = FeatureSet.from_arrays(FEATURES, labels, folds)
    assert data.warnings(inner=True) == [
        "2 of 5 inner validation splits lack a class that is trained on; that of fold 5 has no "
        "sample of classes 1 (1), 2 (2)"
    ]
    assert data.warnings() == data.warnings([], inner=True) == []


def test_too_few_samples_for_an_inner_split_are_refused() -> None:
    data = data_with_folds([1, 1, 2, 2], [0, 1, 0, 1])
    with pytest.raises(BadInput, match="--select inner: fold 1 leaves no class with two samples"):
        data.split(1, inner=True)


def test_a_class_that_the_inner_split_takes_from_training_is_warned_of() -> None:
    data = data_with_folds([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 3], [0] * 5 + [1] * 5 + [2])
    assert not any("fold 2" in line for line in data.warnings())
    assert any("fold 2: its training split has no sample" in x for x in data.warnings(inner=True))
