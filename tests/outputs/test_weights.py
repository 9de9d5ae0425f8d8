"""The weights of a fold, from a folder or from the Hub, whatever their metadata say."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from fakes.hub_server import HubServer
from support.small_data import CLASSES, SHAPES, shaped_data

import raykfold
from raykfold.data.feature_set import FeatureSet
from raykfold.data.log_mel import FeatureParameters
from raykfold.errors import BadData, BadInput
from raykfold.outputs.weights import FoldModel, load_fold, load_folds
from raykfold.state.checkpoint import WeightsContext, weights_bytes
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import TrainingSettings

FEATURES = FeatureParameters(8000, 0.5, 16, 256, 128, 32)
BEST = "model_fold_3_best.safetensors"


@pytest.fixture(scope="module")
def trainer(small_data: FeatureSet) -> FoldTrainer:
    trainer = FoldTrainer(
        3,
        torch.from_numpy(np.asarray(small_data.features)),
        torch.from_numpy(small_data.class_indices),
        small_data.split(3),
        small_data.num_classes,
        TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, 5, 0),
    )
    trainer.run_epoch()
    return trainer


@pytest.fixture
def model_dir(trainer: FoldTrainer, tmp_path: Path) -> Path:
    """The best weights of one fold, as a run leaves them."""
    context = WeightsContext(
        "raykfold.models:AudioCNN", CLASSES, (16, 32), {**FEATURES.as_dict(), "source": "a, b"}
    )
    (tmp_path / BEST).write_bytes(weights_bytes(trainer.snapshot(), context))
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def rewritten(folder: Path, **metadata: str) -> Path:
    """The folder, with other metadata in its weights."""
    path = folder / BEST
    with safetensors.safe_open(path, "pt") as file:
        before = file.metadata()
    content = safetensors.torch.load(path.read_bytes())
    path.write_bytes(safetensors.torch.save(content, {**before, **metadata}))
    return folder


def test_a_fold_predicts_as_it_did_in_the_run(
    model_dir: Path, trainer: FoldTrainer, small_data: FeatureSet
) -> None:
    fold = raykfold.load_fold(model_dir, 3)
    held_out = np.asarray(small_data.features)[small_data.split(3).validation]
    np.testing.assert_allclose(
        fold.probabilities(held_out), trainer.held_out_probabilities(), rtol=1e-5, atol=1e-6
    )
    assert (fold.fold, fold.epoch, dict(fold.classes)) == (3, 0, CLASSES)
    assert fold.accuracy == trainer.history[0].val_accuracy
    assert fold.feature_parameters() == FEATURES
    assert not fold.model.training


def test_a_fold_from_the_hub_is_the_same(
    model_dir: Path, small_data: FeatureSet, hub: HubServer
) -> None:
    files = {BEST: (model_dir / BEST).read_bytes(), "pytorch_model.bin": b"\x80\x04."}
    hub.add_repository("somebody/digits", files=files)
    features = np.asarray(small_data.features)[:5]
    here, there = load_fold(model_dir, 3), load_fold("somebody/digits", 3)
    np.testing.assert_array_equal(here.probabilities(features), there.probabilities(features))
    fetched = [request.path for request in hub.requests if request.endpoint == "resolve"]
    assert fetched and not any("pytorch_model.bin" in path for path in fetched)


def test_what_is_not_there_is_said(model_dir: Path, hub: HubServer) -> None:
    hub.add_repository("somebody/else", files={"model.pt": b"x"})
    with pytest.raises(BadInput, match="no weights of fold 9; there are weights of: 3"):
        load_fold(model_dir, 9)
    with pytest.raises(BadInput, match="no such folder"):
        load_fold(model_dir / "nowhere", 3)
    with pytest.raises(BadInput, match="no such folder, and no repository"):
        load_fold("nowhere", 3)
    with pytest.raises(BadInput, match="no weights of fold 3; there are weights of: none"):
        load_fold("somebody/else", 3)
    with pytest.raises(BadInput, match=r"somebody/nothing.*404"):
        load_fold("somebody/nothing", 3)
    with pytest.raises(BadInput, match="no weights"):
        load_folds("somebody/else")


def test_another_network_is_built_only_where_it_is_named(model_dir: Path) -> None:
    rewritten(model_dir, model="support.networks:Slow")
    with pytest.raises(BadInput, match=r"weights of support.networks:Slow.*--model"):
        load_fold(model_dir, 3)
    assert type(load_fold(model_dir, 3, model="support.networks:Slow").model).__name__ == "Slow"


def test_a_class_of_a_script_is_named_by_itself_or_by_a_module_that_has_it(model_dir: Path) -> None:
    rewritten(model_dir, model="__main__:AudioCNN(width=32)")  # the default
    with pytest.raises(BadInput, match=r"weights of __main__:AudioCNN\(width=32\) \(a script or"):
        load_fold(model_dir, 3)
    for named in (raykfold.AudioCNN, "raykfold.models:AudioCNN"):
        assert isinstance(load_fold(model_dir, 3, model=named).model, raykfold.AudioCNN)
    rewritten(model_dir, model="__main__:AudioCNN(width=31)")
    with pytest.raises(BadInput, match="do not fit"):  # the arguments are the file's
        load_fold(model_dir, 3, model=raykfold.AudioCNN)


def test_arguments_in_the_file_are_for_the_class_in_a_script_too(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "AudioCNN", raykfold.AudioCNN, raising=False)
    rewritten(model_dir, model="mine:AudioCNN(width=32)")  # the default
    assert isinstance(load_fold(model_dir, 3, model="__main__:AudioCNN").model, raykfold.AudioCNN)
    rewritten(model_dir, model="mine:AudioCNN(width=31)")
    with pytest.raises(BadInput, match="do not fit"):
        load_fold(model_dir, 3, model="__main__:AudioCNN")


def test_a_class_that_is_named_wins_over_what_the_file_says(model_dir: Path) -> None:
    rewritten(model_dir, model="os:system")
    fold = load_fold(model_dir, 3, model="raykfold.models:AudioCNN")
    assert isinstance(fold.model, raykfold.AudioCNN)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_network_of_any_shape_predicts_as_it_did_in_the_run(kind: str, tmp_path: Path) -> None:
    data, model = shaped_data(kind), f"support.networks:Of{kind.capitalize()}"
    normalize = {"embeddings": "band", "images": "unit", "waveforms": "clip"}[kind]
    trainer = FoldTrainer(
        2,
        torch.from_numpy(data.features),
        torch.from_numpy(data.class_indices),
        data.split(2),
        data.num_classes,
        TrainingSettings(model, 32, 0.003, 5, 0, normalize=normalize),
    )
    trainer.run_epoch()
    context = WeightsContext(model, data.class_mapping, data.sample_shape, {})
    file = tmp_path / "model_fold_2_best.safetensors"
    file.write_bytes(weights_bytes(trainer.snapshot(), context))
    fold = load_fold(tmp_path, 2, model=model)
    assert fold.input_shape == data.sample_shape
    np.testing.assert_allclose(
        fold.probabilities(data.features[data.split(2).validation]),
        trainer.held_out_probabilities(),
        rtol=1e-5,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="expected"):
        fold.probabilities(np.zeros((2, 5), np.float32))
    with pytest.raises(BadInput, match=r"cannot be built|do not fit|takes samples of"):
        load_fold(tmp_path, 2, model=raykfold.AudioCNN)


@pytest.mark.parametrize(
    "named",
    [None, "raykfold.models:AudioCNN", "raykfold.models:AudioCNN(width=4)"],
)
def test_a_network_with_arguments_is_built_with_those_of_its_weights(
    small_data: FeatureSet, tmp_path: Path, named: str | None
) -> None:
    model = "raykfold.models:AudioCNN(dropout=0.1, width=4)"
    trainer = FoldTrainer(
        3,
        torch.from_numpy(np.asarray(small_data.features)),
        torch.from_numpy(small_data.class_indices),
        small_data.split(3),
        small_data.num_classes,
        TrainingSettings(model, 32, 0.003, 5, 0),
    )
    trainer.run_epoch()
    context = WeightsContext(model, CLASSES, (16, 32), {})
    (tmp_path / BEST).write_bytes(weights_bytes(trainer.snapshot(), context))
    held_out = np.asarray(small_data.features)[small_data.split(3).validation]
    np.testing.assert_allclose(
        load_fold(tmp_path, 3, model=named).probabilities(held_out),
        trainer.held_out_probabilities(),
        rtol=1e-5,
        atol=1e-6,
    )


class Scaled(raykfold.Recipe):
    """Builds a network whose first layer it fits."""

    def __init__(self, hidden: int = 4) -> None:
        self.hidden = hidden

    def network(self, input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
        self._scale = torch.nn.BatchNorm1d(input_shape[0], affine=False, momentum=0.0)
        layers = (torch.nn.Linear(math.prod(input_shape), self.hidden), torch.nn.ReLU())
        head = torch.nn.Linear(self.hidden, num_classes)
        return torch.nn.Sequential(self._scale, torch.nn.Flatten(), *layers, head)

    def fit(self, features: Iterable[torch.Tensor], labels: torch.Tensor) -> None:
        super().fit(features, labels)
        assert self._scale.running_mean is not None
        self._scale.running_mean.copy_(torch.cat(list(features)).mean((0, 2)))


class Smooth(raykfold.Recipe):
    """Changes only how a network is trained."""

    def augment(
        self, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs * 1.01, targets


@pytest.mark.parametrize("normalize", ["none", "global", "band", "clip"])
@pytest.mark.parametrize("recipe", [raykfold.Recipe, Scaled, Smooth])
def test_inference_does_what_training_did_before_the_network(
    small_data: FeatureSet, tmp_path: Path, recipe: type[raykfold.Recipe], normalize: str
) -> None:
    spec = f"{recipe.__module__}:{recipe.__name__}" + ("(hidden=6)" if recipe is Scaled else "")
    settings = TrainingSettings(
        "raykfold.models:AudioCNN", 32, 0.003, 5, 0, recipe=spec, normalize=normalize
    )
    trainer = FoldTrainer(
        3,
        torch.from_numpy(np.asarray(small_data.features)) * 7 - 30,
        torch.from_numpy(small_data.class_indices),
        small_data.split(3),
        small_data.num_classes,
        settings,
    )
    trainer.run_epoch()
    context = WeightsContext(settings.model, CLASSES, (16, 32), {})
    (tmp_path / BEST).write_bytes(weights_bytes(trainer.snapshot(), context))
    held_out = np.asarray(small_data.features)[small_data.split(3).validation] * 7 - 30
    if recipe is Scaled:
        with pytest.raises(BadInput, match="not the built-in recipe; name its class with --recipe"):
            load_fold(tmp_path, 3)
    named = Scaled if recipe is Scaled else None
    np.testing.assert_allclose(
        load_fold(tmp_path, 3, recipe=named).probabilities(held_out),
        trainer.held_out_probabilities(),
        rtol=1e-4,
        atol=1e-6,
    )


class Wrapped(raykfold.Recipe):
    """Builds on the network that ``--model`` names."""

    def network(self, input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(super().network(input_shape, num_classes))


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("os:system", "is not the built-in network; name its class with --model"),
        ("raykfold.models:AudioCNN(width=5000)", "has more parameters than these weights"),
    ],
)
def test_a_recipe_that_is_trusted_makes_nothing_else_trusted(
    model_dir: Path, model: str, error: str
) -> None:
    recipe = f"{__name__}:Wrapped"
    rewritten(model_dir, model=model, network_by="recipe", recipe=recipe)
    with pytest.raises(BadInput, match=error):
        load_fold(model_dir, 3, recipe=Wrapped)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("raykfold.models:AudioCNN(width=1000000000)", "do not fit"),
        ("raykfold.models:AudioCNN(width=0)", "do not fit"),
        ("raykfold.models:AudioCNN(depth=3)", "do not fit"),
        ("raykfold.models:AudioCNN(", "is not the built-in network"),
    ],
)
def test_arguments_that_fit_no_weights_are_refused(model_dir: Path, model: str, error: str) -> None:
    with pytest.raises(BadInput, match=error):
        load_fold(rewritten(model_dir, model=model), 3)


@pytest.mark.parametrize(
    "metadata",
    [
        {"input_shape": "[16, 32, 1]"},
        {"input_shape": "[16]"},
        {"input_shape": "[]"},
        {"input_shape": "16"},
        {"input_shape": "[true, 32]"},
        {"input_shape": "[16, 32" + ", 1" * 100_000 + "]"},
        {"input_shape": '["16", 32]'},
        {"input_shape": "[-16, 32]"},
        {"input_shape": "[4, 32]"},
        {"input_shape": "[1000000000000, 32]"},  # petabytes, if anybody made room for it
        {"input_shape": "[24, 32]"},
        {"input_shape": "no JSON"},
        {"normalization": '{"kind": "band", "mean": [0.0], "std": [1.0]}'},
        {"normalization": '{"kind": "global", "mean": [0.0], "std": [1' + "0" * 400 + "]}"},
        {"normalization": "[]"},
        {"normalization": '{"kind": "unit", "largest": 0}'},
        {"classes": "{}"},
        {"classes": '{"0": "dog"}'},
        {"classes": '["dog"]'},
        {"classes": '{"x": "dog"}'},
        {"classes": '{"0": ["dog"]}'},
        {"classes": "[" * 100_000},
        {"fold": "three"},
        {"accuracy": "good"},
        {"features": "[]"},
    ],
    ids=str,
)
def test_absurd_metadata_are_refused_in_one_line(model_dir: Path, metadata: dict[str, str]) -> None:
    rewritten(model_dir, **metadata)
    with pytest.raises(BadData, match=BEST) as refused:
        load_fold(model_dir, 3)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_damaged_files_are_refused(model_dir: Path) -> None:
    path = model_dir / BEST
    whole = path.read_bytes()
    foreign = safetensors.torch.save({"x": torch.zeros(2)})
    for content in (b"", whole[:1000], whole[:-1], b"\xff" * 100, foreign):
        path.write_bytes(content)
        with pytest.raises(BadData, match=BEST):
            load_fold(model_dir, 3)


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_tensors_that_do_not_fit_are_refused(model_dir: Path, change: str) -> None:
    path = model_dir / BEST
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load(path.read_bytes())
    if change == "missing":
        del tensors["fc2.bias"]
    elif change == "more":
        tensors["fc3.bias"] = torch.zeros(1)
    else:
        tensors["fc2.bias"] = torch.zeros(1)
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(BadData, match=r"do not fit.*fc[23]\.bias"):
        load_fold(model_dir, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mfcc"}, "kind 'mfcc'"),
        ({"version": 2}, "version 2"),
        ({"n_mels": 24}, "for a network that takes"),
        ({"seconds": 1e12}, "expected at most"),
        ({"n_fft": 2**30}, "expected at most"),
        ({"n_fft": 256.0}, "whole number"),
        ({"hop_length": 1, "n_fft": 2**18, "seconds": 2000.0}, "values in a spectrum"),
        ({"sample_rate": 10**12, "seconds": 1e-6}, "a sample rate in Hz"),
        ({"hop_length": None}, "hop_length"),
        ({"hop": 4e-4}, "windows over each other"),
        ({"hop": "1"}, "hop '1'"),
    ],
    ids=str,
)
def test_features_that_cannot_be_made_are_refused(
    model_dir: Path, change: dict[str, object], message: str
) -> None:
    rewritten(model_dir, features=json.dumps({**FEATURES.as_dict(), **change}))
    with pytest.raises(BadData, match=message):
        load_fold(model_dir, 3).feature_parameters()


def test_frames_without_end_are_refused(model_dir: Path) -> None:
    """The network takes any number of them: no tensor of the file bounds it."""
    endless = {**FEATURES.as_dict(), "frames": 10**11}
    rewritten(model_dir, features=json.dumps(endless), input_shape=json.dumps([16, 10**11]))
    with pytest.raises(BadData, match="values in a feature"):
        load_fold(model_dir, 3).feature_parameters()


def test_weights_beside_those_that_the_summary_names_are_another_runs(model_dir: Path) -> None:
    (model_dir / "summary.json").write_text(json.dumps({"folds": [{"fold": 3}]}))
    (model_dir / "model_fold_4_best.safetensors").write_bytes(b"of another run")
    (model_dir / "model_fold_\x1b[31m_best.safetensors").write_bytes(b"")
    assert [each.fold for each in load_folds(model_dir)] == [3]
    (model_dir / "summary.json").write_text(json.dumps({"folds": [{"fold": 5}]}))
    with pytest.raises(BadInput, match=r"folds that its summary\.json names"):
        load_folds(model_dir)
    (model_dir / "summary.json").write_text("[]")
    with pytest.raises(BadData, match="is not the summary of a run"):
        load_folds(model_dir)


def test_weights_that_say_they_are_of_another_fold_are_refused(model_dir: Path) -> None:
    rewritten(model_dir, fold="5")
    with pytest.raises(BadData, match="says that it is of fold 5"):
        load_fold(model_dir, 3)


def test_a_repository_can_be_told_from_a_folder_of_its_name(
    model_dir: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repository("somebody/digits", files={BEST: (model_dir / BEST).read_bytes()})
    (model_dir / "somebody" / "digits").mkdir(parents=True)
    monkeypatch.chdir(model_dir)
    with pytest.raises(BadInput, match="no weights of fold 3"):
        load_fold("somebody/digits", 3)
    assert load_fold("hf://somebody/digits", 3).fold == 3


def test_features_that_nobody_described_are_asked_for(model_dir: Path) -> None:
    rewritten(model_dir, features="{}")
    fold = load_fold(model_dir, 3)
    with pytest.raises(BadData, match="do not say how their features were made"):
        fold.feature_parameters()


def test_features_of_another_shape_are_a_mistake(model_dir: Path) -> None:
    fold: FoldModel = load_fold(model_dir, 3)
    with pytest.raises(ValueError, match=r"shape \(1, 16, 31\)"):
        fold.probabilities(np.zeros((1, 16, 31), np.float32))
