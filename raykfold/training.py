"""One fold in training: its network, its optimiser, its random streams. No Ray, no files."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raykfold.data import Split
from raykfold.errors import FoldError, NonFiniteLoss
from raykfold.models import build_model
from raykfold.results import EpochMetrics, Histogram
from raykfold.streams import RandomStreams

# A constant, because another batch size can round a convolution another way: the accuracy of a
# set of weights must not depend on a setting of training.
EVALUATION_BATCH = 64
_HISTOGRAM_BINS = 64
# After one of these, what other folds do in this process can fail too: CUDA, for one, answers every
# call with the first error. A new process tells whether it was the fold.
OF_THE_PROCESS = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)


@dataclass(frozen=True)
class TrainingSettings:
    """What decides a fold's result besides data, seed and fold."""

    model: str
    batch_size: int
    learning_rate: float
    patience: int
    seed: int


class FoldTrainer:
    """Trains one fold, an epoch at a time.

    Adam on cross-entropy. After each epoch the learning rate follows the validation loss
    (`ReduceLROnPlateau`), the best weights are those of the highest validation accuracy, and the
    fold has stopped early once the validation loss has not improved for `patience` epochs.

    Every random draw (initial weights, order of samples, dropout, whatever a network does with
    Python's or NumPy's generator) comes from streams that belong to the fold and are derived from
    (seed, fold): so the result does not depend on what else the process does.

    Args:
        fold: the fold's label, which is held out.
        features: (N, n_mels, time), any float type; stays where it is. On a GPU, put it there.
        class_indices: (N,) long, 0 to num_classes - 1, on the same device as `features`.
        split: the fold's training and validation indices.
        num_classes: outputs of the network.
        settings: what to train with.

    Raises:
        BadInput: the network cannot be built.
    """

    def __init__(
        self,
        fold: int,
        features: Tensor,
        class_indices: Tensor,
        split: Split,
        num_classes: int,
        settings: TrainingSettings,
    ) -> None:
        self.fold = fold
        self.settings = settings
        self.history: list[EpochMetrics] = []
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Tensor] = {}
        self._features = features
        self._class_indices = class_indices
        self._device = features.device
        self._train = torch.as_tensor(split.train, device=self._device)
        self._validation = torch.as_tensor(split.validation, device=self._device)
        self._streams = RandomStreams(settings.seed, fold, self._device)
        with self._streams.swapped_in():
            model = build_model(settings.model, features.shape[1], num_classes, features.shape[2])
        self.model = model.to(self._device)
        self._optimizer = torch.optim.Adam(
            self.model.parameters(), lr=settings.learning_rate, fused=True
        )
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, mode="min", factor=0.2, patience=5, min_lr=1e-5
        )
        self._lowest_val_loss = math.inf
        self._epochs_without_improvement = 0

    @property
    def epochs_run(self) -> int:
        return len(self.history)

    @property
    def stopped_early(self) -> bool:
        return self._epochs_without_improvement >= self.settings.patience

    @property
    def n_train(self) -> int:
        return len(self._train)

    @property
    def n_val(self) -> int:
        return len(self._validation)

    def done(self, epochs: int) -> bool:
        """Whether the fold has nothing left to do in a run of `epochs`."""
        return self.stopped_early or self.epochs_run >= epochs

    def run_epoch(self) -> EpochMetrics:
        """Train an epoch, evaluate, and let scheduler, best weights and early stopping follow.

        Raises:
            NonFiniteLoss: a loss became NaN or infinite.
            FoldError: the network raised.
            MemoryError, torch.OutOfMemoryError, torch.AcceleratorError: this process may be of no
                more use, to any fold.
        """
        started = time.perf_counter()
        learning_rate = self._optimizer.param_groups[0]["lr"]
        try:
            with self._streams.swapped_in():
                loss, accuracy = self.train_epoch()
                val_loss, val_accuracy = self.evaluate()
        except (FoldError, *OF_THE_PROCESS):
            raise
        except Exception as error:
            raise FoldError(
                f"epoch {self.epochs_run + 1}: {type(error).__name__}: {error}"
            ) from error
        metrics = EpochMetrics(
            epoch=self.epochs_run,
            loss=loss,
            accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
        )
        self._conclude(metrics)
        return metrics

    def train_epoch(self) -> tuple[float, float]:
        """One pass over the training samples in a new order: mean loss, accuracy.

        The last, shorter batch is used. The host waits for the device once, at the end.
        """
        self.model.train()
        order = self._train[torch.randperm(len(self._train)).to(self._device)]
        batches = order.split(self.settings.batch_size)
        losses = torch.zeros(len(batches), device=self._device)
        right = torch.zeros((), dtype=torch.long, device=self._device)
        for number, batch in enumerate(batches):
            inputs, targets = self._gather(batch)
            logits = self.model(inputs)
            loss = nn.functional.cross_entropy(logits, targets)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            losses[number] = loss.detach()
            right += (logits.detach().argmax(dim=1) == targets).sum()
        return self._mean_loss(losses, batches, "training"), int(right) / len(order)

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the validation samples, with the current weights."""
        self.model.eval()
        batches = self._validation.split(EVALUATION_BATCH)
        losses = torch.zeros(len(batches), device=self._device)
        right = torch.zeros((), dtype=torch.long, device=self._device)
        with torch.inference_mode():
            for number, batch in enumerate(batches):
                inputs, targets = self._gather(batch)
                logits = self.model(inputs)
                losses[number] = nn.functional.cross_entropy(logits, targets)
                right += (logits.argmax(dim=1) == targets).sum()
        return self._mean_loss(losses, batches, "validation"), int(right) / self.n_val

    def held_out_probabilities(self) -> np.ndarray:
        """(n_val, num_classes) float32, in sample order, from the best weights."""
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.best_weights)
        self.model.eval()
        try:
            with torch.inference_mode(), self._streams.kept():
                logits = [
                    self.model(self._gather(batch)[0])
                    for batch in self._validation.split(EVALUATION_BATCH)
                ]
                probabilities = torch.softmax(torch.cat(logits), dim=1)
        finally:
            self.model.load_state_dict(current)
        return probabilities.cpu().numpy()

    def histograms(self) -> dict[str, Histogram]:
        """Of each parameter's weights, and of its gradients in the last batch of the epoch.

        By the names ``weights/<parameter>`` and ``gradients/<parameter>``; what holds a value that
        is not finite is left out.
        """
        found = {}
        for name, parameter in self.model.named_parameters():
            found[f"weights/{name}"] = parameter.detach()
            if parameter.grad is not None:
                found[f"gradients/{name}"] = parameter.grad
        return {
            name: _histogram(values) for name, values in found.items() if values.isfinite().all()
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the fold depends on; tensors and plain values only."""
        return {
            "fold": self.fold,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "streams": self._streams.state_dict(),
            "history": [asdict(metrics) for metrics in self.history],
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "lowest_val_loss": self._lowest_val_loss,
            "epochs_without_improvement": self._epochs_without_improvement,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            ValueError: it is another fold's state.
        """
        if state["fold"] != self.fold:
            raise ValueError(f"state of fold {state['fold']} given to fold {self.fold}")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._streams.load_state_dict(state["streams"])
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]
        self.best_epoch = state["best_epoch"]
        self.best_weights = {
            name: value.to(self._device) for name, value in state["best_weights"].items()
        }
        self._lowest_val_loss = state["lowest_val_loss"]
        self._epochs_without_improvement = state["epochs_without_improvement"]

    def _gather(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self._features.index_select(0, batch).float()
        return inputs, self._class_indices.index_select(0, batch)

    def _mean_loss(self, losses: Tensor, batches: tuple[Tensor, ...], phase: str) -> float:
        values = losses.tolist()  # the one synchronisation of the epoch
        for number, value in enumerate(values, start=1):
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"{phase} loss became {value} in epoch {self.epochs_run + 1}, "
                    f"batch {number} of {len(values)}"
                )
        weighted = math.fsum(
            value * len(batch) for value, batch in zip(values, batches, strict=True)
        )
        return weighted / sum(map(len, batches))

    def _conclude(self, metrics: EpochMetrics) -> None:
        best = -1.0 if self.best_epoch is None else self.history[self.best_epoch].val_accuracy
        self.history.append(metrics)
        if metrics.val_accuracy > best:
            self.best_epoch = metrics.epoch
            self.best_weights = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }
        if metrics.val_loss < self._lowest_val_loss:
            self._lowest_val_loss = metrics.val_loss
            self._epochs_without_improvement = 0
        else:
            self._epochs_without_improvement += 1
        self._scheduler.step(metrics.val_loss)


def _histogram(values: Tensor) -> Histogram:
    counts, edges = torch.histogram(values.float().cpu(), bins=_HISTOGRAM_BINS)
    return Histogram(tuple(map(int, counts.tolist())), tuple(edges.tolist()))
