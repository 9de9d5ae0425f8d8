"""The folders of a run: whether they can be written, and how an earlier run is set aside."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput, StorageError
from raykfold.files.atomic import move, remove_tree, write_file
from raykfold.files.paths import RUN_RECORD, is_output
from raykfold.files.remote import Place, RemotePath, reason


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
        if isinstance(path, Path):
            check_folder(flag, path)


def check_folder(flag: str, path: Path) -> None:
    """Check that a local folder can be written, or made; leave nothing behind.

    Raises:
        BadInput: the path is a file, or this user may not write there; or its file system lacks
            what a run needs.
    """
    existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not os.path.isdir(existing):
        raise BadInput(f"--{flag} {path}: cannot be written ({existing} is not a folder)")
    try:
        # os.access would say yes to root, even on a disk mounted read-only.
        with tempfile.TemporaryDirectory(prefix=".raykfold-", dir=existing) as probe:
            file = Path(probe) / "file"
            for content in (b"", b"replaced"):  # what a run cannot do without
                write_file(file, content)
    except StorageError as error:
        what = str(error).removeprefix(f"{file}: ").partition(";")[0]
        raise BadInput(f"--{flag} {path}: {what}; expected another folder") from None
    except OSError as error:
        raise BadInput(
            f"--{flag} {path}: cannot be written ({existing}: {error.strerror})"
        ) from None


def set_aside(config: RunConfig) -> list[Place]:
    """Move an earlier run's outputs and checkpoints out of the way; return where they are now.

    Raises:
        StorageError: a store fails.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    places: list[Place] = []

    # Outputs go into a folder beside them; of those on a store, the local files are copies.
    place, local = config.model_place, config.outputs.outputs()
    remote = isinstance(place, RemotePath)
    outputs = [each for each in place.iterdir() if is_output(each.name)] if remote else local
    if outputs:
        places.append(_move(outputs, place / f"aside-{stamp}"))
    for path in local if remote else ():
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink()

    # Checkpoints go into a folder beside the run's own, which keeps its lock.
    root = config.run_dir.root
    files = [path for path in root.glob("*") if path != config.run_dir.lock]
    if files:
        places.append(_move(files, root.with_name(f"{config.run_name}.aside-{stamp}")))
    return places


def _move(paths: Sequence[Place], target: Place) -> Place:
    """Move these into `target`, or a folder with a number more; return which."""
    folder, count = target, 0
    while folder.exists():
        count += 1
        folder = target.with_name(f"{target.name}-{count}")
    # The record last: while it stands, no other run takes the rest for its own.
    for path in sorted(paths, key=lambda path: path.name == RUN_RECORD):
        move(path, folder / path.name)
    return folder
