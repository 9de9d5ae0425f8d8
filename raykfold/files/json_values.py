"""JSON values as typed Python values, checked while they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def parse_as(kind: Any, value: Any, name: str) -> Any:
    """Return `value`, which `json.loads` returned, as a value of type `kind`.

    Args:
        kind: a dataclass, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[K, V]`, `dict[K, V]`, `Literal`,
            `X | None`, a plain type, or `Any`; they may be nested. Fields of a dataclass that have
            defaults may be missing in `value`; keys that are no fields are ignored.
        value: the value.
        name: what to call the value in an error.

    Raises:
        ValueError: a part of the value is missing or has another type; the text names it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints, parts = _hints(kind), {}
        for field in dataclasses.fields(kind):
            if field.name in value:
                part = f"{name}.{field.name}"
                parts[field.name] = parse_as(hints[field.name], value[field.name], part)
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise ValueError(f"{name} has no {field.name}")
        return kind(**parts)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(parse_as(each, part, f"{name}[{n}]") for n, (each, part) in pairs)
    if origin in (Mapping, dict) and isinstance(value, dict):
        of_key, of_value = arguments  # a key of JSON is text
        return {of_key(key): parse_as(of_value, part, name) for key, part in value.items()}
    if origin is UnionType and NoneType in arguments:
        return None if value is None else parse_as(arguments[0], value, name)
    if origin is Literal and value in arguments:
        return value
    if kind is Any or type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{name} is {value!r}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
