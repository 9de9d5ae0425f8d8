"""Trying a network, and a recipe, before a run starts."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raykfold.config.class_spec import DEFAULT_RECIPE
from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.data.labels import Integers
from raykfold.errors import BadInput, FoldError
from raykfold.text import one_line
from raykfold.training.network import build_model
from raykfold.training.normalization import check_unit
from raykfold.training.random_streams import RandomStreams

# A sum of fp32 probabilities is off by less than this, and logits are not that close by chance.
_SUM_TOLERANCE = 1e-4
_MOST_EVALUATED = 256  # held-out samples that a recipe is tried on
_MOST_FITTED = 1024  # training samples that it is fitted to


def check_options(config: RunConfig, data: FeatureSet) -> None:
    """Refuse options that need samples of another shape or type.

    Raises:
        BadInput: there are such options.
    """
    if config.normalize == "unit":
        check_unit(data.features.dtype.name)
    if config.spec_augment != "none" and len(data.sample_shape) < 2:
        raise BadInput(
            f"--spec_augment {config.spec_augment}: masks ranges of mel bands and of frames, the "
            f"last two axes of a sample, and samples of shape {data.sample_shape} have one; "
            "expected none"
        )


def check_training(config: RunConfig, data: FeatureSet) -> list[str]:
    """Build a network, compute the gradients of one training batch, and evaluate it.

    With the built-in recipe the batch is two samples: enough for BatchNorm, and training meets no
    smaller batch unless `batch_size` is 1. They are noise, or real ones where features are
    integers. There is no optimizer: to import what torch's optimizers need takes longer than all of
    this. Another recipe trains two real batches of the first fold, twice, as a worker does, with a
    checkpoint between. The random states of the process stay as they were.

    Args:
        config: names the network and the recipe.
        data: says which shape samples have, and how many logits are expected.

    Returns:
        What the user should know about the network, in lines.

    Raises:
        BadInput: as `check_options`; or one of them cannot be built, fails on this input, returns
            something of another form than is expected, or the network cannot be trained.
    """
    check_options(config, data)
    with RandomStreams(config.seed, 0, torch.device("cpu")).active():
        if config.recipe != DEFAULT_RECIPE:
            return _check_recipe(config, data)
        name = f"--model {config.model}"
        model = build_model(config.model, data.sample_shape, data.num_classes)
        _require_parameters(model, name)
        samples = torch.randn(2, *data.sample_shape)
        if data.features.dtype.kind != "f":  # they may be indices, of an embedding for example
            samples = torch.from_numpy(np.array(data.features[:2], dtype=np.float32))
        model.train()
        batch = samples[: min(config.batch_size, 2)]
        logits = _call(model, batch, data.num_classes, name)
        try:
            targets = torch.zeros(len(batch), dtype=torch.long)
            nn.functional.cross_entropy(logits, targets).backward()
        except Exception as error:
            raise BadInput(
                f"{name}: cannot be trained ({type(error).__name__}: {error})"
            ) from error
        return _check_evaluation(model, samples, data.num_classes, name)


def _check_recipe(config: RunConfig, data: FeatureSet) -> list[str]:
    """Train two batches of the first fold as a worker does, from a checkpoint too."""
    # These import torch's optimizers, which takes long.
    from raykfold.training.feature_stream import FeatureStream
    from raykfold.training.fold import FoldTrainer
    from raykfold.training.recipe import Recipe, TrainingSettings

    class TwoBatches(FoldTrainer):
        def _training_batches(self, order: Tensor) -> tuple[Tensor, ...]:
            return super()._training_batches(order)[:2]

    # A part of the first fold, since the data may be larger than memory.
    split = data.split(data.fold_labels[0], inner=config.select == "inner", seed=config.seed)
    split = dataclasses.replace(
        split,
        train=_some_of_each(
            split.train, data.class_indices, max(_MOST_FITTED, 2 * config.batch_size)
        ),
        validation=_some(split.validation, _MOST_EVALUATED),
        inner=_some(split.inner, _MOST_EVALUATED),
    )
    settings = TrainingSettings.of(config, "fp32")
    features = FeatureStream(data.features, torch.device("cpu"))
    targets = torch.from_numpy(data.class_indices)

    def trainer(state: Mapping[str, Any] | None = None) -> FoldTrainer:
        return TwoBatches(
            split.fold, features, targets, split, data.num_classes, settings, state=state
        )

    name = f"--recipe {config.recipe}"
    try:
        # Try the network alone, which has messages of its own.
        first = trainer()
        own_network = type(first.recipe).network is not Recipe.network
        network_name = name if own_network else f"--model {config.model}"
        model = copy.deepcopy(first.model)
        _require_parameters(model, network_name)
        rows = torch.from_numpy(split.train[:2])
        samples, _ = first.batch(rows, *features.read([rows]))
        model.train()
        _call(model, samples, data.num_classes, network_name)
        warnings = _check_evaluation(model, samples, data.num_classes, network_name)

        # Train an epoch, write a checkpoint, and read it.
        first.run_epoch()
        file = io.BytesIO()
        torch.save(dict(first.snapshot().state), file)
        file.seek(0)
        second = trainer(torch.load(file, weights_only=True))
        outcomes = [dataclasses.replace(each.run_epoch(), seconds=0) for each in (first, second)]
    except FoldError as error:
        text = str(error).removeprefix("epoch 1: ").removeprefix("epoch 2: ")
        of_recipe = text.startswith("recipe ")
        raise BadInput(f"--{text}" if of_recipe else f"{name}: {one_line(text)}") from error
    if outcomes[0] != outcomes[1]:
        raise BadInput(
            f"{name}: a fold that resumes gives other results than one that never stopped; "
            "expected all that later batches depend on in attributes whose names do not begin "
            "with _, and random numbers from the generators of torch, NumPy or Python themselves"
        )
    return warnings


def _some(samples: Integers, most: int) -> Integers:
    """Return samples drawn at random, ascending, or all where there are no more."""
    if len(samples) <= most:
        return samples
    return np.sort(np.random.default_rng(0).choice(samples, most, replace=False))


def _some_of_each(samples: Integers, classes: Integers, most: int) -> Integers:
    """Return `_some`, and one of each class: a recipe may divide by the number of its samples."""
    _, firsts = np.unique(classes[samples], return_index=True)
    return np.union1d(_some(samples, most), samples[firsts])


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
