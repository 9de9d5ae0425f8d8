"""Networks for tests: of other shapes, or the built-in one that fails, is slow, reports."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

import raykfold
from support.small_data import small_arrays

_FIRST_OF_FOLD = {fold: torch.from_numpy(small_arrays()[0][fold - 1]) for fold in (2, 4)}


class Troubled(raykfold.AudioCNN):
    """In their third evaluation, fold 4's network raises and fold 2's kills its process."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__(n_mels, num_classes, target_len)
        self.register_buffer("evaluations", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for fold, first in _FIRST_OF_FOLD.items():
            if not self.training and torch.equal(x[0], first):
                evaluations = self.get_buffer("evaluations")
                evaluations += 1
                if evaluations == 3:
                    _TROUBLES[fold]()
        return super().forward(x)


def _raise_error() -> None:
    raise RuntimeError("sensor unplugged")


_TROUBLES = {2: lambda: os.kill(os.getpid(), signal.SIGKILL), 4: _raise_error}


class Hanging(raykfold.AudioCNN):
    """Fold 4's third evaluation never ends."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__(n_mels, num_classes, target_len)
        self.register_buffer("evaluations", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and torch.equal(x[0], _FIRST_OF_FOLD[4]):
            evaluations = self.get_buffer("evaluations")
            evaluations += 1
            while evaluations == 3:
                time.sleep(1)
        return super().forward(x)


class Slow(raykfold.AudioCNN):
    """Takes four seconds for each evaluation, so that it pays to move a fold to a free slot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) > 2:  # the driver tries the network on two samples
            time.sleep(4)
        return super().forward(x)


class Unhurried(raykfold.AudioCNN):
    """Takes a second for each evaluation, so that a test has time to disturb a run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) > 2:
            time.sleep(1)
        return super().forward(x)


class ReportsEnvironment(raykfold.AudioCNN):
    """Writes its process's environment to a file in the folder that ENVIRONMENTS names."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__(n_mels, num_classes, target_len)
        file = Path(os.environ["ENVIRONMENTS"]) / f"{os.getpid()}.json"
        file.write_text(json.dumps(dict(os.environ)))


class Idle(torch.nn.Module):
    """Computes almost nothing, and takes a quarter of a second for each evaluation."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(n_mels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) > 2:
            time.sleep(0.25)
        return self.head(x.mean(dim=2))


class OfEmbeddings(torch.nn.Module):
    """Takes (B, values)."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(input_shape[0], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


class OfImages(torch.nn.Sequential):
    """Takes (B, colours, height, width)."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 8) -> None:
        super().__init__(
            torch.nn.Conv2d(input_shape[0], width, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(width, num_classes),
        )


class OfWaveforms(torch.nn.Module):
    """Takes (B, time), and passes on what follows from the data."""

    def __init__(self, width: int = 8, **data: Any) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(1, width, 32, stride=8)
        self.head = OfEmbeddings((width,), data["num_classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x.unsqueeze(1)).relu().mean(dim=2))
