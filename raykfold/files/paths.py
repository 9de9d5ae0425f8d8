"""Every file name that raykfold reads or writes, once.

Two places belong to a run. `ModelDir` is what people look at: the outputs. `RunDir` is what a
run resumes from, below Ray's storage path. By default the second lies inside the first.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from raykfold.errors import BadInput
from raykfold.files.remote import Place, RemotePath, place, without_password

MANIFEST = "manifest.json"
RUN_RECORD = "run.json"
STATE = "state.pt"
WEIGHTS = "model.safetensors"
HISTORY = "history.json"
PREDICTIONS = "predictions.npz"
PLOTS = ("curves", "folds", "confusion", "classes", "parallel", "history")


def whole(place: Place) -> Place:
    """A local path from the root, as `absolute` makes it; a URI is whole as it is.

    Raises:
        BadInput: ``~somebody`` who does not exist.
    """
    return place if isinstance(place, RemotePath) else absolute(place)


def absolute(path: str | Path) -> Path:
    """`path`, which may be a file:// URI, from the root, with the user's folder for ``~``.

    Raises:
        BadInput: ``~somebody`` who does not exist; another kind of URI.
    """
    try:
        local = place(path)
        if isinstance(local, RemotePath):
            raise BadInput(f"{without_password(str(path))}: want a local path here, not a URI")
        return Path(os.path.abspath(local.expanduser()))
    except ValueError as error:
        raise BadInput(f"{without_password(str(path))}: {error}") from None
    except RuntimeError as error:
        raise BadInput(f"{path}: {error}") from None


def working_copy(remote: RemotePath) -> Path:
    """Where the outputs are made that go to `remote`: below the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    digest = hashlib.sha256(str(remote).encode()).hexdigest()[:16]
    return absolute(Path(cache)) / "raykfold" / digest


def fold_name(fold: int) -> str:
    return f"fold_{fold}"


def seed_name(seed: int) -> str:
    """Folder of a repeat within the run's."""
    return f"seed_{seed}"


def outer_name(fold: int) -> str:
    """Folder of the search within an outer fold, within that of the whole search."""
    return f"outer_{fold}"


def epoch_weights_name(epoch: int) -> str:
    """Name of the weights after `epoch`, counted from 0."""
    return f"epoch_{epoch}.safetensors"


def fold_of_best_weights(name: str) -> int | None:
    """Of which fold a file of this name is the best; None if it is something else."""
    match = re.fullmatch(r"model_fold_(-?\d+)_best\.safetensors", name, re.ASCII)
    return int(match[1]) if match else None


def is_weights(path: str) -> bool:
    """Whether a file with this path, in a repository, is of some fold's weights."""
    repeat, _, rest = path.partition("/")
    if _is_repeat(repeat):
        return is_weights(rest)
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
    def fold_results(self) -> Path:
        return self.root / "fold_results.json"

    @property
    def predictions(self) -> Path:
        return self.root / "oof_predictions.npz"

    @property
    def card(self) -> Path:
        """The model card: README.md of the repository on the Hub."""
        return self.root / "model_card.md"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.root / "report.html"

    @property
    def plots(self) -> Path:
        """The page's pictures, as PNG files."""
        return self.root / "plots"

    def all_plots(self) -> list[Path]:
        """Those that are there; a user's own may lie beside them."""
        files = (self.plots / f"{name}.png" for name in PLOTS)
        return [file for file in files if file.is_file()]

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    def all_event_files(self) -> list[Path]:
        """Those of TensorBoard that are there."""
        return sorted(self.tensorboard.glob("*/events.*"))

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

    def repeats(self) -> dict[str, ModelDir]:
        """Of the run's repeats those that are there, by the names of their folders."""
        folders = (folder for folder in self.root.glob("seed_*") if _is_repeat(folder.name))
        return {folder.name: ModelDir(folder) for folder in sorted(folders)}

    @property
    def search(self) -> Path:
        """Of a search: what it has found."""
        return self.root / "search.json"

    @property
    def best_config(self) -> Path:
        """Of a search: the configuration of its best trial."""
        return self.root / "best.toml"

    @property
    def trials(self) -> Path:
        """Of a search: the outputs of each trial."""
        return self.root / "trials"

    def outputs(self) -> list[Path]:
        """What a run has written here and `--fresh` sets aside."""
        return sorted(path for path in self.root.glob("*") if is_output(path.name))


def is_output(name: str) -> bool:
    """Whether a run writes a file or folder of this name into its `model_dir`."""
    outputs = ModelDir(Path())
    named = (
        outputs.run_record,
        outputs.summary,
        outputs.training_state,
        outputs.histories,
        outputs.fold_results,
        outputs.predictions,
        outputs.card,
        outputs.report,
        outputs.plots,
        outputs.tensorboard,
        outputs.checkpoints,
        outputs.search,
        outputs.best_config,
        outputs.trials,
    )
    of_fold = fold_of_best_weights(name) is not None or _is_outer(name)
    return Path(name) in named or of_fold or _is_repeat(name)


def _is_outer(name: str) -> bool:
    return re.fullmatch(r"outer_-?\d+", name, re.ASCII) is not None


def _is_repeat(name: str) -> bool:
    return re.fullmatch(r"seed_\d+", name, re.ASCII) is not None


@dataclass(frozen=True)
class RunDir:
    """What a run resumes from (`<storage_path>/<run_name>`), on a disk or on an object store."""

    root: Place

    @property
    def run_record(self) -> Place:
        return self.root / RUN_RECORD

    @property
    def index(self) -> Place:
        return self.root / "index.json"

    @property
    def journal(self) -> Place:
        """Of a search: its trials."""
        return self.root / "trials.json"

    @property
    def heartbeat(self) -> Place:
        """How the run is doing, for those who look from outside."""
        return self.root / "heartbeat.json"

    @property
    def lock(self) -> Place:
        return self.root / ".lock"

    def marker(self, token: str) -> Place:
        """Tells a node whether it sees what the driver writes.

        Each time by another name: of a name that it knows, NFS may answer from memory.
        """
        return self.root / f".marker-{token}"

    @property
    def shares(self) -> Place:
        """Ray Train's own directories, one a share; what is in them is Ray's to delete."""
        return self.root / "shares"

    @property
    def finished_folds(self) -> Place:
        return self.root / "folds"

    def finished(self, fold: int) -> Place:
        """What a stopped fold leaves, out of reach of Ray's retention."""
        return self.finished_folds / fold_name(fold)

    @property
    def trials(self) -> Place:
        """What the trials of a search resume from: each is a run of its own."""
        return self.root / "trials"

    @property
    def outer(self) -> Place:
        """What the searches within outer folds resume from."""
        return self.root / "outer"

    @property
    def fits(self) -> Place:
        """What is trained to measure, on an outer fold, the winners of the search within it."""
        return self.root / "fits"

    @property
    def repeats(self) -> Place:
        """What the run's repeats resume from: each is a run of its own."""
        return self.root / "repeats"

    @property
    def handed_over_folds(self) -> Place:
        return self.root / "handed_over"

    def handed_over(self, fold: int) -> Place:
        """What a share leaves of a fold that it gives back, out of reach of Ray's retention."""
        return self.handed_over_folds / fold_name(fold)

    def weights(self, fold: int) -> Place:
        return self.root / "weights" / fold_name(fold)

    def epoch_weights(self, fold: int, epoch: int) -> Place:
        return self.weights(fold) / epoch_weights_name(epoch)
