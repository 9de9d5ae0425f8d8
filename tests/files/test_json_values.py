"""JSON values, read as what they ought to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from raykfold.files.json_values import parse_as


@dataclass(frozen=True)
class Part:
    size: int
    share: float | None = None


@dataclass(frozen=True)
class Whole:
    kind: Literal["a", "b"]
    parts: tuple[Part, ...]
    ends: tuple[int, str]
    names: Mapping[int, str]


WHOLE = {"kind": "a", "parts": [{"size": 1, "share": 0.5}], "ends": [1, "x"], "names": {"3": "y"}}


def test_values_have_the_types_of_their_fields() -> None:
    whole = Whole("a", (Part(1, 0.5),), (1, "x"), {3: "y"})
    assert parse_as(Whole, WHOLE, "whole") == whole
    assert parse_as(Whole, WHOLE | {"of_the_future": 1}, "whole") == whole


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "c"}, "whole.kind is 'c'"),
        ({"parts": [{}]}, "whole.parts[0] has no size"),
        ({"parts": [{"size": True}]}, "whole.parts[0].size is True"),
        ({"parts": [{"size": 1, "share": "high"}]}, "whole.parts[0].share is 'high'"),
        ({"parts": {}}, "whole.parts is {}"),
        ({"ends": [1]}, "whole.ends is [1]"),
        ({"names": {"x": "y"}}, "invalid literal for int"),
        ({"names": None}, "whole.names is None"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        parse_as(Whole, WHOLE | changes, "whole")
