"""The results of a run, to compare with those of another run or of a plain loop without Ray."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from raykfold.data.reading import read_feature_set
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import TrainingSettings

FOLDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Outcome:
    """The results of a run: everything that must not depend on what happened to it.

    Attributes:
        folds: rows of summary.json.
        histories: metrics of each epoch, by fold.
        weights: content of every safetensors file, by its path below the outputs.
        predictions: the out-of-fold predictions.
    """

    folds: list[dict[str, Any]]
    histories: list[dict[str, list[float]]]
    weights: dict[str, bytes]
    predictions: dict[str, np.ndarray]

    @classmethod
    def of(cls, model_dir: Path) -> Outcome:
        """Read the outputs of a run."""
        with np.load(model_dir / "oof_predictions.npz") as file:
            predictions = {name: file[name] for name in file.files}
        return cls(
            folds=json.loads((model_dir / "summary.json").read_text())["folds"],
            histories=pickle.loads((model_dir / "all_fold_histories_pytorch.pkl").read_bytes()),
            weights={
                str(path.relative_to(model_dir)): path.read_bytes()
                for path in sorted(model_dir.glob("**/*.safetensors"))
                if not _belongs_elsewhere(path.relative_to(model_dir))
            },
            predictions=predictions,
        )


def _belongs_elsewhere(path: Path) -> bool:
    """Whether a file is part of Ray's storage, or of a repeat, which is a run of its own."""
    return path.parts[0] == "ray" or path.parts[0].startswith("seed_")


def assert_same(first: Outcome, second: Outcome) -> None:
    """Assert that two runs came to the same results, to the bit."""
    assert first.folds == second.folds
    assert first.histories == second.histories
    assert first.weights.keys() == second.weights.keys()
    for name, content in first.weights.items():
        assert content == second.weights[name], name
    for name, values in first.predictions.items():
        np.testing.assert_array_equal(values, second.predictions[name], err_msg=name)


def assert_same_folds(outcome: Outcome, model_dir: Path) -> None:
    """Assert that a run of folds 1, 2, 3 has the same results for them as the run of all folds."""
    folds = (1, 2, 3)
    some = Outcome.of(model_dir)
    assert some.folds == [row for row in outcome.folds if row["fold"] in folds]
    assert some.histories == [outcome.histories[FOLDS.index(fold)] for fold in folds]
    mine = {name: content for name, content in outcome.weights.items() if _is_of(name, folds)}
    assert some.weights.keys() == mine.keys()
    for name, content in mine.items():
        # Tensors, not bytes: the metadata name the network, which can be a derived one.
        tensors = safetensors.numpy.load(some.weights[name])
        for tensor, values in safetensors.numpy.load(content).items():
            np.testing.assert_array_equal(tensors[tensor], values, err_msg=f"{name} {tensor}")


def _is_of(name: str, folds: tuple[int, ...]) -> bool:
    match = re.search(r"fold_(\d+)", name)
    assert match, name
    return int(match[1]) in folds


def files_that_hold(secret: str, folder: Path) -> list[Path]:
    """Return the files below `folder` whose content has `secret` in it."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


@dataclass(frozen=True)
class FinishedRun:
    """The outputs of a run, and how its command ended."""

    model_dir: Path
    done: subprocess.CompletedProcess[str]


def assert_as_without_ray(
    model_dir: Path,
    data_dir: Path,
    *,
    folds: Sequence[int],
    epochs: int,
    patience: int,
    seed: int = 0,
    inner: bool = False,
    learning_rate: float = 0.005,
    **recipe: Any,
) -> None:
    """Assert that a run's histories, weights and predictions equal a plain loop's, to the bit.

    The loop trains the built-in network: a network derived from it that only takes its time
    gives the same numbers.

    Args:
        recipe: further settings of training.
    """
    outcome = Outcome.of(model_dir)
    assert [row["fold"] for row in outcome.folds] == list(folds)
    expected = 0
    for fold, history in zip(folds, outcome.histories, strict=True):
        settings = TrainingSettings(
            "raykfold.models:AudioCNN",
            32,
            learning_rate,
            patience,
            seed,
            epochs=epochs,
            **recipe,
        )
        trainer, weights = _trained(data_dir, fold, epochs, settings, inner)
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        assert history == {n: [getattr(m, n) for m in trainer.history] for n in names}, fold
        best = f"model_fold_{fold}_best.safetensors"
        _assert_same_tensors(outcome.weights[best], trainer.kept_weights, best)
        for epoch, tensors in enumerate(weights):
            name = f"checkpoints/fold_{fold}/epoch_{epoch}.safetensors"
            _assert_same_tensors(outcome.weights[name], tensors, name)
        expected += 1 + len(weights)
        held_out = outcome.predictions["fold"] == fold
        np.testing.assert_array_equal(
            outcome.predictions["probabilities"][held_out], trainer.held_out_probabilities()
        )
    assert len(outcome.weights) == expected


def _trained(
    data_dir: Path, fold: int, epochs: int, settings: TrainingSettings, inner: bool
) -> tuple[FoldTrainer, list[dict[str, torch.Tensor]]]:
    """Train a fold in this process, with one thread as a worker has.

    Returns:
        the trainer, and the weights after each epoch.
    """
    data = read_feature_set(data_dir)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = FoldTrainer(
            fold,
            torch.from_numpy(np.array(data.features)),
            torch.from_numpy(data.class_indices),
            data.split(fold, inner=inner, seed=settings.seed),
            data.num_classes,
            settings,
        )
        weights = []
        while not trainer.done(epochs):
            trainer.run_epoch()
            state = trainer.evaluated.state_dict()
            weights.append({name: value.clone() for name, value in state.items()})
        trainer.held_out_probabilities()
    finally:
        torch.set_num_threads(threads)
    return trainer, weights


def _assert_same_tensors(content: bytes, expected: dict[str, torch.Tensor], where: str) -> None:
    found = safetensors.numpy.load(content)
    assert found.keys() == expected.keys(), where
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=f"{where} {name}")
