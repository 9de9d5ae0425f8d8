"""Building the network that `--model` names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from raykfold.config.class_spec import DEFAULT_MODEL, ModelSpec
from raykfold.errors import BadInput
from raykfold.training.classes import find_class

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class OtherShape(ValueError):
    """A network does not take samples of this shape."""


def build_model(spec: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network, drawing its initial weights from torch's current random state.

    Args:
        spec: ``module:Class(name=value, ...)`` (`raykfold.config.class_spec`). The class is called
            as `call_network` says, and with these keyword arguments.
        input_shape: of one sample, without the batch.
        num_classes: number of outputs.

    Raises:
        BadInput: the class cannot be imported or constructed for this input.
    """
    try:
        parsed = ModelSpec.parse(spec)
    except ValueError as error:
        raise BadInput(f"--model {spec}: {error}") from None

    cls = find_class("model", parsed.name, nn.Module)
    try:
        return call_network(cls, input_shape, num_classes, parsed.arguments)
    except OtherShape as error:
        raise BadInput(f"--model {spec}: {error}") from None
    except Exception as error:
        raise BadInput(
            f"--model {spec}: cannot be built for samples of shape {input_shape} and {num_classes} "
            f"classes ({type(error).__name__}: {error})"
        ) from error


def call_network(
    cls: type[nn.Module],
    input_shape: tuple[int, ...],
    num_classes: int,
    arguments: Mapping[str, Any],
) -> nn.Module:
    """Return a network of this class.

    A class that has a parameter ``input_shape``, or passes keyword arguments on and takes fewer
    than three by position, is called with ``input_shape=`` and ``num_classes=``. Any other is
    called with ``(n_mels, num_classes, target_len)``, so it takes samples of two axes alone.

    Raises:
        OtherShape: the class takes samples of two axes, and these have more or fewer.
    """
    if _takes_any_shape(cls):
        return cls(input_shape=input_shape, num_classes=num_classes, **arguments)
    if len(input_shape) != 2:
        what = "is called with (n_mels, num_classes, target_len), for samples of two axes"
        expected = "a class with the parameters input_shape and num_classes"
        if f"{cls.__module__}:{cls.__qualname__}" == DEFAULT_MODEL:
            what, expected = (
                "takes samples of (n_mels, time)",
                "another network, by --model module:Class",
            )
        raise OtherShape(f"{what}, and these have the shape {input_shape}; expected {expected}")
    n_mels, target_len = input_shape
    return cls(n_mels, num_classes, target_len, **arguments)


def _takes_any_shape(cls: type[nn.Module]) -> bool:
    parameters = inspect.signature(cls).parameters
    if "input_shape" in parameters and "n_mels" not in parameters:
        return True
    kinds = [parameter.kind for parameter in parameters.values()]
    by_place = sum(kind in _BY_PLACE for kind in kinds)
    takes_three = by_place >= 3 or inspect.Parameter.VAR_POSITIONAL in kinds
    return inspect.Parameter.VAR_KEYWORD in kinds and not takes_three
