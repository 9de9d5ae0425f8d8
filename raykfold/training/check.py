"""Trying a network before a run starts, on noise of the data's shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadInput
from raykfold.training.network import build_model
from raykfold.training.random_streams import RandomStreams

# A sum of fp32 probabilities is off by less than this, and logits are not that close by chance.
_SUM_TOLERANCE = 1e-4


def check_network(config: RunConfig, data: FeatureSet) -> list[str]:
    """Build a network, evaluate it, and compute the gradients of one training batch.

    Two samples are the smallest batch that training meets, unless `batch_size` is 1. There is no
    optimizer: to import what torch's optimizers need takes longer than all of this. The random
    states of the process stay as they were.

    Args:
        config: names the network.
        data: says which shape samples have, and how many logits are expected.

    Returns:
        What the user should know about the network, in lines.

    Raises:
        BadInput: it cannot be built, fails on this input, returns a shape other than
            (2, num_classes), or cannot be trained.
    """
    name, num_classes = f"--model {config.model}", data.num_classes
    with RandomStreams(config.seed, 0, torch.device("cpu")).active():
        model = build_model(config.model, data.n_mels, num_classes, data.time)
        noise = torch.randn(2, data.n_mels, data.time)

        # Evaluate two samples, and one: the last batch of a validation split can be so small.
        model.eval()
        with torch.inference_mode():
            output = _call(model, noise, name)
            if _shape(output) != (2, num_classes):
                raise BadInput(
                    f"{name}: returned {_shape(output)} for input {tuple(noise.shape)}; "
                    f"expected logits of shape (2, {num_classes})"
                )
            try:
                one = f"returned {_shape(model(noise[:1]))} for"
            except Exception as error:
                one = f"fails ({type(error).__name__}: {error}) on"

        # Train on a batch.
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise BadInput(f"{name}: has no parameters to train; expected one or more")
        batch = noise[: min(config.batch_size, 2)]
        model.train()
        try:
            targets = torch.zeros(len(batch), dtype=torch.long)
            nn.functional.cross_entropy(model(batch), targets).backward()
        except Exception as error:
            raise BadInput(
                f"{name}: cannot be trained: a step on input {tuple(batch.shape)} fails "
                f"({type(error).__name__}: {error})"
            ) from error

    warnings = []
    if (output >= 0).all() and ((output.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all():
        warnings.append(
            f"{name}: its outputs are probabilities (each row sums to 1), and the loss takes "
            "logits: such a network learns slowly and badly; leave out its last softmax"
        )
    expected = (1, num_classes)
    if one != f"returned {expected} for":
        warnings.append(
            f"{name}: {one} one sample; expected logits of shape {expected}: a fold whose last "
            "batch has one sample will fail"
        )
    return warnings


def _call(model: nn.Module, samples: Tensor, name: str) -> Tensor:
    """Return the network's output.

    Raises:
        BadInput: it fails.
    """
    try:
        output: Tensor = model(samples)
        return output
    except Exception as error:
        text = f"{name}: fails on input {tuple(samples.shape)} ({type(error).__name__}: {error})"
        try:
            model(samples.unsqueeze(1))
        except Exception:
            raise BadInput(text) from error
        raise BadInput(
            f"{text}; it takes {tuple(samples.unsqueeze(1).shape)}: expected x = x.unsqueeze(1) "
            "at the start of its forward"
        ) from error


def _shape(output: object) -> tuple[int, ...] | str:
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
