"""One fold in training: its network, its optimiser, its random streams. No Ray, no files."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import Split
from raykfold.errors import FoldError, NonFiniteLoss
from raykfold.training.network import build_model
from raykfold.training.random_streams import RandomStreams
from raykfold.training.results import EpochMetrics, Histogram, kept_of
from raykfold.training.steps import RecordedStep, Recorder, Step, cuda_graphs, no_recordings

# A constant, because another batch size can round a convolution another way: the accuracy of a
# set of weights must not depend on a setting of training.
EVALUATION_BATCH = 64
_HISTOGRAM_BINS = 64
# Of folds that are stepped together. Random streams are swapped for each turn, which takes a tenth
# of a millisecond; a GPU has all turns in its queues, and computes them side by side all the same.
_BATCHES_IN_A_TURN = 8
# After one of these, what other folds do in this process can fail too: CUDA, for one, answers every
# call with the first error. A new process tells whether it was the fold.
OF_THE_PROCESS = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainingSettings:
    """Hyper-parameters of training, each named as the option of `RunConfig` that it comes from.

    Attributes:
        model: The network, as ``module:Class(name=value, ...)``.
        batch_size: Samples in a training batch.
        learning_rate: Adam's initial learning rate.
        early_stopping_patience: Epochs without a lower validation loss after which the fold stops.
        seed: Seed of every random draw.
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
    """What a pass over samples has given, still on the device.

    Attributes:
        losses: (batches,) mean loss of each batch.
        sizes: samples of each batch.
        right: how many samples were classified right, a scalar.
    """

    losses: Tensor
    sizes: tuple[int, ...]
    right: Tensor

    def read(self) -> tuple[list[float], float]:
        """Loss of each batch, and accuracy. The host waits for the device."""
        return self.losses.tolist(), int(self.right) / sum(self.sizes)


@dataclass(frozen=True)
class Snapshot:
    """A fold as it was after an epoch, in host memory: what is trained later does not change it.

    Attributes:
        fold: the fold's label.
        n_train: training samples.
        n_val: validation samples.
        history: its epochs so far.
        kept_epoch: the epoch of the best weights; None before the first.
        stopped_early: whether patience has ended it.
        state: what `FoldTrainer.load_state_dict` takes.
    """

    fold: int
    n_train: int
    n_val: int
    history: tuple[EpochMetrics, ...]
    kept_epoch: int | None
    stopped_early: bool
    state: Mapping[str, Any]

    @property
    def epochs_run(self) -> int:
        return len(self.history)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.state["model"]

    @property
    def kept_weights(self) -> Mapping[str, Tensor]:
        return self.state["best_weights"]


# Gives way after each batch, so that other folds can be stepped meanwhile.
Pass = Generator[None, None, Tally]


class FoldTrainer:
    """Trains one fold, an epoch at a time.

    Adam on cross-entropy. After each epoch the learning rate follows the validation loss
    (`ReduceLROnPlateau`), the weights that are kept are those of the highest validation accuracy,
    and the fold has stopped early once the validation loss has not improved for
    `early_stopping_patience` epochs.
    With an inner validation split all three go by that, and the samples that are held out decide
    nothing.

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
        recorder: how steps are recorded; by default as CUDA graphs, on a GPU and if the network's
            class says that it is `recordable`.

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
    ) -> None:
        self.fold = fold
        self.settings = settings
        self.history: list[EpochMetrics] = []
        self.kept_epoch: int | None = None
        self.kept_weights: dict[str, Tensor] = {}
        self._features = features
        self._class_indices = class_indices
        self._device = features.device
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._train = torch.as_tensor(split.train, device=self._device)
        self._validation = torch.as_tensor(split.validation, device=self._device)
        self._inner = torch.as_tensor(split.inner, device=self._device)
        self._streams = RandomStreams(settings.seed, fold, self._device)
        with self._streams.swapped_in():
            model = build_model(settings.model, features.shape[1], num_classes, features.shape[2])
        self.model = model.to(self._device)
        self._optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=settings.learning_rate,
            fused=True,
            capturable=self._stream is not None,
        )
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, mode="min", factor=0.2, patience=5, min_lr=1e-5
        )
        self._lowest_val_loss = math.inf
        self._epochs_without_improvement = 0
        self._training = self._recorded(self._train_step, recorder)
        self._evaluation = self._recorded(self._evaluation_step, recorder)

    @property
    def epochs_run(self) -> int:
        return len(self.history)

    @property
    def stopped_early(self) -> bool:
        return self._epochs_without_improvement >= self.settings.early_stopping_patience

    @property
    def n_train(self) -> int:
        return len(self._train)

    @property
    def n_val(self) -> int:
        return len(self._validation)

    def done(self, epochs: int) -> bool:
        """Whether the fold has nothing left to do in a run of `epochs`."""
        return self.stopped_early or self.epochs_run >= epochs

    @property
    def not_recorded(self) -> str | None:
        """Why steps run as they come on a device that could replay them; None if they do not."""
        return self._training.refused or self._evaluation.refused

    def run_epoch(self) -> EpochMetrics:
        """Train an epoch, evaluate, and let scheduler, best weights and early stopping follow.

        Raises:
            NonFiniteLoss: a loss became NaN or infinite.
            FoldError: the network raised.
            MemoryError, torch.OutOfMemoryError, torch.AcceleratorError: this process may be of no
                more use, to any fold.
        """
        outcome = run_epochs([self])[self.fold]
        if isinstance(outcome, FoldError):
            raise outcome
        return outcome

    def epoch(self) -> Generator[None, None, tuple[Tally, Tally, Tally | None]]:
        """An epoch, batch by batch, to be stepped while `at_work`.

        Returns:
            What training has given, evaluation, and that on the inner validation samples.
        """
        training = yield from self.train_epoch()
        evaluation = yield from self.evaluate()
        inner = (yield from self._evaluate(self._inner)) if len(self._inner) else None
        return training, evaluation, inner

    def train_epoch(self) -> Pass:
        """One pass over the training samples in a new order. The last, shorter batch is used."""
        self.model.train()
        order = self._train[torch.randperm(len(self._train)).to(self._device)]
        return self._pass(self._training, order.split(self.settings.batch_size))

    def evaluate(self) -> Pass:
        """One pass over the validation samples, with the current weights."""
        return self._evaluate(self._validation)

    def _evaluate(self, samples: Tensor) -> Pass:
        self.model.eval()
        return self._pass(self._evaluation, samples.split(EVALUATION_BATCH))

    def conclude(
        self,
        training: Tally,
        evaluation: Tally,
        inner: Tally | None,
        started: float,
        folds: int,
    ) -> EpochMetrics:
        """Read what an epoch has given; scheduler, best weights and early stopping follow.

        Args:
            started: when it began, by `time.perf_counter`.
            folds: how many have shared the time since.

        Raises:
            NonFiniteLoss: a loss is NaN or infinite.
        """
        with self.at_work():
            loss, accuracy = self._read(training, "training")
            val_loss, val_accuracy = self._read(evaluation, "validation")
            of_inner = (None, None) if inner is None else self._read(inner, "inner validation")
        metrics = EpochMetrics(
            epoch=self.epochs_run,
            loss=loss,
            accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            seconds=(time.perf_counter() - started) / folds,
            inner_loss=of_inner[0],
            inner_accuracy=of_inner[1],
        )
        self._conclude(metrics)
        return metrics

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The fold's random streams are the process's inside, and its stream is the GPU's."""
        with self._streams.swapped_in():
            if self._stream is None:
                yield
                return
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                yield

    def wait(self) -> None:
        """Until the GPU has done all that it was told."""
        if self._stream is not None:
            self._stream.synchronize()

    def held_out_probabilities(self) -> np.ndarray:
        """(n_val, num_classes) float32, in sample order, from the weights that are kept."""
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.kept_weights)
        self.model.eval()
        try:
            with torch.inference_mode(), self._streams.kept():
                logits = [
                    self.model(self._gather(rows)[0])
                    for rows in self._validation.split(EVALUATION_BATCH)
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
            "best_epoch": self.kept_epoch,
            "best_weights": self.kept_weights,
            "lowest_val_loss": self._lowest_val_loss,
            "epochs_without_improvement": self._epochs_without_improvement,
        }

    def snapshot(self) -> Snapshot:
        """What is to be written of the fold, while it goes on."""
        state = self.state_dict()
        changed_in_place = ("model", "optimizer")
        state = {
            name: _on_host(value, anew=name in changed_in_place) for name, value in state.items()
        }
        if self._stream is not None:
            torch.cuda.current_stream(self._device).synchronize()
        return Snapshot(
            fold=self.fold,
            n_train=self.n_train,
            n_val=self.n_val,
            history=tuple(self.history),
            kept_epoch=self.kept_epoch,
            stopped_early=self.stopped_early,
            state=state,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            ValueError: it is another fold's state.
        """
        if state["fold"] != self.fold:
            raise ValueError(f"state of fold {state['fold']} given to fold {self.fold}")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:  # a state can be older than these
            group.update(fused=True, capturable=self._stream is not None)
        self._scheduler.load_state_dict(state["scheduler"])
        self._streams.load_state_dict(state["streams"])
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]
        self.kept_epoch = state["best_epoch"]
        self.kept_weights = {
            name: value.to(self._device) for name, value in state["best_weights"].items()
        }
        self._lowest_val_loss = state["lowest_val_loss"]
        self._epochs_without_improvement = state["epochs_without_improvement"]
        self._training.forget()  # the optimiser has other tensors now
        self._evaluation.forget()

    def _recorded(self, step: Step, recorder: Recorder | None) -> RecordedStep:
        if recorder is None and self._stream is not None:
            if vars(type(self.model)).get("recordable", False):
                recorder = cuda_graphs(self._stream)  # each with memory of its own
            else:
                recorder = no_recordings(
                    f"{self.settings.model} does not say that it is recordable"
                )
        return RecordedStep(step, recorder, self._tensors)

    def _pass(self, step: Step, batches: Sequence[Tensor]) -> Pass:
        losses = torch.zeros(len(batches), device=self._device)
        right = torch.zeros((), dtype=torch.long, device=self._device)
        for number, rows in enumerate(batches):
            loss, hits = step(rows)
            losses[number] = loss
            right += hits
            yield
        return Tally(losses, tuple(map(len, batches)), right)

    def _train_step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = self._gather(rows)
        with self._autocast():
            logits = self.model(inputs)
        loss = nn.functional.cross_entropy(logits.float(), targets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.detach(), _hits(logits.detach(), targets)

    def _evaluation_step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            inputs, targets = self._gather(rows)
            logits = self.model(inputs)
            return nn.functional.cross_entropy(logits, targets), _hits(logits, targets)

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self._features.index_select(0, rows).float()
        return inputs, self._class_indices.index_select(0, rows)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.settings.precision == "fp32":
            return nullcontext()
        # Each weight is used once a step, so there is nothing to keep; a recording must not.
        return torch.autocast(self._device.type, dtype=torch.bfloat16, cache_enabled=False)

    def _tensors(self) -> list[Tensor]:
        """What a step changes, in place."""
        of_optimizer = [
            value
            for state in self._optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return [*self.model.parameters(), *self.model.buffers(), *of_optimizer]

    def _read(self, tally: Tally, phase: str) -> tuple[float, float]:
        losses, accuracy = tally.read()
        for number, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                raise NonFiniteLoss(
                    f"{phase} loss became {loss} in epoch {self.epochs_run + 1}, "
                    f"batch {number} of {len(losses)}"
                )
        weighted = math.fsum(loss * size for loss, size in zip(losses, tally.sizes, strict=True))
        return weighted / sum(tally.sizes), accuracy

    def _conclude(self, metrics: EpochMetrics) -> None:
        self.history.append(metrics)
        if kept_of(self.history) is metrics:
            self.kept_epoch = metrics.epoch
            self.kept_weights = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }
        if metrics.deciding_loss < self._lowest_val_loss:
            self._lowest_val_loss = metrics.deciding_loss
            self._epochs_without_improvement = 0
        else:
            self._epochs_without_improvement += 1
        self._scheduler.step(metrics.deciding_loss)
        if self._optimizer.param_groups[0]["lr"] != metrics.learning_rate:
            self._training.forget()  # a recording has the learning rate in it


def run_epochs(trainers: Sequence[FoldTrainer]) -> dict[int, EpochMetrics | FoldError]:
    """An epoch of each fold, a few batches of each in turn; a GPU computes them side by side.

    Metrics and weights of each fold are, to the bit, those of its epoch alone. Its seconds are an
    equal part of what all of them took.

    Returns:
        fold → its metrics, or why it fails, which is no trouble to the others.

    Raises:
        MemoryError, torch.OutOfMemoryError, torch.AcceleratorError: as of `FoldTrainer.run_epoch`.
    """
    started = time.perf_counter()
    epochs = [_Epoch(trainer) for trainer in trainers]
    batches = _BATCHES_IN_A_TURN if len(epochs) > 1 else None
    under_way = epochs
    while under_way:
        under_way = [epoch for epoch in under_way if epoch.step(batches)]
    return {epoch.trainer.fold: epoch.outcome(started, len(epochs)) for epoch in epochs}


class _Epoch:
    """An epoch of a fold, under way."""

    def __init__(self, trainer: FoldTrainer) -> None:
        self.trainer = trainer
        self._batches = self._run()
        self._tallies: tuple[Tally, Tally, Tally | None] | None = None
        self._error: FoldError | None = None

    def step(self, batches: int | None) -> bool:
        """Compute so many batches, or all that are left with None; whether any is left."""
        try:
            with self.trainer.at_work():
                deque(itertools.islice(self._batches, batches), maxlen=0)
        except OF_THE_PROCESS:
            raise
        except Exception as error:
            self.trainer.wait()  # the memory of a fold that has failed is soon another's
            self._error = self._as_fold_error(error)
        return self._tallies is None and self._error is None

    def outcome(self, started: float, folds: int) -> EpochMetrics | FoldError:
        """Its metrics, or what went wrong."""
        if self._tallies is None:
            assert self._error is not None
            return self._error
        try:
            return self.trainer.conclude(*self._tallies, started, folds)
        except FoldError as error:
            return error

    def _as_fold_error(self, error: Exception) -> FoldError:
        if isinstance(error, FoldError):
            return error
        number = self.trainer.epochs_run + 1
        failure = FoldError(f"epoch {number}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure

    def _run(self) -> Iterator[None]:
        self._tallies = yield from self.trainer.epoch()


def _on_host(value: Any, *, anew: bool = False) -> Any:
    """The same with every tensor in host memory; also those that are there are copied, if `anew`.

    From a GPU they are on their way until its stream has been waited for, all of them at once.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=anew)
    if isinstance(value, list):
        return [_on_host(each, anew=anew) for each in value]
    if isinstance(value, dict):
        there = copy.copy(value)  # with the version of their layout, that a network's weights have
        for name, each in value.items():
            there[name] = _on_host(each, anew=anew)
        return there
    return value


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == targets).sum()


def _histogram(values: Tensor) -> Histogram:
    counts, edges = torch.histogram(values.float().cpu(), bins=_HISTOGRAM_BINS)
    return Histogram(tuple(map(int, counts.tolist())), tuple(edges.tolist()))
