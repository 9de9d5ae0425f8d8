"""Where a run resumes from: its record, its index of newest states, and what lies on the disk."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO, TypeVar

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput, StorageError
from raykfold.files.atomic import (
    REPLACED,
    Damaged,
    move_remote,
    read_folder,
    read_manifest,
    remove_tree,
    write_json,
)
from raykfold.files.paths import MANIFEST, RUN_RECORD, RunDir, fold_name, is_output
from raykfold.files.remote import Place, RemotePath, reason
from raykfold.state.lease import Held, leased

_AnyPath = TypeVar("_AnyPath", Path, RemotePath)

# What runs were whose record does not say.
_FORMERLY = {"select": "best"}
_LOST_MACHINE_SECONDS = 120.0  # a lease of NFS is 90
_IDENTITY_HINTS = {
    "data": "the features, labels or folds are others",
    "space": "the [search] table is another",
    "device": "another kind of processor, or another number of threads, rounds differently",
}


def identity(
    config: RunConfig, fingerprint: str, device: str | None = None, precision: str | None = None
) -> dict[str, Any]:
    """What two runs must have in common for one to be the continuation of the other.

    Args:
        fingerprint: of the data.
        device: ``gpu``, or ``cpu x<threads>``; None while it is not known yet.
        precision: what ``auto`` stands for; None while that is not known yet.
    """
    if config.precision != "auto":
        precision = config.precision
    known = {"data": fingerprint, **config.deciding()}
    later = {"precision": precision, "device": device}
    return known | {name: value for name, value in later.items() if value is not None}


def check_identity(config: RunConfig, current: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was another one.

    Raises:
        BadInput: a record of that run_name or in that model_dir differs from `current`, or has
            more epochs than `config`; the text names the field.
    """
    of_outputs = _records_of_outputs(config)
    for path in (config.run_dir.run_record, *of_outputs):
        record = _read_record(path)
        if record is None:
            continue
        if path in of_outputs and record["run_name"] != config.run_name:
            raise BadInput(
                f"--model_dir {config.model_dir}: belongs to the run {record['run_name']!r}, "
                f"not to {config.run_name!r}; choose another, or that --run_name"
            )
        if ("space" in record["identity"]) != ("space" in current):
            kind = "a search" if "space" in record["identity"] else "a run, and no search"
            raise BadInput(
                f"--run_name {config.run_name}: is taken by {kind}, in {path.parent}; choose "
                "another --run_name and --model_dir, or set that aside with --fresh"
            )
        for name, value in current.items():
            before = record["identity"].get(name, _FORMERLY.get(name))
            if before is not None and before != value:
                kind = "search" if "space" in current else "run"
                raise BadInput(_another_run(config, kind, name, before, value))
        for name in ("epochs", "repeats"):
            before, now = record["config"].get(name, 1), getattr(config, name)
            if before > now:
                raise BadInput(
                    f"--{name} {now}: the run {config.run_name!r} was started with {before}; "
                    f"{name} can be raised, not lowered (or --fresh)"
                )


def _records_of_outputs(config: RunConfig) -> list[Place]:
    """Of a model_dir that is a URI another machine may have an older copy, or none."""
    place = config.model_place
    there: list[Place] = [place / RUN_RECORD] if isinstance(place, RemotePath) else []
    return [*there, config.outputs.run_record]


def _another_run(config: RunConfig, kind: str, name: str, before: Any, value: Any) -> str:
    hint = f" ({_IDENTITY_HINTS[name]})" if name in _IDENTITY_HINTS else ""
    earlier, this = _short(before), _short(value)
    both = f"{name} {earlier}, and this one has {this}" if earlier != this else f"another {name}"
    return (
        f"--run_name {config.run_name}: is taken by a {kind} with {both}{hint}; choose another "
        f"--run_name and --model_dir, or set the earlier {kind} aside with --fresh"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _read_record(path: Place) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        record = None
    if not (isinstance(record, dict) and {"run_name", "identity", "config"} <= record.keys()):
        raise BadInput(f"{path}: is no record of a run; set the run aside with --fresh")
    return record


def created(config: RunConfig) -> str:
    """When the run was first started; now, if this is the first time."""
    record = _read_record(config.run_dir.run_record) or {}
    return str(record.get("created") or time.strftime("%Y%m%d-%H%M%S"))


def recorded(config: RunConfig, name: str) -> str | None:
    """`device` or `precision` of the run's identity; None if it has not been started yet."""
    record = _read_record(config.run_dir.run_record) or {"identity": {}}
    value = record["identity"].get(name)
    return None if value is None else str(value)


def write_record(
    config: RunConfig, current: Mapping[str, Any], created: str, folds: Sequence[int]
) -> None:
    """Say, beside the outputs and beside the checkpoints, what this run is.

    Args:
        folds: those that are held out.

    Raises:
        StorageError: it cannot be written.
    """
    record = {
        "run_name": config.run_name,
        "created": created,
        "identity": dict(current),
        "config": config.to_json(),
        "folds": list(folds),
        "versions": versions(),
    }
    write_json(config.run_dir.run_record, record)
    write_json(config.outputs.run_record, record)


def renew_record(config: RunConfig) -> None:
    """Say of a run with nothing left to train what it was told this time: outputs may be new.

    Raises:
        StorageError: it cannot be written.
    """
    record = _read_record(config.run_dir.run_record)
    if record is not None:
        record["config"] = config.to_json()
        write_json(config.run_dir.run_record, record)
        write_json(config.outputs.run_record, record)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in ("raykfold", "torch", "ray", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def check_writable(config: RunConfig) -> None:
    """Find out before any work whether outputs and checkpoints can be written.

    Raises:
        BadInput: a path is a file, or lies where this user may not write; a store cannot be
            reached, or refuses.
    """
    for flag, store in (("model_dir", config.model_place), ("storage_path", config.storage_path)):
        if isinstance(store, RemotePath):
            _check_store(flag, store)
    for flag, path in (("model_dir", config.model_path), ("storage_path", config.run_dir.root)):
        if isinstance(path, RemotePath):
            continue
        existing = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
        if not existing.is_dir():
            raise BadInput(f"--{flag} {path}: {existing} is no folder")
        if not os.access(existing, os.W_OK | os.X_OK) or not _accepts_folders(existing):
            raise BadInput(f"--{flag} {path}: cannot be written (no permission in {existing})")


def _check_store(flag: str, path: RemotePath) -> None:
    """With little patience: at the start a user waits, and a wrong name answers like an outage."""
    probe = path.impatient() / f".raykfold-{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except StorageError as error:
        cause = reason(error)
        raise BadInput(
            f"--{flag} {path}: cannot be written ({cause}); want a bucket that is there, and "
            "credentials in the environment that may write to it"
        ) from None


def _accepts_folders(folder: Path) -> bool:
    """`os.access` says yes to root, even on a file system that is read-only or virtual."""
    probe = folder / f".raykfold-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


@contextmanager
def locked(
    config: RunConfig, say: Callable[[str], None] = lambda line: None
) -> Iterator[Callable[[], None]]:
    """Keep a second driver out of the run; the lock goes with the process, however it ends.

    Args:
        say: takes a line for the user, where there is something to wait for.

    Yields:
        What raises `StorageError` once another process has taken the lock: a process that is
        cut off from an object store cannot keep it there.

    Raises:
        BadInput: another driver is at work on it.
    """
    path = config.run_dir.lock
    if not isinstance(path, RemotePath):
        with _flocked(config, path, say):
            yield lambda: None
        return
    try:
        with leased(path, say) as lease:
            yield lease.check
    except Held as held:
        raise _at_work(config, str(held)) from None


@contextmanager
def _flocked(config: RunConfig, path: Path, say: Callable[[str], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as lock:
        _take(config, lock, say)
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def _take(config: RunConfig, lock: TextIO, say: Callable[[str], None]) -> None:
    """A server of files takes a while to notice that a machine which held a lock is gone."""
    ends = time.monotonic() + _LOST_MACHINE_SECONDS
    waiting = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
        except OSError as error:
            raise BadInput(
                f"--storage_path {config.storage_path}: has no locks ({error.strerror}); want "
                "another file system, or a URI like s3://bucket/folder"
            ) from None
        if owner.endswith(f" on {platform.node()}") or time.monotonic() >= ends:
            raise _at_work(config, owner)
        if not waiting:
            say(
                f"{config.run_dir.root}: was last worked on by another process ({owner}); waiting "
                f"up to {_LOST_MACHINE_SECONDS:.0f} s to see whether it still lives"
            )
        waiting = True
        time.sleep(1)


def _at_work(config: RunConfig, owner: str) -> BadInput:
    return BadInput(
        f"--run_name {config.run_name}: is being worked on by another process "
        f"({owner}) in {config.run_dir.root}"
    )


def set_aside(config: RunConfig) -> list[Place]:
    """Move an earlier run's outputs and checkpoints out of the way; return where they are.

    Raises:
        StorageError: a store fails.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    places: list[Place] = []
    outputs = config.outputs.outputs()
    if isinstance(config.model_place, RemotePath):
        places += _set_sent_aside(config.model_place, f"aside-{stamp}")
        for path in outputs:  # copies
            remove_tree(path) if path.is_dir() else path.unlink()
    elif outputs:
        place = _new_folder(config.model_path / f"aside-{stamp}")
        for path in _record_last(outputs):
            os.rename(path, place / path.name)
        places.append(place)
    root, lock = config.run_dir.root, config.run_dir.lock
    name = f"{config.run_name}.aside-{stamp}"
    if isinstance(root, RemotePath):
        objects = [path for path in root.iterdir() if path != lock]
        if objects:
            places.append(_set_objects_aside(objects, root.with_name(name)))
        return places
    state = [path for path in root.glob("*") if path != lock]
    if state:
        place = _new_folder(root.with_name(name))
        for path in _record_last(state):
            os.rename(path, place / path.name)
        places.append(place)
    return places


def _set_sent_aside(model_dir: RemotePath, name: str) -> list[Place]:
    objects = [path for path in model_dir.iterdir() if is_output(path.name)]
    return [_set_objects_aside(objects, model_dir / name)] if objects else []


def _set_objects_aside(objects: Sequence[RemotePath], place: RemotePath) -> RemotePath:
    while place.exists():
        place = place.with_name(f"{place.name}-1")
    for path in _record_last(objects):
        move_remote(path, place / path.name)
    return place


def _record_last(paths: Sequence[_AnyPath]) -> list[_AnyPath]:
    """While the record stands, no other run takes for its own what a kill leaves of this one."""
    return sorted(paths, key=lambda path: path.name == RUN_RECORD)


def _new_folder(path: Path) -> Path:
    for attempt in range(1000):
        candidate = path.with_name(f"{path.name}-{attempt}") if attempt else path
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise BadInput(f"{path}: cannot be made")


@dataclass(frozen=True)
class FoldState:
    """The newest whole state of a fold on storage."""

    fold: int
    folder: Place
    epochs_run: int
    stopped_early: bool
    finished: bool

    def done(self, epochs: int) -> bool:
        """Whether nothing is left to do for it in a run of `epochs`."""
        return self.finished and (self.stopped_early or self.epochs_run >= epochs)


@dataclass
class Index:
    """Where the newest states are, and what the run has taken so far.

    Attributes:
        wall_seconds: time, summed over its sessions.
        num_workers: most workers that were at work at once.
        folds: fold → newest committed state.
        sessions: how many have trained: the first, and one for each time that it was resumed.
    """

    wall_seconds: float = 0.0
    num_workers: int = 0
    folds: dict[int, Place] = field(default_factory=dict)
    sessions: int = 0

    def write(self, run_dir: RunDir) -> None:
        """Replace the index on storage.

        Raises:
            StorageError: it cannot be written.
        """
        rows = {str(fold): _as_text(run_dir, folder) for fold, folder in sorted(self.folds.items())}
        effort = {
            "wall_seconds": self.wall_seconds,
            "num_workers": self.num_workers,
            "sessions": self.sessions,
        }
        write_json(run_dir.index, {**effort, "folds": rows})


def _as_text(run_dir: RunDir, folder: Place) -> str:
    if isinstance(folder, RemotePath):
        # From the run's folder: the same store can have another address tomorrow.
        assert isinstance(run_dir.root, RemotePath)
        return folder.path_below(run_dir.root)
    return str(folder)


def read_index(run_dir: RunDir) -> tuple[Index, list[str]]:
    """The index, and what there is to say of it: an unreadable one is made anew from the disk."""
    try:
        rows = json.loads(run_dir.index.read_bytes())
        folds = {int(fold): run_dir.root / folder for fold, folder in rows["folds"].items()}
        sessions = int(rows.get("sessions", 1))  # earlier versions did not count them
        return Index(float(rows["wall_seconds"]), int(rows["num_workers"]), folds, sessions), []
    except FileNotFoundError:
        return Index(), []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Index(), [f"{run_dir.index} cannot be read; made anew from the checkpoints"]


def newest_states(
    run_dir: RunDir, index: Index, folds: Sequence[int]
) -> tuple[dict[int, FoldState], list[str]]:
    """For each fold the whole state with the most epochs, and what was passed over.

    The index can be a moment behind what Ray has committed, and what it names can be damaged: so
    everything on the disk is a candidate, and a candidate counts when its hashes hold.
    """
    states: dict[int, FoldState] = {}
    notes: list[str] = []
    checkpoints: list[Place] = sorted(run_dir.shares.glob("*/*"))
    for fold in folds:
        folders = _folders(run_dir, index, fold, checkpoints)
        found = [_candidate(run_dir, fold, folder) for folder in folders]
        candidates = [state for state in found if state is not None]
        for candidate in sorted(candidates, key=_preference, reverse=True):
            try:
                read_folder(candidate.folder)
            except Damaged as damage:
                notes.append(f"fold {fold}: passed over a damaged checkpoint ({damage})")
                continue
            states[fold] = candidate
            break
        notes += [
            f"fold {fold}: passed over a damaged checkpoint ({folder} has no readable {MANIFEST})"
            for folder, state in zip(folders, found, strict=True)
            if state is None and folder.is_dir()
        ]
    return states, notes


def _preference(state: FoldState) -> tuple[int, bool]:
    return state.epochs_run, state.finished


def _folders(run_dir: RunDir, index: Index, fold: int, checkpoints: Sequence[Place]) -> list[Place]:
    """Where a state of the fold may lie."""
    folders = [run_dir.finished(fold), run_dir.handed_over(fold)]
    folders += [checkpoint / fold_name(fold) for checkpoint in checkpoints]
    if fold in index.folds and index.folds[fold] not in folders:
        folders.append(index.folds[fold])
    return folders


def _candidate(run_dir: RunDir, fold: int, folder: Place) -> FoldState | None:
    try:
        manifest = read_manifest(folder)
        if manifest["fold"] != fold:
            return None
        return FoldState(
            fold=fold,
            folder=folder,
            epochs_run=int(manifest["epochs_run"]),
            stopped_early=bool(manifest["stopped_early"]),
            finished=folder.parent == run_dir.finished_folds,
        )
    except (Damaged, KeyError, ValueError, TypeError):
        return None


def sweep(run_dir: RunDir) -> None:
    """Put right what a kill left: finish or undo replacements, remove what was made aside.

    Only while the run is `locked`; a worker that the kill has not reached yet may still write. On
    an object store nothing is made aside.
    """
    for marker in run_dir.root.glob(".marker-*"):
        marker.unlink(missing_ok=True)
    if isinstance(run_dir.root, RemotePath):
        return
    root = run_dir.root
    for place in (root / run_dir.finished_folds.name, root / run_dir.handed_over_folds.name):
        for former in place.glob(f"fold_*{REPLACED}"):
            target = former.with_name(former.name.removesuffix(REPLACED))
            shutil.rmtree(former) if target.exists() else former.rename(target)
        for aside in place.glob(".fold_*"):
            shutil.rmtree(aside, ignore_errors=True)
    for file in root.glob("weights/*/.epoch_*"):
        file.unlink(missing_ok=True)
