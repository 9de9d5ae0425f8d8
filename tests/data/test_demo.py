from __future__ import annotations

import numpy as np
import pytest

from raykfold.data import demo
from raykfold.data.feature_set import FeatureSet
from raykfold.data.log_mel import FeatureParameters


@pytest.fixture(scope="module")
def demo_data() -> FeatureSet:
    return demo.demo_feature_set()


def test_shape_classes_and_folds(demo_data):
    assert demo_data.features.shape == (800, 64, 32) and demo_data.features.dtype == np.float32
    assert demo_data.class_names == tuple(demo.SOUNDS) and demo_data.num_classes == 10
    assert demo_data.fold_labels == (1, 2, 3, 4, 5)
    assert demo_data.warnings() == []
    assert FeatureParameters.from_dict(demo_data.feature_parameters) == demo.PARAMETERS


def test_classes_and_folds_are_balanced(demo_data):
    for fold in demo_data.fold_labels:
        counts = np.bincount(demo_data.labels[demo_data.folds == fold], minlength=10)
        assert (counts == 16).all()


def test_equal_seeds_give_equal_data_and_others_do_not(demo_data):
    assert demo.demo_feature_set(0).fingerprint == demo_data.fingerprint
    assert demo.demo_feature_set(1).fingerprint != demo_data.fingerprint


def test_the_last_bits_do_not_depend_on_the_processor(demo_data):
    np.testing.assert_array_equal(demo_data.features, np.round(demo_data.features, 2))


def test_clips_of_a_recording_stay_in_one_fold(monkeypatch):
    """Each recording's clips are made to carry its number instead of sound."""
    numbers = iter(range(1000))

    def numbered(make_sound, rng):
        return [np.full(demo.PARAMETERS.length, next(numbers))] * demo.CLIPS_PER_RECORDING

    monkeypatch.setattr(demo, "make_recording", numbered)
    monkeypatch.setattr(demo, "log_mel_numpy", lambda samples, parameters: samples[:1])
    recordings, labels, folds, _ = demo.demo_arrays()
    for recording in np.unique(recordings):
        clips = recordings[:, 0] == recording
        assert clips.sum() == demo.CLIPS_PER_RECORDING
        assert len(set(folds[clips])) == 1 and len(set(labels[clips])) == 1
    assert len(np.unique(recordings)) == 10 * demo.FOLDS * demo.RECORDINGS_PER_FOLD


def test_neither_level_nor_order_tells_the_class(demo_data):
    assert (demo_data.features.max(axis=(1, 2)) == 0.0).all()
    neighbours_alike = (demo_data.labels[1:] == demo_data.labels[:-1]).mean()
    assert neighbours_alike == pytest.approx(0.1, abs=0.05)


def nearest_mean_accuracy(data: FeatureSet, features: np.ndarray) -> float:
    """Cross-validated accuracy of naming the class whose mean is nearest."""
    right = 0
    for fold in data.fold_labels:
        split = data.split(fold)
        means = [
            features[split.train[data.labels[split.train] == label]].mean(axis=0)
            for label in data.class_labels
        ]
        distances = [((features[split.validation] - mean) ** 2).sum(axis=(1, 2)) for mean in means]
        right += int((np.argmin(distances, axis=0) == data.labels[split.validation]).sum())
    return right / len(data)


def test_its_shapes_tell_the_class_and_its_spectra_do_not(demo_data):
    """Chance is 0.1. Where a pattern stands, in time and pitch, is nothing to go by."""
    wherever = np.log1p(np.abs(np.fft.rfft2(demo_data.features)))
    assert nearest_mean_accuracy(demo_data, demo_data.features) < 0.3
    assert 0.5 < nearest_mean_accuracy(demo_data, wherever) < 0.8


def test_every_sound_is_heard():
    for seed in range(10):
        for make_sound in demo.SOUNDS.values():
            for clip in demo.make_recording(make_sound, np.random.default_rng(seed)):
                assert np.isfinite(clip).all() and clip.std() > 0
