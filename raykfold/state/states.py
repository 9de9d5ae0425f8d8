"""The newest whole state of each fold on storage, and the index that names them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from raykfold.files.atomic import REPLACED, Damaged, read_folder, read_manifest, write_json
from raykfold.files.paths import HISTORY, MANIFEST, RunDir, fold_name
from raykfold.files.remote import Place, RemotePath
from raykfold.training.results import FoldResult


@dataclass(frozen=True)
class FoldState:
    """The newest whole state of a fold on storage.

    Attributes:
        fold: the fold's label.
        folder: where the state is.
        epochs_run: epochs that it has behind it.
        stopped_early: whether patience has ended the fold.
        finished: whether the fold had stopped when the state was written.
    """

    fold: int
    folder: Place
    epochs_run: int
    stopped_early: bool
    finished: bool

    def done(self, epochs: int) -> bool:
        """Return whether the fold has nothing left to do in a run of `epochs`."""
        return self.finished and (self.stopped_early or self.epochs_run >= epochs)


@dataclass
class Index:
    """Where the newest states are, and what the run has used so far.

    Attributes:
        wall_seconds: time of all sessions together.
        num_workers: most workers that were at work at once.
        folds: fold → folder of its newest committed state.
        sessions: number of sessions that have trained: one, and one more for each resume.
    """

    wall_seconds: float = 0.0
    num_workers: int = 0
    folds: dict[int, Place] = field(default_factory=dict)
    sessions: int = 0

    def write(self, run_dir: RunDir) -> None:
        """Replace the index on storage.

        Raises:
            StorageError: the index cannot be written.
        """
        folds = {}
        for fold, folder in sorted(self.folds.items()):
            # On a store, relative to the run: the same store can have another address tomorrow.
            if isinstance(folder, RemotePath) and isinstance(run_dir.root, RemotePath):
                folds[str(fold)] = folder.path_below(run_dir.root)
            else:
                folds[str(fold)] = str(folder)
        write_json(run_dir.index, {**vars(self), "folds": folds})


def read_index(run_dir: RunDir) -> tuple[Index, list[str]]:
    """Return the index, and lines for the user: an unreadable one starts empty."""
    try:
        rows = json.loads(run_dir.index.read_bytes())
        folds = {int(fold): run_dir.root / folder for fold, folder in rows["folds"].items()}
        used = float(rows["wall_seconds"]), int(rows["num_workers"])
        return Index(*used, folds, int(rows["sessions"])), []
    except FileNotFoundError:
        return Index(), []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Index(), [f"{run_dir.index} cannot be read; made anew from the checkpoints"]


def newest_states(
    run_dir: RunDir, index: Index, folds: Sequence[int]
) -> tuple[dict[int, FoldState], list[str]]:
    """Return each fold's whole state with the most epochs, and lines on what was passed over.

    The index can be a moment behind what Ray has committed, and what it names can be damaged. So
    everything on storage is a candidate, and a candidate counts if its hashes match.
    """
    states: dict[int, FoldState] = {}
    notes: list[str] = []
    checkpoints: list[Place] = sorted(run_dir.shares.glob("*/*"))
    for fold in folds:
        # Where a state of the fold may be.
        folders = [run_dir.finished(fold), run_dir.handed_over(fold)]
        folders += [checkpoint / fold_name(fold) for checkpoint in checkpoints]
        if fold in index.folds and index.folds[fold] not in folders:
            folders.append(index.folds[fold])
        found = [_read_manifest_of(run_dir, fold, folder) for folder in folders]

        # The newest whose files are whole.
        candidates = [state for state in found if state is not None]
        candidates.sort(key=lambda state: (state.epochs_run, state.finished), reverse=True)
        for candidate in candidates:
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


def _read_manifest_of(run_dir: RunDir, fold: int, folder: Place) -> FoldState | None:
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


def load_result(folder: Place) -> FoldResult:
    """Return the result so far of the fold whose state is in `folder`.

    Raises:
        Damaged: the folder is incomplete, or a file is damaged.
    """
    return FoldResult.from_json(json.loads(read_folder(folder, only=(HISTORY,))[HISTORY]))


def sweep(run_dir: RunDir) -> None:
    """Repair what a kill left: finish or undo replacements, delete unfinished files.

    Call it only while the run is claimed; a worker that the kill has not reached yet may still
    write. On an object store nothing is written aside first.
    """
    root = run_dir.root
    for marker in root.glob(".marker-*"):
        marker.unlink(missing_ok=True)
    if isinstance(root, RemotePath):
        return
    for place in (root / run_dir.finished_folds.name, root / run_dir.handed_over_folds.name):
        for former in place.glob(f"fold_*{REPLACED}"):
            target = former.with_name(former.name.removesuffix(REPLACED))
            shutil.rmtree(former) if target.exists() else former.rename(target)
        for aside in place.glob(".fold_*"):
            shutil.rmtree(aside, ignore_errors=True)
    for file in root.glob("weights/*/.epoch_*"):
        file.unlink(missing_ok=True)
