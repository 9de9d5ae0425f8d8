"""Out-of-fold predictions, by sample and by recording."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raykfold.data.feature_set import FeatureSet
from raykfold.training.predictions import OutOfFold, out_of_fold
from raykfold.training.results import RecordingsOfFold
from raykfold.training.statistics import wilson_interval

NAMES = {2: "dog", 5: "rain"}
# Windows of recordings 0 to 3; recordings 0 and 2 are of the dog, and fold 1 has 0 and 1.
RECORDINGS = np.array([0, 1, 0, 2, 0, 3, 3, 2])
LABELS = np.array([2, 5, 2, 2, 2, 5, 5, 2])
FOLDS = np.array([1, 1, 1, 2, 1, 2, 2, 2])
DOG = {0: (0.4, 0.4, 0.9), 1: (0.7,), 2: (0.8, 0.1), 3: (0.3, 0.6)}  # probabilities of the dog


def data(recordings: np.ndarray | None = RECORDINGS) -> FeatureSet:
    features = np.zeros((len(LABELS), 2, 3), np.float32)
    return FeatureSet.from_arrays(
        features, LABELS, FOLDS, class_mapping=NAMES, recordings=recordings
    )


def predictions(given: FeatureSet, *folds: int) -> OutOfFold:
    probabilities = np.zeros((len(LABELS), 2), np.float32)
    for recording, values in DOG.items():
        probabilities[recording == RECORDINGS, 0] = values
    probabilities[:, 1] = 1 - probabilities[:, 0]
    held_out = {fold: np.flatnonzero(fold == FOLDS) for fold in folds}
    found = out_of_fold({f: (index, probabilities[index]) for f, index in held_out.items()}, given)
    assert found is not None
    return found


def test_a_recording_is_predicted_by_the_mean_of_its_windows() -> None:
    by_window = predictions(data(), 2, 1)
    whole = by_window.of_recordings()
    assert whole.index.tolist() == [0, 1, 2, 3] and whole.fold.tolist() == [1, 1, 2, 2]
    assert whole.label.tolist() == [2, 5, 2, 5]
    assert whole.probabilities.dtype == np.float64
    means = [np.mean(np.array(values, np.float32).astype(np.float64)) for values in DOG.values()]
    np.testing.assert_allclose(whole.probabilities[:, 0], means, rtol=1e-12)
    # Two of three windows of recording 0 are wrong, and its mean is right.
    assert whole.prediction.tolist() == [2, 2, 5, 5]
    assert by_window.metrics(NAMES).accuracy == 3 / 8

    results = by_window.by_recording(NAMES, (1, 2))
    assert results is not None and results.recordings == 4
    assert results.folds == tuple(
        RecordingsOfFold(fold, 2, 0.5, balanced_accuracy=0.5, macro_f1=(2 / 3 + 0) / 2)
        for fold in (1, 2)
    )
    assert results.pooled is not None
    assert (results.pooled.accuracy, results.pooled.interval) == (0.5, wilson_interval(2, 4))
    assert results.pooled.confusion == ((1, 1), (1, 1))
    estimate = results.over_folds("accuracy", 1.0)
    assert estimate is not None and estimate.values == (0.5, 0.5)


def test_a_fold_that_is_not_complete_leaves_no_result_of_all_recordings() -> None:
    results = predictions(data(), 2).by_recording(NAMES, (1, 2))
    assert results is not None and results.pooled is None
    assert [each.fold for each in results.folds] == [2]
    assert results.over_folds("accuracy", 1.0) is None


def test_samples_that_are_no_windows_have_no_recordings() -> None:
    found = predictions(data(None), 1, 2)
    assert found.recording is None and found.by_recording(NAMES, (1, 2)) is None
    with pytest.raises(ValueError, match="not windows"):
        found.of_recordings()


def test_recordings_of_one_window_have_the_results_of_their_samples() -> None:
    numbers = np.arange(len(LABELS))[::-1]  # in another order than the samples
    found = replace(predictions(data(None), 1, 2), recording=numbers)
    assert found.of_recordings().prediction[::-1].tolist() == found.prediction.tolist()
    results = found.by_recording(NAMES, (1, 2))
    assert results is not None and results.pooled == found.metrics(NAMES)
