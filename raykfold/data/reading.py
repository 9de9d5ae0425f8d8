"""Reads the data of a cross-validation from files, and writes it.

Data sets come from strangers, so none of their code runs: NumPy reads `.npy` and `.npz` files
without pickle support, torch reads `.pt` files as weights only, and `raykfold.data.pickles` reads
pickles. Data that cannot be used is refused with one
line that says what would be right.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from raykfold.data.arrays import ARRAYS, FOLD_NAMES, PARAMETERS, of_objects
from raykfold.data.disk_copy import copy_to_disk, fits_in_memory
from raykfold.data.feature_file import FeatureFile, stamp_of
from raykfold.data.feature_set import FeatureSet
from raykfold.data.file_kinds import MAPPING, how_to_save, kind_of_file
from raykfold.data.file_names import names_in
from raykfold.data.labels import RECORDINGS, Array, kind_of
from raykfold.data.made_folds import describe_rule
from raykfold.data.pickles import read_pickle
from raykfold.errors import BadData, StorageError
from raykfold.files.atomic import flush_folder, json_bytes
from raykfold.text import comma_list, one_line

_SUFFIXES = (".npy", ".npz", ".pt", ".pkl")
# Files with several arrays, by name, and the names that each array may have there.
_TOGETHER = ("data.npz", "data.pt")
_MEMBERS = {
    "features": ("features", "X"),
    "labels": ("labels", "y"),
    "folds": ("folds",),
    RECORDINGS.noun: (RECORDINGS.noun,),
}
# The names that each file of a data set may have; the first that exists is read.
FILE_NAMES = (
    *((*(f"{name}{suffix}" for suffix in _SUFFIXES), *_TOGETHER) for name in ARRAYS),
    (f"{MAPPING}.json", f"{MAPPING}.pkl"),
    (PARAMETERS,),
    tuple(f"{RECORDINGS.noun}{suffix}" for suffix in _SUFFIXES),
)
_FEATURES = "features.npy"
FOLD_RULE = "fold_rule"  # a key of features.json
# What arrays are saved as that are not read, or are under another name.
_OTHERS = (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".h5", ".hdf5", ".parquet", ".mat")
_MOST_OTHERS = 4  # in a message
_UNPACK_BYTES = 8 * 2**20
_MOST_UNFOLDED = 50  # times the size of its file; zeros compress by a factor of 1000
_TORCH_SAVE = 'torch.save({"features": ..., "labels": ..., "folds": ...})'
_EXPECTED = "expected an .npz or .pt file with features, labels and folds"


def read_feature_set(processed_dir: Path) -> FeatureSet:
    """Read and check the files in `processed_dir`.

    They are ``features``, ``labels`` and ``folds``, each as `.npy`, else `.npz`, `.pt` or `.pkl`,
    or several in one ``data.npz`` or ``data.pt`` under these names (or ``X`` and ``y``); and
    optionally ``class_mapping`` as `.json`, else `.pkl`, ``features.json``, and ``recordings`` as
    the other arrays. The values are those of `FeatureSet.from_arrays`: labels and folds may be
    text, for example.

    ``features.npy`` is memory-mapped, and read once to check and fingerprint it. So is a `.pt`,
    unless it has torch's older format. Arrays of more than 256 MB in an `.npz`, in another byte
    order or in Fortran order are copied into a temporary file, and that is mapped. Other files are
    read into memory.

    Args:
        processed_dir: a folder, or one `.npz` or `.pt` file with all three arrays.

    Raises:
        BadData: a file is missing, damaged, or holds what a cross-validation cannot use.
    """
    if names_a_file(processed_dir.name) and not os.path.isdir(processed_dir):
        if not os.path.isfile(processed_dir):
            raise BadData(f"{processed_dir}: no such file; {_EXPECTED}")
        arrays = dict.fromkeys(ARRAYS, processed_dir)
        mapping_path = parameters_path = recordings_path = None
    else:
        *paths, mapping_path, parameters_path, recordings_path = (
            _first_file(processed_dir, names) for names in FILE_NAMES
        )
        arrays = {name: path for name, path in zip(ARRAYS, paths, strict=True) if path is not None}
    if len(arrays) < len(ARRAYS):
        if os.path.isfile(processed_dir):
            raise BadData(f"{processed_dir}: is a file; {_EXPECTED}, or a folder of them")
        files = file_list(name for name in ARRAYS if name not in arrays)
        exists = os.path.isdir(processed_dir)
        state = f"lacks {files}" if exists else f"no such folder; it should hold {files}"
        raise BadData(
            f"{processed_dir}: {state}{unread_files(names_in(processed_dir))}; make the data with "
            "`python -m raykfold.prepare`, fetch it from the Hugging Face Hub with --hf_repo_id, "
            "or try --demo"
        )
    if recordings_path is None:  # then beside another array, in a file of several
        holders = dict.fromkeys(arrays.values())
        recordings_path = next((p for p in holders if RECORDINGS.noun in _names_within(p)), None)
    if recordings_path is not None:
        arrays[RECORDINGS.noun] = recordings_path
    path = Path(os.path.abspath(arrays["features"]))
    stamp = stamp_of(path)  # before it is read
    read = {name: _read_array(path, name) for name, path in arrays.items()}
    parameters = _read_json_object(parameters_path) if parameters_path else {}
    # Nothing that features are made by.
    fold_names, fold_rule = parameters.pop(FOLD_NAMES, {}), parameters.pop(FOLD_RULE, {})
    if not isinstance(fold_rule, dict):
        raise BadData(
            f"{parameters_path}: {FOLD_RULE}: holds a {kind_of(fold_rule)}; it should be an object"
        )
    data = FeatureSet.from_arrays(
        **{name: values for name, (values, _) in read.items()},
        class_mapping=_read_mapping(mapping_path) if mapping_path else None,
        feature_parameters=parameters,
        fold_names=fold_names,
        names={
            **{name: called for name, (_, called) in read.items()},
            MAPPING: str(mapping_path),
            FOLD_NAMES: f"{parameters_path}: {FOLD_NAMES}",
        },
    )
    file = FeatureFile.of(path, stamp, read["features"][0], data.features)
    made = [f"folds made by {describe_rule(fold_rule)}"] if fold_rule else []
    return replace(data, file=file, notes=(*data.notes, *made))


def files_to_read(existing: Iterable[str]) -> list[str]:
    """Return the names that `read_feature_set` would open in a folder with files so named."""
    names = set(existing)
    first = (next((name for name in each if name in names), None) for each in FILE_NAMES)
    return list(dict.fromkeys(name for name in first if name is not None))


def names_a_file(name: str) -> bool:
    """Return whether a data set's last part of its path is that of a file with all its arrays."""
    return name.endswith((".npz", ".pt"))


def file_list(arrays: Iterable[str]) -> str:
    """Return the files that hold arrays, for a message."""
    return ", ".join(f"{name}.npy (or .npz, .pt, .pkl)" for name in arrays)


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
    moved, so each is there whole or not at all. The features that were there go first, and the new
    ones come last: in between, and after a kill, the folder has none, and nobody reads a mixture.
    The data is not checked. Features that are large may be an `.npy` file on the same disk, which
    is moved. `fold_rule` says how folds were made, if they were, and `recordings` (N,) which
    recording each sample is a window of.

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
        contents[f"{RECORDINGS.noun}.npy"] = np.asarray(recordings)
    if not isinstance(features, Path):
        contents[_FEATURES] = np.asarray(features)
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
        _hide_features(directory)
        for name in FILE_NAMES[-1]:  # recordings of other data that was here
            (directory / name).unlink(missing_ok=True)
        for name in contents:
            if name != _FEATURES:
                os.replace(aside[name], directory / name)
        flush_folder(directory)
        new = features if isinstance(features, Path) else aside[_FEATURES]
        os.replace(new, directory / _FEATURES)
        flush_folder(directory)
    except OSError as error:
        raise StorageError(f"{directory}: cannot be written ({one_line(error)})") from error
    finally:
        with suppress(OSError):  # the error above is the one to report
            for path in aside.values():
                path.unlink(missing_ok=True)


def _hide_features(directory: Path) -> None:
    """See to it that `directory` is refused until there is a new features.npy."""
    others = [name for name in FILE_NAMES[0] if name != _FEATURES]
    if _first_file(directory, others) is None:
        (directory / _FEATURES).unlink(missing_ok=True)
    else:  # features.pkl, say, which would be read in its place
        aside = directory / f".{_FEATURES}.{os.getpid()}.empty"
        aside.touch()
        os.replace(aside, directory / _FEATURES)
    flush_folder(directory)


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
    return (
        f"; {shown} {verb} not read: save each array with numpy.save under such a name, or name an "
        ".npz or .pt file that has all as --processed_dir"
    )


def _read_array(path: Path, name: str) -> tuple[Any, str]:
    """Return one of the arrays, or what from_arrays makes one of, and what messages call it."""
    match path.suffix:
        case ".npy":
            return _read_npy(path), str(path)
        case ".npz":
            return _read_npz(path, name)
        case ".pt":
            return _read_torch(path, name)
        case _:
            return _read_pickled(path), str(path)


def _read_npy(path: Path) -> Array:
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


def _read_npz(path: Path, name: str) -> tuple[Array, str]:
    if kind := kind_of_file(path):
        raise BadData(f"{path}: {kind}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive, or its end is missing")
        with np.load(path, allow_pickle=False) as archive, np.errstate(over="ignore"):
            member = _member(path, name, archive.files)
            # A small archive can unfold to a huge array.
            size = archive.zip.getinfo(f"{member}.npy").file_size
            _check_unfolded(path, size)
            called = f"{path}: {member}"
            if fits_in_memory(size):
                return archive[member], called
            with archive.zip.open(f"{member}.npy") as stored:
                return _unpack(called, stored), called
    except BadData:
        raise
    except Exception as error:  # so can a broken archive
        if "Object arrays" in str(error):
            raise of_objects(f"{path}: {member}", name) from None
        raise BadData(
            f"{path}: damaged, or not an .npz file of plain numbers ({one_line(error)}); make it "
            "again with numpy.savez"
        ) from error


def _unpack(name: str, stored: IO[bytes]) -> Array:
    """Return an array of an archive as a map of a temporary file.

    Raises:
        BadData: the disk has no room for it.
        ValueError: it holds Python objects, or is of another version of the format.
    """
    version = np.lib.format.read_magic(stored)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stored)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stored)
    else:
        raise ValueError(f"version {version} of the .npy format")
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    parts = iter(lambda: stored.read(_UNPACK_BYTES), b"")
    return copy_to_disk(name, parts, dtype, shape, "F" if is_fortran else "C")


def _read_torch(path: Path, name: str) -> tuple[Any, str]:
    content, called = _load_torch(path), str(path)
    if isinstance(content, dict):
        member = _member(path, name, content)
        content, called = content[member], f"{path}: {member}"
    elif path.stem != name:
        raise BadData(
            f"{path}: holds a {kind_of(content)}; expected a dict of tensors, {_TORCH_SAVE}"
        )
    # Some values of a tensor may stand for many, as `expand` makes them, and a tensor for several.
    tensors = content if isinstance(content, list | tuple) else [content]
    sized = [each for each in tensors if hasattr(each, "element_size")]
    _check_unfolded(path, sum(each.numel() * each.element_size() for each in sized))
    return content, called


def _load_torch(path: Path) -> Any:
    import torch

    if kind := kind_of_file(path):
        raise BadData(f"{path}: {kind}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a TorchScript archive, refused below
            # Only the newer of the two formats can be mapped.
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise BadData(
                f"{path}: holds {foreign[1]}, which is refused: only tensors and plain containers "
                f"are read; save a dict of tensors, {_TORCH_SAVE}"
            ) from None
        raise BadData(  # torch's text is long, and speaks of loading code
            f"{path}: damaged, or not a .pt file of tensors ({type(error).__name__}); make it "
            f"again with {_TORCH_SAVE}"
        ) from error


def _names_within(path: Path) -> list[Any]:
    """Return the names of the arrays in a file of several."""
    try:
        if path.suffix == ".npz" and zipfile.is_zipfile(path):
            with np.load(path, allow_pickle=False) as archive:
                return list(archive.files)
        if path.suffix == ".pt":
            content = _load_torch(path)
            return list(content) if isinstance(content, dict) else []
    except Exception:  # a broken file is refused when its arrays are read
        return []
    return []


def _member(path: Path, name: str, there: Iterable[Any]) -> str:
    """Return the name that an array has in a file of several.

    Raises:
        BadData: there is none, or more than one.
    """
    names = list(there)
    if path.stem == name and len(names) == 1:  # a file of one array, whatever its name there
        return str(names[0])
    found = [each for each in _MEMBERS[name] if each in names]
    if len(found) > 1:
        raise BadData(f"{path}: holds both {found[0]} and {found[1]}; expected one of them")
    if not found:
        wanted = " (or ".join(_MEMBERS[name]) + ")" * (len(_MEMBERS[name]) > 1)
        raise BadData(f"{path}: lacks {wanted}; it holds {comma_list(names) or 'nothing'}")
    return found[0]


def _read_pickled(path: Path) -> Any:
    content = read_pickle(path)
    if isinstance(content, np.ndarray):
        return content
    if not isinstance(content, list | tuple):
        raise BadData(f"{path}: holds a {kind_of(content)}, not an array; {how_to_save(path)}")
    if content and all(isinstance(item, np.ndarray) for item in content):
        return _stack(path, list(content))
    if all(isinstance(item, int | float | str | np.number | np.bool_) for item in content):
        return content
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
    _check_unfolded(path, sum(array.nbytes for array in arrays))
    return np.stack(arrays)


def _check_unfolded(path: Path, total: int) -> None:
    """Refuse a file whose content takes far more memory than the file has bytes."""
    size = path.stat().st_size
    if total > max(_MOST_UNFOLDED * size, 2**30):
        raise BadData(f"{path}: {size} bytes that unfold to {total}; {how_to_save(path)}")


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
