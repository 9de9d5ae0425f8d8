"""Ready-to-use networks with the weights of a run's folds, from its outputs or from the Hub.

    fold = load_fold("runs/demo", 1)  # or load_fold("owner/name", 1)
    fold.probabilities(features)

The metadata of a weights file are not trusted. No code that they name is run: only the built-in
network is built, or a class that the caller names. Nothing is unpickled, and no number in the
metadata allocates memory that the file itself does not fill.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raykfold.config.class_spec import DEFAULT_MODEL, ModelSpec, RecipeSpec
from raykfold.data.log_mel import FeatureParameters
from raykfold.errors import BadData, BadInput
from raykfold.files.paths import ModelDir, fold_of_best_weights
from raykfold.files.remote import Place, RemotePath, local_copy, place, without_password
from raykfold.files.scratch import scratch_dir
from raykfold.models import AudioCNN
from raykfold.outputs.hub_client import ModelRepository, Refused
from raykfold.outputs.sync import Unavailable
from raykfold.text import one_line
from raykfold.training.network import build_model, call_network
from raykfold.training.normalization import Normalization

if TYPE_CHECKING:
    from raykfold.training.recipe import Recipe  # imports torch's optimizers, which takes long

Spec = TypeVar("Spec", ModelSpec, RecipeSpec)
_BATCH = 64
_HUB = "hf://"
_SUMMARY = ModelDir(Path()).summary.name
_SEARCH = ModelDir(Path()).search.name
_ANY_FOLD = "model_fold_*_best.safetensors"


@dataclass(frozen=True, eq=False)
class FoldModel:
    """The network of a fold with its best weights.

    Attributes:
        fold: the fold that was held out.
        epoch: epoch of the weights, counted from 0.
        accuracy: accuracy on the fold that was held out, 0 to 1.
        model: in evaluation mode, on the CPU; (B, *input_shape) float32 → (B, classes) logits.
            With ``--normalize``, its first layer is the normalization.
        classes: label → name, in the order of the outputs.
        input_shape: of one sample: (n_mels, time) of a spectrogram.
        features: content of ``features.json``; empty if unknown.
    """

    fold: int
    epoch: int
    accuracy: float
    model: nn.Module
    classes: Mapping[int, str]
    input_shape: tuple[int, ...]
    features: Mapping[str, Any]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the class probabilities: (B, classes) float32, each row of sum 1.

        Args:
            features: (B, *input_shape), floats, integers or bools, as in training.

        Raises:
            ValueError: `features` has another shape.
        """
        if features.shape[1:] != self.input_shape:
            raise ValueError(
                f"features of shape {features.shape}; expected (B, *{self.input_shape})"
            )
        logits = []
        with torch.inference_mode():
            for start in range(0, max(len(features), 1), _BATCH):
                # One batch is float32 in memory at a time: `features` may be a map of a large file.
                batch = np.array(features[start : start + _BATCH], np.float32, order="C")
                logits.append(self.model(torch.from_numpy(batch)))
        return torch.cat(logits).softmax(dim=1).numpy()

    def feature_parameters(self) -> FeatureParameters:
        """Return how to compute, from audio, the features that this network was trained on.

        Raises:
            BadData: the weights do not say, or what they say is impossible.
        """
        if not self.features:
            raise BadData(
                f"fold {self.fold}: its weights do not say how their features were made (those of "
                "features from `raykfold.prepare` do)"
            )
        parameters = FeatureParameters.from_dict(self.features)
        shape = (parameters.n_mels, parameters.frames)
        if shape != self.input_shape:
            raise BadData(f"features of {shape}, for a network that takes {self.input_shape}")
        # Nothing else bounds these numbers: the network takes any number of frames.
        spectrum = (parameters.length // parameters.hop_length + 1) * (parameters.n_fft // 2 + 1)
        hop = parameters.seconds if parameters.hop is None else parameters.hop
        for what, value, most in (
            ("a sample rate in Hz", parameters.sample_rate, 400_000),
            ("samples in a clip", parameters.length, 2**26),
            ("samples in a window", parameters.n_fft, 2**18),
            ("values in a feature", parameters.n_mels * parameters.frames, 2**26),
            ("values in a spectrum", spectrum, 2**26),
            ("windows over each other", math.ceil(parameters.seconds / hop), 1000),
        ):
            if value > most:
                raise BadData(f"feature parameters: {value} {what}; expected at most {most}")
        return parameters


def load_fold(
    source: str | Place,
    fold: int,
    *,
    model: str | type[nn.Module] | None = None,
    recipe: str | type[Recipe] | None = None,
) -> FoldModel:
    """Return the network of a fold with its best weights.

    Args:
        source: `model_dir` of a run (a path, or an s3:// or gs:// URI), or a model repository on
            the Hub: ``owner/name``, or ``hf://owner/name`` where a local folder has the same name.
        fold: the fold that was held out.
        model: the class of the network or its name, ``module:Class``, unless it is the built-in
            one. A module that is named is imported, which runs its code.
        recipe: the class of the recipe or its name, if it has built the network.

    Raises:
        BadInput: there are no such weights, or they do not fit this network.
    """
    with _local(source) as local:
        where, files = _find_weights(local, ModelDir(Path()).best_weights(fold).name)
        if fold not in files:
            there = ", ".join(map(str, _find_weights(local)[1])) or "none"
            raise BadInput(f"{where}: no weights of fold {fold}; there are weights of: {there}")
        return _read_weights(fold, files[fold], model, recipe)


def load_folds(
    source: str | Place,
    *,
    model: str | type[nn.Module] | None = None,
    recipe: str | type[Recipe] | None = None,
) -> list[FoldModel]:
    """Return the networks of all folds that ``summary.json`` names, each as `load_fold` does.

    Without a summary (while the run trains), return those of all weights that are there.

    Raises:
        BadInput: there are no weights, or some do not fit the network.
    """
    with _local(source) as local:
        where, files = _find_weights(local)
        if not files and (Path(where) / _SEARCH).is_file():
            raise BadInput(
                f"{where}: is a search; expected the folder of one of its trials, like trials/1"
            )
        if not files:
            raise BadInput(f"{where}: no weights; expected {_ANY_FOLD} files, as a run writes them")
        # Weights of another run's folds can lie beside those of this run.
        summary = next(iter(files.values())).parent / _SUMMARY
        try:
            named = {row["fold"] for row in json.loads(summary.read_bytes())["folds"]}
        except FileNotFoundError:
            named = set(files)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadData(f"{summary}: is not the summary of a run ({one_line(error)})") from error
        chosen = [fold for fold in files if fold in named]
        if not chosen:
            raise BadInput(f"{where}: no weights of the folds that its {_SUMMARY} names")
        return [_read_weights(fold, files[fold], model, recipe) for fold in chosen]


@contextmanager
def _local(source: str | Place) -> Iterator[str | Path]:
    """Yield the source, or a local folder with the needed files of an object store."""
    found: str | Place = source
    if isinstance(source, str) and "://" in source and not source.startswith(_HUB):
        try:
            found = place(source)
        except ValueError as error:
            raise BadInput(f"{without_password(source)}: {error}") from None
    if not isinstance(found, RemotePath):
        yield found
        return

    def needed(names: Iterable[str]) -> list[str]:
        return [n for n in names if n == _SUMMARY or fold_of_best_weights(n) is not None]

    with scratch_dir() as folder, local_copy(found, needed, folder):
        yield folder


def _find_weights(
    source: str | Path, pattern: str = _ANY_FOLD
) -> tuple[str | Path, dict[int, Path]]:
    """Return the name of the source for messages, and fold → file of its weights."""
    where, folder = source, Path(source)
    if not os.path.isdir(source):
        repo_id = str(source).removeprefix(_HUB)
        if isinstance(source, Path):
            raise BadInput(f"{source}: no such folder")
        if repo_id.count("/") != 1:
            raise BadInput(f"{source}: no such folder, and no repository on the Hub (owner/name)")
        try:
            where, folder = repo_id, ModelRepository(repo_id, None).fetch([pattern, _SUMMARY])
        except (Refused, Unavailable) as error:
            raise BadInput(f"{repo_id}: cannot be fetched from the Hub ({error})") from error
    found = ((fold_of_best_weights(file.name), file) for file in folder.glob(pattern))
    return where, dict(sorted((fold, file) for fold, file in found if fold is not None))


def _read_weights(
    fold: int,
    file: Path,
    model: str | type[nn.Module] | None,
    recipe: str | type[Recipe] | None,
) -> FoldModel:
    """Return the network of a file.

    Raises:
        BadData: the file is damaged, lacks metadata, is of another fold, or fits another network.
        BadInput: it needs a class that the caller did not name.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadData(f"{file}: is not a complete safetensors file ({one_line(error)})") from error
    # These are what `raykfold.state.checkpoint.WeightsContext` writes, or a stranger.
    try:
        input_shape = tuple(json.loads(metadata["input_shape"]))
        classes = {int(label): name for label, name in json.loads(metadata["classes"]).items()}
        features = json.loads(metadata.get("features", "{}"))
        if not classes or not all(isinstance(name, str) for name in classes.values()):
            raise TypeError("no classes, or the name of a class is not text")
        if not isinstance(features, dict) or not input_shape:
            raise TypeError("no shape, or no parameters, of features")
        if not all(type(length) is int and 0 < length < 2**63 for length in input_shape):
            raise TypeError("a length in the shape of features is not a number above 0")
        of_fold, epoch = int(metadata["fold"]), int(metadata["epoch"])
        accuracy, spec = float(metadata["accuracy"]), metadata["model"]
        normalization = None
        if "normalization" in metadata:
            normalization = Normalization.from_json(
                json.loads(metadata["normalization"]), input_shape
            )
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise BadData(f"{file}: not the weights of a fold ({one_line(repr(error))})") from error
    if of_fold != fold:
        raise BadData(f"{file}: says that it is of fold {of_fold}")
    by_recipe = metadata.get("network_by") == "recipe"
    chosen: ModelSpec | RecipeSpec
    of_model = _choose(file, spec, model, ModelSpec, "model")
    chosen = of_model
    if by_recipe:
        chosen = _choose(file, metadata.get("recipe", ""), recipe, RecipeSpec, "recipe")
    network = _build(file, chosen, input_shape, len(classes), tensors, of_model)
    if normalization is not None:
        network = nn.Sequential(normalization, network).eval()
    return FoldModel(fold, epoch, accuracy, network, classes, input_shape, features)


def _choose(
    file: Path, text: str, named: str | type | None, spec_class: type[Spec], option: str
) -> Spec:
    """Return what to build: the class that the caller named, or the built-in one.

    The arguments are those in the file for that class, unless the caller named others. A class of
    a script or notebook has another name where it can be imported: that of its module.
    """
    try:
        of_file = spec_class.parse(text)
    except ValueError:
        of_file = spec_class(text)
    if named is None:
        if of_file.name != DEFAULT_MODEL:  # the built-in recipe builds no network of its own
            where = " (a script or notebook)" if of_file.module == "__main__" else ""
            what = "network" if option == "model" else "recipe"
            raise BadInput(
                f"{file}: weights of {one_line(text)}{where}, which is not the built-in {what}; "
                f"name its class with --{option}, if you trust it"
            )
        return of_file
    try:
        wanted = spec_class.of(named)
    except ValueError as error:
        raise BadInput(f"--{option} {named}: {error}") from None
    is_main = "__main__" in (of_file.module, wanted.module)
    is_same = of_file.name == wanted.name or (is_main and of_file.class_name == wanted.class_name)
    return spec_class(wanted.name, wanted.arguments or of_file.arguments) if is_same else wanted


def _build(
    file: Path,
    spec: ModelSpec | RecipeSpec,
    input_shape: tuple[int, ...],
    num_classes: int,
    tensors: Mapping[str, Tensor],
    model: ModelSpec,
) -> nn.Module:
    """Build a network and fill it with the tensors of a file.

    Args:
        spec: the network, or the recipe that builds it.
        input_shape: of one sample.
        num_classes: number of outputs.
        model: the option of the run, which the recipe may ask for.

    Raises:
        BadData: the tensors do not fit it.
    """
    try:
        if isinstance(spec, RecipeSpec):
            from raykfold.training.recipe import build_network

            # Arguments are as little trusted as the rest of the metadata.
            if model.name == DEFAULT_MODEL and model.arguments:
                with torch.device("meta"):
                    counted = call_network(AudioCNN, input_shape, num_classes, model.arguments)
                    needed = sum(values.numel() for values in counted.parameters())
                if needed > sum(values.numel() for values in tensors.values()):
                    raise ValueError(f"{model} has more parameters than these weights")
            network = build_network(spec, str(model), input_shape, num_classes)
        elif spec.name != DEFAULT_MODEL:
            network = build_model(str(spec), input_shape, num_classes)
        else:
            with torch.device("meta"):  # allocates nothing: the file's tensors replace its own
                network = call_network(AudioCNN, input_shape, num_classes, spec.arguments)
        expected = network.state_dict()
        fitting = {
            name: values.to(expected[name].dtype) if name in expected else values
            for name, values in tensors.items()
        }
        network.load_state_dict(fitting, assign=True)
    except BadInput:
        raise
    except Exception as error:  # the network's own checks, and torch's
        raise BadData(f"{file}: these weights do not fit it ({one_line(error)})") from error
    return network.eval()
