"""A network as text: what it is read as, and what it is written as."""

from __future__ import annotations

import pytest

from raykfold.config.class_spec import ModelSpec


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("a.b:C", "a.b:C", {}),
        (" a:C ", "a:C", {}),
        ("a:C()", "a:C", {}),
        ("a:C(x=1, y=-2.5e-3)", "a:C", {"x": 1, "y": -0.0025}),
        ("a:C( deep = True , kind='a(b)=\"c\",d' )", "a:C", {"deep": True, "kind": 'a(b)="c",d'}),
        ("no_colon", "no_colon", {}),
    ],
)
def test_a_text_is_read(text: str, name: str, arguments: dict[str, object]) -> None:
    spec = ModelSpec.parse(text)
    assert (spec.name, spec.arguments) == (name, arguments)
    assert ModelSpec.parse(str(spec)) == spec


def test_equal_specs_have_equal_texts() -> None:
    assert str(ModelSpec.parse("a:C(y = 2,x=1)")) == str(ModelSpec.parse("a:C(x=1, y=2)"))
    assert str(ModelSpec.parse("a:C(y=2, x='q')")) == "a:C(x='q', y=2)"


def test_arguments_are_added_and_replaced() -> None:
    spec = ModelSpec.parse("a:C(x=1, y=2)").with_arguments({"y": 3, "z": 0.5})
    assert str(spec) == "a:C(x=1, y=3, z=0.5)"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a:C(", "expected module:Class"),
        ("a:C(x)", "expected module:Class"),
        ("a:C(1)", "expected module:Class"),
        ("a:C(x=1)(y=2)", "expected module:Class"),
        ("a:C(x=1).d", "expected module:Class"),
        ("a:C(x=__import__('os'))", "expected module:Class"),
        ("a:C(**{'x': 1})", r"'\*\*' is not the name of an argument"),
        ("a:C(x=[1])", "expected module:Class"),
        ("a:C(x=None)", "expected module:Class"),
        ("a:C(x=1, x=2)", "an argument appears twice"),
        ("a:C(x=1e999)", "x is not finite"),
        ("a:C(n_mels=8)", "n_mels follows from the data"),
        (f"a:C(x={'(' * 500}1{')' * 500})", "expected module:Class"),
    ],
)
def test_what_is_no_network_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^{wrong}"):
        ModelSpec.parse(text)


@pytest.mark.parametrize("name", ["", "1x", "a-b", "class", "a b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of an argument"):
        ModelSpec("a:C").with_arguments({name: 1})
