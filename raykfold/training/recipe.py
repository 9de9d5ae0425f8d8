"""`Recipe`: how a fold is trained. Derive from it to change what no option can."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from raykfold.config.class_spec import DEFAULT_RECIPE, RecipeSpec
from raykfold.config.presets import PLAIN
from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput, FoldError, RaykfoldError
from raykfold.text import one_line
from raykfold.training.augmentation import mixup, spec_augment, time_shift
from raykfold.training.classes import find_class
from raykfold.training.network import build_model
from raykfold.training.normalization import Normalization

if TYPE_CHECKING:
    from raykfold.training.evaluation import Evaluation

Precision = Literal["fp32", "bf16"]
# After one of these, other folds can fail in this process too: CUDA, for one, answers every later
# call with the first error. Only a new process shows whether the fold was the cause.
PROCESS_ERRORS = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_PLAIN_VALUES = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class TrainingSettings:
    """Hyper-parameters of training, each named as the option of `RunConfig` that it comes from.

    `RunConfig` documents them. Those without a value here are as with ``--preset plain``.

    Attributes:
        epochs: most epochs, from which a schedule follows.
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
    epochs: int = 50
    recipe: str = DEFAULT_RECIPE
    optimizer: str = PLAIN["optimizer"]
    weight_decay: float = PLAIN["weight_decay"]
    scheduler: str = PLAIN["scheduler"]
    warmup_epochs: int = PLAIN["warmup_epochs"]
    grad_clip: float = PLAIN["grad_clip"]
    label_smoothing: float = PLAIN["label_smoothing"]
    class_weights: str = PLAIN["class_weights"]
    normalize: str = PLAIN["normalize"]
    mixup: float = PLAIN["mixup"]
    spec_augment: str = PLAIN["spec_augment"]
    time_shift: float = PLAIN["time_shift"]
    ema: float = PLAIN["ema"]
    monitor: str = PLAIN["monitor"]

    @classmethod
    def of(cls, config: RunConfig, precision: Precision) -> TrainingSettings:
        """Return the settings of a run; `precision` is what its option resolved to."""
        options = {field.name: getattr(config, field.name) for field in fields(cls)}
        return cls(**(options | {"precision": precision}))


class Recipe:
    """How a fold is trained. The options of a run say what each method does; any can be overridden.

        class Focal(raykfold.Recipe):
            def __init__(self, gamma=2.0):
                self.gamma = gamma

            def loss(self, logits, targets):
                losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                return ((1 - (-losses).exp()) ** self.gamma * losses).mean()

    is used by ``--recipe 'mine:Focal(gamma=1.5)'`` or ``RunConfig(recipe=Focal(gamma=1.5))``. Every
    fold has an instance of its own. The constructor takes keyword arguments that are numbers,
    texts, True or False; they are part of a run's identity and can be searched, as
    ``recipe.gamma``.

    The methods are called in this order: `network`, `fit`, `optimizer`, `scheduler`; then `augment`
    and `loss` for each training batch, and `score` after each epoch. In them, torch, NumPy and
    Python draw random numbers from the fold's own streams.

    A fold's checkpoint holds the attributes whose names do not begin with ``_``: tensors, modules,
    numbers, texts, and lists, tuples and dictionaries of them. A fold that resumes has these
    instead of a call of `fit`. So modules are made in the constructor or in `network`.

    Attributes:
        settings: the options of the run. The constructor does not have them yet.
        num_classes: number of classes; not in the constructor either.
        normalization: with ``--normalize``, the normalization whose statistics `fit` computes; else
            None. It is applied to each batch of training and evaluation, before `augment`.
        class_weights: (num_classes,) with ``--class_weights balanced``, else None.
    """

    recordable: ClassVar[bool] = True
    """A training step can be replayed as a CUDA graph, because it does the same each time except
    for the values of tensors and the GPU's random numbers. It is not inherited: a derived class
    declares it for itself."""

    scheduler_interval: ClassVar[Literal["epoch", "batch"]] = "epoch"
    """When the scheduler is stepped. One that follows a loss is stepped after each epoch."""

    settings: TrainingSettings
    num_classes: int
    normalization: Normalization | None = None
    class_weights: Tensor | None = None
    _spec = RecipeSpec()
    _arguments: Mapping[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Recipe:
        # What the constructor is given is remembered here, so that it need not call super().
        self = super().__new__(cls)
        if cls.__init__ is object.__init__ and (args or kwargs):
            raise TypeError(f"{cls.__name__} takes no arguments")
        bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name, {})
        self._arguments = arguments
        return self

    @property
    def spec(self) -> str:
        """The recipe as text, ``module:Class(name=value, ...)``.

        Raises:
            ValueError: its class or an argument cannot be written so.
        """
        return str(RecipeSpec.of(type(self)).with_arguments(self._arguments))

    # --- before training

    def network(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network with its initial weights; by default the one that ``--model`` names.

        A network maps (B, *input_shape) float32 to (B, num_classes) logits. `raykfold.load_fold`
        calls this method too, and then fills the network with a fold's weights: what inference
        needs must be in them, like the buffers of a layer that `fit` has set.

        Args:
            input_shape: of one sample: (n_mels, time) of a spectrogram.
            num_classes: number of outputs.
        """
        return build_model(self.settings.model, input_shape, num_classes)

    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        """Learn what training needs to know of the fold's training split.

        By default these are the statistics of ``--normalize`` and ``--class_weights``.

        Args:
            features: in batches (B, *input_shape) float32, on the device, because all of them may
                be more than it holds. They can be iterated over again, which reads them again.
            labels: (n_train,) long, class indices in the same order.
        """
        if self.normalization is not None:
            self.normalization.fit(features)
        if self.class_weights is not None:
            counts = labels.bincount(minlength=self.num_classes)
            present = (counts > 0).sum()
            weights = len(labels) / (present * counts.clamp_min(1))
            self.class_weights = torch.where(counts > 0, weights, 0).float()

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer, which is stepped after each batch."""
        settings = self.settings
        trained = [each for each in network.parameters() if each.requires_grad]
        common: dict[str, Any] = {
            "lr": settings.learning_rate,
            "weight_decay": settings.weight_decay,
            "fused": True,
        }
        if settings.optimizer == "sgd":
            return torch.optim.SGD(trained, momentum=0.9, nesterov=True, **common)
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        return kind(trained, capturable=trained[0].device.type == "cuda", **common)

    def scheduler(
        self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Return the scheduler of the learning rate, or None.

        `ReduceLROnPlateau` is told the loss after each epoch: of the inner validation split with
        ``--select inner``, else of the held-out fold. Others are stepped without it.

        Args:
            epochs: most epochs of the fold.
            steps_per_epoch: training batches in an epoch.
        """
        warmup, kind = self.settings.warmup_epochs, self.settings.scheduler
        if kind == "plateau":
            return PlateauAfterWarmup(optimizer, warmup)

        def factor(epoch: int) -> float:
            if epoch < warmup:
                return (epoch + 1) / (warmup + 1)
            if kind == "none":
                return 1.0
            done = (epoch - warmup) / max(epochs - warmup, 1)
            return (1 + math.cos(math.pi * min(done, 1.0))) / 2

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    # --- in training

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return a training batch, changed at random; batches of evaluation are not augmented.

        Args:
            inputs: (B, *input_shape) float32, normalized.
            targets: (B,) long.

        Returns:
            Inputs, and targets: (B,) long, or (B, num_classes) float32 probabilities.
        """
        settings = self.settings
        if settings.time_shift:
            inputs = time_shift(inputs, settings.time_shift)
        if settings.mixup:
            inputs, targets = mixup(inputs, targets, self.num_classes, settings.mixup)
        if settings.spec_augment != "none":
            bands, frames = map(int, settings.spec_augment.split(","))
            inputs = spec_augment(inputs, bands, frames)
        return inputs, targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a training batch, a scalar.

        Evaluation always uses the mean cross-entropy.

        Args:
            logits: (B, num_classes) float32.
            targets: as `augment` returned them.
        """
        return nn.functional.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=self.settings.label_smoothing,
        )

    def score(self, evaluation: Evaluation) -> float:
        """Return the figure whose highest value chooses the epoch; by default ``--monitor``.

        The learning rate and early stopping follow the loss, whatever this figure is.
        """
        value: float = getattr(evaluation, self.settings.monitor)
        return -value if self.settings.monitor == "loss" else value

    # --- state

    @property
    def has_to_fit(self) -> bool:
        """Whether `fit` does anything."""
        has_statistics = self.normalization is not None and self.normalization.has_statistics
        builtin = has_statistics or self.class_weights is not None
        return builtin or type(self).fit is not Recipe.fit

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the attributes that a checkpoint holds: values, and the states of modules.

        Raises:
            FoldError: an attribute cannot be part of a checkpoint.
        """
        values, modules = {}, {}
        for name, value in vars(self).items():
            if name.startswith("_") or name in ("settings", "num_classes"):
                continue
            if isinstance(value, nn.Module):
                modules[name] = value.state_dict()
            elif _is_plain(value):
                values[name] = value
            else:
                raise FoldError(
                    f"recipe {self._spec}: its attribute {name} is of type {type(value).__name__}, "
                    "which a checkpoint cannot hold; expected tensors, modules, numbers, texts, or "
                    "lists and dictionaries of them, or a name that begins with _"
                )
        return {"values": values, "modules": modules}

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Any]], device: torch.device, *, built: bool = True
    ) -> None:
        """Continue from where `state_dict` was taken; leave out modules that are not there yet.

        Raises:
            FoldError: `built` is true, and a module is not there.
        """
        for name, value in state["values"].items():
            there: Any = getattr(self, name, None)
            if _is_alike(there, value):
                with torch.no_grad():
                    there.copy_(value)  # an optimizer may have it
            else:
                setattr(self, name, _on(device, value))
        for name, module_state in state["modules"].items():
            module = getattr(self, name, None)
            if isinstance(module, nn.Module):
                module.load_state_dict(module_state)
            elif built:
                raise FoldError(
                    f"recipe {self._spec}: its module {name} is missing where a fold resumes; "
                    "expected it to be made in the constructor or in network, and not in fit"
                )

    def metadata(self) -> dict[str, str]:
        """Return what a weights file records about the recipe.

        Of a derived class, ``recipe`` is its spec, and ``network_by`` says whether the network is
        that of ``model`` or of ``recipe``. With ``--normalize``, ``normalization`` is
        `Normalization.to_json`.
        """
        found = {}
        if type(self) is not Recipe:
            by_model = type(self).network is Recipe.network
            found = {"recipe": str(self._spec), "network_by": "model" if by_model else "recipe"}
        if self.normalization is not None:
            found["normalization"] = json.dumps(self.normalization.to_json())
        return found

    def tensors(self) -> list[Tensor]:
        """Return the tensors within the attributes, which a step may change in place."""
        return _tensors(list(vars(self).values()))


class CheckedRecipe:
    """Calls the methods of a recipe, and says which of them fails or returns something wrong.

    Each method raises `FoldError` then, and returns what the recipe's method of that name does.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        interval = recipe.scheduler_interval
        if interval not in ("epoch", "batch"):
            raise self._wrong("scheduler_interval", f"is {interval!r}", "epoch or batch")

    def network(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        made = self._call("network", input_shape, num_classes)
        if not isinstance(made, nn.Module):
            raise self._returned("network", made, "a torch.nn.Module")
        return made

    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self._call("fit", features, labels)
        made = self._recipe.normalization
        if made is not None and not isinstance(made, Normalization):
            raise self._wrong("normalization", f"is a {type(made).__name__}", "another name for it")

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        made = self._call("optimizer", network)
        if not isinstance(made, torch.optim.Optimizer):
            raise self._returned("optimizer", made, "a torch.optim.Optimizer")
        return made

    def scheduler(
        self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        made = self._call("scheduler", optimizer, epochs, steps_per_epoch)
        if made is not None and not isinstance(made, torch.optim.lr_scheduler.LRScheduler):
            raise self._returned("scheduler", made, "one of torch.optim.lr_scheduler, or None")
        return made

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        made = self._call("augment", inputs, targets)
        is_pair = isinstance(made, tuple) and len(made) == 2
        if not is_pair or not all(isinstance(each, Tensor) for each in made):
            raise self._returned("augment", made, "a tuple of inputs and targets")
        changed, soft = made
        if not (changed.is_floating_point() and changed.shape == inputs.shape):
            shape = tuple(inputs.shape)
            raise self._returned("augment", changed, f"float inputs of shape {shape}")
        size, classes = len(inputs), self._recipe.num_classes
        is_hard = soft.dtype == torch.long and soft.shape == (size,)
        if not is_hard and not (soft.is_floating_point() and soft.shape == (size, classes)):
            expected = f"targets of shape ({size},) long, or ({size}, {classes}) float"
            raise self._returned("augment", soft, expected)
        return changed, soft

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        made = self._call("loss", logits, targets)
        if not isinstance(made, Tensor) or made.ndim > 0:
            raise self._returned("loss", made, "a scalar tensor")
        return made

    def score(self, evaluation: Evaluation) -> float:
        made = self._call("score", evaluation)
        try:
            score = float(made)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise self._returned("score", made, "a finite number")
        return score

    def step_scheduler(self, scheduler: Any, *loss: float) -> None:
        """Step the scheduler that `scheduler` has returned."""
        try:
            scheduler.step(*loss)
        except Exception as error:
            raise self._failed("scheduler", error) from error

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._recipe, method)(*arguments)
        except (RaykfoldError, *PROCESS_ERRORS):
            raise
        except Exception as error:  # a recipe can raise anything
            raise self._failed(method, error) from error

    def _failed(self, method: str, error: Exception) -> FoldError:
        what = f"{method} fails ({type(error).__name__}: {one_line(error)})"
        return FoldError(f"recipe {self._recipe._spec}: {what}")

    def _returned(self, method: str, made: Any, expected: str) -> FoldError:
        is_tensor = isinstance(made, Tensor)
        shown = f"shape {tuple(made.shape)} {made.dtype}" if is_tensor else one_line(repr(made))
        return self._wrong(method, f"returned {shown}", expected)

    def _wrong(self, what: str, how: str, expected: str) -> FoldError:
        return FoldError(f"recipe {self._recipe._spec}: {what} {how}; expected {expected}")


class PlateauAfterWarmup(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Raises the learning rate over the first epochs, then reduces it when a loss stagnates.

    Args:
        warmup: epochs; in epoch e of them the rate is (e + 1) / (warmup + 1) of the full one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: int) -> None:
        super().__init__(optimizer, mode="min", factor=0.2, patience=5, min_lr=1e-5)
        self.warmup = warmup
        self.full = [group["lr"] for group in optimizer.param_groups]
        if warmup:
            self._rise()

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        if self.last_epoch < self.warmup:
            self.last_epoch += 1
            self._rise()
        else:
            super().step(metrics, epoch)

    def _rise(self) -> None:
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * ((self.last_epoch + 1) / (self.warmup + 1))


def build_recipe(
    settings: TrainingSettings,
    num_classes: int,
    device: torch.device,
    normalization: Normalization | None = None,
) -> Recipe:
    """Build the recipe of a fold.

    Args:
        settings: how to train.
        num_classes: number of outputs of the network.
        device: of the recipe's tensors.
        normalization: what ``--normalize`` asks for.

    Raises:
        BadInput: its class cannot be imported, or cannot be constructed with its arguments.
    """
    spec = RecipeSpec.parse(settings.recipe)
    cls = find_class("recipe", spec.name, Recipe)
    try:
        recipe = cls(**spec.arguments)
    except Exception as error:
        raise BadInput(
            f"--recipe {spec}: cannot be constructed ({type(error).__name__}: {error})"
        ) from error
    hidden = vars(recipe).keys() & vars(Recipe).keys() - {"_arguments"}
    if hidden:
        raise BadInput(
            f"--recipe {spec}: its attribute {min(hidden)} hides what raykfold.Recipe has by that "
            "name; expected another name"
        )
    for name, value in vars(recipe).items():
        setattr(recipe, name, _on(device, value))
    recipe._spec = spec
    recipe.settings = settings
    recipe.num_classes = num_classes
    if normalization is not None:
        recipe.normalization = normalization.to(device)
    if settings.class_weights == "balanced":
        recipe.class_weights = torch.ones(num_classes, device=device)
    return recipe


def build_network(
    spec: RecipeSpec, model: str, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Return the network that a recipe builds, without a run.

    Args:
        spec: the recipe.
        model: the option of its run; other settings are those of a plain run.
        input_shape: of one sample.
        num_classes: number of outputs.

    Raises:
        BadInput: the recipe cannot be built.
        FoldError: its `network` fails.
    """
    settings = TrainingSettings(model, 32, 0.001, 10, 0, recipe=str(spec))
    recipe = build_recipe(settings, num_classes, torch.device("cpu"))
    return CheckedRecipe(recipe).network(input_shape, num_classes)


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint gives the value back as it is. Derived types it does not."""
    if type(value) is dict:
        return all(type(name) in _PLAIN_VALUES and _is_plain(each) for name, each in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in (*_PLAIN_VALUES, Tensor, nn.Parameter)


def _is_alike(there: Any, value: Any) -> bool:
    are_tensors = isinstance(there, Tensor) and isinstance(value, Tensor)
    return are_tensors and (there.shape, there.dtype) == (value.shape, value.dtype)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [each for part in value for each in _tensors(part)]
    return []


def _on(device: torch.device, value: Any) -> Any:
    """Return a value of a recipe with its tensors on the device."""
    if isinstance(value, nn.Parameter):
        value.data = value.data.to(device)
        return value
    if isinstance(value, Tensor | nn.Module):
        return value.to(device)
    if type(value) is dict:
        return {name: _on(device, each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_on(device, each) for each in value)
    return value
