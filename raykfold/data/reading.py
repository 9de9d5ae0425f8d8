"""Reads the data of a cross-validation from files, checks it, and writes it.

Data sets come from strangers, so none of their code runs: `.npy` files are mapped without pickle
support, and `raykfold.data.pickles` reads pickles. Data that cannot be used is refused with one
line that says what would be right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raykfold.data.feature_set import Array, FeatureSet, Integers, SoundClass
from raykfold.data.file_kinds import MAPPING, how_to_save, kind_of_file
from raykfold.data.file_names import names_in
from raykfold.data.pickles import read_pickle
from raykfold.errors import BadData, StorageError
from raykfold.files.atomic import json_bytes
from raykfold.text import comma_list, one_line, with_name

_ARRAYS = ("features", "labels", "folds")
_PARAMETERS = "features.json"
_FOLD_NAMES = "fold_names"  # a key of features.json
# The names that each file of a data set may have; the first that exists is read.
FILE_NAMES = (
    *((f"{name}.npy", f"{name}.pkl") for name in _ARRAYS),
    (f"{MAPPING}.json", f"{MAPPING}.pkl"),
    (_PARAMETERS,),
)
# What arrays are saved as that are not read, or are under another name.
_OTHERS = (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".h5", ".hdf5", ".parquet", ".mat")
_MOST_OTHERS = 4  # in a message
_MOST_LISTED = 40  # folds, in a note
_NUMBER_FOLDS = (
    "number them with `names, numbers = numpy.unique(folds, return_inverse=True)`, and give names "
    f'in {_PARAMETERS}, {{"{_FOLD_NAMES}": {{"0": "ann", ...}}}}'
)
_CHUNK_BYTES = 16 * 2**20  # of features, in one thread at a time


def read_feature_set(processed_dir: Path) -> FeatureSet:
    """Read and check the files in `processed_dir`.

    They are ``features``, ``labels`` and ``folds`` as `.npy`, else `.pkl`, and optionally
    ``class_mapping`` as `.json`, else `.pkl`, and ``features.json``. ``features.npy`` is
    memory-mapped, and read once to check and fingerprint it.

    Raises:
        BadData: a file is missing, damaged, or holds what a cross-validation cannot use.
    """
    *paths, mapping_path, parameters_path = (
        _first_file(processed_dir, names) for names in FILE_NAMES
    )
    arrays = {name: path for name, path in zip(_ARRAYS, paths, strict=True) if path is not None}
    if len(arrays) < len(_ARRAYS):
        files = ", ".join(f"{name}.npy (or .pkl)" for name in _ARRAYS if name not in arrays)
        exists = os.path.isdir(processed_dir)
        state = f"lacks {files}" if exists else f"no such folder; it should hold {files}"
        raise BadData(
            f"{processed_dir}: {state}{unread_files(names_in(processed_dir))}; make the data with "
            "`python -m raykfold.prepare`, fetch it from the Hugging Face Hub with --hf_repo_id, "
            "or try --demo"
        )
    parameters = _read_json_object(parameters_path) if parameters_path else {}
    fold_names = parameters.pop(_FOLD_NAMES, {})  # nothing that features are made by
    return feature_set_from_arrays(
        *map(_read_array, arrays.values()),
        class_mapping=_read_mapping(mapping_path) if mapping_path else None,
        feature_parameters=parameters,
        fold_names=fold_names,
        names={
            **{name: str(path) for name, path in arrays.items()},
            MAPPING: str(mapping_path),
            _FOLD_NAMES: f"{parameters_path}: {_FOLD_NAMES}",
        },
    )


def files_to_read(existing: Iterable[str]) -> list[str]:
    """Return the names that `read_feature_set` would open in a folder with files so named."""
    names = set(existing)
    first = (next((name for name in each if name in names), None) for each in FILE_NAMES)
    return [name for name in first if name is not None]


def missing_arrays(processed_dir: Path) -> list[str]:
    """Return which of features, labels and folds `processed_dir` lacks."""
    choices = zip(_ARRAYS, FILE_NAMES, strict=False)
    return [name for name, files in choices if _first_file(processed_dir, files) is None]


def feature_set_from_arrays(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    folds: npt.ArrayLike,
    *,
    class_mapping: Mapping[Any, Any] | None = None,
    feature_parameters: Mapping[str, Any] | None = None,
    fold_names: Mapping[Any, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> FeatureSet:
    """Return a feature set of arrays, checked as `read_feature_set` checks files.

    Args:
        features: (N, n_mels, time), or with a channel axis of length 1 second or last; float.
        labels: (N,) integers, in any range.
        folds: (N,) integers.
        class_mapping: label → name, for at least the labels in the data; a label may be a string.
            By default classes are named by their labels.
        feature_parameters: how the features were made.
        fold_names: fold → name, for folds that have one; a fold may be a string.
        names: what messages call ``features``, ``labels``, ``folds``, ``class_mapping`` and
            ``fold_names``.

    Raises:
        BadData: a cross-validation cannot use them.
    """
    names = {**{name: name for name in (*_ARRAYS, MAPPING, _FOLD_NAMES)}, **(names or {})}
    given = _as_array(names["features"], features)
    given_labels = _as_array(names["labels"], labels)
    given_folds = _as_array(names["folds"], folds)
    for key, array in zip(_ARRAYS, (given, given_labels, given_folds), strict=True):
        if array.dtype.hasobject:
            raise _of_objects(names[key], key)
    _check_sample_counts(names, given, given_labels, given_folds)

    checked_features, notes = _as_features(names["features"], given)
    checked_labels = _as_integers(names["labels"], "labels", given_labels)
    checked_folds = _as_integers(names["folds"], "folds", given_folds)
    _check_several(names["folds"], "fold", checked_folds)
    _check_several(names["labels"], "class", checked_labels)
    classes = _classes(names, checked_labels, class_mapping)
    named_folds = _by_label(names[_FOLD_NAMES], "fold", fold_names or {})
    if named_folds:
        present = np.unique(checked_folds).tolist()
        shown = comma_list(with_name(fold, named_folds) for fold in present[:_MOST_LISTED])
        more = len(present) - _MOST_LISTED
        notes += (f"folds: {shown}" + (f" and {more} more" if more > 0 else ""),)

    feature_digest = _digest_finite(names["features"], checked_features)
    return FeatureSet(
        features=checked_features,
        labels=checked_labels,
        folds=checked_folds,
        classes=classes,
        feature_parameters=dict(feature_parameters or {}),
        fingerprint=_fingerprint(
            checked_features, feature_digest, checked_labels, checked_folds, classes
        ),
        fold_names=named_folds,
        notes=notes,
    )


def write_feature_set(
    directory: Path,
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    folds: npt.ArrayLike,
    class_mapping: Mapping[int, str],
    feature_parameters: Mapping[str, Any],
    fold_names: Mapping[int, str] | None = None,
) -> None:
    """Write the files that `read_feature_set` reads, as `.npy` and `.json`, into `directory`.

    The folder is made if it does not exist. All files are written under other names and then
    moved, so each is there whole or not at all. The data is not checked.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    about_folds = {_FOLD_NAMES: _with_text_keys(fold_names)} if fold_names else {}
    contents: dict[str, Array | bytes] = {
        "features.npy": np.asarray(features),
        "labels.npy": np.asarray(labels),
        "folds.npy": np.asarray(folds),
        f"{MAPPING}.json": json_bytes(_with_text_keys(class_mapping)),
        _PARAMETERS: json_bytes({**feature_parameters, **about_folds}),
    }
    aside = {name: directory / f".{name}.{os.getpid()}" for name in contents}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with aside[name].open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    np.save(file, content, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            os.replace(aside[name], directory / name)
    except OSError as error:
        raise StorageError(f"{directory}: cannot be written ({one_line(error)})") from error
    finally:
        with suppress(OSError):  # the error above is the one to report
            for path in aside.values():
                path.unlink(missing_ok=True)


def _with_text_keys(names: Mapping[int, str]) -> dict[str, str]:
    return {str(label): name for label, name in names.items()}


# ---- Reading files


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    # os.path.isfile, because Path.is_file raises where the folder may not be entered.
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


def unread_files(names: Iterable[str]) -> str:
    """Return which of a folder's files may hold arrays under names that are not read.

    Returns:
        ``; features.npz is not read: ...`` for a message, or an empty text.
    """
    read = {name for names in FILE_NAMES for name in names}
    others = sorted(
        name
        for name in names
        if name not in read and not name.startswith(".") and name.lower().endswith(_OTHERS)
    )
    if not others:
        return ""
    more = len(others) - _MOST_OTHERS
    shown = comma_list(others[:_MOST_OTHERS]) + (f" and {more} more" if more > 0 else "")
    verb = "is" if len(others) == 1 else "are"
    return f"; {shown} {verb} not read: save each array with numpy.save under such a name"


def _read_array(path: Path) -> Array:
    if path.suffix == ".npy":
        try:
            with np.errstate(over="ignore"):  # absurd shapes overflow before they are refused
                return np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # a broken header can raise nearly anything
            if kind := kind_of_file(path):
                raise BadData(f"{path}: {kind}") from None
            if "Python objects" in str(error):
                raise _of_objects(str(path), path.stem) from None
            raise BadData(
                f"{path}: damaged, or not an .npy file of plain numbers ({one_line(error)}); "
                "make it again with numpy.save"
            ) from error
    content = read_pickle(path)
    if isinstance(content, np.ndarray):
        return content
    if not isinstance(content, list | tuple):
        raise BadData(f"{path}: holds a {_kind_of(content)}, not an array; {how_to_save(path)}")
    if content and all(isinstance(item, np.ndarray) for item in content):
        return _stack(path, list(content))
    if all(isinstance(item, int | float | np.number | np.bool_) for item in content):
        return np.array(content)
    kinds = ", ".join(sorted({_kind_of(item) for item in content}))
    raise BadData(f"{path}: holds a list of {kinds}; {how_to_save(path)}")


def _stack(path: Path, arrays: list[Array]) -> Array:
    kinds = sorted({f"{array.dtype} {array.shape}" for array in arrays})
    if len(kinds) > 1:
        raise BadData(
            f"{path}: holds a list of arrays that differ, {kinds[0]} and {kinds[1]}; "
            "all samples should have one type and shape"
        )
    # A small file can stack to a huge array, because one array can be many items of the list.
    total = sum(array.nbytes for array in arrays)
    if total > max(path.stat().st_size, 2**30):
        raise BadData(
            f"{path}: {path.stat().st_size} bytes that unfold to {total}; {how_to_save(path)}"
        )
    return np.stack(arrays)


def _read_mapping(path: Path) -> Any:
    return _read_json_object(path) if path.suffix == ".json" else read_pickle(path)


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise BadData(
            f"{path}: damaged, or not JSON ({one_line(error)}); it should be one JSON object"
        ) from error
    if not isinstance(content, dict):
        raise BadData(f"{path}: holds a {_kind_of(content)}; it should be one JSON object, {{...}}")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return content


# ---- Checking arrays


def _of_objects(name: str, key: str) -> BadData:
    remedy = {
        "features": "cut or pad all samples to one shape, and save them as one float32 array",
        "labels": f"save integers, with their names in {MAPPING}.json",
        "folds": _NUMBER_FOLDS,
    }[key]
    return BadData(f"{name}: an array of Python objects (dtype object), not of numbers; {remedy}")


def _as_array(name: str, values: npt.ArrayLike) -> Array:
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadData(f"{name}: not an array of numbers ({one_line(error)})") from error


def _check_sample_counts(
    names: Mapping[str, str], features: Array, labels: Array, folds: Array
) -> None:
    for key, array in (("labels", labels), ("folds", folds)):
        if array.ndim != 1:
            raise BadData(
                f"{names[key]}: shape {array.shape}; {key} should be one-dimensional, "
                "one integer for each sample"
            )
    if features.ndim == 0 or (len(features) > 0 and features.ndim not in (3, 4)):
        raise _bad_shape(names["features"], features)
    if not len(features) == len(labels) == len(folds):
        raise BadData(
            f"{names['features']} has {len(features)} samples, {names['labels']} {len(labels)} and "
            f"{names['folds']} {len(folds)}; all three should have the same number"
        )
    if len(features) == 0:
        raise BadData(f"{names['features']}: no samples; at least one for each fold is needed")


def _as_features(name: str, given: Array) -> tuple[Array, tuple[str, ...]]:
    features, notes = given, []
    if features.dtype.kind != "f" or features.dtype.itemsize not in (2, 4, 8):
        raise BadData(
            f"{name}: dtype {features.dtype}; features should be float16, float32 or float64"
        )
    if features.ndim == 4:
        if features.shape[1] == 1:
            features = features[:, 0]
        elif features.shape[3] == 1:
            features = features[..., 0]
        else:
            raise _bad_shape(name, given)
        notes.append(f"features: {given.shape} -> {features.shape}")
    if features.ndim != 3 or 0 in features.shape:
        raise _bad_shape(name, given)
    if not features.dtype.isnative:  # torch takes no other byte order
        features = features.astype(features.dtype.newbyteorder("="))
        notes.append(
            "features: their byte order is not this machine's, so they are copied into memory"
        )
    if not isinstance(features, np.memmap):
        features = np.ascontiguousarray(features)
    return features, tuple(notes)


def _bad_shape(name: str, features: Array) -> BadData:
    return BadData(
        f"{name}: shape {features.shape}; features should be (samples, n_mels, time), or with one "
        "channel (samples, 1, n_mels, time) or (samples, n_mels, time, 1)"
    )


def _as_integers(name: str, key: str, values: Array) -> Integers:
    if values.dtype.kind in "iu":
        if values.max() > np.iinfo(np.int64).max:
            raise BadData(f"{name}: value {values.max()}; {key} should fit 64-bit integers")
        return np.array(values, dtype=np.int64)
    wanted = f"{key} should be integers, one for each sample"
    if values.dtype.kind in "US":
        remedy = f"names belong in {MAPPING}.json" if key == "labels" else _NUMBER_FOLDS
        raise BadData(f"{name}: text; {wanted}; {remedy}")
    if values.dtype.kind != "f":
        raise BadData(f"{name}: dtype {values.dtype}, non-integer {key}; {wanted}")
    fractions = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
    if len(fractions) == 0:
        raise BadData(
            f"{name}: dtype {values.dtype}, non-integer {key}; {wanted}: all values are whole, so "
            f"save them as {key}.astype(numpy.int64)"
        )
    first = fractions[0]
    raise BadData(f"{name}: non-integer {key}, value {values[first]} at index {first}; {wanted}")


def _check_several(name: str, noun: str, values: Integers) -> None:
    if values.min() == values.max():
        raise BadData(f"{name}: {noun} {values[0]} only; a cross-validation needs at least two")


def _classes(
    names: Mapping[str, str], labels: Integers, class_mapping: Mapping[Any, Any] | None
) -> tuple[SoundClass, ...]:
    present: list[int] = np.unique(labels).tolist()
    if class_mapping is None:
        return tuple(SoundClass(label, str(label)) for label in present)
    name = names[MAPPING]
    class_names = _by_label(name, "label", class_mapping)
    unnamed = [label for label in present if label not in class_names]
    if unnamed:
        raise BadData(
            f"{name}: label {unnamed[0]}, found in {names['labels']}, is missing "
            f"({len(unnamed)} of {len(present)} labels are); every label should have a name"
        )
    return tuple(
        SoundClass(label, name if name.strip() else str(label))
        for label, name in sorted(class_names.items())
    )


def _by_label(name: str, noun: str, given: Any) -> dict[int, str]:
    """Return names by label, checked: ``{"0": "dog"}`` gives ``{0: "dog"}``."""
    if not isinstance(given, Mapping):
        raise BadData(f"{name}: holds a {_kind_of(given)}; it should be a dict, {noun} to name")
    texts: dict[int, str] = {}
    for key, text in given.items():
        label = _label_of(name, noun, key)
        if label in texts:
            raise BadData(f"{name}: {noun} {label} appears twice; each should have one name")
        if not isinstance(text, str):
            raise BadData(
                f"{name}: the name of {noun} {label} is a {_kind_of(text)}; it should be a string"
            )
        texts[label] = str(text)
    return texts


def _label_of(name: str, noun: str, key: Any) -> int:
    if isinstance(key, str):
        whole = re.fullmatch(r"-?[0-9]{1,19}", key)
        label = int(key) if whole else None
        shown = repr(key[:40])
    else:
        integer = isinstance(key, int | np.integer) and not isinstance(key, bool)
        label = int(key) if integer else None
        shown = f"of type {_kind_of(key)}"
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
    first_unusable: tuple[int, ...]  # sample, mel band, frame


def _digest_finite(name: str, features: Array) -> bytes:
    """Return a digest of all values in C order and little-endian, whatever their layout.

    Raises:
        BadData: a value is not finite as float32.
    """
    count = max(1, _CHUNK_BYTES // features[0].nbytes)
    starts = range(0, len(features), count)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        chunks = list(pool.map(lambda start: _scan(features[start : start + count], start), starts))
    unusable = sum(chunk.unusable for chunk in chunks)
    if unusable:
        sample, mel, frame = next(chunk.first_unusable for chunk in chunks if chunk.unusable)
        raise BadData(
            f"{name}: {unusable} of {features.size} values are NaN, infinite or too large for "
            f"float32, the first is {features[sample, mel, frame]} in sample {sample}, at mel band "
            f"{mel}, frame {frame}; all should be finite"
        )
    return hashlib.blake2b(b"".join(chunk.digest for chunk in chunks)).digest()


def _scan(samples: Array, start: int) -> _Chunk:
    # As a plain array: operations on a memmap would make memmaps, at a cost for each.
    values = np.ascontiguousarray(np.asarray(samples))
    with np.errstate(over="ignore"):  # values beyond float32 become inf, and are counted
        usable = np.isfinite(values.astype(np.float32) if values.dtype.itemsize > 4 else values)
    unusable = values.size - int(np.count_nonzero(usable))
    first = np.unravel_index(int(np.argmin(usable)), usable.shape) if unusable else (0, 0, 0)
    return _Chunk(
        digest=hashlib.blake2b(values.astype(_little_endian(values), copy=False).data).digest(),
        unusable=unusable,
        first_unusable=(start + int(first[0]), int(first[1]), int(first[2])),
    )


def _fingerprint(
    features: Array,
    feature_digest: bytes,
    labels: Integers,
    folds: Integers,
    classes: tuple[SoundClass, ...],
) -> str:
    # Include labels of classes without samples, which add outputs to a network.
    class_labels = [each.label for each in classes]
    head = f"{features.dtype.name} {features.shape} {class_labels}\n"
    digest = hashlib.blake2b(head.encode(), digest_size=20)
    digest.update(feature_digest)
    for values in (labels, folds):
        digest.update(values.astype(_little_endian(values)).tobytes())
    return digest.hexdigest()


def _little_endian(values: Array) -> np.dtype[Any]:
    return values.dtype.newbyteorder("<")


def _kind_of(value: Any) -> str:
    return "NumPy array" if isinstance(value, np.ndarray) else type(value).__name__
