"""What a run has come to, held against another; and how tests start the command."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from raykfold.data.reading import read_feature_set
from raykfold.training.fold import FoldTrainer, TrainingSettings

FOLDS = (1, 2, 3, 4, 5)
# Patience of one epoch and a high rate: folds stop early, and at different epochs.
ARGUMENTS = ("--epochs", "6", "--early_stopping_patience", "1", "--learning_rate", "0.005")


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the tests' folder on the Python path for networks that live there."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAYKFOLD_")}
    here.pop("RAY_ADDRESS", None)
    return {**here, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def command(processed_dir: Path, model_dir: Path, *arguments: str) -> list[str]:
    base = [sys.executable, "-m", "raykfold.run", "--processed_dir", str(processed_dir)]
    return [*base, "--model_dir", str(model_dir), *ARGUMENTS, *arguments]


def run(
    processed_dir: Path, model_dir: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(processed_dir, model_dir, *arguments),
        capture_output=True,
        text=True,
        timeout=280,
        env=environment(**env),
    )


def start(processed_dir: Path, model_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """As `run`, but alive: lines can be read as they come."""
    return subprocess.Popen(
        command(processed_dir, model_dir, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """Lines of its output up to the first that has `pattern`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"no {pattern!r} in: {''.join(lines)}")


@dataclass(frozen=True)
class Outcome:
    """All that must not depend on how a run went."""

    folds: list[dict[str, Any]]
    histories: list[dict[str, list[float]]]
    weights: dict[str, bytes]
    predictions: dict[str, np.ndarray]

    @classmethod
    def of(cls, model_dir: Path) -> Outcome:
        with np.load(model_dir / "oof_predictions.npz") as file:
            predictions = {name: file[name] for name in file.files}
        return cls(
            folds=json.loads((model_dir / "summary.json").read_text())["folds"],
            histories=pickle.loads((model_dir / "all_fold_histories_pytorch.pkl").read_bytes()),
            weights={
                str(path.relative_to(model_dir)): path.read_bytes()
                for path in sorted(model_dir.glob("**/*.safetensors"))
                if not _is_of_another(path.relative_to(model_dir))
            },
            predictions=predictions,
        )


def _is_of_another(path: Path) -> bool:
    """Of Ray's storage, or of a repeat, which is a run of its own."""
    return path.parts[0] == "ray" or path.parts[0].startswith("seed_")


def assert_same(first: Outcome, second: Outcome) -> None:
    """To the bit."""
    assert first.folds == second.folds
    assert first.histories == second.histories
    assert first.weights.keys() == second.weights.keys()
    for name, content in first.weights.items():
        assert content == second.weights[name], name
    for name, values in first.predictions.items():
        np.testing.assert_array_equal(values, second.predictions[name], err_msg=name)


@dataclass(frozen=True)
class Undisturbed:
    """A run that others are held against, and how its command ended."""

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
) -> None:
    """These folds' histories, all weights and predictions are those of a plain loop, to the bit.

    The loop trains the built-in network: one that is derived from it and only takes its time
    comes to the same numbers.
    """
    outcome = Outcome.of(model_dir)
    assert [row["fold"] for row in outcome.folds] == list(folds)
    expected = 0
    for fold, history in zip(folds, outcome.histories, strict=True):
        settings = TrainingSettings("raykfold.models:AudioCNN", 32, learning_rate, patience, seed)
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
    """A fold in this process, with one thread as a worker has; its weights after each epoch."""
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
            state = trainer.model.state_dict()
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
