"""What one evaluation of a network gave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from raykfold.training.statistics import balanced_accuracy, confusion_matrix, macro_f1


@dataclass(frozen=True)
class Evaluation:
    """A network's outputs for the samples of a split, after an epoch.

    Attributes:
        loss: mean cross-entropy.
        logits: (n, num_classes) float32.
        targets: (n,) long, class indices.
    """

    loss: float
    logits: Tensor
    targets: Tensor

    @cached_property
    def confusion(self) -> np.ndarray:
        """(num_classes, num_classes) counts: true classes in rows, predicted ones in columns."""
        predicted = self.logits.argmax(dim=1).cpu().numpy()
        return confusion_matrix(self.targets.cpu().numpy(), predicted, self.logits.shape[1])

    @property
    def accuracy(self) -> float:
        right = self.confusion.diagonal().sum()
        return int(right) / len(self.targets)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have samples here."""
        return balanced_accuracy(self.confusion)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have samples here."""
        return macro_f1(self.confusion)
