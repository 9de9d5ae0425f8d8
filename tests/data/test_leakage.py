"""What `find_leakage` counts and says, of real data into which twins are planted."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.small_data import small_arrays

from raykfold.config.run_config import RunConfig
from raykfold.data.demo import demo_feature_set
from raykfold.data.feature_set import FeatureSet
from raykfold.data.leakage import Contradictions, Leakage, Pair, Twins, find_leakage
from raykfold.data.reading import read_feature_set, write_feature_set
from raykfold.driver import cross_validate
from raykfold.errors import BadInput
from raykfold.observers import Observer

FEATURES, LABELS, FOLDS = small_arrays()  # sample i is in fold i % 5 + 1
LABELS[:60] = 2  # where twins are planted, so that theirs agree
NONE = Twins()


def found(features: np.ndarray, labels: np.ndarray = LABELS) -> Leakage:
    return find_leakage(FeatureSet.from_arrays(features, labels, FOLDS))


def planted(**copies: object) -> np.ndarray:
    """The features, with what is given for `at_<index>` in place of those samples."""
    features = FEATURES.copy()
    for name, sample in copies.items():
        features[int(name.removeprefix("at_"))] = sample
    return features


def noisy(sample: np.ndarray) -> np.ndarray:
    return sample + 0.01 * sample.std() * np.random.default_rng(0).normal(size=sample.shape)


@pytest.mark.parametrize("seed", range(3))
def test_data_without_twins_raise_no_alarm(seed: int) -> None:
    leakage = find_leakage(FeatureSet.from_arrays(*small_arrays(seed=seed)))
    assert leakage == Leakage(240, identical=NONE, constant=NONE, near=NONE, looked_at=240)
    assert leakage.warnings() == []


def test_clips_of_one_recording_are_not_near_identical() -> None:
    data = demo_feature_set()
    clips_apart = np.arange(len(data)) % 5
    for folds in (data.folds, clips_apart):
        again = FeatureSet.from_arrays(data.features, data.labels, folds)
        assert find_leakage(again).warnings() == []


@pytest.mark.parametrize("shape", [(512,), (2, 16, 16), (2, 2, 8, 16)])
@pytest.mark.parametrize("dtype", ["f4", "u1", "i8"])
def test_twins_of_any_shape_and_type_are_found(shape: tuple[int, ...], dtype: str) -> None:
    features = (FEATURES * 20 + 120).astype(dtype)
    features[11], features[17] = features[5], features[8] + (1 if dtype == "f4" else 2)
    leakage = found(features.reshape(len(features), *shape))
    assert leakage.identical == Twins(2, 1, Pair((5, 11), (1, 2)))
    assert leakage.near == Twins(2, 1, Pair((8, 17), (4, 3)))
    assert leakage.constant == NONE


def test_identical_samples_of_different_folds_are_counted() -> None:
    # Two pairs; and three of which two are in one fold.
    features = planted(at_11=FEATURES[5], at_17=FEATURES[8], at_30=FEATURES[24], at_35=FEATURES[24])
    leakage = found(features)
    pair = Pair(samples=(5, 11), folds=(1, 2))
    assert leakage.identical == Twins(samples=7, groups=3, example=pair)
    assert leakage.constant == leakage.near == NONE
    assert leakage.looked_at == 240 - 7
    assert leakage.warnings() == [
        "7 of 240 samples are identical to a sample of another fold, such as sample 5 in fold 1 "
        "and sample 11 in fold 2: a model is tested on what it was trained on"
    ]


def test_twins_within_one_fold_do_no_harm() -> None:
    features = planted(at_10=FEATURES[5], at_20=noisy(FEATURES[5]), at_13=0.0, at_18=0.0)
    leakage = found(features)
    assert leakage.identical == leakage.constant == leakage.near == NONE


def test_both_zeros_are_one_value() -> None:
    sample = FEATURES[5].clip(0)
    leakage = found(planted(at_5=sample, at_11=np.where(sample == 0, -0.0, sample)))
    assert leakage.identical.samples == 2


def relabelled(*samples: int) -> np.ndarray:
    labels = LABELS.copy()
    labels[list(samples)] = 3
    return labels


def test_different_labels_of_twins_in_other_folds_are_named() -> None:
    features = planted(at_11=FEATURES[5], at_17=FEATURES[8], at_22=noisy(FEATURES[40]))
    leakage = found(features, relabelled(11, 22))
    assert leakage.identical.samples == 4
    assert leakage.near.samples == 2
    pair = Pair(samples=(5, 11), folds=(1, 2))
    assert leakage.contradictions == Contradictions(4, 0, pair, ("2", "3"))
    assert leakage.warnings()[2:] == [
        "4 of 240 samples have an identical or near-identical twin with another label (0 in the "
        "same fold), such as sample 5 in fold 1 (2) and sample 11 in fold 2 (3): a model cannot be "
        "right about both"
    ]


@pytest.mark.parametrize("altered", [np.copy, noisy], ids=["identical", "near"])
def test_different_labels_of_twins_in_one_fold_are_named(
    altered: Callable[[np.ndarray], np.ndarray],
) -> None:
    features = planted(at_20=altered(FEATURES[5]), at_33=altered(FEATURES[8]))
    assert found(features).warnings() == []
    data = FeatureSet.from_arrays(
        features, relabelled(20), FOLDS, class_mapping={2: "dog", 3: "cat\n", 5: "e", 7: "g"}
    )
    leakage = find_leakage(data)
    pair = Pair(samples=(5, 20), folds=(1, 1))
    assert leakage.contradictions == Contradictions(2, 2, pair, ("dog", "cat\n"))
    assert leakage.identical == leakage.near == NONE
    assert leakage.warnings() == [
        "2 of 240 samples have an identical or near-identical twin with another label (2 in the "
        "same fold), namely sample 5 in fold 1 (dog) and sample 20 in fold 1 (cat): a model cannot "
        "be right about both"
    ]


def test_both_of_a_near_pair_are_counted() -> None:
    # Of another label, 5 is the nearest to 20 of its own fold, but 36 of fold 2 the nearest to 5.
    step = noisy(FEATURES[5]) - FEATURES[5]
    features = planted(at_20=FEATURES[5] + step, at_36=FEATURES[5] + 0.1 * step)
    contradictions = found(features, relabelled(20, 36)).contradictions
    assert contradictions.samples == 3 and contradictions.within_folds == 2
    # 5 is identical to 11 of another fold, which is why it is not compared.
    features = planted(at_11=FEATURES[5], at_21=noisy(FEATURES[5]))
    assert found(features, relabelled(21)).contradictions.samples == 2


def test_a_contradiction_within_a_fold_is_the_example() -> None:
    # 5 and 6 disagree across folds; of 8 and its copies, one of three in fold 4 does.
    features = planted(at_6=FEATURES[5], at_10=FEATURES[8], at_13=FEATURES[8], at_18=FEATURES[8])
    contradictions = found(features, relabelled(6, 13)).contradictions
    assert contradictions.samples == 6 and contradictions.within_folds == 3
    assert contradictions.example == Pair(samples=(8, 13), folds=(4, 4))


def test_silence_under_two_labels_is_a_contradiction() -> None:
    leakage = found(planted(at_13=0.0, at_18=0.0), relabelled(18))
    assert leakage.contradictions.within_folds == 2


def test_constant_samples_are_named_as_such() -> None:
    features = planted(at_3=0.0, at_6=0.0, at_9=-80.0, at_15=-80.0, at_20=1.0, at_11=FEATURES[5])
    leakage = found(features)
    pair = Pair(samples=(3, 6), folds=(4, 2))
    assert leakage.constant == Twins(samples=4, groups=2, example=pair)
    assert leakage.identical.samples == 2
    assert leakage.near == NONE
    assert leakage.warnings()[1] == (
        "4 of 240 samples are constant, as digital silence is, and identical to a sample of "
        "another fold, such as sample 3 in fold 4 and sample 6 in fold 2: a model is tested on "
        "what it was trained on"
    )


@pytest.mark.parametrize(
    "altered",
    [
        noisy,
        lambda sample: sample + 1.0,
        lambda sample: noisy(sample) - 20.0,
        lambda sample: 1.01 * sample,
        lambda sample: sample.astype(np.float16),
    ],
    ids=["noise of 1 %", "a dB more", "noise and 20 dB less", "scaled", "as float16"],
)
@pytest.mark.parametrize("offset", [0.0, -60.0])
def test_altered_copies_are_near_identical(
    altered: Callable[[np.ndarray], np.ndarray], offset: float
) -> None:
    features = planted(at_11=altered(FEATURES[5]), at_27=altered(FEATURES[8]))
    leakage = found(features + np.float32(offset))
    pair = Pair(samples=(5, 11), folds=(1, 2))
    assert leakage.near == Twins(samples=4, groups=2, example=pair)
    assert leakage.identical == NONE
    assert leakage.warnings() == [
        "4 of the 240 samples that were compared are near-identical to a sample of another fold, "
        "such as sample 5 in fold 1 and sample 11 in fold 2: a model is tested on what it was "
        "trained on"
    ]


def test_what_all_samples_have_in_common_makes_none_near() -> None:
    common = 100 * np.arange(16, dtype=np.float32)[:, None]  # as in a spectrum that falls steeply
    features = planted(at_11=noisy(FEATURES[5])) + common
    assert found(features).near.samples == 2


def test_a_near_copy_of_identical_samples_is_counted_alone() -> None:
    leakage = found(planted(at_11=FEATURES[5], at_17=noisy(FEATURES[5])))
    assert leakage.identical.samples == 2
    assert leakage.near.samples == leakage.near.groups == 1
    assert leakage.warnings()[1].startswith(
        "1 of the 238 samples that were compared is near-identical to a sample of another fold, "
        "namely sample 17 in fold 3 and sample "
    )


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_files_are_checked_as_arrays_are(kind: type, tmp_path: Path) -> None:
    features = planted(at_11=FEATURES[5], at_17=noisy(FEATURES[8]), at_3=0.0, at_6=0.0)
    write_feature_set(
        tmp_path, features.astype(kind), LABELS, FOLDS, {label: str(label) for label in LABELS}, {}
    )
    data = read_feature_set(tmp_path)
    assert isinstance(data.features, np.memmap) and data.features.dtype == kind
    assert find_leakage(data) == found(features)


def test_samples_are_compared_as_they_are_trained_on() -> None:
    features = planted(at_11=FEATURES[5]).astype(np.float64)
    features[11] *= 1 + 1e-12
    assert found(features).identical.samples == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 61), (3, 50), (40, 700)])
def test_samples_of_any_shape_are_checked(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=(50, *shape)).astype(np.float32)
    features[7] = features[0]
    data = FeatureSet.from_arrays(features, np.arange(50) % 2, np.arange(50) % 5)
    leakage = find_leakage(data)
    twins = leakage.constant if shape == (1, 1) else leakage.identical
    assert twins.example == Pair(samples=(0, 7), folds=(0, 2))


def test_of_many_samples_only_those_are_counted_that_were_looked_at() -> None:
    half = np.random.default_rng(0).normal(size=(5000, 4, 8)).astype(np.float32)
    folds = np.repeat([1, 2], 5000)
    features = np.concatenate([half, half + 0.5])
    data = FeatureSet.from_arrays(features, np.arange(10000) % 2, folds)
    leakage = find_leakage(data)
    assert 256 <= leakage.looked_at < 10000
    assert leakage.near.samples == leakage.looked_at
    assert leakage == find_leakage(data)


def test_of_many_samples_a_part_is_searched_for_near_contradictions() -> None:
    features = np.random.default_rng(0).normal(size=(10000, 4, 8)).astype(np.float32)
    features[5000:5002] = features[:2]
    labels = np.arange(10000) % 2
    labels[5001] = 0
    leakage = find_leakage(FeatureSet.from_arrays(features, labels, np.arange(10000) % 5))
    assert leakage.contradictions.samples == 2
    (line,) = leakage.about_labels()
    assert (
        f"(2 in the same fold; for near-identical ones, {leakage.looked_at} were compared)" in line
    )


def test_a_small_fold_is_looked_at_among_many_samples() -> None:
    features = np.random.default_rng(0).normal(size=(20000, 4, 8)).astype(np.float32)
    features[-300:] = features[:300] + 0.5
    folds = np.repeat([1, 2], [19700, 300])
    leakage = find_leakage(FeatureSet.from_arrays(features, np.arange(20000) % 2, folds))
    assert leakage.looked_at < 10000
    assert leakage.near.groups == 300


def test_of_very_many_samples_twins_are_found_in_little_memory() -> None:
    """Of so many, the sketches of 61 sums are not kept."""
    count = 280_000
    features = np.random.default_rng(0).normal(size=(count, 32)).astype(np.float32)
    features[-80:] = features[:80] + 0.5
    features[200] = features[100_000]
    folds = np.repeat([1, 2, 3], [100_000, count - 100_080, 80])
    labels = np.arange(count) % 2
    labels[-80:] = 1 - labels[:80]
    data = FeatureSet.from_arrays(features, labels, folds)
    tracemalloc.start()
    try:
        leakage = find_leakage(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert leakage.identical == Twins(2, 1, Pair((200, 100_000), (1, 2)))
    assert leakage.looked_at == 256
    assert leakage.near.samples >= leakage.near.groups == 80
    assert leakage.contradictions.samples == 160
    assert peak < 61 * 4 * count

    same = FeatureSet.from_arrays(np.zeros((count, 2)), labels, folds)
    assert find_leakage(same).looked_at == 0  # of constant samples alone


def test_huge_values_are_no_reason_to_fail() -> None:
    features = planted(at_11=FEATURES[5], at_20=np.float32(3e38) * np.sign(FEATURES[20]))
    assert found(features).identical.samples == 2


def test_counts_become_json() -> None:
    features = planted(at_11=FEATURES[5], at_17=noisy(FEATURES[8]))
    content = json.loads(json.dumps(found(features).to_json()))
    assert content["samples"] == 240 and content["looked_at"] == 238
    assert content["identical"] == {
        "samples": 2,
        "groups": 1,
        "example": {"samples": [5, 11], "folds": [1, 2]},
    }
    assert content["near"]["samples"] == 2
    assert content["constant"]["example"] is None
    assert content["contradictions"]["samples"] == 0


class _Listener(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def noticed(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_says_it_before_it_begins(tmp_path: Path) -> None:
    data = FeatureSet.from_arrays(planted(at_11=FEATURES[5]), LABELS, FOLDS)
    listener = _Listener()
    config = RunConfig(model_dir=tmp_path, model="no_such_module:Network")
    with pytest.raises(BadInput, match="no_such_module"):  # so that nothing more is started
        cross_validate(config, data=data, observers=[listener])
    assert len(listener.lines) == 1
    assert listener.lines == find_leakage(data).warnings()
