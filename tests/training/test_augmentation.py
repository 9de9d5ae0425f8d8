"""Augmentation of batches: what it changes, how much at most, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raykfold.training.augmentation import mixup, spec_augment, time_shift


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_a_shift_is_circular_and_no_larger_than_said() -> None:
    inputs = torch.arange(20.0).expand(400, 3, 20)
    outputs = time_shift(inputs, 0.2)
    shifts = set()
    for before, after in zip(inputs.numpy(), outputs.numpy(), strict=True):
        (shift,) = {s for s in range(-10, 11) if np.array_equal(np.roll(before, s, axis=1), after)}
        shifts.add(shift)
    assert shifts == set(range(-4, 5))


def test_masks_are_ranges_of_up_to_their_sizes() -> None:
    inputs = torch.randn(2000, 8, 10)
    outputs = spec_augment(inputs, 3, 4)
    changed = (outputs != inputs).numpy()
    assert torch.equal(
        outputs[torch.from_numpy(changed)],
        inputs.mean(dim=(1, 2), keepdim=True).expand_as(inputs)[torch.from_numpy(changed)],
    )
    bands, frames = (np.asarray(changed.all(axis=axis)) for axis in (2, 1))
    assert (changed == (bands[:, :, None] | frames[:, None, :])).all()
    for masks, most in ((bands, 3), (frames, 4)):
        assert set(masks.sum(axis=1).tolist()) == set(range(most + 1))
        edges = np.diff(np.pad(masks.astype(int), ((0, 0), (1, 1))), axis=1)
        assert ((edges == 1).sum(axis=1) <= 1).all()  # one range
        assert masks.any(axis=0).all()  # anywhere


def test_masks_larger_than_the_sample_are_cut() -> None:
    assert spec_augment(torch.randn(50, 4, 5), 99, 99).isfinite().all()


def test_samples_are_mixed_as_their_targets_are() -> None:
    inputs = torch.eye(6).unsqueeze(2).expand(6, 6, 4) * 1.0
    mixed, targets = mixup(inputs, torch.arange(6), 6, 0.4)
    assert torch.allclose(mixed[:, :, 0], targets) and mixed.shape == inputs.shape
    assert torch.allclose(targets.sum(dim=1), torch.ones(6))
    assert ((targets > 0).sum(dim=1) == 2).all()
    again, _ = mixup(mixed, targets, 6, 0.4)
    assert again.shape == inputs.shape


def test_shares_have_the_moments_of_the_beta_distribution() -> None:
    inputs = torch.zeros(20000, 1, 1)
    _, targets = mixup(inputs, torch.arange(20000) % 2, 2, 0.4)
    shares = targets[0::2, 0]
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.005)


@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 3, 20)])
def test_any_shape_is_shifted_along_its_last_axis(shape: tuple[int, ...]) -> None:
    inputs = torch.arange(20.0).expand(100, *shape)
    outputs = time_shift(inputs, 0.2).numpy()
    first = outputs.reshape(100, -1, 20)[:, 0]
    assert (outputs == first.reshape(100, *[1] * (len(shape) - 1), 20)).all()  # channels alike
    assert all(np.array_equal(np.roll(np.arange(20.0), int(-row[0])), row) for row in first)
    assert len(set(first[:, 0].tolist())) == 9


def test_masks_cover_all_channels() -> None:
    inputs = torch.randn(50, 3, 8, 10)
    changed = (spec_augment(inputs, 3, 4) != inputs).numpy()
    assert changed.any() and not changed.all()
    assert (changed == changed[:, :1]).all()


@pytest.mark.parametrize("shape", [(4,), (6, 4), (3, 6, 4)])
def test_any_shape_is_mixed(shape: tuple[int, ...]) -> None:
    inputs = torch.arange(6.0).view(6, *[1] * len(shape)).expand(6, *shape)
    mixed, targets = mixup(inputs, torch.arange(6), 6, 0.4)
    assert mixed.shape == inputs.shape
    expected = (targets * torch.arange(6.0)).sum(dim=1)
    assert torch.allclose(mixed.flatten(1), expected.unsqueeze(1).expand(-1, inputs[0].numel()))
