"""Options of a command: each is a flag, an environment variable, a key of a TOML file, and a field.

A class derived from `Options` declares them as its fields, with `option`. The command line's
parser, the names of the environment variables and the keys of the file follow from the fields; so
does what is known of an option elsewhere: its group in ``--help``, whether it is a hyper-parameter,
decides results, or can be searched. A flag wins over a variable, a variable over the file, the file
over the default. Values from Python are read by the same parsers, which take more than text.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from raykfold.config.class_spec import SPECS, ModelSpec, RecipeSpec, plain
from raykfold.config.command import Parser, add_flag
from raykfold.errors import BadInput
from raykfold.files.paths import absolute
from raykfold.files.remote import Place, RemotePath, place, without_password
from raykfold.text import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT_PREFIX = "RAYKFOLD_"

Parse = Callable[[Any], Any]
Check = Callable[[Any], str | None]


def option(
    default: Any,
    parse: Parse,
    check: Check | None = None,
    *,
    group: str,
    hyperparameter: bool = False,
    decides_results: bool = False,
    search: bool | str = False,
    shown: str = "",
) -> Any:
    """Return a dataclass field that declares an option; the docstring below it is its help text.

    Args:
        default: its value where nothing is said.
        parse: turns the text of a flag, variable or key, or a value from Python, into a value; it
            must also accept its own results; raises ValueError.
        check: returns what is wrong with a value, or None.
        group: the heading it stands under in ``--help``.
        hyperparameter: the model card and the trackers show it.
        decides_results: it is part of a run's identity: a run resumes only with the same value.
        search: whether `raykfold.search` can vary it; a text says why not.
        shown: what ``--help`` shows as the default, if not the default itself.
    """
    metadata = {
        "parse": parse,
        "check": check,
        "group": group,
        "hyperparameter": hyperparameter,
        "decides_results": decides_results,
        "search": search,
        "shown": shown,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base of what a command is told."""

    module: ClassVar[str]
    """The command, as in ``python -m raykfold.run``."""
    about: ClassVar[str]
    """The first lines of ``--help``."""
    exit_codes: ClassVar[str]
    """Exit codes that other commands do not have."""
    examples: ClassVar[tuple[str, ...]]
    """Arguments of commands to begin with."""


def options(cls: type[Options]) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a class by name, without fields that are not declared as options."""
    return {field.name: field for field in dataclasses.fields(cls) if "parse" in field.metadata}


def options_that_are(cls: type[Options], role: str) -> list[str]:
    """Return the names of options whose `role` is set, an argument of `option` by its name."""
    return [name for name, field in options(cls).items() if field.metadata[role] is True]


# --- how values are read and checked -------------------------------------------------------------


# Python takes True for 1, and cuts 1.5 down to 1. So numbers are read from the text of a value.


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a text that is not empty")
    return str(value)


def path(value: object) -> Place:
    try:
        str(value).encode()  # files, the Hub and W&B need it so
    except UnicodeEncodeError:
        raise ValueError("expected a path in UTF-8") from None
    return place(text(value) if isinstance(value, str) else value)


def local_path(value: object) -> Path:
    found = path(value)
    if isinstance(found, RemotePath):
        raise ValueError("expected a folder on a local disk")
    return found


def network(value: object) -> str:
    return str(ModelSpec.of(text(value) if isinstance(value, str) else value))


def recipe(value: object) -> str:
    return str(RecipeSpec.of(text(value) if isinstance(value, str) else value))


def dtype(value: object) -> str:
    if isinstance(value, str):
        return value
    name = str(value).removeprefix("torch.")
    return {"bfloat16": "bf16", "float32": "fp32"}.get(name, name)


def integer(value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        raise ValueError("expected a whole number") from None
    if abs(number) >= 2**63:  # PyTorch and the files hold 64 bits
        raise ValueError("expected a whole number of less than 64 bits")
    return number


def number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ValueError("expected a number") from None


def switch(value: object) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    word = str(value).strip().lower()
    if word not in known:
        raise ValueError("expected true or false")
    return known[word]


def fold_list(value: object) -> tuple[int, ...]:
    parts: Iterable[object] = [value]
    if isinstance(value, str):
        parts = value.split(",")
    elif isinstance(value, Collection | Iterator) and not isinstance(value, bytes | Mapping):
        parts = value
    try:
        labels = {integer(_whole(plain(part))) for part in parts}
    except ValueError:
        labels = set()
    if not labels:
        how = " separated by commas, as in 1,3" if isinstance(value, str) else ", as in [1, 3]"
        raise ValueError(f"expected fold labels{how}")
    return tuple(sorted(labels))


def _whole(value: object) -> object:
    """Return 2.0 as 2: labels from pandas are floats if the table has held a gap."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def mask_sizes(value: object) -> str:
    """Return ``F,T``, or ``none``, as one text."""
    parts = value.split(",") if isinstance(value, str) else value
    if value == "none":
        return "none"
    try:
        bands, frames = map(integer, parts)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        bands = frames = -1
    if min(bands, frames) < 0:
        raise ValueError("expected numbers of mel bands and of frames, as in 8,20, or none")
    return f"{bands},{frames}" if bands or frames else "none"


@dataclass(frozen=True)
class OrWord:
    """Reads `word` as None, and everything else with `parse`."""

    word: str
    parse: Parse

    def __call__(self, value: object) -> Any:
        if value is None or str(value).strip().lower() == self.word:
            return None
        try:
            return self.parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {self.word}") from None


def one_of(*choices: str) -> Check:
    def check(value: Any) -> str | None:
        return None if value in choices else f"expected {' or '.join(choices)}"

    return check


def positive(value: float) -> str | None:
    if not value > 0:
        return "expected more than 0"
    return None if math.isfinite(value) else "expected a finite number"


def not_negative(value: float) -> str | None:
    return None if value >= 0 else "expected 0 or more"


def not_negative_finite(value: float) -> str | None:
    return not_negative(value) or (None if math.isfinite(value) else "expected a finite number")


def part_of_one(value: float) -> str | None:
    return None if 0 <= value < 1 else "expected a number from 0 to below 1"


def zero_or_ten(value: float) -> str | None:
    if value != 0 and not value >= 10:
        return "expected 0, or 10 or more"
    return None if math.isfinite(value) else "expected a finite number"


def plain_name(value: str) -> str | None:
    if "/" in value or "\\" in value or value in (".", ".."):
        return "expected a plain name without slashes"
    return None


def hub_repository(value: str) -> str | None:
    # The Hub's own rule: an owner and a name, or the name alone for one's own repositories.
    if re.fullmatch(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", value, re.ASCII) and len(value) <= 96:
        return None
    return "expected a repository of the Hugging Face Hub, as in owner/name"


# --- where values come from ----------------------------------------------------------------------


@dataclass(frozen=True)
class SearchTable:
    """The [search] table of a TOML file.

    Attributes:
        file: the file, as it was named; None without one.
        rows: the table's keys and values, as TOML has them; None if there is no such table.
    """

    file: str | None = None
    rows: Mapping[str, Any] | None = None


def parse_values(
    cls: type[Options], argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[dict[str, Any], SearchTable]:
    """Read the command line, the environment and the TOML file that they name.

    Returns:
        The values that were given, by option; under ``named`` also the options that the
        environment or the file sets. And the file's [search] table.

    Raises:
        BadInput: a flag, variable or key is unknown, or its value cannot be read; the text names
            where it stood.
        SystemExit: after --help or --version.
    """
    # The command line comes first, since it may name the file, and last, since it wins.
    known = {*options(cls), "config", "version", "help"}
    for argument in argv:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag.removeprefix("--").replace("-", "_") not in known:
            name = flag.removeprefix("--").replace("-", "_")
            raise BadInput(f"{flag}: unknown flag{_nearest(cls, name, '--{}') or '; see --help'}")
    flags = vars(_parser(cls).parse_args(argv))
    file = flags.pop("config") or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    content = read_toml(file) if file else {}
    table = SearchTable(file, content.pop("search", None))

    values: dict[str, Any] = {}
    where = f"--config {file}"
    for key, value in _with_one_text(content, where).items():
        name = key.replace("-", "_")
        if name not in options(cls):
            raise BadInput(f"{where}: unknown key {key!r}{_nearest(cls, name, '{}')}")
        if name in values:
            raise BadInput(f"{where}: {key}: appears twice, also as {name}")
        values[name] = read_option(cls, name, toml_text(value), f"{where}: {key}")

    for variable, given in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == f"{ENVIRONMENT_PREFIX}CONFIG":
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        where = f"environment variable {variable}"
        if name not in options(cls):
            raise BadInput(f"{where}: unknown{_nearest(cls, name, ENVIRONMENT_PREFIX + '{}')}")
        values[name] = read_option(cls, name, given, where)
    if "address" not in values and environ.get("RAY_ADDRESS"):
        values["address"] = environ["RAY_ADDRESS"]

    named = frozenset(values)
    for name, given in flags.items():
        if given is not None:
            values[name] = read_option(cls, name, given, f"--{name}")
    return {**values, "named": named}, table


def read_option(cls: type[Options], name: str, given: object, where: str) -> Any:
    """Return the value that a text, or a value from Python, stands for.

    Args:
        where: where it stood, for messages.

    Raises:
        BadInput: the option cannot have such a value.
    """
    parse, check = (options(cls)[name].metadata[each] for each in ("parse", "check"))
    try:
        value = parse(plain(given))
        wrong = check(value) if check and value is not None else None
    except ValueError as error:
        wrong = str(error)
    if wrong:
        is_path = isinstance(given, str | os.PathLike | Place)
        shown = repr(without_password(str(given))) if is_path else one_line(repr(given), longest=80)
        raise BadInput(f"{where} {shown}: {wrong}")
    return value


def toml_text(value: Any) -> str:
    """Return a value of a TOML file as it would stand on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def read_toml(path: str) -> dict[str, Any]:
    """Return the content of a TOML file; raises BadInput if there is none, or not of this kind."""
    try:
        return tomllib.loads(absolute(path).read_text(encoding="utf-8-sig"))
    except BadInput as error:
        raise BadInput(f"--config {error}") from None
    except OSError as error:
        raise BadInput(f"--config {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path}: is not valid TOML ({error})") from None


def _with_one_text(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Put the arguments of a class, keys like ``model.NAME``, into the one text that names it."""
    found = dict(content)
    for name, spec_class in SPECS.items():
        rows = [
            (key.partition(".")[2], found.pop(key)) for key in content if key.startswith(f"{name}.")
        ]
        if isinstance(found.get(name), Mapping):  # how TOML reads model.NAME without quotes
            rows += found.pop(name).items()
        arguments: dict[str, Any] = {}
        for key, value in rows:
            argument = key.replace("-", "_")
            if argument in arguments:
                raise BadInput(f"{where}: {name}.{argument}: appears twice")
            arguments[argument] = value
        if not arguments:
            continue
        try:
            spec = spec_class.parse(str(found[name])) if name in found else spec_class()
            found[name] = str(spec.with_arguments(arguments))
        except ValueError as error:
            raise BadInput(f"{where}: {name}: {error}") from None
    return found


def _nearest(cls: type[Options], name: str, spelling: str) -> str:
    """Return a hint at the option whose name is nearest, spelt as where `name` stood."""
    near = difflib.get_close_matches(name, [*options(cls), "config", "version", "help"], n=1)
    if not near:
        return ""
    shown = near[0].upper() if spelling.startswith(ENVIRONMENT_PREFIX) else near[0]
    return f"; did you mean {spelling.format(shown)}?"


# --- the command line ----------------------------------------------------------------------------


def _parser(cls: type[Options]) -> argparse.ArgumentParser:
    from raykfold import __version__

    command = f"python -m {cls.module}"
    examples = [f"  {command} {arguments}" for arguments in cls.examples]
    parser = Parser(
        prog=command,
        usage=f"{command} [--FLAG VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join([textwrap.fill(cls.about, 80), "", "examples:", *examples]),
        epilog=textwrap.fill(
            "Each flag is also an environment variable (RAYKFOLD_EPOCHS) and a key of the --config "
            f"file (epochs). Exit codes: 0 done, 2 bad input, {cls.exit_codes}, 130 interrupted, "
            "1 anything else.",
            80,
        ),
    )
    docs = _docstrings(cls)
    groups: dict[str, argparse._ArgumentGroup] = {}
    # Those that a class adds come first: its command is about them.
    for name in sorted(options(cls), key=lambda name: name not in cls.__annotations__):
        field = options(cls)[name]
        group = field.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        silent = field.default is None or field.default is False or field.default == ""
        default = field.metadata["shown"] or ("" if silent else field.default)
        shown = f" [{default}]" if default != "" else ""
        more: dict[str, Any] = {"default": None, "help": docs[name] + shown}
        if field.metadata["parse"] is switch:
            more |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            more["metavar"] = name.rpartition("_")[2].upper()
        add_flag(groups[group], name, **more)
    parser.add_argument("--config", metavar="FILE.toml", help="TOML file with any of these keys.")
    parser.add_argument("--version", action="version", version=f"raykfold {__version__}")
    return parser


def _docstrings(cls: type[Options]) -> dict[str, str]:
    """Return the docstring below each field, which Python itself does not keep."""
    docs: dict[str, str] = {}
    for part in cls.__mro__:
        if part in (Options, object):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(body, ast.ClassDef)
        for statement, following in itertools.pairwise(body.body):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as doc)),
                ):
                    docs.setdefault(name, " ".join(doc.split()).replace("%", "%%"))
    return docs
