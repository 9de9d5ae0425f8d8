"""Recipes for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import raykfold

# Every option of a recipe, each with a value that changes what is trained.
ALL_ON: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "scheduler": "cosine",
    "warmup_epochs": 1,
    "grad_clip": 1.0,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "normalize": "band",
    "mixup": 0.4,
    "spec_augment": "3,3",
    "time_shift": 0.2,
    "ema": 0.9,
    "monitor": "macro_f1",
}


class Counting(raykfold.Recipe):
    """Holds state of every kind, which changes what it does, and draws from NumPy's generator."""

    def __init__(self, start: int = 0) -> None:
        self.batches = start
        self.total = torch.zeros(())
        self.seen = {"labels": [0]}
        self.shift = torch.nn.Linear(1, 1)
        self._scratch = object()

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.batches += 1
        self.total += inputs.mean()
        self.seen["labels"].append(int(targets[0]))
        shift = 0.01 * self.batches + 0.001 * float(self.total) + 0.01 * np.random.rand()
        return super().augment(inputs + shift, targets)
