"""Every file name that raykfold reads or writes, once.

A run has two folders. `ModelDir` holds its outputs, for people. `RunDir`, below Ray's storage
path, holds what the run resumes from. By default the second lies inside the first.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from raykfold.errors import BadInput
from raykfold.files.remote import Place, RemotePath, place, without_password

MANIFEST = "manifest.json"
RUN_RECORD = "run.json"
STATE = "state.pt"
WEIGHTS = "model.safetensors"
HISTORY = "history.json"
PREDICTIONS = "predictions.npz"
PLOTS = ("curves", "folds", "confusion", "classes", "parallel", "history")

_FROM_ROOT = "expected an absolute path"

_WEIGHTS_OF_EPOCH = re.compile(r"fold_-?\d+/epoch_\d+\.safetensors", re.ASCII)
_BEST_WEIGHTS = re.compile(r"model_fold_(-?\d+)_best\.safetensors", re.ASCII)
_SEED = re.compile(r"seed_\d+", re.ASCII)
_OUTER = re.compile(r"outer_-?\d+", re.ASCII)

P = TypeVar("P", Path, Place)


@overload
def absolute(path: str | Path) -> Path: ...
@overload
def absolute(path: RemotePath) -> RemotePath: ...
def absolute(path: str | Place) -> Place:
    """Return `path` from the root, with ``~`` expanded; a `RemotePath` as it is.

    Args:
        path: as text, a local path or a file:// URI.

    Raises:
        BadInput: the text is another URI, or begins with the ``~user`` of no user; or it is
            relative, and the working directory is gone.
    """
    if isinstance(path, RemotePath):
        return path
    try:
        local = place(path)
        if isinstance(local, RemotePath):
            raise BadInput(f"{without_password(str(path))}: expected a local path, not a URI")
        return Path(os.path.abspath(local.expanduser()))
    except ValueError as error:
        raise BadInput(f"{without_password(str(path))}: {error}") from None
    except RuntimeError:  # by expanduser
        raise BadInput(f"{path}: no such home directory is known; {_FROM_ROOT}") from None
    except FileNotFoundError:  # by abspath
        raise BadInput(f"{path}: the working directory no longer exists; {_FROM_ROOT}") from None


def working_copy(remote: RemotePath) -> Path:
    """Return the local folder, below the user's cache, of outputs that are sent to `remote`."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    digest = hashlib.sha256(str(remote).encode()).hexdigest()[:16]
    return absolute(Path(cache)) / "raykfold" / digest


def fold_name(fold: int) -> str:
    """Return the name of a fold's folders."""
    return f"fold_{fold}"


def seed_name(seed: int) -> str:
    """Return the name of a repeat's folder within the run's."""
    return f"seed_{seed}"


def outer_name(fold: int) -> str:
    """Return the name of the folder of the search within an outer fold."""
    return f"outer_{fold}"


def fold_of_best_weights(name: str) -> int | None:
    """Return the fold whose best weights a file of this name holds; None for other files."""
    match = _BEST_WEIGHTS.fullmatch(name)
    return int(match[1]) if match else None


def is_weights(path: str) -> bool:
    """Return whether a file with this path, in a repository, holds weights of some fold."""
    repeat, _, rest = path.partition("/")
    if _SEED.fullmatch(repeat):
        return is_weights(rest)
    return bool(_WEIGHTS_OF_EPOCH.fullmatch(path) or _BEST_WEIGHTS.fullmatch(path))


def is_output(name: str) -> bool:
    """Return whether a run or a search writes a file or folder of this name into `ModelDir`."""
    names = {each.name for each in vars(ModelDir).values() if isinstance(each, _Below)}
    return name in names or any(
        pattern.fullmatch(name) for pattern in (_BEST_WEIGHTS, _OUTER, _SEED)
    )


class _Below(Generic[P]):
    """An attribute of a folder: the path of `name` below its `root`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Any, kind: type) -> P:
        path: P = folder.root / self.name
        return path


@dataclass(frozen=True)
class ModelDir:
    """The outputs of a run or a search (`--model_dir`)."""

    root: Path

    run_record = _Below[Path](RUN_RECORD)
    summary = _Below[Path]("summary.json")
    training_state = _Below[Path]("training_state.json")
    histories = _Below[Path]("all_fold_histories_pytorch.pkl")
    fold_results = _Below[Path]("fold_results.json")
    predictions = _Below[Path]("oof_predictions.npz")
    card = _Below[Path]("model_card.md")  # README.md of the repository on the Hub
    report = _Below[Path]("report.html")
    plots = _Below[Path]("plots")  # the report's pictures, as PNG files
    tensorboard = _Below[Path]("tensorboard")
    checkpoints = _Below[Path]("checkpoints")  # weights, epoch by epoch
    # Of a search:
    search = _Below[Path]("search.json")  # what it has found
    best_config = _Below[Path]("best.toml")  # the configuration of its best trial
    trials = _Below[Path]("trials")  # the outputs of each trial

    def best_weights(self, fold: int) -> Path:
        return self.root / f"model_{fold_name(fold)}_best.safetensors"

    def epoch_weights(self, fold: int, epoch: int) -> Path:
        """Return the path of the weights after `epoch`, counted from 0."""
        return self.checkpoints / fold_name(fold) / f"epoch_{epoch}.safetensors"

    def all_plots(self) -> list[Path]:
        """Return the existing pictures of the report; a user's own may lie beside them."""
        files = (self.plots / f"{name}.png" for name in PLOTS)
        return [file for file in files if file.is_file()]

    def all_event_files(self) -> list[Path]:
        """Return the existing event files of TensorBoard."""
        return sorted(self.tensorboard.glob("*/events.*"))

    def all_best_weights(self) -> list[Path]:
        """Return the existing files of best weights."""
        files = self.root.glob("model_*")
        return sorted(file for file in files if _BEST_WEIGHTS.fullmatch(file.name))

    def all_epoch_weights(self) -> list[Path]:
        """Return the existing files of weights of epochs, epoch by epoch."""
        files = self.checkpoints.glob("fold_*/epoch_*")
        found = (file for file in files if is_weights(f"{file.parent.name}/{file.name}"))
        return sorted(found, key=lambda file: (int(file.stem.removeprefix("epoch_")), file.parent))

    def repeats(self) -> dict[str, ModelDir]:
        """Return the existing folders of the run's repeats, by name."""
        folders = sorted(self.root.glob("seed_*"))
        return {each.name: ModelDir(each) for each in folders if _SEED.fullmatch(each.name)}

    def outputs(self) -> list[Path]:
        """Return the existing outputs, which `--fresh` sets aside."""
        return sorted(path for path in self.root.glob("*") if is_output(path.name))


@dataclass(frozen=True)
class RunDir:
    """What a run resumes from (`<storage_path>/<run_name>`), on a disk or an object store."""

    root: Place

    run_record = _Below[Place](RUN_RECORD)
    index = _Below[Place]("index.json")
    heartbeat = _Below[Place]("heartbeat.json")
    lock = _Below[Place](".lock")
    shares = _Below[Place]("shares")  # Ray Train's folders, one a share; Ray deletes in them
    finished_folds = _Below[Place]("folds")
    handed_over_folds = _Below[Place]("handed_over")
    repeats = _Below[Place]("repeats")  # each a run of its own
    # Of a search:
    journal = _Below[Place]("trials.json")
    trials = _Below[Place]("trials")  # each a run of its own
    outer = _Below[Place]("outer")  # the searches within outer folds
    fits = _Below[Place]("fits")  # the winners of those searches, trained to measure them

    def finished(self, fold: int) -> Place:
        """Return the folder of a stopped fold's state, out of reach of Ray's retention."""
        return self.finished_folds / fold_name(fold)

    def handed_over(self, fold: int) -> Place:
        """Return the folder of a fold that a share gives back, out of reach of Ray's retention."""
        return self.handed_over_folds / fold_name(fold)

    def weights(self, fold: int) -> Place:
        return self.root / "weights" / fold_name(fold)

    def epoch_weights(self, fold: int, epoch: int) -> Place:
        """Return the path of the weights after `epoch`, counted from 0."""
        return self.weights(fold) / f"epoch_{epoch}.safetensors"

    def marker(self, token: str) -> Place:
        """Return the path of a file by which nodes find out whether they see the driver's files.

        `token` makes the name a new one each time: NFS may answer from memory for a known name.
        """
        return self.root / f".marker-{token}"
