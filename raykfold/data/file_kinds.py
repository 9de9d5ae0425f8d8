"""Recognizes files whose content is not what their name says, by their first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

MAPPING = "class_mapping"  # the stem of the file with the names of classes
_AS_JSON = f'save the names as {MAPPING}.json, {{"0": "dog", ...}}'
_AS_NPY = "save its array with numpy.save as {stem}.npy"
_AS_NPZ = "save its arrays with numpy.savez, or as tensors with torch.save"
_TORCH = ("a file of torch.save", "rename it to {stem}.pt")
# The beginning of a file, what it is, and what to do with it.
_KINDS = (
    # Older releases of torch pickle a magic number first.
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", *_TORCH),
    (b"\x93NUMPY", "an .npy file under another name", "rename it to {stem}.npy"),
    (
        b"\x80",  # protocol 2 and later
        "a pickle under another name",
        "rename it to {stem}.pkl, or " + _AS_NPY,
    ),
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS in place of the file",
        "fetch the file with `git lfs pull`",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _AS_NPY),
    (b"PAR1", "a Parquet file", _AS_NPY),
    (b"\x1f\x8b", "compressed with gzip", "unpack it, or " + _AS_NPY),
    (b"BZh", "compressed with bzip2", "unpack it, or " + _AS_NPY),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it, or " + _AS_NPY),
)
_OWN = {".npy": (b"\x93NUMPY",), ".pkl": (b"\x80",), ".pt": (_KINDS[0][0],)}


def kind_of_file(path: Path) -> str | None:
    """Return what the file really is and how to fix it.

    Returns:
        Text for a message after the path; None if the file is of no other kind that is known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:  # whoever reads it says why it cannot be read
        return None
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    for magic, what, remedy in _KINDS:
        if head.startswith(magic):
            return (
                None if magic in _OWN.get(path.suffix, ()) else f"{what}; {_for_file(path, remedy)}"
            )
    return None


def how_to_save(path: Path) -> str:
    """Return how the content of a file that cannot be read is saved so that it can be."""
    return _AS_JSON if path.stem == MAPPING else "save plain numbers with numpy.save as .npy"


def _for_file(path: Path, remedy: str) -> str:
    named = remedy.format(stem=path.stem)
    # No array holds the names of classes, so no file of NumPy is right for them.
    if path.stem == MAPPING and named != remedy:
        return _AS_JSON
    # These hold several arrays.
    return _AS_NPZ if path.suffix in (".npz", ".pt") and remedy.endswith("{stem}.npy") else named


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        names = []
    what, remedy, own = "a zip archive", "unpack it, or " + _AS_NPY, None
    if any(name.endswith("data.pkl") for name in names):
        what, remedy, own = *_TORCH, ".pt"
    elif names and all(name.endswith(".npy") for name in names):
        what, remedy, own = "a file of numpy.savez", "rename it to {stem}.npz", ".npz"
    elif not names and path.suffix in (".npz", ".pt"):  # whoever reads it says what is wrong
        own = path.suffix
    return None if path.suffix == own else f"{what}; {_for_file(path, remedy)}"
