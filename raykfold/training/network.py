"""Building the network that `--model` names."""

from __future__ import annotations

import importlib
import operator

from torch import nn

from raykfold.config.class_spec import DEFAULT_MODEL, ModelSpec
from raykfold.errors import BadInput

_defined: dict[str, type] = {}


def define_class(name: str, cls: type) -> None:
    """Make a class known by a name, ``module:Class``, that this process cannot import."""
    _defined[name] = cls


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

    cls = find_class(parsed.name)
    try:
        return cls(n_mels, num_classes, target_len, **parsed.arguments)
    except Exception as error:
        raise BadInput(
            f"--model {spec}: cannot be built for {n_mels} mel bands, {num_classes} classes, "
            f"{target_len} frames ({type(error).__name__}: {error})"
        ) from error


def find_class(name: str) -> type[nn.Module]:
    """Import a network's class.

    Args:
        name: ``module:Class``; the class may lie within another one, ``module:Outer.Class``.

    Raises:
        BadInput: it cannot be imported, or is not a network.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise BadInput(f"--model {name!r}: expected module:Class, as in {DEFAULT_MODEL}")
    try:  # the user's module can raise anything meanwhile
        cls = _defined.get(name) or operator.attrgetter(class_name)(
            importlib.import_module(module_name)
        )
    except Exception as error:
        hint = "the module must be on the Python path"
        if module_name == "__main__":
            hint = "only the script or notebook that defines it has it: run that, or name a module"
        raise BadInput(
            f"--model {name}: cannot be imported ({type(error).__name__}: {error}); {hint}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise BadInput(f"--model {name}: not a subclass of torch.nn.Module")
    return cls
