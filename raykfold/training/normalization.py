"""Normalization of features by statistics of a fold's training split, or of each clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_CHUNK = 256  # samples whose sums are computed at once: float64 takes two or four times the memory
# Values that vary less are constant, like a band above a recording's bandwidth. They are only
# centred: divided by so little, what differs in another recording would drown everything else.
_LEAST_STD = 1e-6


class Normalization(nn.Module):
    """Subtracts a mean and divides by a standard deviation.

    Args:
        kind: ``global``: one mean and one standard deviation, of all values of the training split.
            ``band``: one of each for each mel band. ``clip``: those of each sample itself, which
            needs no fit.
        n_mels: number of mel bands.

    Attributes:
        mean, std: (1, 1) float32 for ``global``, (n_mels, 1) for ``band``, absent for ``clip``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, n_mels: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "clip":
            rows = n_mels if kind == "band" else 1
            self.register_buffer("mean", torch.zeros(rows, 1))
            self.register_buffer("std", torch.ones(rows, 1))

    def fit(self, features: Tensor) -> None:
        """Compute the statistics of (n, n_mels, time) features, in float64."""
        if self.kind == "clip":
            return
        dims = (0, 2) if self.kind == "band" else (0, 1, 2)
        count = features.numel() // len(self.mean)
        # In two passes: the difference of two large sums would lose the digits of a small variance.
        total = sum(chunk.double().sum(dims) for chunk in features.split(_CHUNK))
        mean = (torch.as_tensor(total) / count).view(-1, 1)
        squares = sum(
            (chunk.double() - mean).square().sum(dims) for chunk in features.split(_CHUNK)
        )
        std = (torch.as_tensor(squares) / count).sqrt().view(-1, 1)
        self.mean.copy_(mean)
        self.std.copy_(_or_one(std))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, n_mels, time) features, normalized."""
        if self.kind == "clip":
            std, mean = torch.std_mean(inputs, dim=(1, 2), correction=0, keepdim=True)
            return (inputs - mean) / _or_one(std)
        return (inputs - self.mean) / self.std

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes the same to the bit."""
        buffers = {name: values.flatten().tolist() for name, values in self.named_buffers()}
        return {"kind": self.kind, **buffers}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], n_mels: int) -> Normalization:
        """Return the normalization whose `to_json` is `values`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: they are of another form, or not for
                `n_mels` mel bands.
        """
        kind = values["kind"]
        if kind == "clip":
            return cls(kind, n_mels)
        rows = {"global": 1, "band": n_mels}[kind]
        read = torch.tensor([values["mean"], values["std"]], dtype=torch.float32)
        if read.shape != (2, rows) or not read.isfinite().all() or not (read[1] > 0).all():
            raise ValueError(f"not {rows} finite means, and as many standard deviations above 0")
        made = cls(kind, n_mels)
        made.mean.copy_(read[0].view(-1, 1))
        made.std.copy_(read[1].view(-1, 1))
        return made


def _or_one(std: Tensor) -> Tensor:
    return torch.where(std < _LEAST_STD, torch.ones_like(std), std)
