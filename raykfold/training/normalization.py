"""Normalization of features by statistics of a fold's training split, of each clip, or by type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raykfold.errors import BadInput
from raykfold.text import comma_list

# Values that vary less are constant, like a band above a recording's bandwidth. They are only
# centred: divided by so little, what differs in another recording would drown everything else.
_LEAST_STD = 1e-6
_UNIT_TYPES = ("bool", "int8", "uint8", "int16", "uint16")


class Normalization(nn.Module):
    """Subtracts a mean and divides by a standard deviation, or divides integers by their largest.

    Args:
        kind: ``global``: one mean and one standard deviation, of all values of the training split.
            ``band``: one of each for each position along the first axis of a sample: the mel bands
            of a spectrogram, the channels of an image, the values of an embedding. ``clip``: those
            of each sample itself. ``unit``: 0 and `largest`.
        input_shape: of one sample.
        largest: with ``unit``, the largest value of the features' type.

    Attributes:
        mean, std: float32 of as many axes as a sample has, of length 1 except that the first is as
            long as the sample's with ``band``. Absent for ``clip`` and ``unit``, which need no fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, input_shape: tuple[int, ...], largest: float = 1) -> None:
        super().__init__()
        self.kind = kind
        self.largest = largest
        if self.has_statistics:
            shape = _statistics_shape(kind, input_shape)
            self.register_buffer("mean", torch.zeros(shape))
            self.register_buffer("std", torch.ones(shape))

    @classmethod
    def of(cls, kind: str, input_shape: tuple[int, ...], dtype: torch.dtype) -> Normalization:
        """Return the normalization of features of this shape and type, not fitted yet.

        Raises:
            BadInput: as `check_unit`.
        """
        if kind != "unit":
            return cls(kind, input_shape)
        check_unit(str(dtype).removeprefix("torch."))
        return cls(kind, input_shape, 1 if dtype == torch.bool else torch.iinfo(dtype).max)

    @property
    def has_statistics(self) -> bool:
        """Whether `fit` computes anything."""
        return self.kind in ("global", "band")

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Compute the statistics of batches of features, in float64.

        Args:
            batches: (B, *input_shape) each, of any size; the same ones for each of two passes.
        """
        if not self.has_statistics:
            return
        axes = range(self.mean.ndim + 1)
        dims = tuple(axis for axis in axes if axis != 1 or self.kind == "global")
        # In two passes: the difference of two large sums would lose the digits of a small variance.
        count, total = 0, torch.zeros((), dtype=torch.float64, device=self.mean.device)
        for batch in batches:
            count += batch.numel() // self.mean.numel()
            total = total + batch.double().sum(dims)
        mean = (total / count).view(self.mean.shape)
        squares = torch.zeros_like(total)
        for batch in batches:
            squares = squares + (batch.double() - mean).square().sum(dims)
        std = (squares / count).sqrt().view(self.std.shape)
        self.mean.copy_(mean)
        self.std.copy_(_or_one(std))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, *input_shape) float features, normalized."""
        if self.kind == "unit":
            return inputs / self.largest
        if self.kind == "clip":
            dims = tuple(range(1, inputs.ndim))
            std, mean = torch.std_mean(inputs, dim=dims, correction=0, keepdim=True)
            return (inputs - mean) / _or_one(std)
        return (inputs - self.mean) / self.std

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes the same to the bit."""
        if self.kind == "unit":
            return {"kind": self.kind, "largest": self.largest}
        buffers = {name: values.flatten().tolist() for name, values in self.named_buffers()}
        return {"kind": self.kind, **buffers}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], input_shape: tuple[int, ...]) -> Normalization:
        """Return the normalization whose `to_json` is `values`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: they are of another form, or not for
                samples of this shape.
        """
        kind = values["kind"]
        if kind == "clip":
            return cls(kind, input_shape)
        if kind == "unit":
            largest = values["largest"]
            if type(largest) is not int or not 1 <= largest < 2**64:
                raise ValueError("not the largest value of an integer type")
            return cls(kind, input_shape, largest)
        if kind not in ("global", "band"):
            raise ValueError("no known kind of normalization")
        shape = _statistics_shape(kind, input_shape)
        # Compared before anything is allocated: the shape may be an absurd one.
        read = torch.tensor([values["mean"], values["std"]], dtype=torch.float32)
        if read.shape != (2, shape[0]) or not read.isfinite().all() or not (read[1] > 0).all():
            raise ValueError(
                f"not {shape[0]} finite means, and as many standard deviations above 0"
            )
        made = cls(kind, input_shape)
        made.mean.copy_(read[0].view(shape))
        made.std.copy_(read[1].view(shape))
        return made


def check_unit(dtype: str) -> None:
    """Refuse ``--normalize unit`` for features whose type does not say which values they have.

    Integers of 32 or 64 bits hardly ever use their whole range: all would be nearly 0.

    Raises:
        BadInput: they are floats or such integers.
    """
    if dtype not in _UNIT_TYPES:
        raise BadInput(
            "--normalize unit: divides integers by the largest value of their type, and the "
            f"features are {dtype}; expected {comma_list(_UNIT_TYPES)}, or none, global, band or "
            "clip"
        )


def _statistics_shape(kind: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    first = input_shape[0] if kind == "band" else 1
    return (first, *[1] * (len(input_shape) - 1))


def _or_one(std: Tensor) -> Tensor:
    return torch.where(std < _LEAST_STD, torch.ones_like(std), std)
