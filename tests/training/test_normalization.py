"""Normalization, against NumPy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadInput
from raykfold.training.fold import FoldTrainer
from raykfold.training.normalization import Normalization
from raykfold.training.recipe import TrainingSettings


@pytest.mark.parametrize(("kind", "axes"), [("global", (0, 1, 2)), ("band", (0, 2))])
def test_statistics_are_those_of_the_training_split(
    small_data: FeatureSet, kind: str, axes: tuple[int, ...]
) -> None:
    features = np.asarray(small_data.features).copy()
    split = small_data.split(3)
    features[split.validation] += 1000  # would be seen at once
    fold = FoldTrainer(
        3,
        torch.from_numpy(features),
        torch.from_numpy(small_data.class_indices),
        split,
        small_data.num_classes,
        TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, 9, 0, normalize=kind),
    )
    normalization = fold.recipe.normalization
    assert normalization is not None
    train = features[split.train].astype(np.float64)
    assert normalization.mean.flatten().numpy() == pytest.approx(train.mean(axes), rel=1e-6)
    assert normalization.std.flatten().numpy() == pytest.approx(train.std(axes), rel=1e-6)


def test_a_clip_is_normalized_by_itself() -> None:
    inputs = torch.randn(3, 5, 7) * 20 - 40
    outputs = Normalization("clip", (5, 7))(inputs)
    values = inputs.numpy().astype(np.float64)
    mean, std = values.mean((1, 2), keepdims=True), values.std((1, 2), keepdims=True)
    assert outputs.numpy() == pytest.approx((values - mean) / std, rel=1e-4, abs=1e-5)


def test_constant_values_stay_finite() -> None:
    """And other values of the same band, in another recording, are not blown up."""
    constant = torch.full((300, 2, 3), -80.0)
    for kind in ("global", "band", "clip"):
        normalization = Normalization(kind, (2, 3))
        normalization.fit([constant])
        assert normalization(constant).eq(0).all()
        assert normalization(constant + 0.5).abs().max() <= 0.5


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 6, 2)])
@pytest.mark.parametrize("kind", ["global", "band", "clip", "unit"])
def test_text_keeps_every_bit(kind: str, shape: tuple[int, ...]) -> None:
    normalization, inputs = Normalization(kind, shape, largest=255), torch.randn(9, *shape)
    normalization.fit([inputs])
    read = Normalization.from_json(json.loads(json.dumps(normalization.to_json())), shape)
    assert torch.equal(read(inputs), normalization(inputs))


@pytest.mark.parametrize("shape", [(4,), (4, 6), (3, 5, 2), (2, 3, 4, 5)])
def test_samples_of_any_shape_are_normalized(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(7, 3, size=(300, *shape))
    axes = tuple(range(len(shape) + 1))
    for kind, over in (("global", axes), ("band", (0, *axes[2:])), ("clip", axes[1:])):
        normalization = Normalization(kind, shape)
        normalization.fit(torch.from_numpy(values).split(7))
        expected = values - values.mean(over, keepdims=True)
        expected /= values.std(over, keepdims=True)
        found = normalization(torch.from_numpy(values).float()).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(torch.uint8, 255), (torch.int16, 32767), (torch.uint16, 65535), (torch.bool, 1)],
)
def test_integers_are_divided_by_the_largest_of_their_type(
    dtype: torch.dtype, largest: int
) -> None:
    features = torch.tensor([[0, 1], [1, largest]]).to(dtype)
    normalization = Normalization.of("unit", (2,), dtype)
    assert normalization.to_json() == {"kind": "unit", "largest": largest}
    assert torch.equal(normalization(features.float()), features.double().div(largest).float())


def test_floats_have_no_largest_value_to_divide_by() -> None:
    with pytest.raises(BadInput, match=r"--normalize unit: .* the features are float16; expected"):
        Normalization.of("unit", (3,), torch.float16)


def test_unit_refuses_integers_that_would_nearly_vanish() -> None:
    for dtype in (torch.int32, torch.int64):
        with pytest.raises(BadInput, match=r"features are int\d\d; expected bool, int8, uint8"):
            Normalization.of("unit", (3,), dtype)


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        {"kind": "none"},
        {"kind": "unit"},
        {"kind": "unit", "largest": 0},
        {"kind": "unit", "largest": 255.0},
        {"kind": "band", "mean": [0.0], "std": [1.0]},
        {"kind": "global", "mean": [0.0], "std": [0.0]},
        {"kind": "global", "mean": [0.0], "std": ["x"]},
        {"kind": "global", "mean": [float("nan")], "std": [1.0]},
    ],
)
def test_other_values_are_refused(values: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, RuntimeError)):
        Normalization.from_json(values, (4, 6))
