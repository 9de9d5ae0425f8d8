"""A network as text: its class, and the arguments that it is called with.

    raykfold.models:AudioCNN
    raykfold.models:AudioCNN(dropout=0.3, width=16)

It is one text, so that a run's identity, the metadata of weights and a search can hold a network
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
from typing import Any, TypeAlias

Argument: TypeAlias = str | bool | int | float

DEFAULT_MODEL = "raykfold.models:AudioCNN"
_FROM_THE_DATA = ("n_mels", "num_classes", "target_len")
_EXPECTED = (
    "expected module:Class, or module:Class(name=value, …) with numbers, texts, True or False"
)


def plain(value: Any) -> Any:
    """Return numbers and arrays of NumPy, torch or pandas, and values of Enums, as Python's own."""
    if isinstance(value, Enum):
        value = value.value
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


@dataclass(frozen=True)
class ModelSpec:
    """Which network to build. `parse` reads what `str` returns, which is the same for equal specs.

    Attributes:
        name: ``module:Class``.
        arguments: keyword arguments beyond n_mels, num_classes and target_len.
    """

    name: str = DEFAULT_MODEL
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.name.partition(":")[0]

    @property
    def class_name(self) -> str:
        """The class within its module, ``Class`` or ``Outer.Class``."""
        return self.name.partition(":")[2]

    @classmethod
    def of(cls, value: object) -> ModelSpec:
        """Return the spec of a text, of a class, or of a `functools.partial` of one.

        Raises:
            ValueError: the value is none of these, or its module has no such class.
        """
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, partial) and not value.args:
            return cls.of(value.func).with_arguments(value.keywords)
        if not isinstance(value, type):
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
    def parse(cls, text: str) -> ModelSpec:
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

    def with_arguments(self, arguments: Mapping[str, object]) -> ModelSpec:
        """Return a spec with these arguments added, or in place of its own.

        Raises:
            ValueError: an argument cannot be given.
        """
        checked = dict(self.arguments)
        for name, given in arguments.items():
            value = plain(given)
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(f"{name!r} is not the name of an argument")
            if name in _FROM_THE_DATA:
                raise ValueError(f"{name} follows from the data")
            if not isinstance(value, str | bool | int | float):
                raise ValueError(_EXPECTED)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is not finite")
            checked[name] = value
        return ModelSpec(self.name, dict(sorted(checked.items())))

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        pairs = (f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({', '.join(pairs)})"
