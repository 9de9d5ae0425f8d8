"""Every file name that raykfold reads or writes, once.

Two places belong to a run. `ModelDir` is what people look at: the outputs. `RunDir` is what a
run resumes from, below Ray's storage path. By default the second lies inside the first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from raykfold.errors import BadInput

MANIFEST = "manifest.json"
RUN_RECORD = "run.json"
STATE = "state.pt"
WEIGHTS = "model.safetensors"
HISTORY = "history.json"
PREDICTIONS = "predictions.npz"


def absolute(path: str | Path) -> Path:
    """`path` from the root, with the user's folder for ``~``.

    Raises:
        BadInput: ``~somebody`` who does not exist.
    """
    try:
        return Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError as error:
        raise BadInput(f"{path}: {error}") from None


def fold_name(fold: int) -> str:
    return f"fold_{fold}"


def epoch_weights_name(epoch: int) -> str:
    """Name of the weights after `epoch`, counted from 0."""
    return f"epoch_{epoch}.safetensors"


def fold_of_best_weights(name: str) -> int | None:
    """Of which fold a file of this name is the best; None if it is something else."""
    match = re.fullmatch(r"model_fold_(-?\d+)_best\.safetensors", name, re.ASCII)
    return int(match[1]) if match else None


def is_weights(path: str) -> bool:
    """Whether a file with this path, in a repository, is of some fold's weights."""
    epoch = re.fullmatch(r"fold_-?\d+/epoch_\d+\.safetensors", path, re.ASCII)
    return epoch is not None or fold_of_best_weights(path) is not None


@dataclass(frozen=True)
class ModelDir:
    """The outputs of a run (`--model_dir`)."""

    root: Path

    @property
    def run_record(self) -> Path:
        return self.root / RUN_RECORD

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def training_state(self) -> Path:
        return self.root / "training_state.json"

    @property
    def histories(self) -> Path:
        return self.root / "all_fold_histories_pytorch.pkl"

    @property
    def predictions(self) -> Path:
        return self.root / "oof_predictions.npz"

    @property
    def card(self) -> Path:
        """The model card: README.md of the repository on the Hub."""
        return self.root / "model_card.md"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def best_weights(self, fold: int) -> Path:
        return self.root / f"model_{fold_name(fold)}_best.safetensors"

    def all_best_weights(self) -> list[Path]:
        """Those that are there."""
        named = self.root.glob("model_*")
        return sorted(file for file in named if fold_of_best_weights(file.name) is not None)

    def all_epoch_weights(self) -> list[Path]:
        """Those that are there, epoch by epoch."""
        named = self.checkpoints.glob("fold_*/epoch_*")
        found = (file for file in named if is_weights(f"{file.parent.name}/{file.name}"))
        return sorted(found, key=lambda file: (int(file.stem.removeprefix("epoch_")), file.parent))

    def epoch_weights(self, fold: int, epoch: int) -> Path:
        return self.checkpoints / fold_name(fold) / epoch_weights_name(epoch)

    def outputs(self) -> list[Path]:
        """What a run has written here and `--fresh` sets aside."""
        named = [
            self.run_record,
            self.summary,
            self.training_state,
            self.histories,
            self.predictions,
            self.card,
            self.checkpoints,
            *self.all_best_weights(),
        ]
        return [path for path in named if path.exists()]


@dataclass(frozen=True)
class RunDir:
    """What a run resumes from (`<storage_path>/<run_name>`)."""

    root: Path

    @property
    def run_record(self) -> Path:
        return self.root / RUN_RECORD

    @property
    def index(self) -> Path:
        return self.root / "index.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def marker(self) -> Path:
        """Tells a node whether it sees what the driver writes."""
        return self.root / ".marker"

    @property
    def shares(self) -> Path:
        """Ray Train's own directories, one a share; what is in them is Ray's to delete."""
        return self.root / "shares"

    @property
    def finished_folds(self) -> Path:
        return self.root / "folds"

    def finished(self, fold: int) -> Path:
        """What a stopped fold leaves, out of reach of Ray's retention."""
        return self.finished_folds / fold_name(fold)

    @property
    def handed_over_folds(self) -> Path:
        return self.root / "handed_over"

    def handed_over(self, fold: int) -> Path:
        """What a share leaves of a fold that it gives back, out of reach of Ray's retention."""
        return self.handed_over_folds / fold_name(fold)

    def weights(self, fold: int) -> Path:
        return self.root / "weights" / fold_name(fold)

    def epoch_weights(self, fold: int, epoch: int) -> Path:
        return self.weights(fold) / epoch_weights_name(epoch)
