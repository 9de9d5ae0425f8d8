"""Files that are there whole or not at all, whenever the process or the machine stops.

Everything is written aside, flushed to the disk, and moved into place. A folder carries a
manifest with the hashes of its files, because a copy of it made by somebody else (Ray uploads
checkpoints file by file) can stop half way.

On an object store a file is one put, and a folder is there when its manifest is, which comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raykfold.errors import StorageError
from raykfold.files.paths import MANIFEST
from raykfold.files.remote import Place, RemotePath

REPLACED = ".replaced"
# The umask can only be read by setting it: two threads that do so at a time would leave it changed.
_umask_lock = threading.Lock()


class Damaged(Exception):
    """A folder that is not whole: a file is missing, cut short or altered."""


def write_file(path: Place, content: bytes) -> None:
    """Replace `path` with `content`, all of it or nothing; folders above it are made.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
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


def write_json(path: Place, value: Any) -> None:
    """`write_file` for plain values, readable by people."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def link_file(source: Place, target: Path) -> None:
    """Give the file `source` a second name, or where that cannot be (another disk) a copy.

    Raises:
        StorageError: neither can be made.
    """
    if isinstance(source, RemotePath):
        _, time = source.version()  # before its content: a newer one is noticed later
        write_file(target, source.read_bytes())
        os.utime(target, (time, time))
        return
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


def is_linked(source: Place, target: Path) -> bool:
    """Whether `link_file` has made `target` of what `source` is now.

    Raises:
        FileNotFoundError: there is no `source`.
    """
    if not isinstance(source, RemotePath):
        there = source.stat()
        return target.exists() and os.path.samestat(target.stat(), there)
    version = source.version()
    if not target.exists():
        return False
    stat = target.stat()
    return version == (stat.st_size, int(stat.st_mtime))


def write_folder(folder: Place, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Make `folder` from `files` and a manifest of their hashes that also states `facts`.

    What stood there before is kept until the new one is in place: on a disk as `replaced_folder`
    for the moment between two renames. On an object store the objects' names have hashes in them.

    Raises:
        StorageError: the disk is full, or the path cannot be written.
    """
    if isinstance(folder, RemotePath):
        _put_folder(folder, files, facts)
        return
    manifest = {**facts, "files": {name: _entry(data) for name, data in files.items()}}
    with _as_storage_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            os.chmod(aside, 0o777 & ~_umask())
            for name, content in files.items():
                _write_new(aside / name, content)
            _write_new(aside / MANIFEST, _manifest_bytes(manifest))
            _flush_folder(aside)
            _move_folder(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _flush_folder(folder.parent)


def replaced_folder(folder: Path) -> Path:
    """Where the former `folder` stands while `write_folder` puts the new one in its place."""
    return folder.with_name(f"{folder.name}{REPLACED}")


def _put_folder(folder: RemotePath, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """The manifest changes the folder, in one put: it names objects that nobody rewrites."""
    entries = {name: _entry(content) for name, content in files.items()}
    for name, content in files.items():
        entries[name]["object"] = f"{entries[name]['sha256'][:16]}-{name}"
        (folder / entries[name]["object"]).write_bytes(content)
    manifest = {**facts, "files": entries}
    (folder / MANIFEST).write_bytes(_manifest_bytes(manifest))
    if read_manifest(folder) == manifest:  # else somebody else's has come since, and names others
        named = {MANIFEST, *(entry["object"] for entry in entries.values())}
        for file in folder.files():
            if file.path_below(folder) not in named:
                file.unlink(missing_ok=True)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2).encode()


def remove_tree(folder: Place) -> None:
    """Delete a folder and what is in it, as far as that can be done; it need not be there."""
    if isinstance(folder, RemotePath):
        with suppress(StorageError):
            folder.remove_tree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move_remote(source: RemotePath, target: RemotePath) -> None:
    """Move an object, or all below `source`; a move that was cut short can be made again.

    Raises:
        StorageError: the store fails.
    """
    below = source.files()
    for file in below or [source]:
        goal = target / file.path_below(source) if below else target
        file.copy_to(goal)
        file.unlink()
    if below:
        source.remove_tree()  # what stands for the empty folder


def read_manifest(folder: Place) -> dict[str, Any]:
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


def read_folder(folder: Place, only: Collection[str] | None = None) -> dict[str, bytes]:
    """The files of a folder, or some of them, each held against its hash.

    Raises:
        Damaged: one is missing or is not what was written.
        StorageError: the store fails: what is there may be whole.
    """
    files = {}
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        if only is not None and name not in only:
            continue
        try:
            content = (folder / entry.get("object", name)).read_bytes()
        except OSError as error:
            if read_manifest(folder) != manifest:  # it was replaced meanwhile
                return read_folder(folder, only)
            raise Damaged(f"{folder}: {name} is missing") from error
        if any(entry.get(fact) != value for fact, value in _entry(content).items()):
            raise Damaged(f"{folder}: {name} is not what was written")
        files[name] = content
    return files


def is_seen(file: Place) -> bool:
    """Whether a file is there, as far as this process can tell now: what it may not see is not."""
    try:
        return (file.impatient() if isinstance(file, RemotePath) else file).exists()
    except (OSError, StorageError):
        return False


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
    with _umask_lock:
        mask = os.umask(0o077)
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
