"""Training of one fold: its network, optimizer and random streams. No Ray, no files."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import Split
from raykfold.errors import FoldError, NonFiniteLoss
from raykfold.training import network
from raykfold.training.random_streams import RandomStreams
from raykfold.training.results import EpochMetrics, FoldResult, FoldStatus, Histogram, kept_of
from raykfold.training.steps import RecordedStep, Recorder, Step, cuda_graphs, no_recordings

# A constant, because batch size affects how a convolution rounds: the accuracy of a set of weights
# must not depend on a setting of training.
EVALUATION_BATCH = 64
_HISTOGRAM_BINS = 64
# Batches of a fold before the next fold has its turn. Switching random streams takes 0.1 ms; a GPU
# has the turns of all folds in its queues, and computes them side by side.
_BATCHES_IN_A_TURN = 8
# After one of these, other folds can fail in this process too: CUDA, for one, answers every later
# call with the first error. Only a new process shows whether the fold was the cause.
PROCESS_ERRORS = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainingSettings:
    """Hyper-parameters of training, each named as the option of `RunConfig` that it comes from.

    Attributes:
        model: the network, as ``module:Class(name=value, ...)``.
        batch_size: samples in a training batch.
        learning_rate: Adam's initial learning rate.
        early_stopping_patience: epochs without a lower validation loss after which the fold stops.
        seed: seed of every random draw.
        precision: ``fp32``; or ``bf16``, which runs the forward pass of training steps, and its
            gradients, under PyTorch's autocast. Weights, the optimizer, the loss and every
            evaluation stay in fp32.
    """

    model: str
    batch_size: int
    learning_rate: float
    early_stopping_patience: int
    seed: int
    precision: Precision = "fp32"

    @classmethod
    def of(cls, config: RunConfig, precision: Precision) -> TrainingSettings:
        """Return the settings of a run; `precision` is what its option resolved to."""
        options = {field.name: getattr(config, field.name) for field in fields(cls)}
        return cls(**(options | {"precision": precision}))


@dataclass(frozen=True)
class Tally:
    """Losses and hits of one pass over samples, still on the device.

    Attributes:
        phase: what the pass was for: training, validation or inner validation.
        losses: (batches,) mean loss of each batch.
        sizes: number of samples in each batch.
        right: number of samples classified correctly, a scalar.
    """

    phase: str
    losses: Tensor
    sizes: tuple[int, ...]
    right: Tensor


Tallies: TypeAlias = tuple[Tally, ...]


@dataclass(frozen=True)
class Snapshot:
    """A copy of a fold in host memory, which later training does not change.

    Attributes:
        so_far: the fold's result so far, with status ``running``.
        state: what `FoldTrainer.load_state_dict` takes.
    """

    so_far: FoldResult
    state: Mapping[str, Any]

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.state["model"]

    @property
    def kept_weights(self) -> Mapping[str, Tensor]:
        return self.state["kept_weights"]

    def result(self, status: FoldStatus) -> FoldResult:
        """Return the fold's result so far, with another status."""
        return replace(self.so_far, status=status)


class FoldTrainer:
    """Trains one fold, an epoch at a time.

    The recipe is Adam on cross-entropy. After each epoch `ReduceLROnPlateau` and early stopping
    follow the validation loss, and the weights of the epoch with the highest validation accuracy
    are kept. With an inner validation split, all three follow that split instead, and the held-out
    samples decide nothing. Each part of the recipe is a method: `build_model`, `build_optimizer`,
    `build_scheduler`, `training_step`, `evaluation_step`.

    All randomness (initial weights, order of samples, dropout, whatever a network draws from
    Python's or NumPy's generator) comes from streams that belong to the fold and are derived from
    (seed, fold). So a result does not depend on what else the process does.

    Args:
        fold: label of the fold that is held out.
        features: (N, n_mels, time), any float type, on the device to train on.
        class_indices: (N,) long, from 0 to num_classes - 1, on the same device.
        split: the fold's training and validation indices.
        num_classes: number of outputs of the network.
        settings: hyper-parameters.
        recorder: makes recordings of steps. By default steps are recorded as CUDA graphs, on a GPU
            and if the network's class says that it is `recordable`.
        on_batch: called after each batch of training and evaluation, which a GPU may still be
            computing then.

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
        recorder: Recorder | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.fold = fold
        self.settings = settings
        self.device = features.device
        self.n_train = len(split.train)
        self.n_val = len(split.validation)
        self.history: list[EpochMetrics] = []
        self.kept_weights: dict[str, Tensor] = {}
        self._on_batch = on_batch
        self._features = features
        self._class_indices = class_indices
        self._train = torch.as_tensor(split.train, device=self.device)
        self._validation = torch.as_tensor(split.validation, device=self.device)
        self._inner = torch.as_tensor(split.inner, device=self.device)
        # On a GPU each fold has a queue of its own, so that folds can be computed side by side.
        self._cuda_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._random = RandomStreams(settings.seed, fold, self.device)
        with self._random.active():
            model = self.build_model(features.shape[1], num_classes, features.shape[2])
        self.model = model.to(self.device)
        self.optimizer = self.build_optimizer()
        self.scheduler = self.build_scheduler()
        self._training = self._record_step(self.training_step, recorder)
        self._evaluation = self._record_step(self.evaluation_step, recorder)

    # --- the recipe

    def build_model(self, n_mels: int, num_classes: int, target_len: int) -> nn.Module:
        """Return the network with its initial weights."""
        return network.build_model(self.settings.model, n_mels, num_classes, target_len)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of `self.model`."""
        return torch.optim.Adam(
            self.model.parameters(),
            lr=self.settings.learning_rate,
            fused=True,
            capturable=self.device.type == "cuda",
        )

    def build_scheduler(self) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
        """Return the scheduler of `self.optimizer`, which is told the loss after each epoch."""
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, mode="min", factor=0.2, patience=5, min_lr=1e-5
        )

    def training_step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights on one batch.

        Args:
            rows: (B,) long, indices of the batch's samples.

        Returns:
            Mean loss and number of samples classified correctly, both scalars on the device.
        """
        inputs, targets = self._batch(rows)
        precision: AbstractContextManager[object] = nullcontext()
        if self.settings.precision == "bf16":
            # A step uses each weight once, so a cache of cast weights would gain nothing; and a
            # recording must not contain one.
            precision = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        with precision:
            logits = self.model(inputs)
        loss = nn.functional.cross_entropy(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(dim=1) == targets).sum()

    def evaluation_step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `training_step` does, but leave the weights alone."""
        with torch.inference_mode():
            inputs, targets = self._batch(rows)
            logits = self.model(inputs)
            loss = nn.functional.cross_entropy(logits, targets)
            return loss, (logits.argmax(dim=1) == targets).sum()

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self._features.index_select(0, rows).float()
        return inputs, self._class_indices.index_select(0, rows)

    # --- an epoch

    def run_epoch(self) -> EpochMetrics:
        """Train one epoch, evaluate, and update learning rate, kept weights and early stopping.

        Raises:
            NonFiniteLoss: a loss became NaN or infinite.
            FoldError: the network raised.
            MemoryError, torch.OutOfMemoryError, torch.AcceleratorError: the process may be unable
                to train any fold.
        """
        outcome = run_epochs([self])[self.fold]
        if isinstance(outcome, FoldError):
            raise outcome
        return outcome

    def epoch(self) -> Iterator[Tallies | None]:
        """Train one epoch and evaluate, batch by batch; iterate while `active`.

        Yields:
            None after each batch, where other folds can have a turn; then the tallies of training,
            validation and, with an inner split, inner validation.
        """
        # Training uses every sample once, in a new order; a shorter last batch included. A last
        # batch of one sample joins the one before: BatchNorm has no variance of a single value.
        order = self._train[torch.randperm(self.n_train).to(self.device)]
        training = order.split(self.settings.batch_size)
        if len(training) > 1 and len(training[-1]) == 1 < self.settings.batch_size:
            training = (*training[:-2], torch.cat(training[-2:]))
        passes = [
            ("training", self._training, training),
            ("validation", self._evaluation, self._validation.split(EVALUATION_BATCH)),
        ]
        if len(self._inner):
            batches = self._inner.split(EVALUATION_BATCH)
            passes.append(("inner validation", self._evaluation, batches))

        tallies = []
        for phase, step, batches in passes:
            self.model.train(phase == "training")
            losses = torch.zeros(len(batches), device=self.device)
            right = torch.zeros((), dtype=torch.long, device=self.device)
            for number, rows in enumerate(batches):
                # Losses stay on the device: to read one would be to wait for the GPU.
                losses[number], hits = step(rows)
                right += hits
                self._on_batch()
                yield None
            tallies.append(Tally(phase, losses, tuple(map(len, batches)), right))
        yield tuple(tallies)

    def conclude(self, tallies: Tallies, started: float, folds: int) -> EpochMetrics:
        """Read the results of an epoch; update kept weights, learning rate and early stopping.

        Args:
            tallies: what `epoch` yielded last.
            started: when the epoch began, by `time.perf_counter`.
            folds: number of folds that have shared the time since.

        Raises:
            NonFiniteLoss: a loss is NaN or infinite.
        """
        # Read losses and accuracies. The host waits for the device here.
        measured: dict[str, tuple[float, float]] = {}
        with self.active():
            for tally in tallies:
                losses, samples = tally.losses.tolist(), sum(tally.sizes)
                for number, loss in enumerate(losses, start=1):
                    if not math.isfinite(loss):
                        raise NonFiniteLoss(
                            f"{tally.phase} loss became {loss} in epoch {self.epochs_run + 1}, "
                            f"batch {number} of {len(losses)}"
                        )
                total = math.fsum(loss * n for loss, n in zip(losses, tally.sizes, strict=True))
                measured[tally.phase] = total / samples, int(tally.right) / samples
        loss, accuracy = measured["training"]
        val_loss, val_accuracy = measured["validation"]
        inner_loss, inner_accuracy = measured.get("inner validation", (None, None))
        learning_rate = self.optimizer.param_groups[0]["lr"]
        metrics = EpochMetrics(
            epoch=self.epochs_run,
            loss=loss,
            accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=learning_rate,
            seconds=(time.perf_counter() - started) / folds,
            inner_loss=inner_loss,
            inner_accuracy=inner_accuracy,
        )
        self.history.append(metrics)

        # Keep the weights if this is the best epoch so far. Early stopping follows from history.
        if self.kept_epoch == metrics.epoch:
            self.kept_weights = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }

        # Let the learning rate follow the loss. Recordings contain it, so a new one needs new ones.
        self.scheduler.step(metrics.deciding_loss)
        if self.optimizer.param_groups[0]["lr"] != learning_rate:
            self._training.forget()
        return metrics

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use the fold's random streams as the process's, and its CUDA stream as the GPU's."""
        with self._random.active():
            if self._cuda_stream is None:
                yield
                return
            self._cuda_stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._cuda_stream):
                yield

    def wait(self) -> None:
        """Wait until the GPU has computed everything queued for the fold."""
        if self._cuda_stream is not None:
            self._cuda_stream.synchronize()

    # --- progress and results

    @property
    def epochs_run(self) -> int:
        return len(self.history)

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose weights are kept; None before the first."""
        kept = kept_of(self.history)
        return kept.epoch if kept else None

    @property
    def stopped_early(self) -> bool:
        """Whether the last `early_stopping_patience` epochs have brought no lower loss."""
        losses = [metrics.deciding_loss for metrics in self.history]
        patience = self.settings.early_stopping_patience
        return len(losses) > patience and min(losses) in losses[: len(losses) - patience]

    def done(self, epochs: int) -> bool:
        """Return whether a run of `epochs` has nothing left to train here."""
        return self.stopped_early or self.epochs_run >= epochs

    @property
    def why_not_recorded(self) -> str | None:
        """Why steps are not recorded on a device that could replay them; None if they are."""
        return self._training.refused or self._evaluation.refused

    def held_out_probabilities(self) -> np.ndarray:
        """Return (n_val, num_classes) float32, in sample order, computed with the kept weights."""
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.kept_weights)
        self.model.eval()
        try:
            with torch.inference_mode(), self._random.fork():
                logits = []
                for rows in self._validation.split(EVALUATION_BATCH):
                    logits.append(self.model(self._batch(rows)[0]))
                    self._on_batch()
                probabilities = torch.softmax(torch.cat(logits), dim=1)
        finally:
            self.model.load_state_dict(current)
        return probabilities.cpu().numpy()

    def histograms(self) -> dict[str, Histogram]:
        """Return histograms of each parameter and of its gradient in the epoch's last batch.

        Their names are ``weights/<parameter>`` and ``gradients/<parameter>``. Tensors with a value
        that is not finite are left out.
        """
        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"weights/{name}"] = parameter.detach()
            if parameter.grad is not None:
                tensors[f"gradients/{name}"] = parameter.grad
        histograms = {}
        for name, values in tensors.items():
            if values.isfinite().all():
                counts, edges = torch.histogram(values.float().cpu(), bins=_HISTOGRAM_BINS)
                histograms[name] = Histogram(tuple(counts.long().tolist()), tuple(edges.tolist()))
        return histograms

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later epochs depend on, as tensors and plain values."""
        return {
            "fold": self.fold,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": self._random.state_dict(),
            "history": [asdict(metrics) for metrics in self.history],
            "kept_weights": self.kept_weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state_dict` was taken.

        Raises:
            ValueError: it is the state of another fold.
        """
        if state["fold"] != self.fold:
            raise ValueError(f"state of fold {state['fold']} given to fold {self.fold}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self._random.load_state_dict(state["random"])
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]
        self.kept_weights = {
            name: value.to(self.device) for name, value in state["kept_weights"].items()
        }
        self._training.forget()  # the optimizer has other tensors now
        self._evaluation.forget()

    def snapshot(self) -> Snapshot:
        """Return a copy of the fold in host memory, to be written while training continues."""
        # Training changes weights and optimizer in place; everything else it replaces.
        in_place = ("model", "optimizer")
        state = {
            name: _to_host(value, copied=name in in_place)
            for name, value in self.state_dict().items()
        }
        if self._cuda_stream is not None:
            torch.cuda.current_stream(self.device).synchronize()
        sizes, stopped = (self.n_train, self.n_val), self.stopped_early
        so_far = FoldResult.of(self.fold, "running", *sizes, self.history, stopped_early=stopped)
        return Snapshot(so_far, state)

    # --- recordings

    def _record_step(self, step: Step, recorder: Recorder | None) -> RecordedStep:
        if recorder is None and self._cuda_stream is not None:
            if vars(type(self.model)).get("recordable", False):
                recorder = cuda_graphs(self._cuda_stream)  # each step has memory of its own
            else:
                recorder = no_recordings(
                    f"{self.settings.model} does not say that it is recordable"
                )
        return RecordedStep(step, recorder, self._tensors)

    def _tensors(self) -> list[Tensor]:
        """Return the tensors that a step changes in place."""
        optimizer = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [value for value in optimizer if isinstance(value, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *tensors]


def run_epochs(trainers: Sequence[FoldTrainer]) -> dict[int, EpochMetrics | FoldError]:
    """Train an epoch of each fold, in turns of a few batches, which a GPU computes side by side.

    Metrics and weights of each fold are, to the bit, those of its epoch alone. The time is divided
    equally among the folds.

    Returns:
        Fold → its metrics, or the error that ended it, which does not affect the other folds.

    Raises:
        MemoryError, torch.OutOfMemoryError, torch.AcceleratorError: as `FoldTrainer.run_epoch`.
    """
    started = time.perf_counter()

    # Compute: each fold has a turn, again and again, until all have ended.
    batches = _BATCHES_IN_A_TURN if len(trainers) > 1 else None
    epochs = {trainer: trainer.epoch() for trainer in trainers}
    ended: dict[FoldTrainer, Tallies | FoldError] = {}
    while len(ended) < len(trainers):
        for trainer in trainers:
            if trainer not in ended:
                result = _turn(trainer, epochs[trainer], batches)
                if result is not None:
                    ended[trainer] = result

    # Read the results only now that the GPU has all folds in its queues: reading waits for it.
    outcomes: dict[int, EpochMetrics | FoldError] = {}
    for trainer in trainers:
        tallies = ended[trainer]
        try:
            if isinstance(tallies, FoldError):
                raise tallies
            outcomes[trainer.fold] = trainer.conclude(tallies, started, len(trainers))
        except FoldError as error:
            outcomes[trainer.fold] = error.with_traceback(None)  # that keeps all folds in memory
    return outcomes


def _turn(
    trainer: FoldTrainer, epoch: Iterator[Tallies | None], batches: int | None
) -> Tallies | FoldError | None:
    """Compute the next batches of a fold's epoch, or all that are left.

    Returns:
        The epoch's tallies once it has ended, the error that ended it, or None while it goes on.
    """
    try:
        with trainer.active():
            for tallies in itertools.islice(epoch, batches):
                if tallies is not None:
                    return tallies
    except PROCESS_ERRORS:
        raise
    except Exception as error:
        trainer.wait()  # another fold will soon use the memory of one that has failed
        if isinstance(error, FoldError):
            return error
        failure = FoldError(f"epoch {trainer.epochs_run + 1}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure
    return None


def _to_host(value: Any, *, copied: bool) -> Any:
    """Return `value` with every tensor in host memory; what is there already is copied on demand.

    Copies from a GPU are complete only once its stream has been waited for.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=copied)
    if isinstance(value, list):
        return [_to_host(each, copied=copied) for each in value]
    if isinstance(value, dict):
        result = copy.copy(value)  # with the attribute in which a network versions its layout
        for name, each in value.items():
            result[name] = _to_host(each, copied=copied)
        return result
    return value
