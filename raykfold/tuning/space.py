"""What a search is told: a run's configuration, and ranges in place of some of its values.

    [search]
    learning_rate = {loguniform = [1e-4, 1e-2]}
    batch_size = {choice = [16, 32, 64]}
    model.dropout = {uniform = [0.1, 0.5]}

Ranges have the names, and the meaning, that they have in Ray Tune (`ray.tune.loguniform`).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from raykfold.config.model_spec import ModelSpec
from raykfold.config.options import (
    OrWord,
    integer,
    number,
    one_of,
    option,
    options,
    options_that_are,
    parse_values,
    positive,
    read_option,
    switch,
    toml_text,
)
from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput
from raykfold.files.paths import absolute, outer_name
from raykfold.files.remote import Place
from raykfold.state.record import identity

_OF_MODEL = "model."
_LISTS = ("choice", "grid")
_FEWEST_TRIALS = 20  # where no grid says how many
_LARGEST_GRID = 100_000


@dataclass(frozen=True)
class _Kind:
    """A kind of range. The upper end is no part of it, as Ray Tune has it, without a step."""

    whole: bool = False
    log: bool = False
    step: bool = False


_KINDS = {
    "uniform": _Kind(),
    "quniform": _Kind(step=True),
    "loguniform": _Kind(log=True),
    "qloguniform": _Kind(log=True, step=True),
    "randint": _Kind(whole=True),
    "qrandint": _Kind(whole=True, step=True),
    "lograndint": _Kind(whole=True, log=True),
    "qlograndint": _Kind(whole=True, log=True, step=True),
}


_NAMES = (*_KINDS, *_LISTS, "grid_search")


@dataclass(frozen=True)
class Domain:
    """What one value is drawn from.

    Attributes:
        kind: Ray Tune's name of it; ``grid`` is its grid_search.
        arguments: the values of a ``choice`` or ``grid``; else lower end, upper end and, of the
            kinds that begin with q, the step.
    """

    kind: str
    arguments: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Of a range its lowest and highest value; of a list all that there are."""
        if self.kind in _LISTS:
            return self.arguments
        lower, upper = self.arguments[:2]
        kind = _KINDS[self.kind]
        if not kind.whole:
            return float(lower), float(upper) if kind.step else math.nextafter(upper, lower)
        return lower, upper if kind.step else upper - 1


@dataclass(frozen=True)
class SearchSpace:
    """What is searched → what it is drawn from, in the order of the file.

    Names are those of a run's flags; ``model.NAME`` is a keyword argument of the network.
    """

    domains: Mapping[str, Domain] = field(default_factory=dict)

    def grid_size(self) -> int:
        """Combinations of what is a grid; 1 where nothing is."""
        grids = (each for each in self.domains.values() if each.kind == "grid")
        return math.prod(len(each.arguments) for each in grids)

    def combinations(self) -> int | None:
        """Configurations that there are; None where a range is not of a few values."""
        if any(each.kind not in _LISTS for each in self.domains.values()):
            return None
        return math.prod(len(each.arguments) for each in self.domains.values())

    def probes(self) -> Iterator[dict[str, Any]]:
        """Values that reach each end of each range once, with the others at their first."""
        first = {name: domain.ends[0] for name, domain in self.domains.items()}
        yield first
        for name, domain in self.domains.items():
            for value in domain.ends[1:]:
                yield {**first, name: value}

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {name: {each.kind: list(each.arguments)} for name, each in self.domains.items()}


def _above_one(value: float) -> str | None:
    return "want more than 1" if not value > 1 else positive(value)


_search = partial(option, group="search")


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """Everything that a search is told: what its trials have in common, and what it tries."""

    module: ClassVar[str] = "raykfold.search"
    about: ClassVar[str] = (
        "Tune hyper-parameters: each trial is a whole cross-validation, and poor ones are stopped. "
        "What is searched stands in the [search] table of the --config file."
    )
    exit_codes: ClassVar[str] = "3 some trials failed"
    examples: ClassVar[tuple[str, ...]] = (
        "--demo --config search.toml --model_dir runs/search",
        "--demo --config search.toml --trials 40 --scheduler asha --nested",
    )

    trials: int | None = _search(None, OrWord("auto", integer), positive)
    """Configurations to try (auto: every combination of a grid, else 20)."""

    sampler: str = _search("random", str, one_of("random", "optuna"))
    """Who draws values from ranges: random, or optuna (its TPE, which learns from trials)."""

    scheduler: str = _search("asha", str, one_of("asha", "median", "none"))
    """Ray Tune's rule that stops poor trials: asha (successive halving), median or none."""

    grace_period: int | None = _search(None, OrWord("auto", integer), positive)
    """Epochs of all folds before which no trial is stopped (auto: a ninth of the epochs)."""

    reduction_factor: float = _search(2.0, number, _above_one)
    """Of asha: one in so many goes on from each rung, and rungs are so many times as far apart."""

    concurrent_trials: int | None = _search(None, OrWord("auto", integer), positive)
    """Most trials at a time (auto: as many as the slots hold, and one more)."""

    nested: bool = _search(False, switch)
    """Search within each outer fold, too, and measure the winner on that fold."""

    space: SearchSpace = field(default_factory=SearchSpace)
    config_file: Path | None = None  # that the space stood in

    def __post_init__(self) -> None:
        """As `RunConfig` does.

        Raises:
            BadInput: a value is out of range, or makes no search.
        """
        super().__post_init__()
        if not self.space.domains:
            raise BadInput("[search]: nothing is searched; want a range in it at least")
        if self.space.grid_size() > _LARGEST_GRID:
            raise BadInput(
                f"[search]: the grid has {self.space.grid_size()} combinations; want at most "
                f"{_LARGEST_GRID}, or choice"
            )
        if self.repeats != 1:
            raise BadInput(
                f"--repeats {self.repeats}: want 1 for a search; repeat the best one, with "
                "raykfold.run --config best.toml --repeats"
            )
        if self.grace_epochs > self.most_epochs:
            raise BadInput(
                f"--grace_period {self.grace_period}: want at most the {self.most_epochs} --epochs"
            )

    @property
    def num_trials(self) -> int:
        has_grid = any(each.kind == "grid" for each in self.space.domains.values())
        return self.trials or (self.space.grid_size() if has_grid else _FEWEST_TRIALS)

    @property
    def most_epochs(self) -> int:
        """That a trial can have."""
        domain = self.space.domains.get("epochs")
        return max(domain.ends) if domain else self.epochs

    @property
    def grace_epochs(self) -> int:
        return self.grace_period or max(1, self.most_epochs // 9)

    def epochs_of(self, values: Mapping[str, Any]) -> int:
        """At most, of a trial with these values."""
        return int(values.get("epochs", self.epochs))

    def trial(self, number: int, values: Mapping[str, Any]) -> RunConfig:
        """A trial as the run of its own that it is.

        Args:
            number: of the trial, from 1.
            values: what is searched → what the trial has of it.

        Raises:
            BadInput: no run can have such values.
        """
        return self._run(
            values,
            run_name=f"{self.run_name}-trial-{number}",
            model_dir=self.model_place / "trials" / str(number),
            storage_path=self.run_dir.trials,
        )

    def outer(self, fold: int) -> SearchConfig:
        """The search within an outer fold: on all folds but that one."""
        return dataclasses.replace(
            self,
            run_name=f"{self.run_name}-{outer_name(fold)}",
            model_dir=self.model_place / outer_name(fold),
            storage_path=self.run_dir.outer,
            folds=None,
            nested=False,
            fresh=False,
            hf_model_repo_id=None,
        )

    def fit(self, number: int, values: Mapping[str, Any], fold: int) -> RunConfig:
        """The run that measures a trial of the search within an outer fold on that fold.

        An inner validation split chooses its epoch.
        """
        return self._run(
            values,
            run_name=f"{self.run_name}-fit-{number}",
            model_dir=self.model_place / "fits" / str(number),
            storage_path=self.run_dir.fits,
            folds=(fold,),
            select="inner",
        )

    def _run(self, values: Mapping[str, Any], **own: Any) -> RunConfig:
        arguments = {
            name.removeprefix(_OF_MODEL): value
            for name, value in values.items()
            if name.startswith(_OF_MODEL)
        }
        plain = {name: value for name, value in values.items() if not name.startswith(_OF_MODEL)}
        common = {name: getattr(self, name) for name in options(RunConfig)}
        common |= {"fresh": False, "hf_model_repo_id": None, "named": self.named}
        told = {**common, **plain, **own}
        told["model"] = str(ModelSpec.parse(told["model"]).with_arguments(arguments))
        return RunConfig(**told)

    def command(self) -> list[str]:
        if self.config_file is None:
            return super().command()
        module, *flags = super().command()[2:]
        return ["python", "-m", module, "--config", str(self.config_file), *flags]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "space": self.space.to_json()}


def search_identity(
    config: SearchConfig,
    fingerprint: str,
    device: str | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """The fields that must be equal for a search to be resumed; the number of trials is not one.

    Args:
        fingerprint, device, precision: as in `raykfold.state.record.identity`.
    """
    known = identity(config, fingerprint, device, precision)
    searched = config.space.domains
    return {name: value for name, value in known.items() if name not in searched} | {
        "space": config.space.to_json(),
        "epochs": config.epochs,
        "folds": "all" if config.folds is None else list(config.folds),
        "sampler": config.sampler,
        "scheduler": config.scheduler,
        "grace_period": config.grace_epochs,
        "reduction_factor": config.reduction_factor,
    }


def parse_search(argv: Sequence[str], environ: Mapping[str, str]) -> SearchConfig:
    """Read the command line, the environment and the TOML file that they name.

    Raises:
        BadInput: as `config.parse_config`, or what is searched cannot be.
        SystemExit: after --help or --version.
    """
    values, table = parse_values(SearchConfig, argv, environ)
    if table.file is None:
        raise BadInput("--config: is missing; want a TOML file with a [search] table")
    where = f"--config {table.file}"
    if not isinstance(table.rows, Mapping) or not table.rows:
        raise BadInput(
            f"{where}: has no [search] table with ranges, as in "
            "learning_rate = {loguniform = [1e-4, 1e-2]}"
        )
    rows: dict[str, Any] = {}
    for name, row in _flat(table.rows):
        if name in rows:
            raise BadInput(f"{where}: search.{name}: stands there twice")
        rows[name] = row
    domains = {name: _domain(f"{where}: search.{name}", name, row) for name, row in rows.items()}
    config = SearchConfig(**values, space=SearchSpace(domains), config_file=absolute(table.file))
    arguments = {f"{_OF_MODEL}{each}" for each in ModelSpec.parse(config.model).arguments}
    for name in domains:
        if name in values or name in arguments:
            raise BadInput(f"{where}: search.{name}: is also given a value; want one of the two")
    return config


def best_toml(config: RunConfig, note: str = "") -> str:
    """The text of a TOML file that `raykfold.run --config` takes, for the same run.

    Without the address of a cluster: where a run is trained is no part of it.

    Args:
        note: a line to begin with, as a comment.
    """
    lines = [f"# {note}"] if note else []
    values = config.changed()
    if not config.demo:  # whose default depends on where a command is typed
        values = {"processed_dir": config.processed_dir, **values}
    for name, value in values.items():
        if name != "address":
            lines.append(f"{name} = {_in_toml(value)}")
    return "\n".join(lines) + "\n"


def _in_toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_in_toml, value))}]"
    if isinstance(value, Place | str):
        # JSON's strings are TOML's basic ones, but for this character.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


# --- the [search] table --------------------------------------------------------------------------


def _flat(rows: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and ranges; ``model.dropout`` is a table within one in TOML, unless it is quoted."""
    for key, value in rows.items():
        name = key.replace("-", "_")
        if name == "model" and isinstance(value, Mapping) and not _is_range(value):
            for argument, row in value.items():
                yield f"{_OF_MODEL}{argument.replace('-', '_')}", row
        else:
            yield name, value


def _is_range(value: Mapping[str, Any]) -> bool:
    """Whether it is one for the network itself, and not of its arguments."""
    return any(
        isinstance(row, list) and difflib.get_close_matches(kind, _NAMES, n=1)
        for kind, row in value.items()
    )


def _domain(where: str, name: str, row: Any) -> Domain:
    _check_name(where, name)
    if not isinstance(row, Mapping) or len(row) != 1:
        raise BadInput(
            f"{where}: want one range, as in {{choice = [1, 2]}}; a value that all have "
            "stands above [search]"
        )
    ((kind, arguments),) = row.items()
    if kind not in _NAMES:
        near = difflib.get_close_matches(kind, _NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"want {', '.join(_NAMES)}"
        raise BadInput(f"{where}: unknown range {kind!r}; {hint}")
    kind = kind.removesuffix("_search")
    if not isinstance(arguments, list):
        raise BadInput(f"{where}: {kind} {arguments!r}: want a list, as in {kind} = [1, 2]")
    if kind in _LISTS:
        return Domain(kind, _values(f"{where}: {kind}", name, arguments))
    values = _range(f"{where}: {kind}", name, kind, arguments)
    if _KINDS[kind].whole and values[2:] == (1,):
        # A step that is none: Ray Tune itself then leaves the upper end out, and Optuna does not.
        return Domain(kind.removeprefix("q"), values[:2])
    return Domain(kind, values)


def _check_name(where: str, name: str) -> None:
    searchable = options_that_are(RunConfig, "search")
    if name in searchable:
        return
    if name.startswith(_OF_MODEL):
        try:
            ModelSpec().with_arguments({name.removeprefix(_OF_MODEL): 0})
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from None
        return
    if name in options(SearchConfig):
        why_not = options(SearchConfig)[name].metadata["search"]
        why = why_not or "it is not of training; expected it above [search]"
        raise BadInput(f"{where}: cannot be searched: {why}")
    near = difflib.get_close_matches(name, searchable, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(searchable)} or model.NAME"
    raise BadInput(f"{where}: unknown; {hint}")


def _values(where: str, name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if not values:
        raise BadInput(f"{where}: is empty; want a value at least")
    read = tuple(_read(f"{where}:", name, value) for value in values)
    for one, other in itertools.combinations(read, 2):
        # A number is the same written as 1 or 1.0; True is none.
        if one == other and isinstance(one, bool) == isinstance(other, bool):
            raise BadInput(f"{where}: has {one!r} twice")
    return read


def _range(where: str, name: str, kind: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    about = _KINDS[kind]
    parse = None if name.startswith(_OF_MODEL) else options(RunConfig)[name].metadata["parse"]
    if parse not in (None, integer, number):
        raise BadInput(f"{where}: is of numbers; want choice or grid")
    if parse is integer and not about.whole:
        raise BadInput(f"{where}: is not of whole numbers; want randint, lograndint or choice")
    what = "lower end, upper end" + (" and step" if about.step else "")
    if len(arguments) != 2 + about.step:
        raise BadInput(f"{where}: has {len(arguments)} values; want {what}")
    for value in arguments:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (isinstance(value, float) and math.isfinite(value) and not about.whole)):
            noun = "whole numbers" if about.whole else "numbers"
            raise BadInput(f"{where} {value!r}: want {noun}: {what}")
        if abs(value) >= 2**63:  # NumPy draws no larger ones
            raise BadInput(f"{where} {value!r}: want less than 2**63")
    lower, upper = arguments[:2]
    if lower >= upper:
        raise BadInput(f"{where} {lower!r}: want a lower end below the upper one, {upper!r}")
    if about.log and lower <= 0:
        raise BadInput(f"{where} {lower!r}: want more than 0, because it is logarithmic")
    if about.step:
        _check_step(where, lower, upper, arguments[2])
    for end in Domain(kind, tuple(arguments)).ends:
        _read(where, name, end)
    return tuple(arguments)


def _check_step(where: str, lower: float, upper: float, step: float) -> None:
    """As Ray Tune has it."""
    if step <= 0:
        raise BadInput(f"{where} {step!r}: want a step above 0")
    for end in (lower, upper):
        if not math.isclose(end / step, round(end / step)):
            raise BadInput(f"{where} {end!r}: want a multiple of the step, {step!r}")


def _read(where: str, name: str, value: Any) -> Any:
    """A value as the run would be told it."""
    if not name.startswith(_OF_MODEL):
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise BadInput(f"{where} {value!r}: want a number or a text")
        read = read_option(RunConfig, name, toml_text(value), where)
        if name != "model":
            return read
        with _named(where, value):
            return str(ModelSpec.parse(read))
    argument = name.removeprefix(_OF_MODEL)
    with _named(where, value):
        return ModelSpec("").with_arguments({argument: value}).arguments[argument]


@contextmanager
def _named(where: str, value: Any) -> Iterator[None]:
    """What a spec refuses is bad input that stands there."""
    try:
        yield
    except ValueError as error:
        raise BadInput(f"{where} {value!r}: {error}") from None
