"""Training of one fold: its network, optimizer and random streams. No Ray, no files."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from raykfold.data.feature_set import Split
from raykfold.errors import FoldError, NonFiniteLoss
from raykfold.training.evaluation import Evaluation
from raykfold.training.feature_stream import FeatureStream
from raykfold.training.normalization import Normalization
from raykfold.training.random_streams import RandomStreams
from raykfold.training.recipe import (
    PROCESS_ERRORS,
    CheckedRecipe,
    TrainingSettings,
    build_recipe,
)
from raykfold.training.results import EpochMetrics, FoldResult, FoldStatus, Histogram, kept_of
from raykfold.training.steps import RecordedStep, Recorder, Step, cuda_graphs, no_recordings

# A constant, because batch size affects how a convolution rounds: the accuracy of a set of weights
# must not depend on a setting of training.
EVALUATION_BATCH = 64
# Likewise the sums of statistics round by it.
FITTING_BATCH = 256
_HISTOGRAM_BINS = 64
# Batches of a fold before the next fold has its turn. Switching random streams takes 0.1 ms; a GPU
# has the turns of all folds in its queues, and computes them side by side.
_BATCHES_IN_A_TURN = 8


@dataclass(frozen=True)
class Tally:
    """What one pass over samples gave, still on the device.

    Attributes:
        phase: what the pass was for: training, validation or inner validation.
        losses: (batches,) mean loss of each batch.
        sizes: number of samples in each batch.
        outputs: of training, (batches,) numbers of samples classified correctly; of evaluation,
            (samples, num_classes) logits.
    """

    phase: str
    losses: Tensor
    sizes: tuple[int, ...]
    outputs: Tensor


Tallies: TypeAlias = tuple[Tally, ...]


@dataclass(frozen=True)
class Snapshot:
    """A copy of a fold in host memory, which later training does not change.

    Attributes:
        so_far: the fold's result so far, with status ``running``.
        state: what `FoldTrainer.load_state_dict` takes.
        metadata: what a weights file records about the recipe (`Recipe.metadata`).
    """

    so_far: FoldResult
    state: Mapping[str, Any]
    metadata: Mapping[str, str]

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights that were evaluated: with ``--ema``, their average."""
        weights: Mapping[str, Tensor] = self.state["average"] or self.state["model"]
        return weights

    @property
    def kept_weights(self) -> Mapping[str, Tensor]:
        return self.state["kept_weights"]

    def result(self, status: FoldStatus) -> FoldResult:
        """Return the fold's result so far, with another status."""
        return replace(self.so_far, status=status)


class FoldTrainer:
    """Trains one fold, an epoch at a time.

    Its `Recipe` says how. After each epoch the scheduler and early stopping follow the
    validation loss, and the weights of the epoch with the highest score on validation samples are
    kept. With an inner validation split, all three follow that split instead, and the held-out
    samples decide nothing.

    All randomness (initial weights, order of samples, dropout, whatever a network draws from
    Python's or NumPy's generator) comes from streams that belong to the fold and are derived from
    (seed, fold). So a result does not depend on what else the process does.

    Args:
        fold: label of the fold that is held out.
        features: (N, *input_shape), floats, integers or bools, on the device to train on; or a
            stream of them to that device. Only batches are turned into float32. Results do not
            depend on which it is.
        class_indices: (N,) long, from 0 to num_classes - 1, on the same device.
        split: the fold's training and validation indices.
        num_classes: number of outputs of the network.
        settings: hyper-parameters, the recipe among them.
        recorder: makes recordings of steps. By default steps are recorded as CUDA graphs, on a GPU
            and if the classes of the network and of the recipe say that they are `recordable`.
        on_batch: called after each batch of training and evaluation, which a GPU may still be
            computing then.
        state: what `state_dict` returned for the fold, to continue from there.

    Raises:
        BadInput: the recipe or the network cannot be built.
        FoldError: a method of the recipe fails.
    """

    def __init__(
        self,
        fold: int,
        features: Tensor | FeatureStream,
        class_indices: Tensor,
        split: Split,
        num_classes: int,
        settings: TrainingSettings,
        recorder: Recorder | None = None,
        on_batch: Callable[[], None] = lambda: None,
        state: Mapping[str, Any] | None = None,
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
        # In host memory, where streams and the random order need them.
        self._train = torch.as_tensor(split.train)
        self._validation = torch.as_tensor(split.validation)
        self._inner = torch.as_tensor(split.inner)
        # On a GPU each fold has a queue of its own, so that folds can be computed side by side.
        self._cuda_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._random = RandomStreams(settings.seed, fold, self.device)
        normalization = None
        if settings.normalize != "none":
            input_shape = tuple(features.shape[1:])
            normalization = Normalization.of(settings.normalize, input_shape, features.dtype)
        self.recipe = build_recipe(settings, num_classes, self.device, normalization)
        self._checked = CheckedRecipe(self.recipe)
        with self._random.active():
            model = self._checked.network(tuple(features.shape[1:]), num_classes)
            self.model = model.to(self.device)
            if state is not None:
                self.recipe.load_state_dict(state["recipe"], self.device, built=False)
            elif self.recipe.has_to_fit:
                labels = self._class_indices.index_select(0, self._train.to(self.device))
                self._checked.fit(_TrainingFeatures(self), labels)
            self.optimizer = self._checked.optimizer(self.model)
            steps = len(self._training_batches(self._train))
            self.scheduler = self._checked.scheduler(self.optimizer, settings.epochs, steps)
        # With --ema, the exponential moving average of the weights is what is evaluated and kept.
        self.average: nn.Module | None = None
        if settings.ema:
            self.average = copy.deepcopy(self.model).requires_grad_(False)
        self._average_steps = torch.zeros((), device=self.device)
        self._training = self._record_step(self.training_step, recorder)
        self._evaluation = self._record_step(self.evaluation_step, recorder)
        if state is not None:
            self.load_state_dict(state)

    # --- a step

    def training_step(self, rows: Tensor, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Update the weights on one batch.

        Args:
            rows: (B,) long, indices of the batch's samples.
            samples: (B, *input_shape), if features are streamed.

        Returns:
            Mean loss and number of samples classified correctly, both scalars on the device.
        """
        inputs, targets = self._checked.augment(*self.batch(rows, samples))
        precision: AbstractContextManager[object] = nullcontext()
        if self.settings.precision == "bf16":
            # A step uses each weight once, so a cache of cast weights would gain nothing; and a
            # recording must not contain one.
            precision = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        with precision:
            logits = self.model(inputs)
        loss = self._checked.loss(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self._update_average(self.average)
        likeliest = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return loss.detach(), (logits.detach().argmax(dim=1) == likeliest).sum()

    def evaluation_step(self, rows: Tensor, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy of a batch, and its (B, num_classes) logits."""
        with torch.inference_mode():
            inputs, targets = self.batch(rows, samples)
            logits = self.evaluated(inputs)
            return nn.functional.cross_entropy(logits, targets), logits

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the average of the trained one, if there is."""
        return self.model if self.average is None else self.average

    def _update_average(self, average: nn.Module) -> None:
        """Move the average towards the weights, and towards statistics like those of BatchNorm.

        The decay is that of ``--ema``, or (1 + n) / (10 + n) after n steps if that is less: else
        the initial weights would count for hundreds of steps. TensorFlow's
        `ExponentialMovingAverage` does the same if it is told the number of steps.
        """
        with torch.no_grad():
            ramp = (1 + self._average_steps) / (10 + self._average_steps)
            share = 1 - ramp.clamp_max(self.settings.ema)
            self._average_steps += 1
            for mean, value in zip(
                [*average.parameters(), *average.buffers()],
                [*self.model.parameters(), *self.model.buffers()],
                strict=True,
            ):
                if mean.is_floating_point():
                    mean.lerp_(value, share.to(mean.dtype))
                else:
                    mean.copy_(value)

    def batch(self, rows: Tensor, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return inputs of the network, normalized and not augmented, and their (B,) targets.

        Args:
            rows: (B,) long, indices of samples.
            samples: (B, *input_shape) in the features' type, if these are streamed.
        """
        inputs, targets = self._batch(rows, samples)
        normalization = self.recipe.normalization
        return (inputs if normalization is None else normalization(inputs)), targets

    def _batch(self, rows: Tensor, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if samples is None:
            assert isinstance(self._features, Tensor)
            samples = self._features.index_select(0, rows)
        return samples.float(), self._class_indices.index_select(0, rows)

    def _read(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield what a step takes of each batch: its rows on the device, and streamed samples.

        Args:
            batches: (B,) long each, rows in host memory.
        """
        on_device = torch.cat(list(batches)).to(self.device).split(list(map(len, batches)))
        if isinstance(self._features, Tensor):
            return zip(on_device)
        return zip(on_device, self._features.read(batches), strict=True)

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
        # Training uses every sample once, in a new order.
        order = self._train[torch.randperm(self.n_train)]
        passes = [
            ("training", self._training, self._training_batches(order)),
            ("validation", self._evaluation, self._validation.split(EVALUATION_BATCH)),
        ]
        if len(self._inner):
            batches = self._inner.split(EVALUATION_BATCH)
            passes.append(("inner validation", self._evaluation, batches))

        # One reader for all passes: at the end of one, the first batches of the next are there.
        reader = self._read([rows for _, _, batches in passes for rows in batches])
        tallies = []
        for phase, step, batches in passes:
            is_training = phase == "training"
            self.model.train(is_training)
            self.evaluated.train(is_training)
            losses = torch.zeros(len(batches), device=self.device)
            outputs = _Rows(len(batches) if is_training else sum(map(len, batches)))
            for number, batch in enumerate(itertools.islice(reader, len(batches))):
                # Results stay on the device: to read one would be to wait for the GPU. A recorded
                # step returns the same tensors each time.
                losses[number], output = step(*batch)
                outputs.add(output)
                if is_training and self._steps_scheduler("batch"):
                    self._checked.step_scheduler(self.scheduler)
                self._on_batch()
                yield None
            tallies.append(Tally(phase, losses, tuple(map(len, batches)), outputs.all))
        yield tuple(tallies)

    def _training_batches(self, order: Tensor) -> tuple[Tensor, ...]:
        """Split samples into batches, a shorter last one included.

        A last batch of one sample joins the one before: BatchNorm has no variance of one value.
        """
        batches = order.split(self.settings.batch_size)
        if len(batches) > 1 and len(batches[-1]) == 1 < self.settings.batch_size:
            return (*batches[:-2], torch.cat(batches[-2:]))
        return batches

    def _steps_scheduler(self, interval: str) -> bool:
        """Whether the scheduler is stepped at this interval, and without a loss."""
        follows_loss = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        has_one = self.scheduler is not None and not follows_loss
        return has_one and self.recipe.scheduler_interval == interval

    def conclude(self, tallies: Tallies, started: float, folds: int) -> EpochMetrics:
        """Read the results of an epoch; update kept weights, learning rate and early stopping.

        Args:
            tallies: what `epoch` yielded last.
            started: when the epoch began, by `time.perf_counter`.
            folds: number of folds that have shared the time since.

        Raises:
            NonFiniteLoss: a loss is NaN or infinite.
            FoldError: the recipe's score or scheduler fails.
        """
        # Read losses and accuracies. The host waits for the device here.
        means: dict[str, float] = {}
        evaluations: dict[str, Evaluation] = {}
        samples = {"validation": self._validation, "inner validation": self._inner}
        with self.active():
            for tally in tallies:
                losses = tally.losses.tolist()
                for number, loss in enumerate(losses, start=1):
                    if not math.isfinite(loss):
                        raise NonFiniteLoss(
                            f"{tally.phase} loss became {loss} in epoch {self.epochs_run + 1}, "
                            f"batch {number} of {len(losses)}"
                        )
                total = math.fsum(loss * n for loss, n in zip(losses, tally.sizes, strict=True))
                means[tally.phase] = mean = total / sum(tally.sizes)
                if tally.phase != "training":
                    targets = self._class_indices[samples[tally.phase].to(self.device)]
                    evaluations[tally.phase] = Evaluation(mean, tally.outputs, targets)
            right = int(tallies[0].outputs.sum())
            scores = self._scores(evaluations)
        validation, inner = evaluations["validation"], evaluations.get("inner validation")
        before = self._group_settings()
        metrics = EpochMetrics(
            epoch=self.epochs_run,
            loss=means["training"],
            accuracy=right / self.n_train,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            seconds=(time.perf_counter() - started) / folds,
            inner_loss=inner.loss if inner else None,
            inner_accuracy=inner.accuracy if inner else None,
            val_balanced_accuracy=validation.balanced_accuracy,
            val_macro_f1=validation.macro_f1,
            val_score=scores["validation"],
            inner_score=scores.get("inner validation"),
        )
        self.history.append(metrics)

        # Keep the weights if this is the best epoch so far. Early stopping follows from history.
        if self.kept_epoch == metrics.epoch:
            self.kept_weights = _to_device(self.device, self.evaluated.state_dict(), copied=True)

        # Recordings contain the settings of the optimizer, so new ones need new recordings.
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._checked.step_scheduler(self.scheduler, metrics.deciding_loss)
        elif self._steps_scheduler("epoch"):
            self._checked.step_scheduler(self.scheduler)
        if self._group_settings() != before:
            self._training.forget()
        return metrics

    def _scores(self, evaluations: Mapping[str, Evaluation]) -> dict[str, float | None]:
        """Return the recipe's score of each evaluation; None where it is the accuracy."""
        scores: dict[str, float | None] = {}
        for phase, evaluation in evaluations.items():
            # With an inner split, not even a score that remembers learns of the held-out samples.
            decides = phase == "inner validation" or len(evaluations) == 1
            before = None if decides else copy.deepcopy(self.recipe.state_dict())
            score = self._checked.score(evaluation)
            if before is not None:
                self.recipe.load_state_dict(before, self.device)
            scores[phase] = None if score == evaluation.accuracy else score
        return scores

    def _group_settings(self) -> list[dict[str, Any]]:
        """Return what the optimizer's groups of parameters are stepped with."""
        return [
            {
                name: float(v) if isinstance(v, Tensor) else v
                for name, v in group.items()
                if name != "params"
            }
            for group in self.optimizer.param_groups
        ]

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
        model = self.evaluated
        current = _to_device(self.device, model.state_dict(), copied=True)
        model.load_state_dict(self.kept_weights)
        model.eval()
        try:
            with torch.inference_mode(), self._random.fork():
                logits = _Rows(self.n_val)
                for batch in self._read(self._validation.split(EVALUATION_BATCH)):
                    logits.add(model(self.batch(*batch)[0]))
                    self._on_batch()
                probabilities = torch.softmax(logits.all, dim=1)
        finally:
            model.load_state_dict(current)
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
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "average_steps": self._average_steps,
            "recipe": self.recipe.state_dict(),
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
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._average_steps.copy_(state["average_steps"])
        self.recipe.load_state_dict(state["recipe"], self.device)
        self._random.load_state_dict(state["random"])
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]
        self.kept_weights = _to_device(self.device, state["kept_weights"], copied=False)
        self._training.forget()  # the optimizer has other tensors now
        self._evaluation.forget()

    def snapshot(self) -> Snapshot:
        """Return a copy of the fold in host memory, to be written while training continues."""
        # Training changes weights and optimizer in place; everything else it replaces.
        in_place = ("model", "optimizer", "average", "average_steps", "recipe")
        state = {
            name: _to_device(torch.device("cpu"), value, copied=name in in_place)
            for name, value in self.state_dict().items()
        }
        if self._cuda_stream is not None:
            torch.cuda.current_stream(self.device).synchronize()
        sizes, stopped = (self.n_train, self.n_val), self.stopped_early
        so_far = FoldResult.of(self.fold, "running", *sizes, self.history, stopped_early=stopped)
        return Snapshot(so_far, state, self.recipe.metadata())

    # --- recordings

    def _record_step(self, step: Step, recorder: Recorder | None) -> RecordedStep:
        if recorder is None and self._cuda_stream is not None:
            why_not = self._why_not_recordable()
            recorder = no_recordings(why_not) if why_not else cuda_graphs(self._cuda_stream)
        return RecordedStep(step, recorder, self._tensors)

    def _tensors(self) -> list[Tensor]:
        """Return the tensors that a step changes in place."""
        optimizer = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [value for value in optimizer if isinstance(value, Tensor)]
        modules = [self.model] if self.average is None else [self.model, self.average]
        weights = [each for module in modules for each in (*module.parameters(), *module.buffers())]
        return [*weights, self._average_steps, *tensors, *self.recipe.tensors()]

    def _why_not_recordable(self) -> str | None:
        if self._steps_scheduler("batch"):
            return "the recipe's scheduler changes the learning rate with each batch"
        for name, made in (("the network", self.model), ("the recipe", self.recipe)):
            if not vars(type(made)).get("recordable", False):
                return f"{name}, {type(made).__name__}, does not say that it is recordable"
        return None


class _Rows:
    """Outputs of steps, batch by batch in one tensor.

    Many small tensors, made between the large ones of steps, would keep these apart in memory: that
    of a worker grew by 1.2 GB in one pass over 45,000 samples.

    Args:
        total: number of rows in all.
    """

    def __init__(self, total: int) -> None:
        self.all = torch.empty(0)
        self._total = total
        self._filled = 0

    def add(self, output: Tensor) -> None:
        """Copy rows (B, ...), or a scalar as one row."""
        rows = output if output.ndim else output.unsqueeze(0)
        if not self._filled:
            self.all = rows.new_empty((self._total, *rows.shape[1:]))
        end = self._filled + len(rows)
        self.all[self._filled : end] = rows
        self._filled = end


class _TrainingFeatures(Iterable[Tensor]):
    """Features of the training split in batches, as often as a recipe iterates over them.

    They are copies: whatever a recipe does, it sees the training split and nothing else.
    """

    def __init__(self, fold: FoldTrainer) -> None:
        self._fold = fold

    def __iter__(self) -> Iterator[Tensor]:
        fold = self._fold
        for batch in fold._read(fold._train.split(FITTING_BATCH)):
            yield fold._batch(*batch)[0]
            fold._on_batch()


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


def _to_device(device: torch.device, value: Any, *, copied: bool) -> Any:
    """Return `value` with every tensor on the device; what is there already is copied on demand.

    Copies from a GPU are complete only once its stream has been waited for.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device, non_blocking=True, copy=copied)
    if type(value) in (list, tuple):
        return type(value)(_to_device(device, each, copied=copied) for each in value)
    if isinstance(value, dict):
        result = copy.copy(value)  # with the attribute in which a network versions its layout
        for name, each in value.items():
            result[name] = _to_device(device, each, copied=copied)
        return result
    return value
