"""A network as text: what it is read as, and what it is written as."""

from __future__ import annotations

import pytest

from raykfold.config.model_spec import Blueprint


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
    blueprint = Blueprint.read(text)
    assert (blueprint.name, blueprint.arguments) == (name, arguments)
    assert Blueprint.read(str(blueprint)) == blueprint


def test_equal_blueprints_have_equal_texts() -> None:
    assert str(Blueprint.read("a:C(y = 2,x=1)")) == str(Blueprint.read("a:C(x=1, y=2)"))
    assert str(Blueprint.read("a:C(y=2, x='q')")) == "a:C(x='q', y=2)"


def test_arguments_are_added_and_replaced() -> None:
    blueprint = Blueprint.read("a:C(x=1, y=2)").having({"y": 3, "z": 0.5})
    assert str(blueprint) == "a:C(x=1, y=3, z=0.5)"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a:C(", "want module:Class"),
        ("a:C(x)", "want module:Class"),
        ("a:C(1)", "want module:Class"),
        ("a:C(x=1)(y=2)", "want module:Class"),
        ("a:C(x=1).d", "want module:Class"),
        ("a:C(x=__import__('os'))", "want module:Class"),
        ("a:C(**{'x': 1})", r"'\*\*' is no name of an argument"),
        ("a:C(x=[1])", "want module:Class"),
        ("a:C(x=None)", "want module:Class"),
        ("a:C(x=1, x=2)", "an argument stands twice in it"),
        ("a:C(x=1e999)", "x is not finite"),
        ("a:C(n_mels=8)", "n_mels follows from the data"),
        (f"a:C(x={'(' * 500}1{')' * 500})", "want module:Class"),
    ],
)
def test_what_is_no_network_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^{wrong}"):
        Blueprint.read(text)


@pytest.mark.parametrize("name", ["", "1x", "a-b", "class", "a b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of an argument"):
        Blueprint("a:C").having({name: 1})
