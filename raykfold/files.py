"""Files that are there whole or not at all, whenever the process or the machine stops.

Everything is written aside, flushed to the disk, and moved into place. A folder carries a
manifest with the hashes of its files, because a copy of it made by somebody else (Ray uploads
checkpoints file by file) can stop half way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raykfold.errors import StorageError
from raykfold.paths import MANIFEST

REPLACED = ".replaced"


class Damaged(Exception):
    """A folder that is not whole: a file is missing, cut short or altered."""


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` with `content`, all of it or nothing; folders above it are made.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    with _as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            _write_and_flush(handle, content)
            os.chmod(aside, 0o666 & ~_umask())
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_file` for plain values, readable by people."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def link_file(source: Path, target: Path) -> None:
    """Give the file `source` a second name, or where that cannot be (another disk) a copy.

    Raises:
        StorageError: neither can be made.
    """
    with _as_storage_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        try:
            os.link(source, aside)
        except OSError:
            write_file(target, source.read_bytes())
            return
        os.replace(aside, target)
        aside.unlink(missing_ok=True)  # a rename onto the same file leaves both names


def write_folder(folder: Path, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Make `folder` from `files` and a manifest of their hashes that also states `facts`.

    What stood there before is kept until the new one is in place: as `replaced_folder` for the
    moment between two renames.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    with _as_storage_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            os.chmod(aside, 0o777 & ~_umask())
            for name, content in files.items():
                _write_new(aside / name, content)
            manifest = {**facts, "files": {name: _entry(data) for name, data in files.items()}}
            _write_new(aside / MANIFEST, json.dumps(manifest, indent=2).encode())
            _flush_folder(aside)
            _move_folder(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _flush_folder(folder.parent)


def replaced_folder(folder: Path) -> Path:
    """Where the former `folder` stands while `write_folder` puts the new one in its place."""
    return folder.with_name(f"{folder.name}{REPLACED}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says, without a look at the files.

    Raises:
        Damaged: there is none, or it cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder}: no readable {MANIFEST}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise Damaged(f"{folder}: {MANIFEST} is no manifest")
    return manifest


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder, each held against its hash.

    Raises:
        Damaged: one is missing or is not what was written.
    """
    files = {}
    for name, entry in read_manifest(folder)["files"].items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{folder}: {name} is missing") from error
        if _entry(content) != entry:
            raise Damaged(f"{folder}: {name} is not what was written")
        files[name] = content
    return files


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write_new(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    _write_and_flush(handle, content)


def _write_and_flush(handle: int, content: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move_folder(aside: Path, folder: Path) -> None:
    former = replaced_folder(folder)
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        os.rename(folder, former)
    os.rename(aside, folder)
    shutil.rmtree(former, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); what was complete before "
            "is safe, and the same command resumes from it"
        ) from error
