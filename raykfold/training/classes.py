"""Importing the classes that ``--model`` and ``--recipe`` name."""

from __future__ import annotations

import importlib
import operator
from typing import TypeVar

from raykfold.config.class_spec import SPECS
from raykfold.errors import BadInput

T = TypeVar("T")
_defined: dict[str, type] = {}


def define_class(name: str, cls: type) -> None:
    """Make a class known by a name, ``module:Class``, that this process cannot import."""
    _defined[name] = cls


def import_class(option: str, name: str) -> object:
    """Import what an option names.

    Args:
        option: ``model`` or ``recipe``, for messages.
        name: ``module:Class``; the class may lie within another one, ``module:Outer.Class``.

    Raises:
        BadInput: it cannot be imported.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise BadInput(f"--{option} {name!r}: expected module:Class, as in {SPECS[option]().name}")
    try:  # the user's module can raise anything meanwhile
        return _defined.get(name) or operator.attrgetter(class_name)(
            importlib.import_module(module_name)
        )
    except Exception as error:
        hint = "the module must be on the Python path"
        if module_name == "__main__":
            hint = "only the script or notebook that defines it has it: run that, or name a module"
        raise BadInput(
            f"--{option} {name}: cannot be imported ({type(error).__name__}: {error}); {hint}"
        ) from error


def find_class(option: str, name: str, base: type[T]) -> type[T]:
    """Import the class that an option names.

    Args:
        option, name: as of `import_class`.
        base: what the class has to be derived from.

    Raises:
        BadInput: it cannot be imported, or is another object.
    """
    found = import_class(option, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        full = (
            "torch.nn.Module"
            if base.__module__.startswith("torch")
            else f"raykfold.{base.__name__}"
        )
        raise BadInput(f"--{option} {name}: not a subclass of {full}")
    return found
