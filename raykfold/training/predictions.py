"""The out-of-fold predictions of a run, and the metrics that are computed from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raykfold.training.results import ByRecording, OutOfFoldMetrics, RecordingsOfFold
from raykfold.training.statistics import (
    balanced_accuracy,
    class_metrics,
    macro_f1,
    wilson_interval,
)

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
        recording: (n,) recording that each sample is a window of; None if samples are not windows.
    """

    index: np.ndarray
    fold: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray
    recording: np.ndarray | None = None

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) counts: true classes in rows, predicted classes in columns."""
        return _confusion(self.label, self.prediction, self.classes)

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

    def of_recordings(self) -> OutOfFold:
        """Return one prediction a recording, from the mean of its windows' probabilities.

        The rows are recordings, in ascending order: `index` has their numbers, and `probabilities`
        are float64.

        Raises:
            ValueError: the samples are not windows of recordings.
        """
        if self.recording is None:
            raise ValueError("the samples are not windows of recordings")
        numbers, first, of_window, windows = np.unique(
            self.recording, return_index=True, return_inverse=True, return_counts=True
        )
        probabilities = np.zeros((len(numbers), len(self.classes)))
        np.add.at(probabilities, of_window, self.probabilities)
        probabilities /= windows[:, None]
        return OutOfFold(
            index=numbers,
            fold=self.fold[first],
            label=self.label[first],
            prediction=self.classes[probabilities.argmax(axis=1)],
            probabilities=probabilities,
            classes=self.classes,
        )

    def by_recording(self, names: Mapping[int, str], folds: Collection[int]) -> ByRecording | None:
        """Return the results by recording; None if the samples are not windows of recordings.

        Args:
            names: label → name of each class, in the order of the columns.
            folds: all folds of the run, in order; while one of them has no predictions, there is no
                result of all recordings together.
        """
        if self.recording is None:
            return None
        whole = self.of_recordings()
        rows = []
        for fold in folds:
            of_fold = whole.fold == fold
            if of_fold.any():
                pairs = whole.label[of_fold], whole.prediction[of_fold]
                confusion = _confusion(*pairs, self.classes)
                right, total = int(confusion.trace()), int(confusion.sum())
                others = balanced_accuracy(confusion), macro_f1(confusion)
                rows.append(RecordingsOfFold(fold, total, right / total, *others))
        complete = len(rows) == len(folds)
        return ByRecording(tuple(rows), whole.metrics(names) if complete else None)


def _confusion(labels: np.ndarray, predictions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    counts: np.ndarray = confusion_matrix(labels, predictions, labels=classes)
    return counts


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
        recording=None if data.recordings is None else data.recordings[index[order]],
    )
