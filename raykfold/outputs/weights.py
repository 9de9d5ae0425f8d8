"""The weights that a fold has left, ready to use: from a run's outputs, or from the Hub.

    fold = load_fold("runs/demo", 1)  # or load_fold("owner/name", 1)
    fold.probabilities(features)

What a file says of itself is a stranger's word. No code that it names runs: the built-in network
is built, any other only where the caller names its class; nothing is unpickled; and no number in it
makes memory that the file itself does not fill.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raykfold.config.model_spec import DEFAULT_MODEL, ModelSpec
from raykfold.data.log_mel import FeatureParameters
from raykfold.errors import BadData, BadInput
from raykfold.files.paths import ModelDir, fold_of_best_weights
from raykfold.files.remote import Place, RemotePath, local_copy, place, without_password
from raykfold.files.scratch import scratch_dir
from raykfold.models import AudioCNN
from raykfold.outputs.hub_client import ModelRepository, Refused
from raykfold.outputs.sync import Unavailable
from raykfold.text import one_line
from raykfold.training.network import build_model

_BATCH = 64
_HUB = "hf://"


@dataclass(frozen=True, eq=False)
class FoldModel:
    """A fold's network with its best weights.

    Attributes:
        fold: the fold that was held out.
        epoch: of the weights, counted from 0.
        accuracy: on the fold that was held out, 0 to 1.
        model: in evaluation mode, on the CPU; (B, n_mels, time) float32 → (B, classes) logits.
        classes: label → name, in the order of the outputs.
        input_shape: (n_mels, time).
        features: content of ``features.json``; {} where nobody knew.
    """

    fold: int
    epoch: int
    accuracy: float
    model: nn.Module
    classes: Mapping[int, str]
    input_shape: tuple[int, int]
    features: Mapping[str, Any]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(B, classes) float32, each row of sum 1.

        Args:
            features: (B, n_mels, time), any float type.

        Raises:
            ValueError: they have another shape.
        """
        if features.shape[1:] != self.input_shape:
            raise ValueError(f"features of shape {features.shape}; want (B, *{self.input_shape})")
        batches = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).split(_BATCH)
        with torch.inference_mode():
            logits = torch.cat([self.model(batch) for batch in batches])
        return logits.softmax(dim=1).numpy()

    def feature_parameters(self) -> FeatureParameters:
        """How audio becomes the features that this network knows.

        Raises:
            BadData: the weights do not say, or nothing that could be.
        """
        if not self.features:
            raise BadData(
                f"fold {self.fold}: its weights do not say how their features were made (features "
                "that `raykfold.prepare` makes say so)"
            )
        parameters = FeatureParameters.from_dict(self.features)
        shape = (parameters.n_mels, parameters.frames)
        if shape != self.input_shape:
            raise BadData(f"features of {shape}, for a network that takes {self.input_shape}")
        _refuse_huge(parameters)
        return parameters


def _refuse_huge(parameters: FeatureParameters) -> None:
    """Nothing else bounds these: a network takes any number of frames."""
    spectrum = (parameters.length // parameters.hop_length + 1) * (parameters.n_fft // 2 + 1)
    for what, value, most in (
        ("a sample rate in Hz", parameters.sample_rate, 400_000),
        ("samples in a clip", parameters.length, 2**26),
        ("samples in a window", parameters.n_fft, 2**18),
        ("values in a feature", parameters.n_mels * parameters.frames, 2**26),
        ("values in a spectrum", spectrum, 2**26),
    ):
        if value > most:
            raise BadData(f"feature parameters: {value} {what}; want at most {most}")


def load_fold(source: str | Place, fold: int, *, model: str | None = None) -> FoldModel:
    """A fold's network with its best weights.

    Args:
        source: a run's `model_dir`, a path or an s3:// or gs:// URI, or else a model repository of
            the Hub, ``owner/name`` (or, where there is such a folder too, ``hf://owner/name``).
        fold: the fold that was held out.
        model: ``module:Class`` of the network where it is not the built-in one; importing it runs
            its code.

    Raises:
        BadInput: there are no such weights, or they are no network of that class.
    """
    with _at_hand(source) as local:
        return _load_fold(local, fold, model)


def _load_fold(source: str | Path, fold: int, model: str | None) -> FoldModel:
    where, files = _weights_in(source, ModelDir(Path()).best_weights(fold).name)
    if fold not in files:
        there = ", ".join(map(str, _weights_in(source)[1])) or "none"
        raise BadInput(f"{where}: no weights of fold {fold}; of these there are: {there}")
    return _read_weights_of(fold, files[fold], model)


def load_folds(source: str | Place, *, model: str | None = None) -> list[FoldModel]:
    """The networks of all folds, as `load_fold` gives one: those that ``summary.json`` names.

    Without a summary, which a run that goes on has not, those that are there.

    Raises:
        BadInput: there is none, or one cannot be used.
    """
    with _at_hand(source) as local:
        return _load_folds(local, model)


def _load_folds(source: str | Path, model: str | None) -> list[FoldModel]:
    where, files = _weights_in(source)
    if not files and (Path(where) / _SEARCH).is_file():
        raise BadInput(
            f"{where}: is a search; want the folder of one of its trials, as in trials/1"
        )
    if not files:
        raise BadInput(f"{where}: no weights; want {_ANY_FOLD} files, as a run leaves them")
    named = _folds_of_summary(next(iter(files.values())).parent)
    chosen = [fold for fold in files if named is None or fold in named]
    if not chosen:
        raise BadInput(f"{where}: no weights of the folds that its {_SUMMARY} names")
    return [_read_weights_of(fold, files[fold], model) for fold in chosen]


@contextmanager
def _at_hand(source: str | Place) -> Iterator[str | Path]:
    """The source, or a copy in a folder of what is needed from an object store."""
    found: str | Place = source
    if isinstance(source, str) and "://" in source and not source.startswith(_HUB):
        try:
            found = place(source)
        except ValueError as error:
            raise BadInput(f"{without_password(source)}: {error}") from None
    if not isinstance(found, RemotePath):
        yield found
        return
    with scratch_dir() as folder, local_copy(found, _are_needed, folder):
        yield folder


def _are_needed(names: Iterable[str]) -> list[str]:
    return [name for name in names if name == _SUMMARY or fold_of_best_weights(name) is not None]


def _read_weights_of(fold: int, file: Path, model: str | None) -> FoldModel:
    found = read_weights(file, model=model)
    if found.fold != fold:
        raise BadData(f"{file}: says that it is of fold {found.fold}")
    return found


def _folds_of_summary(folder: Path) -> set[int] | None:
    """Weights of another run's folds can lie beside them."""
    try:
        return {row["fold"] for row in json.loads((folder / _SUMMARY).read_bytes())["folds"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadData(f"{folder / _SUMMARY}: no summary of a run ({one_line(error)})") from error


_SUMMARY = ModelDir(Path()).summary.name
_SEARCH = ModelDir(Path()).search.name
_ANY_FOLD = "model_fold_*_best.safetensors"


def _weights_in(source: str | Path, pattern: str = _ANY_FOLD) -> tuple[str | Path, dict[int, Path]]:
    """What messages call the source, and fold → file of its weights."""
    if isinstance(source, Path) or os.path.isdir(source):
        if not os.path.isdir(source):
            raise BadInput(f"{source}: no such folder")
        return source, _best_weights(Path(source), pattern)
    repo_id = source.removeprefix(_HUB)
    if repo_id.count("/") != 1:
        raise BadInput(f"{source}: no such folder, and no repository of the Hub (owner/name)")
    try:
        folder = ModelRepository(repo_id, None).fetch([pattern, _SUMMARY])
    except (Refused, Unavailable) as error:
        raise BadInput(f"{repo_id}: cannot be had from the Hub ({error})") from error
    return repo_id, _best_weights(folder, pattern)


def _best_weights(folder: Path, pattern: str) -> dict[int, Path]:
    found = ((fold_of_best_weights(file.name), file) for file in folder.glob(pattern))
    return dict(sorted((fold, file) for fold, file in found if fold is not None))


def read_weights(file: Path, *, model: str | None = None) -> FoldModel:
    """The network of one file; `load_fold` says the rest.

    Raises:
        BadData: the file is damaged, lacks what a run writes into it, or fits another network.
        BadInput: it wants a class that was not named.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadData(f"{file}: no whole safetensors file ({one_line(error)})") from error
    try:
        about = _About.of(metadata)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadData(f"{file}: not the weights of a fold ({one_line(repr(error))})") from error
    return FoldModel(
        fold=about.fold,
        epoch=about.epoch,
        accuracy=about.accuracy,
        model=_network(file, about, tensors, model),
        classes=about.classes,
        input_shape=about.input_shape,
        features=about.features,
    )


@dataclass(frozen=True)
class _About:
    """What `raykfold.state.checkpoint.WeightsContext` writes into a file."""

    fold: int
    epoch: int
    accuracy: float
    model: str
    classes: dict[int, str]
    input_shape: tuple[int, int]
    features: dict[str, Any]

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> _About:
        n_mels, time = json.loads(metadata["input_shape"])
        classes = {int(label): name for label, name in json.loads(metadata["classes"]).items()}
        features = json.loads(metadata.get("features", "{}"))
        if not classes or not all(isinstance(name, str) for name in classes.values()):
            raise TypeError("no classes, or one whose name is no text")
        if not (isinstance(features, dict) and type(n_mels) is type(time) is int):
            raise TypeError("no shape, or no parameters, of features")
        return cls(
            fold=int(metadata["fold"]),
            epoch=int(metadata["epoch"]),
            accuracy=float(metadata["accuracy"]),
            model=metadata["model"],
            classes=classes,
            input_shape=(n_mels, time),
            features=features,
        )


def _model_spec(file: Path, said: str, named: str | None) -> ModelSpec:
    """What to build: the class that was named, else the built-in one.

    With the arguments that the file has for that class, unless others were named.
    """
    try:
        of_file = ModelSpec.parse(said)
    except ValueError:
        of_file = ModelSpec(said)
    if named is None:
        if of_file.name != DEFAULT_MODEL:
            raise BadInput(
                f"{file}: weights of {one_line(said)}, which is not the built-in network; name its "
                "class with --model, if you trust it"
            )
        return of_file
    try:
        wanted = ModelSpec.parse(named)
    except ValueError as error:
        raise BadInput(f"--model {named}: {error}") from None
    return of_file if wanted == ModelSpec(of_file.name) else wanted


def _network(
    file: Path, about: _About, tensors: Mapping[str, Tensor], named: str | None
) -> nn.Module:
    spec = _model_spec(file, about.model, named)
    arguments: Mapping[str, Any] = spec.arguments
    shape = (about.input_shape[0], len(about.classes), about.input_shape[1])
    try:
        if spec.name != DEFAULT_MODEL:
            network = build_model(str(spec), *shape)
        else:
            with torch.device("meta"):  # takes no memory: the file's tensors take their places
                network = AudioCNN(*shape, **arguments)
        wanted = network.state_dict()
        fitting = {
            name: values.to(wanted[name].dtype) if name in wanted else values
            for name, values in tensors.items()
        }
        network.load_state_dict(fitting, assign=True)
    except BadInput:
        raise
    except Exception as error:  # the network's own checks, and torch's
        raise BadData(f"{file}: these weights do not fit it ({one_line(error)})") from error
    return network.eval()
