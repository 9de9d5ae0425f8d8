"""Augmentation of training batches, on their device and from the fold's random streams.

Each function draws anew for each sample, takes (B, *input_shape) float32, and returns that
shape. None of them reads a value on the host, so a GPU need not be waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def time_shift(inputs: Tensor, most: float) -> Tensor:
    """Shift each sample in time, circularly: what leaves at one end enters at the other.

    Time is the last axis. All channels of a sample are shifted alike.

    Args:
        most: largest shift to either side, as a part of the length, 0 to 1.
    """
    batch, *others, frames = inputs.shape
    largest = round(most * frames)
    shifts = torch.randint(-largest, largest + 1, (batch, 1), device=inputs.device)
    source = (torch.arange(frames, device=inputs.device) - shifts).remainder(frames)
    return inputs.gather(-1, source.view(batch, *[1] * len(others), frames).expand_as(inputs))


def spec_augment(inputs: Tensor, bands: int, frames: int) -> Tensor:
    """Mask one range of mel bands and one of frames in each sample, with the sample's mean.

    These are the masks of SpecAugment (D. Park et al. 2019, https://arxiv.org/abs/1904.08779): the
    width of a mask is drawn from 0 to its largest, then its place from those that are possible.
    Mel bands and frames are the last two axes. All channels of a sample are masked alike.

    Args:
        bands: largest number of masked mel bands, the paper's F.
        frames: largest number of masked frames, the paper's T.
    """
    batch, *channels, rows, columns = inputs.shape
    masked = _ranges(inputs, rows, bands).unsqueeze(2)
    masked = masked | _ranges(inputs, columns, frames).unsqueeze(1)
    masked = masked.view(batch, *[1] * len(channels), rows, columns)
    mean = inputs.mean(dim=tuple(range(1, inputs.ndim)), keepdim=True)
    return torch.where(masked, mean, inputs)


def _ranges(inputs: Tensor, length: int, most: int) -> Tensor:
    """Return (B, length) bool: a range in each row, of up to `most` elements, is True."""
    width, place = torch.rand(2, len(inputs), 1, device=inputs.device)
    width = (width * (min(most, length) + 1)).floor()
    start = (place * (length - width + 1)).floor()
    position = torch.arange(length, device=inputs.device)
    return (position >= start) & (position < start + width)


def mixup(inputs: Tensor, targets: Tensor, num_classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each sample, and its target, with that of another sample of the batch.

    The share of a sample is drawn from Beta(alpha, alpha), for each pair as in equation 1 of
    H. Zhang et al. 2018 (https://arxiv.org/abs/1710.09412). Batches are in random order, so the
    other sample is the one before.

    Args:
        targets: (B,) long, or (B, num_classes) float32 probabilities.
        alpha: more than 0; the larger, the more equal the shares.

    Returns:
        Inputs, and (B, num_classes) float32 probabilities.
    """
    parameter = inputs.new_full((), alpha)  # by a kernel: a recording cannot copy from the host
    beta = torch.distributions.Beta(parameter, parameter, validate_args=False)
    share = beta.sample((len(inputs), 1))
    soft = targets if targets.ndim == 2 else nn.functional.one_hot(targets, num_classes).float()
    of_inputs = share.view(-1, *[1] * (inputs.ndim - 1))
    mixed = inputs.roll(1, 0).lerp(inputs, of_inputs)
    return mixed, soft.roll(1, 0).lerp(soft, share)
