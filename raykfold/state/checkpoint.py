"""The files that hold a fold's state.

fold_<n>/                   in a Ray checkpoint: a fold in training
  state.pt                  `FoldTrainer.state_dict`
  model.safetensors         the current weights, for other tools
  history.json              its `FoldResult` so far
  manifest.json             fold, epochs_run, stopped_early, hashes

folds/fold_<n>/             a finished fold
  state.pt                  from which it continues if --epochs is raised
  model.safetensors         the kept weights
  history.json              its `FoldResult`
  predictions.npz           index, probabilities of the held-out samples
  manifest.json
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

from raykfold.files.atomic import Damaged, json_bytes, read_folder, write_folder
from raykfold.files.paths import HISTORY, PREDICTIONS, STATE, WEIGHTS
from raykfold.files.remote import Place
from raykfold.training.fold import Snapshot
from raykfold.training.results import FoldResult


@dataclass(frozen=True)
class WeightsContext:
    """What a weights file says about its network, so that it can be used without the run.

    Attributes:
        model: the network, as ``module:Class(name=value, ...)``.
        classes: label → name, in the order of the network's outputs.
        input_shape: of one sample: (n_mels, time) of a spectrogram.
        feature_parameters: how the features were made; empty if that is unknown.
    """

    model: str
    classes: Mapping[int, str]
    input_shape: tuple[int, ...]
    feature_parameters: Mapping[str, Any]

    def metadata(self, fold: int, epoch: int, accuracy: float) -> dict[str, str]:
        """Return the metadata of a safetensors file, where all values are text."""
        return {
            "format": "pt",
            "fold": str(fold),
            "epoch": str(epoch),
            "accuracy": repr(accuracy),
            "classes": json.dumps({str(label): name for label, name in self.classes.items()}),
            "model": self.model,
            "input_shape": json.dumps(list(self.input_shape)),
            "features": json.dumps(dict(self.feature_parameters), sort_keys=True),
        }


def weights_bytes(fold: Snapshot, context: WeightsContext) -> bytes:
    """Return the content of a safetensors file with the current weights."""
    last = fold.so_far.history[-1]
    metadata = context.metadata(fold.so_far.fold, last.epoch, last.val_accuracy)
    return _safetensors(fold.weights, {**metadata, **fold.metadata})


def save_active_fold(folder: Place, fold: Snapshot, weights: bytes) -> None:
    """Write a fold in training; `weights` are its `weights_bytes`.

    Raises:
        StorageError: the folder cannot be written.
    """
    _write_fold(folder, fold, fold.so_far, {WEIGHTS: weights})


def save_finished_fold(
    folder: Place,
    fold: Snapshot,
    context: WeightsContext,
    validation: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Write a finished fold.

    Args:
        validation: (n_val,) indices of the held-out samples.
        probabilities: (n_val, classes) float32, of these samples, from the kept weights.

    Raises:
        StorageError: the folder cannot be written.
    """
    result = fold.result("complete")
    assert result.kept_epoch is not None and result.kept_val_accuracy is not None
    metadata = context.metadata(result.fold, result.kept_epoch, result.kept_val_accuracy)
    predictions = io.BytesIO()
    np.savez(predictions, index=validation, probabilities=probabilities)
    weights = _safetensors(fold.kept_weights, {**metadata, **fold.metadata})
    _write_fold(folder, fold, result, {WEIGHTS: weights, PREDICTIONS: predictions.getvalue()})


def load_state(folder: Place) -> dict[str, Any]:
    """Return what `FoldTrainer.load_state_dict` takes, without running pickled code.

    Raises:
        Damaged: the folder is incomplete, or a file is damaged.
    """
    files = read_folder(folder, only=(STATE,))
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(files[STATE]), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch raises errors of many types here
        raise Damaged(f"{folder}: {STATE} cannot be read ({error})") from error
    return state


@dataclass(frozen=True)
class FinishedFold:
    """What a finished fold has left.

    Attributes:
        result: its result, with its history.
        weights: content of a safetensors file with the kept weights.
        index: (n_val,) indices of the held-out samples.
        probabilities: (n_val, classes) float32, of these samples, from the kept weights.
    """

    result: FoldResult
    weights: bytes
    index: np.ndarray
    probabilities: np.ndarray


def load_finished_fold(folder: Place) -> FinishedFold:
    """Return what `save_finished_fold` wrote.

    Raises:
        Damaged: the folder is incomplete, or a file is damaged.
    """
    files = read_folder(folder)
    with np.load(io.BytesIO(files[PREDICTIONS]), allow_pickle=False) as predictions:
        return FinishedFold(
            result=FoldResult.from_json(json.loads(files[HISTORY])),
            weights=files[WEIGHTS],
            index=predictions["index"],
            probabilities=predictions["probabilities"],
        )


def _write_fold(
    folder: Place, fold: Snapshot, result: FoldResult, more: Mapping[str, bytes]
) -> None:
    state = io.BytesIO()
    torch.save(dict(fold.state), state)
    files = {STATE: state.getvalue(), HISTORY: json_bytes(result.to_json()), **more}
    facts = {
        "fold": result.fold,
        "epochs_run": result.epochs_run,
        "stopped_early": result.stopped_early,
    }
    write_folder(folder, files, facts)


def _safetensors(weights: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return the content of a safetensors file. Equal weights and metadata give equal bytes."""
    # Tied weights share memory, which safetensors refuses: copies do not.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    content = safetensors.torch.save(copies, metadata)
    # The order of the metadata in the header differs from process to process.
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
