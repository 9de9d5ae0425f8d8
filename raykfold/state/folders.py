"""The folders of a run: whether they can be written, and how an earlier run is set aside."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput, StorageError
from raykfold.files.atomic import move_remote, remove_tree
from raykfold.files.paths import RUN_RECORD, is_output
from raykfold.files.remote import Place, RemotePath, reason

_AnyPath = TypeVar("_AnyPath", Path, RemotePath)


def check_writable(config: RunConfig) -> None:
    """Check before any work that outputs and checkpoints can be written; leave nothing behind.

    Raises:
        BadInput: a path is a file, or this user may not write there; or a store cannot be reached,
            or refuses.
    """
    for flag, place in (("model_dir", config.model_place), ("storage_path", config.storage_path)):
        if not isinstance(place, RemotePath):
            continue
        # With little patience: a user waits, and a wrong name answers like an outage.
        probe = place.impatient() / f".raykfold-{os.getpid()}"
        try:
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)
        except StorageError as error:
            raise BadInput(
                f"--{flag} {place}: cannot be written ({reason(error)}); expected a bucket that "
                "exists, and credentials in the environment that may write to it"
            ) from None
    for flag, path in (("model_dir", config.model_path), ("storage_path", config.run_dir.root)):
        if isinstance(path, RemotePath):
            continue
        existing = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
        if not existing.is_dir():
            raise BadInput(f"--{flag} {path}: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK) or not _accepts_folders(existing):
            raise BadInput(f"--{flag} {path}: cannot be written (no permission in {existing})")


def _accepts_folders(folder: Path) -> bool:
    """Try it: `os.access` tells root yes even on a file system that is read-only or virtual."""
    probe = folder / f".raykfold-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def set_aside(config: RunConfig) -> list[Place]:
    """Move an earlier run's outputs and checkpoints out of the way; return where they are now.

    Raises:
        StorageError: a store fails.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    places: list[Place] = []

    # Outputs go into a folder beside them; of those on a store, the local files are copies.
    outputs = config.outputs.outputs()
    if isinstance(config.model_place, RemotePath):
        objects = [path for path in config.model_place.iterdir() if is_output(path.name)]
        if objects:
            places.append(_move_objects(objects, config.model_place / f"aside-{stamp}"))
        for path in outputs:
            remove_tree(path) if path.is_dir() else path.unlink()
    elif outputs:
        places.append(_move_files(outputs, config.model_path / f"aside-{stamp}"))

    # Checkpoints go into a folder beside the run's own, which keeps its lock.
    root, lock = config.run_dir.root, config.run_dir.lock
    name = f"{config.run_name}.aside-{stamp}"
    if isinstance(root, RemotePath):
        objects = [path for path in root.iterdir() if path != lock]
        if objects:
            places.append(_move_objects(objects, root.with_name(name)))
    else:
        files = [path for path in root.glob("*") if path != lock]
        if files:
            places.append(_move_files(files, root.with_name(name)))
    return places


def _move_objects(objects: Sequence[RemotePath], target: RemotePath) -> RemotePath:
    while target.exists():
        target = target.with_name(f"{target.name}-1")
    for path in _record_last(objects):
        move_remote(path, target / path.name)
    return target


def _move_files(files: Sequence[Path], target: Path) -> Path:
    for attempt in range(1000):
        folder = target.with_name(f"{target.name}-{attempt}") if attempt else target
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        for path in _record_last(files):
            os.rename(path, folder / path.name)
        return folder
    raise BadInput(f"{target}: cannot be made")


def _record_last(paths: Sequence[_AnyPath]) -> list[_AnyPath]:
    """Order the record last: while it stands, no other run takes the rest for its own."""
    return sorted(paths, key=lambda path: path.name == RUN_RECORD)
