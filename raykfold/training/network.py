"""Building the network that `--model` names."""

from __future__ import annotations

import importlib

from torch import nn

from raykfold.config.model_spec import DEFAULT_MODEL, ModelSpec
from raykfold.errors import BadInput


def build_model(spec: str, n_mels: int, num_classes: int, target_len: int) -> nn.Module:
    """Build a network, drawing its initial weights from torch's current random state.

    Args:
        spec: ``module:Class(name=value, ...)`` (`raykfold.config.model_spec`). The class is called
            with ``(n_mels, num_classes, target_len)`` and these keyword arguments.

    Raises:
        BadInput: the class cannot be imported or constructed for this input.
    """
    try:
        parsed = ModelSpec.parse(spec)
    except ValueError as error:
        raise BadInput(f"--model {spec}: {error}") from None

    # Import the class. The user's module can raise anything meanwhile.
    name = parsed.name
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise BadInput(f"--model {name!r}: expected module:Class, as in {DEFAULT_MODEL}")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise BadInput(
            f"--model {name}: cannot be imported ({type(error).__name__}: {error}); "
            "the module must be on the Python path"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise BadInput(f"--model {name}: not a subclass of torch.nn.Module")

    # Call it.
    try:
        return cls(n_mels, num_classes, target_len, **parsed.arguments)
    except Exception as error:
        raise BadInput(
            f"--model {spec}: cannot be built for {n_mels} mel bands, {num_classes} classes, "
            f"{target_len} frames ({type(error).__name__}: {error})"
        ) from error
