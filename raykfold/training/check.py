"""Trying a network, and a recipe, before a run starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raykfold.config.class_spec import DEFAULT_RECIPE
from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadInput, FoldError
from raykfold.training.network import build_model
from raykfold.training.random_streams import RandomStreams

# A sum of fp32 probabilities is off by less than this, and logits are not that close by chance.
_SUM_TOLERANCE = 1e-4


def check_training(config: RunConfig, data: FeatureSet) -> list[str]:
    """Build a network, compute the gradients of one training batch, and evaluate it.

    With the built-in recipe the batch is noise: two samples, enough for BatchNorm, and training
    meets no smaller batch unless `batch_size` is 1. There is no optimizer: to import what torch's
    optimizers need takes longer than all of this. With another recipe, two real batches of the
    first fold are trained. The random states of the process stay as they were.

    Args:
        config: names the network and the recipe.
        data: says which shape samples have, and how many logits are expected.

    Returns:
        What the user should know about the network, in lines.

    Raises:
        BadInput: one of them cannot be built, fails on this input, returns something of another
            form than is expected, or the network cannot be trained.
    """
    with RandomStreams(config.seed, 0, torch.device("cpu")).active():
        if config.recipe != DEFAULT_RECIPE:
            return _check_recipe(config, data)
        name = f"--model {config.model}"
        model = build_model(config.model, data.n_mels, data.num_classes, data.time)
        _require_parameters(model, name)
        noise = torch.randn(2, data.n_mels, data.time)
        model.train()
        batch = noise[: min(config.batch_size, 2)]
        logits = _call(model, batch, data.num_classes, name)
        try:
            targets = torch.zeros(len(batch), dtype=torch.long)
            nn.functional.cross_entropy(logits, targets).backward()
        except Exception as error:
            raise BadInput(
                f"{name}: cannot be trained ({type(error).__name__}: {error})"
            ) from error
        return _check_evaluation(model, noise, data.num_classes, name)


def _check_recipe(config: RunConfig, data: FeatureSet) -> list[str]:
    """Call each method of a recipe as a worker does, on two batches of the first fold."""
    # These import what torch's optimizers need.
    from raykfold.training.evaluation import Evaluation
    from raykfold.training.recipe import Recipe, TrainingSettings, build_recipe

    name = f"--recipe {config.recipe}"
    rows = data.split(data.fold_labels[0]).train
    rows = rows[:: max(len(rows) // (2 * config.batch_size), 1)][: 2 * config.batch_size]
    inputs = torch.from_numpy(data.features[rows]).float()
    targets = torch.from_numpy(data.class_indices[rows])
    settings, cpu = TrainingSettings.of(config, "fp32"), torch.device("cpu")
    recipe = build_recipe(settings, data.num_classes, data.n_mels, cpu)

    # Build what trains.
    own_network = type(recipe).network is not Recipe.network
    if own_network:
        with _method(name, "network"):
            model = recipe.network(data.n_mels, data.num_classes, data.time)
        _require(isinstance(model, nn.Module), name, "network", model, "a torch.nn.Module")
    else:
        model = recipe.network(data.n_mels, data.num_classes, data.time)
    network_name = name if own_network else f"--model {config.model}"
    _require_parameters(model, network_name)
    with _method(name, "fit"):
        recipe.fit(inputs, targets)
    batches = list(
        zip(inputs.split(config.batch_size), targets.split(config.batch_size), strict=True)
    )
    with _method(name, "optimizer"):
        optimizer = recipe.optimizer(model)
    expected = "a torch.optim.Optimizer"
    _require(isinstance(optimizer, torch.optim.Optimizer), name, "optimizer", optimizer, expected)
    with _method(name, "scheduler"):
        scheduler = recipe.scheduler(optimizer, config.epochs, len(batches))
    kind, expected = (
        torch.optim.lr_scheduler.LRScheduler,
        "one of torch.optim.lr_scheduler, or None",
    )
    _require(
        scheduler is None or isinstance(scheduler, kind), name, "scheduler", scheduler, expected
    )

    # Train the batches.
    model.train()
    normalization = recipe.normalization or nn.Identity()
    for batch, labels in batches:
        with _method(name, "augment"):
            augmented = recipe.augment(normalization(batch), labels)
        _check_augmented(augmented, batch, data.num_classes, name)
        logits = _call(model, augmented[0], data.num_classes, network_name)
        with _method(name, "loss"):
            loss = recipe.loss(logits, augmented[1])
            is_scalar = isinstance(loss, Tensor) and loss.ndim == 0
            _require(is_scalar, name, "loss", loss, "a scalar tensor")
            if not math.isfinite(loss.item()):
                raise ValueError(f"it is {loss.item()} for a real batch")
            optimizer.zero_grad()
            loss.backward()
        with _method(name, "optimizer"):
            optimizer.step()
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss.item())
    elif scheduler is not None:
        with _method(name, "scheduler"):
            scheduler.step()

    # Evaluate.
    normalized = normalization(inputs[:2])
    warnings = _check_evaluation(model, normalized, data.num_classes, network_name)
    with _method(name, "score"), torch.inference_mode():
        score = recipe.score(Evaluation(loss.item(), model(normalized), targets[:2]))
        is_number = isinstance(score, int | float | Tensor) and math.isfinite(score)
        _require(is_number, name, "score", score, "a finite number")
    try:
        recipe.state_dict()
    except FoldError as error:
        raise BadInput(f"--{error}") from None
    return warnings


@contextmanager
def _method(name: str, method: str) -> Iterator[None]:
    """Name the method that raises."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # a recipe can raise anything
        raise BadInput(f"{name}: {method} fails ({type(error).__name__}: {error})") from error


def _require(holds: bool, name: str, method: str, returned: Any, expected: str) -> None:
    if holds:
        return
    is_tensor = isinstance(returned, Tensor)
    shown = f"shape {tuple(returned.shape)}" if is_tensor else repr(returned)
    raise BadInput(f"{name}: {method} returned {shown}; expected {expected}")


def _check_augmented(augmented: Any, inputs: Tensor, num_classes: int, name: str) -> None:
    if not (
        isinstance(augmented, tuple)
        and len(augmented) == 2
        and all(isinstance(each, Tensor) for each in augmented)
    ):
        _require(False, name, "augment", augmented, "a tuple of inputs and targets")
    batch, targets = augmented
    right = (
        batch.is_floating_point() and batch.shape == inputs.shape and bool(batch.isfinite().all())
    )
    _require(right, name, "augment", batch, f"finite inputs of shape {tuple(inputs.shape)}")
    hard = targets.dtype == torch.long and targets.shape == inputs.shape[:1]
    soft = targets.is_floating_point() and targets.shape == (len(inputs), num_classes)
    expected = f"targets of shape ({len(inputs)},) long, or ({len(inputs)}, {num_classes}) float"
    _require(hard or soft, name, "augment", targets, expected)


def _require_parameters(model: nn.Module, name: str) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(f"{name}: has no parameters to train; expected one or more")


def _check_evaluation(model: nn.Module, samples: Tensor, num_classes: int, name: str) -> list[str]:
    """Evaluate two samples; return what the user should know about the network."""
    model.eval()
    with torch.inference_mode():
        output = _call(model, samples, num_classes, name)
        # The last batch of a validation split can have one sample.
        problem = ""
        try:
            _call(model, samples[:1], num_classes, name)
        except BadInput as error:
            problem = f"{error}; a fold whose last validation batch has one sample will fail"
    warnings = [problem] if problem else []
    if (output >= 0).all() and ((output.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all():
        warnings.append(
            f"{name}: its outputs are probabilities (each row sums to 1), and the loss takes "
            "logits: such a network learns slowly and badly; leave out its last softmax"
        )
    return warnings


def _call(model: nn.Module, samples: Tensor, num_classes: int, name: str) -> Tensor:
    """Return the network's logits.

    Raises:
        BadInput: it fails, or returns something else.
    """
    shape = tuple(samples.shape)
    try:
        output = model(samples)
    except Exception as error:
        mode = " in training" if model.training else ""
        text = f"{name}: fails on input {shape}{mode} ({type(error).__name__}: {error})"
        if _takes(model, samples.unsqueeze(1)):
            text += (
                f"; it takes {tuple(samples.unsqueeze(1).shape)}: expected x = x.unsqueeze(1) at "
                "the start of its forward"
            )
        raise BadInput(text) from error
    returned = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or returned != (len(samples), num_classes):
        raise BadInput(
            f"{name}: returned {returned} for input {shape}; "
            f"expected logits of shape {(len(samples), num_classes)}"
        )
    return output


def _takes(model: nn.Module, samples: Tensor) -> bool:
    try:
        model(samples)
    except Exception:
        return False
    return True
