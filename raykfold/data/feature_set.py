"""The data of a cross-validation: features, labels, folds and classes, and its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raykfold.data.arrays import check_arrays
from raykfold.data.feature_file import FeatureFile
from raykfold.data.labels import Array, Integers
from raykfold.data.splitters import FoldRule
from raykfold.errors import BadInput
from raykfold.text import comma_list, with_name

_MOST_LISTED = 12  # classes, in a message
_ENOUGH_FOLDS = 4  # folds to train on, if one of them is to be the inner validation set
_INNER_SHARE = 0.2  # of each class, in the inner validation set where there are fewer folds


@dataclass(frozen=True)
class SoundClass:
    """A class: its label in the data, and its name."""

    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Split:
    """The samples that train and validate one fold, as ascending int64 indices.

    Attributes:
        fold: the label of the fold that is held out.
        train: the samples that the network learns from.
        validation: the samples of the fold.
        inner: the inner validation set: training samples held back to choose an epoch by. Empty
            unless asked for.
    """

    fold: int
    train: Integers
    validation: Integers
    inner: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The checked data of a cross-validation.

    Attributes:
        features: (N, *sample_shape) in native byte order: float16, float32 or float64, all finite;
            or integers or bools, which float32 holds. C-contiguous, and memory-mapped if the file
            is.
        labels: (N,) class labels as in the files.
        folds: (N,) fold labels as in the files.
        classes: in ascending order of label, which is also the order of a network's outputs.
        feature_parameters: how the features were made (`features.json`); {} if unknown.
        fingerprint: a hash in hex, equal for equal features, labels, folds, class labels and
            recordings, whatever files or shapes they came in.
        notes: lines to show the user.
        fold_names: names of folds by label, for folds that have one, like the speaker in it.
        left_out: folds to ignore: their samples are neither trained on nor held out.
        recordings: (N,) number of the recording that each sample is a window of; None where
            samples are not windows. All windows of a recording have one label and one fold.
        file: the file that holds the features as they are, if they were read from one.
    """

    features: Array
    labels: Integers
    folds: Integers
    classes: tuple[SoundClass, ...]
    feature_parameters: dict[str, Any]
    fingerprint: str
    notes: tuple[str, ...]
    fold_names: Mapping[int, str] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()
    recordings: Integers | None = None
    file: FeatureFile | None = None

    @classmethod
    def from_arrays(
        cls,
        features: npt.ArrayLike,
        labels: npt.ArrayLike,
        folds: npt.ArrayLike | FoldRule,
        *,
        groups: npt.ArrayLike | None = None,
        class_mapping: Mapping[Any, Any] | None = None,
        feature_parameters: Mapping[str, Any] | None = None,
        fold_names: Mapping[Any, Any] | None = None,
        recordings: npt.ArrayLike | None = None,
        names: Mapping[str, str] | None = None,
    ) -> FeatureSet:
        """Return a feature set of arrays, checked as `read_feature_set` checks files.

        The arrays may be anything that `numpy.asarray` takes, tensors (also on a GPU), or columns
        and tables of pandas.

            FeatureSet.from_arrays(X, ["dog", "cat", ...], StratifiedKFold(5))
            FeatureSet.from_arrays(X, y, StratifiedGroupKFold(5), groups=speakers)

        Args:
            features: (N, ...) floats, integers or bools, of any shape that a network takes. Of four
                axes, a second or last one of length 1 is dropped: it is that of one channel.
            labels: (N,) integers in any range; text, numbered from 0 in alphabetical order; bool;
                or one-hot (N, C), of which each column is a class.
            folds: (N,) integers; text, numbered from 1 in natural order (``speaker 2`` before
                ``speaker 10``); or bool. Or what makes them, numbered from 1 in the order of its
                splits: one of scikit-learn's splitters, or a list of (train, test) indices. The
                test sets have to partition the samples, and each train set has to be the rest.
                A splitter that shuffles needs an integer as its ``random_state``. Or how many
                folds to make, as ``--make_folds`` of `raykfold.prepare` does.
            groups: (N,) integers, text or bool, for a splitter: samples of a group belong into one
                fold. If each fold has one group, it is the fold's name.
            class_mapping: label → name, for at least the labels in the data; a label may be a
                string. By default classes are named by their labels, or by the text that these
                are. With a mapping, text is one of its names.
            feature_parameters: how the features were made.
            fold_names: fold → name, for folds that have one; a fold may be a string.
            recordings: (N,) integers or text: the recording that each sample is a window of.
                Accuracy is then reported by recording, too. Where folds are made and there are no
                `groups`, windows of a recording stay in one fold.
            names: what messages call ``features``, ``labels``, ``folds``, ``groups``,
                ``class_mapping``, ``fold_names`` and ``recordings``.

        Raises:
            BadData: a cross-validation cannot use them.
        """
        checked = check_arrays(
            features,
            labels,
            folds,
            groups=groups,
            class_mapping=class_mapping,
            fold_names=fold_names,
            recordings=recordings,
            names=names,
        )
        return cls(
            features=checked.features,
            labels=checked.labels,
            folds=checked.folds,
            classes=tuple(SoundClass(*each) for each in checked.class_names.items()),
            feature_parameters=dict(feature_parameters or {}),
            fingerprint=checked.fingerprint,
            fold_names=checked.fold_names,
            recordings=checked.recordings,
            notes=checked.notes,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (n_mels, time) of a spectrogram."""
        return tuple(map(int, self.features.shape[1:]))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_labels(self) -> tuple[int, ...]:
        return tuple(each.label for each in self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.classes)

    @property
    def class_mapping(self) -> dict[int, str]:
        """Names by label, in the order of `classes`."""
        return {each.label: each.name for each in self.classes}

    @property
    def class_indices(self) -> Integers:
        """Indices (N,) of the samples' classes in `classes`."""
        return np.searchsorted(self.class_labels, self.labels).astype(np.int64)

    @property
    def fold_labels(self) -> tuple[int, ...]:
        """Labels of the folds, ascending."""
        return tuple(np.unique(self.folds[self._in_use]).tolist())

    @property
    def folds_shown(self) -> tuple[str, ...]:
        """The folds as messages show them, with their names: ``1 (ann)``."""
        return tuple(with_name(fold, self.fold_names) for fold in self.fold_labels)

    def without(self, fold: int) -> FeatureSet:
        """Return a feature set that ignores `fold` and shares the arrays of this one.

        Raises:
            BadInput: no sample is in that fold.
        """
        self._held_out(fold)
        name = f"{self.fingerprint} without fold {fold}"
        fingerprint = hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
        return replace(self, left_out=(*self.left_out, fold), fingerprint=fingerprint, notes=())

    @property
    def _in_use(self) -> npt.NDArray[np.bool_]:
        """(N,) whether a sample's fold is not left out."""
        return ~np.isin(self.folds, self.left_out)

    def _held_out(self, fold: int) -> npt.NDArray[np.bool_]:
        """(N,) whether a sample is in `fold`; raises BadInput if none is."""
        held_out = (self.folds == fold) & self._in_use
        if not held_out.any():
            known = comma_list(self.folds_shown)
            raise BadInput(f"fold {fold}: not in the data, whose folds are {known}")
        return held_out

    def split(self, fold: int, *, inner: bool = False, seed: int = 0) -> Split:
        """Return the split that holds `fold` out.

        Args:
            fold: label of a fold.
            inner: hold an inner validation set back from training. It is the fold after `fold`
                (the first, after the last) if that leaves four folds or more to train on, else a
                fifth of each class: of its recordings, where samples are windows of recordings.
            seed: draws that fifth.

        Raises:
            BadInput: no sample is in `fold`, or too few are left for an inner validation set.
        """
        held_out = self._held_out(fold)
        train, validation = np.flatnonzero(self._in_use & ~held_out), np.flatnonzero(held_out)
        if not inner:
            return Split(fold, train, validation)
        chosen = self._inner(fold, train, seed)
        return Split(fold, np.setdiff1d(train, chosen, assume_unique=True), validation, chosen)

    def _inner(self, fold: int, train: Integers, seed: int) -> Integers:
        labels = self.fold_labels
        if len(labels) > _ENOUGH_FOLDS:  # a fold: samples that belong together stay together
            following = labels[(labels.index(fold) + 1) % len(labels)]
            return np.flatnonzero(self.folds == following)
        # Not by scikit-learn, whose stratified splits refuse a class of one sample. Here it stays
        # in training.
        rng = np.random.default_rng((seed, labels.index(fold)))
        chosen = []
        for label in self.class_labels:
            samples = train[self.labels[train] == label]
            # Windows of one recording overlap, and are drawn together.
            units = samples if self.recordings is None else np.unique(self.recordings[samples])
            count = max(round(_INNER_SHARE * len(units)), 1) if len(units) > 1 else 0
            drawn = rng.permutation(units)[:count]
            if self.recordings is not None:
                drawn = samples[np.isin(self.recordings[samples], drawn)]
            chosen.append(drawn)
        if not any(map(len, chosen)):
            noun = "samples" if self.recordings is None else "recordings"
            raise BadInput(
                f"--select inner: fold {fold} leaves no class with two {noun} to train on; "
                "expected more data, or --select best"
            )
        return np.sort(np.concatenate(chosen))

    def warnings(
        self, folds: Sequence[int] | None = None, *, inner: bool = False, seed: int = 0
    ) -> list[str]:
        """Return lines about classes that are absent from the data or from some of its splits.

        One line is for classes without data, one for each fold whose training lacks a class, and
        one for inner validation sets that lack a class.

        Args:
            folds: the folds to hold out; all by default.
            inner: as of `split`.
            seed: as of `split`.

        Raises:
            BadInput: as `split` does.
        """
        present = _labels_in(self.labels[self._in_use])
        lines = []
        absent = [each for each in self.classes if each.label not in present]
        if absent:
            lines.append(f"no sample in any fold is of {_class_list(absent)}")
        lacking_inside: dict[int, list[SoundClass]] = {}
        for fold in self.fold_labels if folds is None else folds:
            split = self.split(fold, inner=inner, seed=seed)
            trained = _labels_in(self.labels[split.train])
            lacking = [each for each in self.classes if each.label in present - trained]
            if lacking:
                lines.append(
                    f"fold {fold}: its training split has no sample of {_class_list(lacking)}"
                )
            chosen = _labels_in(self.labels[split.inner])
            lacking_inside[fold] = [each for each in self.classes if each.label in trained - chosen]
        count = sum(map(bool, lacking_inside.values()))
        if inner and count:
            worst = max(lacking_inside, key=lambda fold: len(lacking_inside[fold]))
            lines.append(
                f"{count} of {len(lacking_inside)} inner validation splits lack a class that is "
                f"trained on; that of fold {worst} has no sample of "
                f"{_class_list(lacking_inside[worst])}"
            )
        return lines


class SoundDataset(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples for a `DataLoader`: features of one shape, float32, and a scalar label, long.

    Args:
        features: (N, ...) floats, integers or bools; may be memory-mapped or read-only.
        labels: (N,) integers; for a loss, class indices.
        device: the device of the tensors.

    Raises:
        ValueError: the numbers of features and labels differ.
    """

    def __init__(self, features: Array, labels: Array, device: str | torch.device = "cpu") -> None:
        if len(features) != len(labels):
            raise ValueError(f"{len(features)} features, but {len(labels)} labels")
        self.features = features
        self.labels = labels
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = torch.from_numpy(np.array(self.features[index], dtype=np.float32))
        label = torch.tensor(int(self.labels[index]), dtype=torch.long)
        return sample.to(self.device), label.to(self.device)


def _labels_in(labels: Integers) -> set[int]:
    return set(np.unique(labels).tolist())  # not of all: a list takes several times the memory


def _class_list(classes: list[SoundClass]) -> str:
    noun = "class" if len(classes) == 1 else "classes"
    shown = ", ".join(f"{each.label} ({each.name})" for each in classes[:_MOST_LISTED])
    more = len(classes) - _MOST_LISTED
    return f"{noun} {shown}" + (f" and {more} more" if more > 0 else "")
