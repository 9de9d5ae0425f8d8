"""Networks for tests: the built-in one, with trouble that depends on the fold held out."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch
from conftest import small_arrays

import raykfold

_FIRST_OF_FOLD = {fold: torch.from_numpy(small_arrays()[0][fold - 1]) for fold in (2, 4)}


class Troubled(raykfold.AudioCNN):
    """In its third evaluation, fold 4's raises, and fold 2's kills its process."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__(n_mels, num_classes, target_len)
        self.register_buffer("evaluations", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for fold, first in _FIRST_OF_FOLD.items():
            if not self.training and torch.equal(x[0], first):
                evaluations = self.get_buffer("evaluations")
                evaluations += 1
                if evaluations == 3:
                    _TROUBLE[fold]()
        return super().forward(x)


def _unplugged() -> None:
    raise RuntimeError("sensor unplugged")


_TROUBLE = {2: lambda: os.kill(os.getpid(), signal.SIGKILL), 4: _unplugged}


class Slow(raykfold.AudioCNN):
    """Takes ten seconds for each evaluation, so that moving a fold elsewhere pays."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) > 2:  # not when the driver tries the network out
            time.sleep(10)
        return super().forward(x)


class Unhurried(raykfold.AudioCNN):
    """Takes a second for each evaluation, so that there is time to disturb it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) > 2:
            time.sleep(1)
        return super().forward(x)


class TellsItsEnvironment(raykfold.AudioCNN):
    """Writes what its process finds in the environment to the folder that ENVIRONMENTS names."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__(n_mels, num_classes, target_len)
        told = Path(os.environ["ENVIRONMENTS"]) / f"{os.getpid()}.json"
        told.write_text(json.dumps(dict(os.environ)))


class Idle(torch.nn.Module):
    """Next to nothing to compute, and a quarter of a second for each evaluation."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(n_mels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) > 2:
            time.sleep(0.25)
        return self.head(x.mean(dim=2))
