"""Writes files and folders whole or not at all, whenever the process or the machine stops.

On a disk everything is written under another name, flushed and moved into place. On an object store
a file is one put. A folder has a manifest with the hashes of its files: a copy that somebody else
makes of it (Ray uploads checkpoints file by file) can stop half way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raykfold.errors import StorageError
from raykfold.files.paths import MANIFEST
from raykfold.files.remote import Place, RemotePath, impatient

REPLACED = ".replaced"

# What a file system answers that does not know a call: old CIFS, FAT, shared folders of virtual
# machines, mounts of object stores. A failing disk (EIO, ENOSPC, ...) answers otherwise.
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_REFUSED = {*_UNKNOWN, errno.EACCES, errno.EBADF, errno.EISDIR, errno.EPERM}


class _Lacking(OSError):
    """The file system does not know a call that nothing else can stand in for."""


class Damaged(Exception):
    """A file of a folder is missing, cut short or altered."""


def write_file(path: Place, content: bytes) -> None:
    """Replace `path` with `content`, whole or not at all; make folders above it.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    with as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _beside(path)
        try:
            _write_and_flush(aside, content)
            with _essential("replace a file by a rename"):
                os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def write_json(path: Place, value: Any) -> None:
    """Write `value` as indented JSON by `write_file`."""
    write_file(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return `value` as indented JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()


def link_file(source: Place, target: Path) -> None:
    """Make `target` a hard link of `source`, or a copy where that cannot be (on another disk).

    Raises:
        StorageError: neither can be made.
    """
    if isinstance(source, RemotePath):
        _, time = source.version()  # before the content: `is_linked` notices a newer one
        write_file(target, source.read_bytes())
        with courtesy():  # without it, the file is fetched again the next time
            os.utime(target, (time, time))
        return
    with as_storage_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = _beside(target)
        try:
            os.link(source, aside)
        except OSError:
            write_file(target, source.read_bytes())
            return
        os.replace(aside, target)
        aside.unlink(missing_ok=True)  # a rename onto the same file leaves both names


def is_linked(source: Place, target: Path) -> bool:
    """Return whether `link_file` made `target` from the present `source`.

    Raises:
        FileNotFoundError: there is no `source`.
    """
    if not isinstance(source, RemotePath):
        present = source.stat()
        return target.exists() and os.path.samestat(target.stat(), present)
    version = source.version()
    if not target.exists():
        return False
    stat = target.stat()
    return version == (stat.st_size, int(stat.st_mtime))


def write_folder(folder: Place, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Make or replace `folder`, with `files` and a manifest of their hashes and of `facts`.

    The old folder stays until the new one is whole. On a disk it is `replaced_folder` for the
    moment between two renames.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    entries = {name: _entry(content) for name, content in files.items()}
    manifest = {**facts, "files": entries}
    if isinstance(folder, RemotePath):
        # Objects' names contain their hashes, so nobody rewrites one. Putting the manifest, which
        # names them, replaces the folder.
        for name, content in files.items():
            entries[name]["object"] = f"{entries[name]['sha256'][:16]}-{name}"
            (folder / entries[name]["object"]).write_bytes(content)
        (folder / MANIFEST).write_bytes(_manifest_bytes(manifest))
        if read_manifest(folder) == manifest:  # else another writer has replaced it since
            named = {MANIFEST, *(entry["object"] for entry in entries.values())}
            for file in folder.files():
                if file.path_below(folder) not in named:
                    file.unlink(missing_ok=True)
        return
    with as_storage_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = _beside(folder)
        try:
            aside.mkdir()
            for name, content in {**files, MANIFEST: _manifest_bytes(manifest)}.items():
                _write_and_flush(aside / name, content)
            flush_folder(aside)
            former = replaced_folder(folder)
            shutil.rmtree(former, ignore_errors=True)
            if folder.exists():
                os.rename(folder, former)
            os.rename(aside, folder)
            shutil.rmtree(former, ignore_errors=True)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        flush_folder(folder.parent)


def replaced_folder(folder: Path) -> Path:
    """Return where `write_folder` puts the old `folder` while it moves the new one into place."""
    return folder.with_name(f"{folder.name}{REPLACED}")


def remove_tree(folder: Place) -> None:
    """Delete a folder, if it exists, and what is in it, as far as possible."""
    if isinstance(folder, RemotePath):
        with suppress(StorageError):
            folder.remove_tree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move(source: Place, target: Place) -> None:
    """Move a file or folder; make folders above `target`, which is of the same kind of storage.

    On an object store an interrupted move can be repeated.

    Raises:
        StorageError: the store fails.
    """
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return
    assert isinstance(source, RemotePath) and isinstance(target, RemotePath)
    below = source.files()
    for file in below or [source]:
        goal = target / file.path_below(source) if below else target
        file.copy_to(goal)
        file.unlink()
    if below:
        source.remove_tree()  # an object that marks the empty folder


def read_manifest(folder: Place) -> dict[str, Any]:
    """Return the content of a folder's manifest; the files are not looked at.

    Raises:
        Damaged: there is no manifest, or it cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder}: no readable {MANIFEST}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise Damaged(f"{folder}: {MANIFEST} is not a manifest")
    return manifest


def read_folder(folder: Place, only: Collection[str] | None = None) -> dict[str, bytes]:
    """Return the files of a folder, checked against their hashes.

    Args:
        only: names of the files to read; all by default.

    Raises:
        Damaged: a file is missing, or is not what was written.
        StorageError: the store failed; the folder may be whole.
    """
    files = {}
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        if only is not None and name not in only:
            continue
        try:
            content = (folder / entry.get("object", name)).read_bytes()
        except OSError as error:
            if read_manifest(folder) != manifest:  # the folder has been replaced since
                return read_folder(folder, only)
            raise Damaged(f"{folder}: {name} is missing") from error
        if any(entry.get(fact) != value for fact, value in _entry(content).items()):
            raise Damaged(f"{folder}: {name} is not what was written")
        files[name] = content
    return files


def is_seen(file: Place) -> bool:
    """Return whether this process sees `file` now: False also where it may not or cannot look."""
    try:
        return impatient(file).exists()
    except (OSError, StorageError):
        return False


def flush_folder(folder: Path) -> None:
    """Make a rename survive a loss of power, where the file system can flush a folder.

    Elsewhere the file that was there before may come back, which is as whole as the new one.
    """
    with courtesy():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _beside(path: Path) -> Path:
    """Return a hidden path in the same folder that nobody else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _write_and_flush(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        with _essential("flush a file to the disk"):
            os.fsync(file.fileno())


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2).encode()  # no line's end, which could be cut unseen


@contextmanager
def courtesy() -> Iterator[None]:
    """Do without what is done inside where the file system refuses it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


@contextmanager
def _essential(what: str) -> Iterator[None]:
    """Raise `_Lacking` if the file system does not know the call inside."""
    try:
        yield
    except OSError as error:
        if error.errno in {*_UNKNOWN, errno.EEXIST}:
            raise _Lacking(f"its file system does not {what} ({error.strerror})") from error
        raise


@contextmanager
def as_storage_error(path: Path) -> Iterator[None]:
    """Raise `StorageError`, in one line about `path`, for an `OSError` of what is done inside."""
    try:
        yield
    except _Lacking as lacking:
        raise StorageError(
            f"{path}: {lacking}; expected another file system, or a URI like s3://bucket/folder"
        ) from lacking
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); what was complete before "
            "is safe, and the same command resumes from it"
        ) from error
