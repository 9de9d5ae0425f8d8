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
    """Build a network, compute the gradients of one training batch, and evaluate it.

    The batch has two samples: enough for BatchNorm, and training meets no smaller one unless
    `batch_size` is 1. There is no optimizer: to import what torch's optimizers need takes longer
    than all of this. The random states of the process stay as they were.

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
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise BadInput(f"{name}: has no parameters to train; expected one or more")
        noise = torch.randn(2, data.n_mels, data.time)

        # As a worker does it: first train, then evaluate.
        model.train()
        batch = noise[: min(config.batch_size, 2)]
        logits = _call(model, batch, num_classes, name)
        try:
            nn.functional.cross_entropy(
                logits, torch.zeros(len(batch), dtype=torch.long)
            ).backward()
        except Exception as error:
            raise BadInput(
                f"{name}: cannot be trained ({type(error).__name__}: {error})"
            ) from error
        model.eval()
        with torch.inference_mode():
            output = _call(model, noise, num_classes, name)
            # The last batch of a validation split can have one sample.
            problem = ""
            try:
                _call(model, noise[:1], num_classes, name)
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
