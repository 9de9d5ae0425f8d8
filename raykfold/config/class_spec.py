"""A network or a recipe as text: its class, and the arguments that it is called with.

    raykfold.models:AudioCNN
    raykfold.models:AudioCNN(dropout=0.3, width=16)

It is one text, so that a run's identity, the metadata of weights and a search can hold a class
without knowing more about it.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

Argument: TypeAlias = str | bool | int | float
_Spec = TypeVar("_Spec", bound="ClassSpec")

DEFAULT_MODEL = "raykfold.models:AudioCNN"
DEFAULT_RECIPE = "raykfold.training.recipe:Recipe"
_EXPECTED = (
    "expected module:Class, or module:Class(name=value, …) with numbers, texts, True or False"
)


def plain(value: Any) -> Any:
    """Return numbers and arrays of NumPy, torch or pandas, and values of Enums, as Python's own."""
    if isinstance(value, Enum):
        value = value.value
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


@dataclass(frozen=True)
class ClassSpec:
    """A class, and the arguments that it is called with.

    `parse` reads what `str` returns, which is the same for equal specs.

    Attributes:
        name: ``module:Class``.
        arguments: keyword arguments.
    """

    from_the_data: ClassVar[tuple[str, ...]] = ()
    """Arguments that follow from the data: a spec cannot have them."""

    name: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.name.partition(":")[0]

    @property
    def class_name(self) -> str:
        """The class within its module, ``Class`` or ``Outer.Class``."""
        return self.name.partition(":")[2]

    @classmethod
    def of(cls: type[_Spec], value: object) -> _Spec:
        """Return the spec of a text, of a class, of a `functools.partial` of one, or of a recipe.

        Raises:
            ValueError: the value is none of these, or its module has no such class.
        """
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, partial) and not value.args:
            return cls.of(value.func).with_arguments(value.keywords)
        if not isinstance(value, type):
            text = getattr(value, "spec", None)  # as a recipe has it
            if isinstance(text, str):
                return cls.parse(text)
            raise ValueError(f"{_EXPECTED}, or a class")
        # A class that a function defines, or whose name a later class has taken, cannot be named.
        try:
            found = operator.attrgetter(value.__qualname__)(sys.modules[value.__module__])
        except (AttributeError, KeyError):
            found = None
        if found is not value:
            raise ValueError(
                f"{value.__module__} has no such class by the name {value.__qualname__}; expected "
                "a class that can be named, as in module:Class"
            )
        return cls(f"{value.__module__}:{value.__qualname__}")

    @classmethod
    def parse(cls: type[_Spec], text: str) -> _Spec:
        """Return the spec that a text stands for.

        Raises:
            ValueError: the text has another form; the message says what is expected.
        """
        module, _, rest = text.strip().partition(":")
        name, parenthesis, _ = rest.partition("(")
        if not parenthesis:
            return cls(f"{module}:{rest}" if rest else module)
        try:
            call = ast.parse(f"_{rest[len(name) :]}", mode="eval").body
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
                raise ValueError(_EXPECTED)
            arguments = {each.arg or "**": ast.literal_eval(each.value) for each in call.keywords}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(_EXPECTED) from None
        if len(arguments) < len(call.keywords):
            raise ValueError("an argument appears twice")
        return cls(f"{module}:{name.strip()}").with_arguments(arguments)

    def with_arguments(self: _Spec, arguments: Mapping[str, object]) -> _Spec:
        """Return a spec with these arguments added, or in place of its own.

        Raises:
            ValueError: an argument cannot be given.
        """
        checked = dict(self.arguments)
        for name, given in arguments.items():
            value = plain(given)
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(f"{name!r} is not the name of an argument")
            if name in self.from_the_data:
                raise ValueError(f"{name} follows from the data")
            if not isinstance(value, str | bool | int | float):
                raise ValueError(_EXPECTED)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is not finite")
            checked[name] = value
        return type(self)(self.name, dict(sorted(checked.items())))

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        pairs = (f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({', '.join(pairs)})"


@dataclass(frozen=True)
class ModelSpec(ClassSpec):
    """Which network to build; what follows from the data is added to its arguments."""

    from_the_data: ClassVar[tuple[str, ...]] = (
        "input_shape",
        "n_mels",
        "num_classes",
        "target_len",
    )
    name: str = DEFAULT_MODEL


@dataclass(frozen=True)
class RecipeSpec(ClassSpec):
    """Which recipe to train with."""

    name: str = DEFAULT_RECIPE


SPECS: Mapping[str, type[ModelSpec | RecipeSpec]] = {"model": ModelSpec, "recipe": RecipeSpec}
"""Option → what it names; a key ``option.NAME`` is one of its keyword arguments."""


def split_argument(name: str) -> tuple[str, str] | None:
    """Return the option and the keyword argument of ``option.NAME``; None of other names."""
    option, dot, argument = name.partition(".")
    return (option, argument) if dot and option in SPECS else None
