"""A fold's state ⇄ files.

fold_<n>/                   in a Ray checkpoint: a fold that goes on
  state.pt                  everything that `FoldTrainer.state_dict` gives
  model.safetensors         the current weights alone, for other tools
  history.json              its `FoldResult` so far
  manifest.json             fold, epochs_run, hashes

folds/fold_<n>/             a fold that is over
  state.pt                  from which it can go on if --epochs is raised
  model.safetensors         the best weights
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

from raykfold.files.atomic import Damaged, read_folder, write_folder
from raykfold.files.paths import HISTORY, PREDICTIONS, STATE, WEIGHTS
from raykfold.files.remote import Place
from raykfold.training.fold import Snapshot
from raykfold.training.results import FoldResult, FoldStatus


@dataclass(frozen=True)
class WeightsContext:
    """What weights need to be told, so that they can be used without the run they come from.

    Attributes:
        model: ``module:Class`` of the network.
        classes: label → name, in the order of the network's outputs.
        input_shape: (n_mels, time).
        feature_parameters: how the features were made; empty if nobody said.
    """

    model: str
    classes: Mapping[int, str]
    input_shape: tuple[int, int]
    feature_parameters: Mapping[str, Any]

    def metadata(self, fold: int, epoch: int, accuracy: float) -> dict[str, str]:
        """Metadata of a safetensors file, whose values can only be text."""
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
    """Content of a safetensors file with the current weights."""
    last = fold.history[-1]
    metadata = context.metadata(fold.fold, last.epoch, last.val_accuracy)
    return _safetensors(fold.weights, metadata)


def save_active_fold(folder: Place, fold: Snapshot, weights: bytes) -> None:
    """Write a fold that goes on; `weights` are its `weights_bytes`.

    Raises:
        StorageError: it cannot be written.
    """
    files = {
        STATE: _state_bytes(fold),
        WEIGHTS: weights,
        HISTORY: _history_bytes(result_of(fold, "running")),
    }
    write_folder(folder, files, _facts(fold))


def save_finished_fold(
    folder: Place,
    fold: Snapshot,
    context: WeightsContext,
    validation: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Write a fold that is over.

    Args:
        validation: (n_val,) indices of the samples that it held out.
        probabilities: (n_val, classes) float32, of these samples, from the best weights.

    Raises:
        StorageError: it cannot be written.
    """
    result = result_of(fold, "complete")
    assert result.kept_epoch is not None and result.kept_val_accuracy is not None
    metadata = context.metadata(fold.fold, result.kept_epoch, result.kept_val_accuracy)
    files = {
        STATE: _state_bytes(fold),
        WEIGHTS: _safetensors(fold.kept_weights, metadata),
        HISTORY: _history_bytes(result),
        PREDICTIONS: _npz(index=validation, probabilities=probabilities),
    }
    write_folder(folder, files, _facts(fold))


def result_of(fold: Snapshot, status: FoldStatus) -> FoldResult:
    """The fold's history so far."""
    return FoldResult.of(
        fold.fold,
        status,
        fold.n_train,
        fold.n_val,
        fold.history,
        stopped_early=fold.stopped_early,
    )


def load_state(folder: Place) -> dict[str, Any]:
    """What `FoldTrainer.load_state_dict` takes. No pickled code runs.

    Raises:
        Damaged: the folder is not whole.
    """
    files = read_folder(folder, only=(STATE,))
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(files[STATE]), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch raises many kinds for what is no state
        raise Damaged(f"{folder}: {STATE} cannot be read ({error})") from error
    return state


def load_result(folder: Place) -> FoldResult:
    """The fold's history, as far as it went.

    Raises:
        Damaged: the folder is not whole.
    """
    return FoldResult.from_json(json.loads(read_folder(folder, only=(HISTORY,))[HISTORY]))


@dataclass(frozen=True)
class FinishedFold:
    """What a fold that is over has left.

    Attributes:
        result: its history and best epoch.
        weights: content of a safetensors file with the best weights.
        index: (n_val,) which samples it held out.
        probabilities: (n_val, classes) float32, from the best weights.
    """

    result: FoldResult
    weights: bytes
    index: np.ndarray
    probabilities: np.ndarray


def load_finished_fold(folder: Place) -> FinishedFold:
    """Read what `save_finished_fold` wrote.

    Raises:
        Damaged: the folder is not whole.
    """
    files = read_folder(folder)
    with np.load(io.BytesIO(files[PREDICTIONS]), allow_pickle=False) as predictions:
        return FinishedFold(
            result=FoldResult.from_json(json.loads(files[HISTORY])),
            weights=files[WEIGHTS],
            index=predictions["index"],
            probabilities=predictions["probabilities"],
        )


def _facts(fold: Snapshot) -> dict[str, Any]:
    return {
        "fold": fold.fold,
        "epochs_run": fold.epochs_run,
        "stopped_early": fold.stopped_early,
    }


def _history_bytes(result: FoldResult) -> bytes:
    return json.dumps(result.to_json(), indent=2).encode()


def _safetensors(weights: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Content of a safetensors file; equal weights and metadata give equal bytes."""
    # Tied weights share memory, which safetensors refuses; a copy each keeps any network savable.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    content = safetensors.torch.save(copies, metadata)
    # The header lists the metadata in an order that differs from process to process.
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _state_bytes(fold: Snapshot) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(fold.state), buffer)
    return buffer.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
