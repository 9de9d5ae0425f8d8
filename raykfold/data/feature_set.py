"""The data of a cross-validation: features, labels, folds and classes.

data = read_feature_set(Path("data/processed"))  # of raykfold.data.reading
for fold in data.fold_labels:
    split = data.split(fold)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raykfold.errors import BadInput

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

_MOST_LISTED = 12  # classes, in a message
_ENOUGH_FOLDS = 4  # to train on, for one of them to be spared
_INNER_SHARE = 0.2


@dataclass(frozen=True)
class SoundClass:
    """A class: its label in the data, and its name."""

    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of one fold's training and validation, as ascending int64 indices.

    Attributes:
        fold: the label of the fold that is held out.
        train: what the network learns from.
        validation: what is held out.
        inner: what is kept from training to choose an epoch by; empty unless asked for.
    """

    fold: int
    train: Integers
    validation: Integers
    inner: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Everything a cross-validation is about, checked.

    Attributes:
        features: (N, n_mels, time), float16, float32 or float64 in native byte order, all finite;
            memory-mapped where the file is, else C-contiguous.
        labels: (N,) class labels as in the files.
        folds: (N,) fold labels as in the files.
        classes: in ascending order of label; the outputs of a network are in this order.
        feature_parameters: how the features were made (`features.json`), {} where unknown.
        fingerprint: hex; equal for equal features, labels, folds and class labels, whatever files
            or shapes they came in.
        notes: lines to show the user.
        left_out: folds without a part in it: their samples are neither trained on nor held out.
    """

    features: Array
    labels: Integers
    folds: Integers
    classes: tuple[SoundClass, ...]
    feature_parameters: dict[str, Any]
    fingerprint: str
    notes: tuple[str, ...]
    left_out: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_mels(self) -> int:
        return int(self.features.shape[1])

    @property
    def time(self) -> int:
        """Frames of a sample."""
        return int(self.features.shape[2])

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
        """Label → name, in the order of `classes`."""
        return {each.label: each.name for each in self.classes}

    @property
    def class_indices(self) -> Integers:
        """(N,) the labels as 0 to num_classes - 1, in the order of `classes`."""
        return np.searchsorted(self.class_labels, self.labels).astype(np.int64)

    @property
    def fold_labels(self) -> tuple[int, ...]:
        """The folds' labels, ascending."""
        return tuple(np.unique(self.folds[self._has_part]).tolist())

    def without(self, fold: int) -> FeatureSet:
        """The same as if no sample were in `fold`; the arrays stay as they are, and are shared.

        Raises:
            BadInput: no sample is in that fold.
        """
        self._in(fold)
        name = f"{self.fingerprint} without fold {fold}"
        fingerprint = hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
        return replace(self, left_out=(*self.left_out, fold), fingerprint=fingerprint, notes=())

    @property
    def _has_part(self) -> npt.NDArray[np.bool_]:
        """(N,) whether a sample is in a fold that is not left out."""
        return ~np.isin(self.folds, self.left_out)

    def _in(self, fold: int) -> npt.NDArray[np.bool_]:
        """(N,) whether a sample is in that fold.

        Raises:
            BadInput: none is.
        """
        held_out = (self.folds == fold) & self._has_part
        if not held_out.any():
            known = ", ".join(map(str, self.fold_labels))
            raise BadInput(f"fold {fold}: not in the data, whose folds are {known}")
        return held_out

    def split(self, fold: int, *, inner: bool = False, seed: int = 0) -> Split:
        """The split that holds `fold` out.

        Args:
            inner: keep an inner validation set from the training samples: the fold after `fold`
                (the first, after the last) where four folds or more are left to train on; else,
                by `seed`, a fifth of each class.

        Raises:
            BadInput: no sample is in that fold; there are too few for an inner validation set.
        """
        held_out = self._in(fold)
        train, validation = np.flatnonzero(self._has_part & ~held_out), np.flatnonzero(held_out)
        if not inner:
            return Split(fold, train, validation)
        chosen = self._inner(fold, train, seed)
        return Split(fold, np.setdiff1d(train, chosen, assume_unique=True), validation, chosen)

    def _inner(self, fold: int, train: Integers, seed: int) -> Integers:
        labels = self.fold_labels
        if len(labels) > _ENOUGH_FOLDS:  # what belongs together stays together, as in the folds
            following = labels[(labels.index(fold) + 1) % len(labels)]
            return np.flatnonzero(self.folds == following)
        rng = np.random.default_rng((seed, labels.index(fold)))
        of_classes = [train[self.labels[train] == label] for label in self.class_labels]
        # scikit-learn's stratified splits refuse a class of one sample: here it stays in training.
        chosen = [rng.permutation(each)[: _inner_share(len(each))] for each in of_classes]
        if not any(map(len, chosen)):
            raise BadInput(
                f"--select inner: fold {fold} leaves no class with two samples to train on; want "
                "more data, or --select best"
            )
        return np.sort(np.concatenate(chosen))

    def warnings(
        self, folds: Sequence[int] | None = None, *, inner: bool = False, seed: int = 0
    ) -> list[str]:
        """One line for each fold whose training lacks a class, one for inner validation splits that
        do, and one for classes without data.

        Args:
            folds: those that are held out; all by default.
            inner, seed: as of `split`, and so are the errors.
        """
        present = set(self.labels[self._has_part].tolist())
        lines = []
        absent = [each for each in self.classes if each.label not in present]
        if absent:
            lines.append(f"no sample in any fold is of {_listed(absent)}")
        unheard: dict[int, list[SoundClass]] = {}
        for fold in self.fold_labels if folds is None else folds:
            split = self.split(fold, inner=inner, seed=seed)
            trained = set(self.labels[split.train].tolist())
            lacking = [each for each in self.classes if each.label in present - trained]
            if lacking:
                lines.append(f"fold {fold}: its training split has no sample of {_listed(lacking)}")
            chosen = set(self.labels[split.inner].tolist())
            unheard[fold] = [each for each in self.classes if each.label in trained - chosen]
        count = sum(map(bool, unheard.values()))
        if inner and count:
            worst = max(unheard, key=lambda fold: len(unheard[fold]))
            lines.append(
                f"{count} of {len(unheard)} inner validation splits lack a class that is trained "
                f"on; that of fold {worst} has no sample of {_listed(unheard[worst])}"
            )
        return lines


class SoundDataset(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples for a `DataLoader`: (n_mels, time) float32 and a scalar long, on `device`.

    Args:
        features: (N, n_mels, time), any float type; may be memory-mapped or read-only.
        labels: (N,) integers; for a loss, class indices.
        device: where the tensors go.

    Raises:
        ValueError: there are not as many labels as features.
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


def _inner_share(samples: int) -> int:
    """Of a class with so many, how many are kept from training."""
    return max(round(_INNER_SHARE * samples), 1) if samples > 1 else 0


def _listed(classes: list[SoundClass]) -> str:
    noun = "class" if len(classes) == 1 else "classes"
    shown = ", ".join(f"{each.label} ({each.name})" for each in classes[:_MOST_LISTED])
    more = len(classes) - _MOST_LISTED
    return f"{noun} {shown}" + (f" and {more} more" if more > 0 else "")
