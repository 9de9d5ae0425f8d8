"""Building the network that `--model` names."""

from __future__ import annotations

from torch import nn

from raykfold.config.class_spec import ModelSpec
from raykfold.errors import BadInput
from raykfold.training.classes import find_class


def build_model(spec: str, n_mels: int, num_classes: int, target_len: int) -> nn.Module:
    """Build a network, drawing its initial weights from torch's current random state.

    Args:
        spec: ``module:Class(name=value, ...)`` (`raykfold.config.class_spec`). The class is called
            with ``(n_mels, num_classes, target_len)`` and these keyword arguments.

    Raises:
        BadInput: the class cannot be imported or constructed for this input.
    """
    try:
        parsed = ModelSpec.parse(spec)
    except ValueError as error:
        raise BadInput(f"--model {spec}: {error}") from None

    cls = find_class("model", parsed.name, nn.Module)
    try:
        return cls(n_mels, num_classes, target_len, **parsed.arguments)
    except Exception as error:
        raise BadInput(
            f"--model {spec}: cannot be built for {n_mels} mel bands, {num_classes} classes, "
            f"{target_len} frames ({type(error).__name__}: {error})"
        ) from error
