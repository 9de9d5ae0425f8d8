"""The configuration of a search: that of a run, with ranges in place of some of its values.

    [search]
    learning_rate = {loguniform = [1e-4, 1e-2]}
    batch_size = {choice = [16, 32, 64]}
    model.dropout = {uniform = [0.1, 0.5]}

Ranges have the names and meanings that they have in Ray Tune (`ray.tune.loguniform`).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from raykfold.config.class_spec import SPECS, plain, split_argument
from raykfold.config.environment import script_command
from raykfold.config.options import (
    OrWord,
    integer,
    mask_sizes,
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
from raykfold.state.record import identity
from raykfold.text import one_line

_LISTS = ("choice", "grid")
_KINDS = (
    *("uniform", "quniform", "loguniform", "qloguniform"),
    *("randint", "qrandint", "lograndint", "qlograndint"),
    *(*_LISTS, "grid_search"),
)
_DEFAULT_TRIALS = 20  # without a grid
_LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Domain:
    """The values that a hyper-parameter can take.

    Attributes:
        kind: Ray Tune's name for it; ``grid`` is its grid_search.
        arguments: the values of a ``choice`` or ``grid``; for the other kinds the lower end, the
            upper end and, for kinds that begin with q, the step.
    """

    kind: str
    arguments: tuple[Any, ...]

    @property
    def is_list(self) -> bool:
        return self.kind in _LISTS

    @property
    def is_whole(self) -> bool:
        return self.kind.endswith("int")

    @property
    def is_log(self) -> bool:
        return "log" in self.kind

    @property
    def has_step(self) -> bool:
        return self.kind.startswith("q")

    @property
    def ends(self) -> tuple[Any, ...]:
        """The lowest and highest value of a range; all values of a list.

        As in Ray Tune, a range without a step does not include its upper end.
        """
        if self.is_list:
            return self.arguments
        lower, upper = self.arguments[:2]
        if self.is_whole:
            return lower, upper if self.has_step else upper - 1
        return float(lower), float(upper) if self.has_step else math.nextafter(upper, lower)


@dataclass(frozen=True)
class SearchSpace:
    """The searched hyper-parameters and their domains, in the order of the file.

    Names are those of a run's flags; ``model.NAME`` is a keyword argument of the network,
    and ``recipe.NAME`` one of the recipe.
    """

    domains: Mapping[str, Domain] = field(default_factory=dict)

    def grid_size(self) -> int:
        """Return the number of combinations of the grids; 1 without a grid."""
        grids = (each for each in self.domains.values() if each.kind == "grid")
        return math.prod(len(each.arguments) for each in grids)

    def combinations(self) -> int | None:
        """Return the number of different configurations; None if there are ranges."""
        if not all(each.is_list for each in self.domains.values()):
            return None
        return math.prod(len(each.arguments) for each in self.domains.values())

    def probes(self) -> Iterator[dict[str, Any]]:
        """Yield configurations that reach each end of each domain, the others at their first."""
        first = {name: domain.ends[0] for name, domain in self.domains.items()}
        yield first
        for name, domain in self.domains.items():
            for value in domain.ends[1:]:
                yield {**first, name: value}

    def to_json(self) -> dict[str, Any]:
        """Return the [search] table."""
        return {name: {each.kind: list(each.arguments)} for name, each in self.domains.items()}


def values_text(values: Mapping[str, Any]) -> str:
    """Return the values of a trial as text: ``learning_rate 0.00123, batch_size 16``."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items())


def value_text(value: Any) -> str:
    """Return a value as text, a number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _above_one(value: float) -> str | None:
    return "expected more than 1" if not value > 1 else positive(value)


_search = partial(option, group="search")


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """The options of a search: those that its trials share, and how and what it searches."""

    trial_class: ClassVar[type[RunConfig]] = RunConfig
    """The class of a trial's configuration."""

    module: ClassVar[str] = "raykfold.search"
    about: ClassVar[str] = (
        "Tune hyper-parameters: each trial is a whole cross-validation, and poor ones are stopped. "
        "The [search] table of the --config file holds the ranges to search."
    )
    exit_codes: ClassVar[str] = "3 some trials failed"
    examples: ClassVar[tuple[str, ...]] = (
        "--demo --config search.toml --model_dir runs/search",
        "--demo --config search.toml --trials 40 --trial_scheduler asha --nested",
    )

    trials: int | None = _search(None, OrWord("auto", integer), positive)
    """Configurations to try (auto: every combination of the grids, or 20 without a grid)."""

    sampler: str = _search("random", str, one_of("random", "optuna"))
    """How values are drawn from ranges: random, or optuna (TPE, which learns from trials)."""

    trial_scheduler: str = _search("asha", str, one_of("asha", "median", "none"))
    """Ray Tune's rule that stops poor trials: asha (successive halving), median or none."""

    grace_period: int | None = _search(None, OrWord("auto", integer), positive)
    """Epochs of all folds before a trial can be stopped (auto: a ninth of the epochs)."""

    reduction_factor: float = _search(2.0, number, _above_one)
    """For asha: one trial in so many continues at each rung, and rungs are so far apart."""

    concurrent_trials: int | None = _search(None, OrWord("auto", integer), positive)
    """Most trials at once (auto: as many as fill the slots, and one more)."""

    nested: bool = _search(False, switch)
    """Also search within each outer fold, and measure each winner on its outer fold."""

    # From Python also a mapping, as the [search] table is one.
    space: SearchSpace = field(default_factory=SearchSpace)
    config_file: Path | None = None  # which holds the space

    def __post_init__(self) -> None:
        """Check the values, after `RunConfig` has checked its own.

        Raises:
            BadInput: a value is out of range, or does not fit a search.
        """
        super().__post_init__()
        rows = self.space.to_json() if isinstance(self.space, SearchSpace) else self.space
        if not isinstance(rows, Mapping):
            raise BadInput(f"[search] {one_line(repr(rows))}: expected a mapping of ranges")
        self._set("space", _space(type(self), rows, "[search]: "))
        if not self.space.domains:
            raise BadInput("[search]: is empty; expected at least one range")
        _refuse_fixed(self.space, self.changed(), "[search]: ")  # a default is not told from none
        if self.space.grid_size() > _LARGEST_GRID:
            raise BadInput(
                f"[search]: the grid has {self.space.grid_size()} combinations; expected at most "
                f"{_LARGEST_GRID}, or choice instead of grid"
            )
        if self.repeats != 1:
            raise BadInput(
                f"--repeats {self.repeats}: expected 1 for a search; to repeat its best trial, use "
                "raykfold.run --config best.toml --repeats"
            )
        if self.grace_epochs > self.most_epochs:
            raise BadInput(
                f"--grace_period {self.grace_period}: expected at most the {self.most_epochs} "
                "--epochs"
            )

    @property
    def num_trials(self) -> int:
        has_grid = any(each.kind == "grid" for each in self.space.domains.values())
        return self.trials or (self.space.grid_size() if has_grid else _DEFAULT_TRIALS)

    @property
    def most_epochs(self) -> int:
        """The most epochs that a trial can have."""
        domain = self.space.domains.get("epochs")
        return max(domain.ends) if domain else self.epochs

    @property
    def grace_epochs(self) -> int:
        return self.grace_period or max(1, self.most_epochs // 9)

    def epochs_of(self, values: Mapping[str, Any]) -> int:
        """Return the most epochs of a trial with these values."""
        return int(values.get("epochs", self.epochs))

    def trial(self, number: int, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of a trial, which is a run of its own.

        Args:
            number: of the trial, from 1.
            values: searched hyper-parameter → this trial's value.

        Raises:
            BadInput: a run cannot have such values.
        """
        return self._run(
            values,
            run_name=f"{self.run_name}-trial-{number}",
            model_dir=self.model_place / "trials" / str(number),
            storage_path=self.run_dir.trials,
        )

    def outer(self, fold: int) -> SearchConfig:
        """Return the configuration of the search within an outer fold: on all other folds."""
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
        """Return the run that measures a trial of the search within an outer fold on that fold.

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
        fields = {name: getattr(self, name) for name in options(self.trial_class)}
        fields |= {"fresh": False, "hf_model_repo_id": None, **values, **own}
        fields |= {"named": self.named, "in_memory": self.in_memory}
        for name in values:
            if split := split_argument(name):
                of, argument = split
                spec = SPECS[of].parse(fields[of]).with_arguments({argument: fields.pop(name)})
                fields[of] = str(spec)
        return self.trial_class(**fields)

    def command(self) -> list[str]:
        if self.config_file is None:  # no flag can say the space
            return script_command() or []
        return super().command()

    def flags(self) -> list[str]:
        file = [] if self.config_file is None else ["--config", str(self.config_file)]
        return [*file, *super().flags()]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "space": self.space.to_json()}


def search_identity(
    config: SearchConfig,
    fingerprint: str,
    device: str | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Return the fields that must be equal for a search to be resumed.

    The number of trials is not one of them.

    Args:
        fingerprint, device, precision: as in `raykfold.state.record.identity`.
    """
    run = identity(config, fingerprint, device, precision)
    searched = config.space.domains
    return {name: value for name, value in run.items() if name not in searched} | {
        "space": config.space.to_json(),
        "epochs": config.epochs,
        "folds": "all" if config.folds is None else list(config.folds),
        "sampler": config.sampler,
        "trial_scheduler": config.trial_scheduler,
        "grace_period": config.grace_epochs,
        "reduction_factor": config.reduction_factor,
    }


def parse_search(
    argv: Sequence[str], environ: Mapping[str, str], cls: type[SearchConfig] = SearchConfig
) -> SearchConfig:
    """Read the command line, the environment and the TOML file that they name.

    Args:
        argv: the arguments.
        environ: the environment.
        cls: the class of the configuration.

    Raises:
        BadInput: as for `parse_config`, or a range is wrong.
        SystemExit: after --help or --version.
    """
    values, table = parse_values(cls, argv, environ)
    if table.file is None:
        raise BadInput("--config: is missing; expected a TOML file with a [search] table")
    where = f"--config {table.file}"
    if not isinstance(table.rows, Mapping) or not table.rows:
        raise BadInput(
            f"{where}: has no [search] table with ranges, as in "
            "learning_rate = {loguniform = [1e-4, 1e-2]}"
        )
    space = _space(cls, table.rows, f"{where}: search.")
    _refuse_fixed(space, values, f"{where}: search.")
    return cls(**values, space=space, config_file=absolute(table.file))


def _refuse_fixed(space: SearchSpace, given: Mapping[str, Any], where: str) -> None:
    """Raise `BadInput` if a searched hyper-parameter is also among the options that are given."""
    fixed = set(given)
    for of, spec_class in SPECS.items():
        spec = spec_class.parse(given[of]) if of in given else spec_class()
        fixed |= {f"{of}.{argument}" for argument in spec.arguments}
    for name in space.domains:
        if name in fixed:
            raise BadInput(f"{where}{name}: also has a fixed value; expected one of the two")


def _space(cls: type[SearchConfig], rows: Mapping[str, Any], where: str) -> SearchSpace:
    """Parse the [search] table.

    Args:
        where: what stands before the name of a range in messages.
    """
    domains: dict[str, Domain] = {}
    for name, row in _flat(rows):
        if name in domains:
            raise BadInput(f"{where}{name}: appears twice")
        domains[name] = _domain(cls, f"{where}{name}", name, row)
    return SearchSpace(domains)


def _flat(rows: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and ranges. Unquoted, ``model.dropout`` is a table in the table ``model``."""
    for key, value in rows.items():
        name = str(key).replace("-", "_")
        if name in SPECS and isinstance(value, Mapping) and not _is_range(value):
            for argument, row in value.items():
                yield f"{name}.{str(argument).replace('-', '_')}", row
        else:
            yield name, value


def _is_range(value: Mapping[str, Any]) -> bool:
    """Whether this is a range of classes, and not a table of the arguments of one."""
    return any(
        isinstance(row, list) and difflib.get_close_matches(str(kind), _KINDS, n=1)
        for kind, row in value.items()
    )


def _domain(cls: type[SearchConfig], where: str, name: str, row: Any) -> Domain:
    """Parse one row of the [search] table."""
    _check_name(cls, where, name)
    if not isinstance(row, Mapping) or len(row) != 1:
        raise BadInput(
            f"{where}: expected one range, as in {{choice = [1, 2]}}; a value that all trials "
            "share belongs above [search]"
        )
    ((kind, arguments),) = row.items()
    if kind not in _KINDS:
        near = difflib.get_close_matches(str(kind), _KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(_KINDS)}"
        raise BadInput(f"{where}: unknown range {kind!r}; {hint}")
    kind = kind.removesuffix("_search")
    arguments = plain(arguments)
    if not isinstance(arguments, list | tuple | range):
        raise BadInput(f"{where}: {kind} {arguments!r}: expected a list, as in {kind} = [1, 2]")
    domain = Domain(kind, tuple(map(plain, arguments)))
    if domain.is_list:
        return Domain(kind, _values(cls, f"{where}: {kind}", name, domain.arguments))
    _check_range(cls, f"{where}: {kind}", name, domain)
    if domain.is_whole and domain.arguments[2:] == (1,):
        # With a step of 1 Ray Tune leaves the upper end out, and Optuna would not.
        return Domain(kind.removeprefix("q"), domain.arguments[:2])
    return domain


def _check_name(cls: type[SearchConfig], where: str, name: str) -> None:
    searchable = options_that_are(cls.trial_class, "search")
    if name in searchable:
        return
    if split := split_argument(name):
        of, argument = split
        try:
            SPECS[of]().with_arguments({argument: 0})
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from None
        return
    if name in options(cls):
        why_not = options(cls)[name].metadata["search"]
        why = why_not or "it does not affect training; expected it above [search]"
        raise BadInput(f"{where}: cannot be searched: {why}")
    near = difflib.get_close_matches(name, searchable, n=1)
    all_names = [*searchable, *(f"{of}.NAME" for of in SPECS)]
    hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(all_names)}"
    raise BadInput(f"{where}: unknown; {hint}")


def _values(
    cls: type[SearchConfig], where: str, name: str, values: Sequence[Any]
) -> tuple[Any, ...]:
    """Parse the values of a choice or grid."""
    if not values:
        raise BadInput(f"{where}: is empty; expected at least one value")
    parsed = tuple(_value(cls, f"{where}:", name, value) for value in values)
    for one, other in itertools.combinations(parsed, 2):
        # 1 and 1.0 are the same value; True is another.
        if one == other and isinstance(one, bool) == isinstance(other, bool):
            raise BadInput(f"{where}: {one!r} appears twice")
    return parsed


def _check_range(cls: type[SearchConfig], where: str, name: str, domain: Domain) -> None:
    parse = None
    if split_argument(name) is None:
        parse = options(cls)[name].metadata["parse"]
        if parse not in (integer, number):
            raise BadInput(f"{where}: is a range of numbers; expected choice or grid")
    if parse is integer and not domain.is_whole:
        raise BadInput(
            f"{where}: is not a range of whole numbers; expected randint, lograndint or choice"
        )
    arguments = domain.arguments
    parts = "lower end, upper end" + (" and step" if domain.has_step else "")
    if len(arguments) != 2 + domain.has_step:
        raise BadInput(f"{where}: has {len(arguments)} values; expected {parts}")
    for value in arguments:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        is_float = isinstance(value, float) and math.isfinite(value)
        if not (is_int or (is_float and not domain.is_whole)):
            numbers = "whole numbers" if domain.is_whole else "numbers"
            raise BadInput(f"{where} {value!r}: expected {numbers}: {parts}")
        if abs(value) >= 2**63:  # NumPy does not draw larger ones
            raise BadInput(f"{where} {value!r}: expected less than 2**63")
    lower, upper, *step = arguments
    if lower >= upper:
        raise BadInput(f"{where} {lower!r}: expected a lower end below the upper one, {upper!r}")
    if domain.is_log and lower <= 0:
        raise BadInput(f"{where} {lower!r}: expected more than 0 for a logarithmic range")
    for each in step:
        if each <= 0:
            raise BadInput(f"{where} {each!r}: expected a step above 0")
        for end in (lower, upper):  # as Ray Tune requires
            if not math.isclose(end / each, round(end / each)):
                raise BadInput(f"{where} {end!r}: expected a multiple of the step, {each!r}")
    for end in domain.ends:
        _value(cls, where, name, end)


def _value(cls: type[SearchConfig], where: str, name: str, value: Any) -> Any:
    """Parse a value as a run would."""
    try:
        if split := split_argument(name):
            of, argument = split
            return SPECS[of]().with_arguments({argument: value}).arguments[argument]
        if name in SPECS:
            return read_option(cls, name, value, where)
        is_pair = (
            isinstance(value, list | tuple) and options(cls)[name].metadata["parse"] is mask_sizes
        )
        if not (is_pair or isinstance(value, str | int | float)) or isinstance(value, bool):
            raise BadInput(f"{where} {value!r}: expected a number or a text")
        return read_option(cls, name, toml_text(value), where)
    except ValueError as error:
        raise BadInput(f"{where} {value!r}: {error}") from None
