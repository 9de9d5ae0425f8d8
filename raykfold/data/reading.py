"""Reads the data of a cross-validation from files, and writes it.

Data sets come from strangers, so none of their code runs: `.npy` files are mapped without pickle
support, and `raykfold.data.pickles` reads pickles. Data that cannot be used is refused with one
line that says what would be right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raykfold.data.arrays import ARRAYS, FOLD_NAMES, PARAMETERS, Array, kind_of, of_objects
from raykfold.data.feature_set import FeatureSet
from raykfold.data.file_kinds import MAPPING, how_to_save, kind_of_file
from raykfold.data.file_names import names_in
from raykfold.data.made_folds import describe_rule
from raykfold.data.pickles import read_pickle
from raykfold.errors import BadData, StorageError
from raykfold.files.atomic import json_bytes
from raykfold.text import comma_list, one_line

# The names that each file of a data set may have; the first that exists is read.
FILE_NAMES = (
    *((f"{name}.npy", f"{name}.pkl") for name in ARRAYS),
    (f"{MAPPING}.json", f"{MAPPING}.pkl"),
    (PARAMETERS,),
)
FOLD_RULE = "fold_rule"  # a key of features.json
RECORDINGS = "recordings.npy"  # (N,) which recording each sample is a window of
# What arrays are saved as that are not read, or are under another name.
_OTHERS = (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".h5", ".hdf5", ".parquet", ".mat")
_MOST_OTHERS = 4  # in a message


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
    arrays = {name: path for name, path in zip(ARRAYS, paths, strict=True) if path is not None}
    if len(arrays) < len(ARRAYS):
        files = ", ".join(f"{name}.npy (or .pkl)" for name in ARRAYS if name not in arrays)
        exists = os.path.isdir(processed_dir)
        state = f"lacks {files}" if exists else f"no such folder; it should hold {files}"
        raise BadData(
            f"{processed_dir}: {state}{unread_files(names_in(processed_dir))}; make the data with "
            "`python -m raykfold.prepare`, fetch it from the Hugging Face Hub with --hf_repo_id, "
            "or try --demo"
        )
    parameters = _read_json_object(parameters_path) if parameters_path else {}
    # Nothing that features are made by.
    fold_names, fold_rule = parameters.pop(FOLD_NAMES, {}), parameters.pop(FOLD_RULE, {})
    if not isinstance(fold_rule, dict):
        raise BadData(
            f"{parameters_path}: {FOLD_RULE}: holds a {kind_of(fold_rule)}; it should be an object"
        )
    data = FeatureSet.from_arrays(
        *map(_read_array, arrays.values()),
        class_mapping=_read_mapping(mapping_path) if mapping_path else None,
        feature_parameters=parameters,
        fold_names=fold_names,
        names={
            **{name: str(path) for name, path in arrays.items()},
            MAPPING: str(mapping_path),
            FOLD_NAMES: f"{parameters_path}: {FOLD_NAMES}",
        },
    )
    if not fold_rule:
        return data
    return replace(data, notes=(*data.notes, f"folds made by {describe_rule(fold_rule)}"))


def files_to_read(existing: Iterable[str]) -> list[str]:
    """Return the names that `read_feature_set` would open in a folder with files so named."""
    names = set(existing)
    first = (next((name for name in each if name in names), None) for each in FILE_NAMES)
    return [name for name in first if name is not None]


def missing_arrays(processed_dir: Path) -> list[str]:
    """Return which of features, labels and folds `processed_dir` lacks."""
    choices = zip(ARRAYS, FILE_NAMES, strict=False)
    return [name for name, files in choices if _first_file(processed_dir, files) is None]


def write_feature_set(
    directory: Path,
    features: npt.ArrayLike | Path,
    labels: npt.ArrayLike,
    folds: npt.ArrayLike,
    class_mapping: Mapping[int, str],
    feature_parameters: Mapping[str, Any],
    fold_names: Mapping[int, str] | None = None,
    *,
    fold_rule: Mapping[str, Any] | None = None,
    recordings: npt.ArrayLike | None = None,
) -> None:
    """Write the files that `read_feature_set` reads, as `.npy` and `.json`, into `directory`.

    The folder is made if it does not exist. All files are written under other names and then
    moved, so each is there whole or not at all. The data is not checked. Features that are large
    may be an `.npy` file on the same disk, which is moved last. `fold_rule` says how folds were
    made, if they were, and `recordings` (N,) which recording each sample is a window of.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    about_folds: dict[str, Any] = {}
    if fold_names:
        about_folds[FOLD_NAMES] = _with_text_keys(fold_names)
    if fold_rule:
        about_folds[FOLD_RULE] = dict(fold_rule)
    contents: dict[str, Array | bytes] = {
        "labels.npy": np.asarray(labels),
        "folds.npy": np.asarray(folds),
        f"{MAPPING}.json": json_bytes(_with_text_keys(class_mapping)),
        PARAMETERS: json_bytes({**feature_parameters, **about_folds}),
    }
    if recordings is not None:
        contents[RECORDINGS] = np.asarray(recordings)
    if not isinstance(features, Path):
        contents["features.npy"] = np.asarray(features)
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
        if recordings is None:  # those of an earlier data set
            (directory / RECORDINGS).unlink(missing_ok=True)
        for name in contents:
            os.replace(aside[name], directory / name)
        if isinstance(features, Path):
            os.replace(features, directory / "features.npy")
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
                raise of_objects(str(path), path.stem) from None
            raise BadData(
                f"{path}: damaged, or not an .npy file of plain numbers ({one_line(error)}); "
                "make it again with numpy.save"
            ) from error
    content = read_pickle(path)
    if isinstance(content, np.ndarray):
        return content
    if not isinstance(content, list | tuple):
        raise BadData(f"{path}: holds a {kind_of(content)}, not an array; {how_to_save(path)}")
    if content and all(isinstance(item, np.ndarray) for item in content):
        return _stack(path, list(content))
    if all(isinstance(item, int | float | np.number | np.bool_) for item in content):
        return np.array(content)
    kinds = ", ".join(sorted({kind_of(item) for item in content}))
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
        raise BadData(f"{path}: holds a {kind_of(content)}; it should be one JSON object, {{...}}")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return content
