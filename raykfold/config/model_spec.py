"""A network as text: which class it is of, and what that is called with.

    raykfold.models:AudioCNN
    raykfold.models:AudioCNN(dropout=0.3, width=16)

One text, so that it is part of what a run is, of what its weights say of themselves, and of what
can be searched, without any of these knowing more.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

DEFAULT_MODEL = "raykfold.models:AudioCNN"

Argument: TypeAlias = str | bool | int | float

_GIVEN = ("n_mels", "num_classes", "target_len")
_WANT = "want module:Class, or module:Class(name=value, …) with numbers, texts, True or False"


@dataclass(frozen=True)
class Blueprint:
    """What a network is built from; `str` of it is read by `read` again, and is always the same.

    Attributes:
        name: ``module:Class``.
        arguments: keyword arguments beyond n_mels, num_classes and target_len.
    """

    name: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Blueprint:
        """
        Raises:
            ValueError: it is no such text; says what would be.
        """
        module, _, rest = text.strip().partition(":")
        name, parenthesis, _ = rest.partition("(")
        if not parenthesis:
            return cls(f"{module}:{rest}" if rest else module)
        try:
            call = ast.parse(f"_{rest[len(name) :]}", mode="eval").body
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
                raise ValueError(_WANT)
            arguments = {each.arg or "**": ast.literal_eval(each.value) for each in call.keywords}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(_WANT) from None
        if len(arguments) < len(call.keywords):
            raise ValueError("an argument stands twice in it")
        return cls(f"{module}:{name.strip()}").having(arguments)

    def having(self, arguments: Mapping[str, object]) -> Blueprint:
        """With these arguments besides, or in place of, its own.

        Raises:
            ValueError: one is none that can be given.
        """
        checked = {name: _checked(name, value) for name, value in arguments.items()}
        return Blueprint(self.name, dict(sorted({**self.arguments, **checked}.items())))

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        pairs = (f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({', '.join(pairs)})"


def _checked(name: str, value: object) -> Argument:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no name of an argument")
    if name in _GIVEN:
        raise ValueError(f"{name} follows from the data")
    if not isinstance(value, str | bool | int | float):
        raise ValueError(_WANT)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is not finite")
    return value
