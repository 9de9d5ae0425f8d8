"""The out-of-fold predictions of a run, and the metrics that are computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raykfold.training.results import OutOfFoldMetrics
from raykfold.training.statistics import class_metrics, wilson_interval

if TYPE_CHECKING:
    from raykfold.data.feature_set import FeatureSet  # imports torch, which takes a second


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of every held-out sample, each by the fold that held it out.

    Attributes:
        index: (n,) positions of the samples in the data, ascending.
        fold: (n,) fold that held out each sample.
        label: (n,) true labels, as in the data.
        prediction: (n,) predicted labels.
        probabilities: (n, classes) float32.
        classes: (classes,) labels in the order of the columns.
    """

    index: np.ndarray
    fold: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) counts: true classes in rows, predicted classes in columns."""
        from sklearn.metrics import confusion_matrix

        counts: np.ndarray = confusion_matrix(self.label, self.prediction, labels=self.classes)
        return counts

    def metrics(self, names: Mapping[int, str]) -> OutOfFoldMetrics:
        """Accuracy, its interval, metrics of each class, and the confusion matrix.

        Args:
            names: label → name of each class, in the order of the columns.
        """
        right = int((self.label == self.prediction).sum())
        return OutOfFoldMetrics(
            accuracy=right / len(self.label),
            interval=wilson_interval(right, len(self.label)),
            classes=class_metrics(self.label, self.prediction, names),
            confusion=tuple(map(tuple, self.confusion.tolist())),
        )


def out_of_fold(
    folds: Mapping[int, tuple[np.ndarray, np.ndarray]], data: FeatureSet
) -> OutOfFold | None:
    """Combine the folds' predictions of their held-out samples, or None if there are no folds.

    Args:
        folds: fold → index (n,) of the samples that it held out, and their probabilities
            (n, classes).
        data: the data that the folds split.
    """
    if not folds:
        return None
    index = np.concatenate([held_out for held_out, _ in folds.values()])
    order = np.argsort(index, kind="stable")
    probabilities = np.concatenate([rows for _, rows in folds.values()])[order]
    classes = np.asarray(data.class_labels)
    sizes = [len(held_out) for held_out, _ in folds.values()]
    return OutOfFold(
        index=index[order],
        fold=np.repeat(list(folds), sizes)[order],
        label=data.labels[index[order]],
        prediction=classes[probabilities.argmax(axis=1)],
        probabilities=probabilities,
        classes=classes,
    )
