"""Checks the arrays of a data set, and computes its fingerprint.

Arrays that a cross-validation cannot use are refused with one line that says what would be right.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raykfold.data.disk_copy import copy_to_disk, fits_in_memory
from raykfold.data.file_kinds import MAPPING
from raykfold.data.labels import (
    FOLDS,
    GROUPS,
    LABELS,
    RECORDINGS,
    Array,
    Integers,
    from_one_hot,
    kind_of,
    to_array,
    to_integers,
    to_label_array,
)
from raykfold.data.splitters import FoldRule, folds_by_rule, is_rule, makes_folds
from raykfold.errors import BadData
from raykfold.text import comma_list, with_name

ARRAYS = ("features", "labels", "folds")
PARAMETERS = "features.json"
FOLD_NAMES = "fold_names"  # a key of features.json
_MOST_LISTED = 40  # folds, in a note
# What labels and folds may be besides one for each sample.
_OR = {
    "labels": ", or one-hot (samples, classes)",
    "folds": ", or in Python a number of folds or a splitter such as StratifiedKFold(5)",
}
_EXACT = 2**24  # float32 holds all integers from minus this to this
_CHUNK_BYTES = 16 * 2**20  # of features, in one thread at a time
_COPY_BYTES = 256 * 2**20  # of a map in Fortran order, whose pages hold many samples


@dataclass(frozen=True, eq=False)
class CheckedArrays:
    """Arrays that a cross-validation can use; see `raykfold.data.feature_set.FeatureSet`.

    Attributes:
        features: (N, ...) floats, integers or bools.
        labels, folds: (N,) int64.
        class_names: label → name, ascending.
        fold_names: fold → name, for folds that have one.
        recordings: (N,) int64, or None.
        fingerprint: a hash of all but the names, in hex.
        notes: lines to show the user.
    """

    features: Array
    labels: Integers
    folds: Integers
    class_names: Mapping[int, str]
    fold_names: Mapping[int, str]
    recordings: Integers | None
    fingerprint: str
    notes: tuple[str, ...]


def check_arrays(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    folds: npt.ArrayLike | FoldRule,
    *,
    groups: npt.ArrayLike | None,
    class_mapping: Mapping[Any, Any] | None,
    fold_names: Mapping[Any, Any] | None,
    recordings: npt.ArrayLike | None,
    names: Mapping[str, str] | None,
) -> CheckedArrays:
    """Return the arrays, checked; the arguments are those of `FeatureSet.from_arrays`.

    Raises:
        BadData: a cross-validation cannot use them.
    """
    names = {
        **{name: name for name in (*ARRAYS, GROUPS.noun, MAPPING, FOLD_NAMES, RECORDINGS.noun)},
        **(names or {}),
    }
    given = to_array(names["features"], features)
    if given.dtype.hasobject:
        raise of_objects(names["features"], "features")
    of_samples = {"labels": to_label_array(names["labels"], labels)}
    if not is_rule(folds):
        of_samples["folds"] = to_label_array(names["folds"], folds)
    if groups is None and recordings is not None and makes_folds(folds):
        groups, names["groups"] = recordings, names[RECORDINGS.noun]
    if groups is not None:
        of_samples["groups"] = to_label_array(names["groups"], groups)
    _check_sample_counts(names, given, of_samples)

    checked_features, notes = _as_features(names["features"], given)
    checked_labels, class_names = _as_classes(
        names, of_samples["labels"], class_mapping, getattr(labels, "columns", None)
    )
    _check_several(names["labels"], "class", checked_labels)
    named_folds = _by_label(names[FOLD_NAMES], "fold", fold_names or {})
    if is_rule(folds):
        given_groups = of_samples.get("groups")
        checked_folds, new_names, more_notes = folds_by_rule(
            names["folds"], folds, given, checked_labels, given_groups, names["groups"]
        )
        notes += more_notes
    elif groups is not None:
        raise BadData(
            f"{names['groups']}: only a splitter uses them, and {names['folds']} are labels; "
            "expected one of the two, or a splitter such as GroupKFold as folds"
        )
    else:
        checked_folds, new_names = to_integers(
            names["folds"], FOLDS, of_samples["folds"], named_folds, names[FOLD_NAMES]
        )
    _check_several(names["folds"], "fold", checked_folds)
    named_folds = named_folds or new_names
    if named_folds:
        present = np.unique(checked_folds).tolist()
        shown = comma_list(with_name(fold, named_folds) for fold in present[:_MOST_LISTED])
        more = len(present) - _MOST_LISTED
        notes += (f"folds: {shown}" + (f" and {more} more" if more > 0 else ""),)
    checked_recordings = None
    if recordings is not None:
        name = names[RECORDINGS.noun]
        checked_recordings = _as_recordings(name, recordings, len(checked_labels))
        _check_recordings(name, checked_recordings, "label", checked_labels)
        _check_recordings(name, checked_recordings, "fold", checked_folds)

    feature_digest = _digest_finite(names["features"], checked_features)
    return CheckedArrays(
        features=checked_features,
        labels=checked_labels,
        folds=checked_folds,
        class_names=class_names,
        fold_names=named_folds,
        recordings=checked_recordings,
        fingerprint=_fingerprint(
            checked_features,
            feature_digest,
            [checked_labels, checked_folds, checked_recordings],
            class_names,
        ),
        notes=notes,
    )


def of_objects(name: str, key: str) -> BadData:
    """Return why a file or array of Python objects is refused, and what to save instead."""
    if key == "features":
        remedy = (
            "cut or pad all samples to one shape, and make one float32 array of them (of a table, "
            'table.to_numpy("float32"); of a sparse matrix, matrix.toarray())'
        )
    else:
        remedy = f"save text as {key}.astype(str), or integers"
    return BadData(f"{name}: an array of Python objects (dtype object), not of numbers; {remedy}")


def _check_sample_counts(
    names: Mapping[str, str], features: Array, of_samples: Mapping[str, Array]
) -> None:
    for key, array in of_samples.items():
        one_hot = key == "labels" and array.ndim == 2 and array.dtype.kind in "biuf"
        if array.ndim != 1 and not (one_hot and array.shape[1] > 1):
            raise BadData(
                f"{names[key]}: shape {array.shape}; {key} should be one-dimensional, one for "
                f"each sample{_OR.get(key, '')}"
            )
    if features.ndim == 0 or (len(features) > 0 and features.ndim < 2):
        raise _bad_shape(names["features"], features)
    if any(len(array) != len(features) for array in of_samples.values()):
        *others, last = (f"{names[key]} {len(array)}" for key, array in of_samples.items())
        raise BadData(
            f"{names['features']} has {len(features)} samples, "
            f"{', '.join(others)}{' and ' if others else ''}{last}; all should have the same number"
        )
    if len(features) == 0:
        raise BadData(f"{names['features']}: no samples; at least one for each fold is needed")


def _as_features(name: str, given: Array) -> tuple[Array, tuple[str, ...]]:
    features, notes = given, []
    is_float = features.dtype.kind == "f" and features.dtype.itemsize in (2, 4, 8)
    if not is_float and features.dtype.kind not in "iub":
        raise BadData(
            f"{name}: dtype {features.dtype}; features should be float16, float32 or float64, or "
            "integers or bools"
        )
    if features.ndim == 4 and 1 in (features.shape[1], features.shape[3]):  # one channel
        features = features[:, 0] if features.shape[1] == 1 else features[..., 0]
        notes.append(f"features: {given.shape} -> {features.shape}")
    if 0 in features.shape:
        raise _bad_shape(name, given)
    features, copied = _contiguous(name, features)
    return features, (*notes, *copied)


def _contiguous(name: str, features: Array) -> tuple[Array, tuple[str, ...]]:
    """Return features in C order and this machine's byte order, and a note if that takes a copy.

    Raises:
        BadData: the copy of a map does not fit on the disk.
    """
    # torch takes no other byte order. In Fortran order a sample is spread over the whole file.
    if features.dtype.isnative and features.flags.c_contiguous:
        return features, ()
    dtype = features.dtype.newbyteorder("=")
    if features.dtype.isnative:
        reason = "they are not in C order"
    else:
        reason = "their byte order is not this machine's"
    if not isinstance(features, np.memmap) or fits_in_memory(features.nbytes):
        copied = np.ascontiguousarray(features, dtype)
        note = f"features: {reason}, so they are copied into memory"
        return copied, () if features.dtype.isnative else (note,)
    count = max(1, _COPY_BYTES // features[0].nbytes)
    chunks = (
        np.ascontiguousarray(features[start : start + count], dtype).data
        for start in range(0, len(features), count)
    )
    copied = copy_to_disk(name, chunks, dtype, features.shape)
    return copied, (f"features: {reason}, so they are copied into a temporary file",)


def _bad_shape(name: str, features: Array) -> BadData:
    return BadData(
        f"{name}: shape {features.shape}; features should be samples of one shape, none of whose "
        "axes is empty: (samples, n_mels, time) of spectrograms, (samples, values) of embeddings "
        "or waveforms, (samples, channels, height, width) of images"
    )


def _check_several(name: str, noun: str, values: Integers) -> None:
    if values.min() == values.max():
        raise BadData(f"{name}: {noun} {values[0]} only; a cross-validation needs at least two")


def _as_recordings(name: str, given: npt.ArrayLike, samples: int) -> Integers:
    recordings = to_label_array(name, given)
    if recordings.shape != (samples,):
        raise BadData(
            f"{name}: shape {recordings.shape}; expected ({samples},), for each sample the "
            "recording that it is a window of"
        )
    return to_integers(name, RECORDINGS, recordings)[0]


def _check_recordings(name: str, recordings: Integers, noun: str, values: Integers) -> None:
    """Raise BadData if the windows of a recording differ in `values`."""
    _, first, numbers = np.unique(recordings, return_index=True, return_inverse=True)
    differing = np.flatnonzero(values != values[first][numbers])
    if len(differing) == 0:
        return
    other = int(differing[0])
    one = int(first[numbers[other]])
    why = {
        "label": "a recording has one label",
        "fold": "they share sound, so a model would be tested on what it was trained on",
    }[noun]
    raise BadData(
        f"{name}: recording {recordings[one]} has samples of {noun} {values[one]} and of {noun} "
        f"{values[other]}, {one} and {other}; expected one {noun} for all windows of a recording: "
        f"{why}"
    )


def _as_classes(
    names: Mapping[str, str],
    labels: Array,
    class_mapping: Mapping[Any, Any] | None,
    columns: Iterable[Any] | None,
) -> tuple[Integers, dict[int, str]]:
    """Return (N,) labels, and label → name, ascending.

    Args:
        names: what messages call the arguments.
        labels: (N,) of any kind, or one-hot (N, C).
        class_mapping: label → name, if it is given.
        columns: names of the columns of `labels`, if it is a table.
    """
    name = names[MAPPING]
    known = None if class_mapping is None else _by_label(name, "label", class_mapping)
    if labels.ndim == 2:  # each column is a class, also one without samples
        numbers = from_one_hot(names["labels"], labels)
        found = dict(enumerate(map(str, range(labels.shape[1]) if columns is None else columns)))
    else:
        numbers, found = to_integers(names["labels"], LABELS, labels, known, name)
    present: list[int] = np.unique(numbers).tolist()
    if known is None:
        return numbers, found or {label: str(label) for label in present}
    unnamed = [label for label in present if label not in known]
    if unnamed:
        raise BadData(
            f"{name}: label {unnamed[0]}, found in {names['labels']}, is missing "
            f"({len(unnamed)} of {len(present)} labels are); every label should have a name"
        )
    return numbers, {
        label: text if text.strip() else str(label) for label, text in sorted(known.items())
    }


def _by_label(name: str, noun: str, given: Any) -> dict[int, str]:
    """Return names by label, checked: ``{"0": "dog"}`` gives ``{0: "dog"}``."""
    if not isinstance(given, Mapping):
        raise BadData(f"{name}: holds a {kind_of(given)}; it should be a dict, {noun} to name")
    texts: dict[int, str] = {}
    for key, text in given.items():
        label = _label_of(name, noun, key)
        if label in texts:
            raise BadData(f"{name}: {noun} {label} appears twice; each should have one name")
        if not isinstance(text, str):
            raise BadData(
                f"{name}: the name of {noun} {label} is a {kind_of(text)}; it should be a string"
            )
        texts[label] = str(text)
    return texts


def _label_of(name: str, noun: str, key: Any) -> int:
    if isinstance(key, str):
        whole = re.fullmatch(r"-?[0-9]{1,19}", key)
        label = int(key) if whole else None
        shown = repr(key[:40])
    else:
        label = int(key) if isinstance(key, int | np.integer | np.bool_) else None
        shown = f"of type {kind_of(key)}"
    if label is None or not -(2**63) <= label < 2**63:
        raise BadData(
            f"{name}: key {shown}; it should map {noun}s, which are integers, to names, "
            'like {"0": "dog"}'
        )
    return label


# ---- The fingerprint, and the check that features are finite, in one pass over the file


@dataclass(frozen=True)
class _Chunk:
    """The digest of some samples, and which of their values are unusable."""

    digest: bytes
    unusable: int
    first_unusable: tuple[int, ...]  # sample, and position in it


def _digest_finite(name: str, features: Array) -> bytes:
    """Return a digest of all values in C order and little-endian, whatever their layout.

    Raises:
        BadData: a float is not finite as float32, or float32 does not hold a 64-bit integer.
    """
    count = max(1, _CHUNK_BYTES // features[0].nbytes)
    starts = range(0, len(features), count)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        chunks = list(pool.map(lambda start: _scan(features[start : start + count], start), starts))
    unusable = sum(chunk.unusable for chunk in chunks)
    if unusable:
        first = next(chunk.first_unusable for chunk in chunks if chunk.unusable)
        what, expected = "NaN, infinite or too large for float32", "all should be finite"
        if features.dtype.kind in "iu":
            what = "integers that float32, in which networks compute, does not hold"
            expected = f"all should be from {-_EXACT} to {_EXACT}, or scaled floats"
        raise BadData(
            f"{name}: {unusable} of {features.size} values are {what}, the first is "
            f"{features[first]} in sample {first[0]}, at {list(first[1:])}; {expected}"
        )
    return hashlib.blake2b(b"".join(chunk.digest for chunk in chunks)).digest()


def _scan(samples: Array, start: int) -> _Chunk:
    # As a plain array: operations on a memmap would make memmaps, at a cost for each.
    values = np.ascontiguousarray(np.asarray(samples))
    unusable, first = 0, [0]
    if (usable := _usable(values)) is not None:
        unusable = values.size - int(np.count_nonzero(usable))
        first = list(map(int, np.unravel_index(int(np.argmin(usable)), usable.shape)))
    return _Chunk(
        digest=hashlib.blake2b(values.astype(_little_endian(values), copy=False).data).digest(),
        unusable=unusable,
        first_unusable=(start + first[0], *first[1:]),
    )


def _usable(values: Array) -> npt.NDArray[np.bool_] | None:
    """Return which values float32 holds, or None where the type says that all are.

    Floats and narrower integers may be rounded. Integers of 64 bits may not: those that need so
    many are times, hashes or identifiers.
    """
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # values beyond float32 become inf, and are counted
            return np.isfinite(values.astype(np.float32) if values.dtype.itemsize > 4 else values)
    if values.dtype.itemsize < 8:
        return None
    return (values <= _EXACT) & (values >= -_EXACT)


def _fingerprint(
    features: Array,
    feature_digest: bytes,
    of_samples: Iterable[Integers | None],
    class_names: Mapping[int, str],
) -> str:
    # Include labels of classes without samples, which add outputs to a network.
    head = f"{features.dtype.name} {features.shape} {list(class_names)}\n"
    digest = hashlib.blake2b(head.encode(), digest_size=20)
    digest.update(feature_digest)
    for values in of_samples:
        if values is not None:
            digest.update(values.astype(_little_endian(values)).tobytes())
    return digest.hexdigest()


def _little_endian(values: Array) -> np.dtype[Any]:
    return values.dtype.newbyteorder("<")
