"""What a run is told: flag, then environment variable, then TOML file, then default.

One table: the fields of `RunConfig`. The parser of the command line, the names of the environment
variables and the keys of the TOML file follow from it.
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
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from raykfold.config.command import Parser, add_flag
from raykfold.config.model_spec import DEFAULT_MODEL, Blueprint
from raykfold.errors import BadInput
from raykfold.files.paths import ModelDir, RunDir, absolute, seed_name, whole, working_copy
from raykfold.files.remote import Place, RemotePath, place, without_password

ENVIRONMENT_PREFIX = "RAYKFOLD_"
# Ray sets this for the entrypoint of `ray job submit`.
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def option(
    default: Any,
    parse: Callable[[str], Any],
    check: Callable[[Any], str | None] | None = None,
) -> Any:
    """A field with how its text is read, and what is wrong with a value (None when nothing is)."""
    return dataclasses.field(default=default, metadata={"parse": parse, "check": check})


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("want a text that is not empty")
    return value


def _place(value: str) -> Place:
    return place(_text(value))


def integer(value: str) -> int:
    try:
        read = int(value)
    except ValueError:
        raise ValueError("want a whole number") from None
    if abs(read) >= 2**63:  # what is behind it, PyTorch and files, has 64 bits
        raise ValueError("want a whole number of less than 64 bits")
    return read


def number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("want a number") from None


def switch(value: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.strip().lower() not in known:
        raise ValueError("want true or false")
    return known[value.strip().lower()]


def one_of(*choices: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        return None if value in choices else f"want {' or '.join(choices)}"

    return check


def _repository(value: str) -> str | None:
    # As the Hub has them: an owner and a name, or the name alone for what is one's own.
    if re.fullmatch(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", value, re.ASCII) and len(value) <= 96:
        return None
    return "want a repository of the Hugging Face Hub, as in owner/name"


@dataclass(frozen=True)
class OrWord:
    """Reads `word` as None, and everything else by `parse`."""

    word: str
    parse: Callable[[str], Any]

    def __call__(self, value: str) -> Any:
        if value.strip().lower() == self.word:
            return None
        try:
            return self.parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {self.word}") from None


def _fold_list(value: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        raise ValueError("want fold labels with commas between, as in 1,3") from None


def positive(value: float) -> str | None:
    if not value > 0:
        return "want more than 0"
    return None if math.isfinite(value) else "want a finite number"


def _not_negative(value: float) -> str | None:
    return None if value >= 0 else "want 0 or more"


def _plain_name(value: str) -> str | None:
    if "/" in value or "\\" in value or value in (".", ".."):
        return "want a plain name without slashes"
    return None


@dataclass(frozen=True)
class RunConfig:
    """Everything that a cross-validation is told. `python -m raykfold.run --help` prints it."""

    _module: ClassVar[str] = "raykfold.run"
    _about: ClassVar[str] = (
        "Cross-validate: train every fold as a Ray Train worker, all folds at once."
    )
    _exit_codes: ClassVar[str] = "3 some folds failed"

    processed_dir: Place = option(Path("data/processed"), _place)
    """Folder with features, labels and folds, as `raykfold.prepare` writes it; or a URI of one."""

    hf_repo_id: str | None = option(None, _text, _repository)
    """Dataset on the Hugging Face Hub that what is missing in processed_dir is fetched from."""

    demo: bool = option(False, switch)
    """Train on built-in, synthesised sounds instead of `processed_dir`."""

    epochs: int = option(50, integer, positive)
    """Most epochs of a fold."""

    batch_size: int = option(32, integer, positive)
    """Samples in a training batch."""

    learning_rate: float = option(0.001, number, positive)
    """Adam's learning rate at the start."""

    early_stopping_patience: int = option(10, integer, positive)
    """Epochs without a lower validation loss after which a fold stops."""

    seed: int = option(0, integer, _not_negative)
    """Seed of initial weights, order of samples and dropout."""

    model: str = option(DEFAULT_MODEL, _text)
    """The network, `module:Class`, called with (n_mels, num_classes, target_len) and what is in
    parentheses behind it, as in raykfold.models:AudioCNN(dropout=0.3, width=16)."""

    precision: str = option("auto", _text, one_of("auto", "fp32", "bf16"))
    """Of training steps: fp32 or bf16 (auto: bf16 for AudioCNN on GPUs that have it, else fp32)."""

    repeats: int = option(1, integer, positive)
    """Seeds to train every fold with: seed, seed + 1, and so on."""

    select: str = option("best", _text, one_of("best", "inner"))
    """How the epoch that is kept is chosen: best on the held-out fold, or on an inner split."""

    folds: tuple[int, ...] | None = option(None, OrWord("all", _fold_list))
    """Folds to hold out, as in 1,3 (all by default); training splits stay whole."""

    model_dir: Place | None = option(None, _place)
    """Folder of the outputs, or a URI, s3:// or gs:// (~/raykfold/<run_name> by default)."""

    storage_path: Place | None = option(None, _place)
    """Folder, or URI, of the checkpoints that a run resumes from (<model_dir>/ray by default)."""

    run_name: str = option("", _text, _plain_name)
    """Name of the run (demo, or the last part of processed_dir, by default)."""

    fresh: bool = option(False, switch)
    """Set an earlier run of that name aside, and start anew."""

    address: str | None = option(None, _text)
    """Ray cluster to use (RAY_ADDRESS by default, else a local instance of its own)."""

    local_cpus: int | None = option(None, OrWord("auto", integer), positive)
    """CPUs that a local Ray instance offers (all by default)."""

    num_workers: int | None = option(None, OrWord("auto", integer), positive)
    """Most workers at once (auto: one a fold, as far as there are slots)."""

    cpus_per_worker: int = option(1, integer, positive)
    """CPUs, and threads, of a worker."""

    folds_per_slot: int | None = option(None, OrWord("auto", integer), positive)
    """Folds that a worker steps together (auto: what is fastest on a GPU, one on a CPU)."""

    use_gpu: bool | None = option(None, OrWord("auto", switch))
    """Whether each worker takes a GPU (auto: if Ray has any)."""

    wait_timeout: float | None = option(None, OrWord("never", number), positive)
    """Seconds to wait for a free slot when no fold has one (never: as long as it takes)."""

    max_failures: int = option(3, integer, positive)
    """Deaths in a row of a fold's worker, no round completed between, that fail the fold."""

    checkpoint_every: int = option(1, integer, positive)
    """Rounds from one checkpoint to the next."""

    hf_model_repo_id: str | None = option(None, _text, _repository)
    """Model repository on the Hugging Face Hub that weights and results go up to."""

    hf_private: bool = option(False, switch)
    """Make that repository a private one, if it has still to be made."""

    hub_upload: str = option("all", _text, one_of("all", "best"))
    """Weights that go up: of all epochs and the best of each fold, or only the best."""

    hub_interval: float = option(60.0, number, positive)
    """Seconds from one commit on the Hub to the next, at least."""

    hub_timeout: float = option(600.0, number, _not_negative)
    """Seconds to wait, at the end, for what has still to go up."""

    wandb_project: str | None = option(None, _text, _plain_name)
    """Project on Weights & Biases that each fold is logged to, as a run."""

    wandb_entity: str | None = option(None, _text, _plain_name)
    """User or team on Weights & Biases (your own default)."""

    wandb_mode: str | None = option(None, _text, one_of("online", "offline", "disabled"))
    """online, offline or disabled (WANDB_MODE by default, else online if there is a key)."""

    wandb_watch: bool = option(False, switch)
    """Log histograms of weights and gradients, after each epoch."""

    tensorboard: bool = option(False, switch)
    """Write TensorBoard's event files of each fold, below model_dir/tensorboard."""

    verbose: bool = option(False, switch)
    """Say what becomes of each share, let Ray and the workers print, show errors' tracebacks."""

    named: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)
    """What the environment or a file has set, and would set again: `command` leaves none out."""

    def __post_init__(self) -> None:
        """Fill what follows from other fields, make paths absolute, refuse impossible values.

        Raises:
            BadInput: a value is out of range; a relative output path in a submitted job.
        """
        for name, option in options(type(self)).items():
            check, value = option.metadata["check"], getattr(self, name)
            wrong = check(value) if check and value not in (None, "") else None
            if wrong:
                raise BadInput(f"--{name} {value}: {wrong}")
        for name in ("processed_dir", "model_dir", "storage_path"):  # text is fine from Python
            if getattr(self, name) is not None:
                self._set(name, _read_place(name, getattr(self, name)))
        if self.folds is not None:
            self._set("folds", tuple(sorted(set(self.folds))))
        self._set("model", _network(self.model))
        self._refuse_paths_that_vanish()
        self._set("processed_dir", whole(self.processed_dir))
        self._set("run_name", self.run_name or self._default_run_name())
        self._set("model_dir", whole(self.model_dir or Path("~/raykfold") / self.run_name))
        self._set("storage_path", whole(self.storage_path or self.model_place / "ray"))
        if self.hf_repo_id is not None and isinstance(self.processed_dir, RemotePath):
            raise BadInput(
                f"--processed_dir {self.processed_dir}: with --hf_repo_id, want a local path: what "
                "is fetched from the Hub is put there"
            )

    @property
    def model_place(self) -> Place:
        """`model_dir`, which is always filled."""
        assert self.model_dir is not None
        return self.model_dir

    @property
    def model_path(self) -> Path:
        """Where the outputs are made: `model_dir`, or the working copy of one that is a URI."""
        place = self.model_place
        return working_copy(place) if isinstance(place, RemotePath) else place

    @property
    def outputs(self) -> ModelDir:
        return ModelDir(self.model_path)

    @property
    def run_dir(self) -> RunDir:
        assert self.storage_path is not None
        return RunDir(self.storage_path / self.run_name)

    def repeat(self, number: int) -> RunConfig:
        """One of the repeats, counted from 0, as the run of its own that it is: with its seed, in
        folders within those of this one. The first is this run.
        """
        if number == 0:
            return self
        seed = self.seed + number
        return dataclasses.replace(
            self,
            seed=seed,
            repeats=1,
            run_name=f"{self.run_name}-seed-{seed}",
            model_dir=self.model_place / seed_name(seed),
            storage_path=self.run_dir.repeats,
            hf_model_repo_id=None,  # the run's mirror takes them along
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the record of the run. There are no secrets among the fields."""
        return {
            name: str(value) if isinstance(value, Place) else value
            for name in options(type(self))
            for value in [getattr(self, name)]
        }

    def command(self) -> list[str]:
        """The command that starts or resumes this run, also where what is `named` still stands."""
        command = ["python", "-m", self._module]
        changed = self.changed()
        for name, option in options(type(self)).items():
            value, parse = getattr(self, name), option.metadata["parse"]
            if name == "fresh":  # is of one start only
                command += ["--fresh", "false"] if name in self.named else []
            elif name not in changed and name not in self.named:
                continue
            elif parse is switch:
                command += [f"--{name}"] if value else [f"--{name}", "false"]
            elif value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                command += [f"--{name}", text]
            elif isinstance(parse, OrWord):
                command += [f"--{name}", parse.word]
        return command

    def changed(self) -> dict[str, Any]:
        """Fields that are not the default, but for `fresh`, which is of one start only."""
        return {
            name: getattr(self, name)
            for name, option in options(type(self)).items()
            if name != "fresh" and getattr(self, name) != self._default_of(option)
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _default_run_name(self) -> str:
        return "demo" if self.demo else self.processed_dir.name or "root"

    def _default_of(self, field: dataclasses.Field[Any]) -> Any:
        derived = {
            "processed_dir": absolute(Path("data/processed")),
            "run_name": self._default_run_name(),
            "model_dir": absolute(Path("~/raykfold") / self.run_name),
            "storage_path": self.model_place / "ray",
        }
        return derived.get(field.name, field.default)

    def _refuse_paths_that_vanish(self) -> None:
        if not in_submitted_job(os.environ):
            return
        for name in ("model_dir", "storage_path"):
            path = getattr(self, name)
            if isinstance(path, Path) and not path.expanduser().is_absolute():
                raise BadInput(
                    f"--{name} {path}: is relative, and the working directory of a submitted job "
                    "vanishes with it; want an absolute path"
                )


def in_submitted_job(environ: Mapping[str, str]) -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return _SUBMITTED_JOB_VARIABLE in environ


def parse_config(argv: Sequence[str], environ: Mapping[str, str]) -> RunConfig:
    """Read the command line, the environment and the TOML file that they name.

    Raises:
        BadInput: a flag, variable or key is unknown or its value cannot be read; the text names
            where it stood.
        SystemExit: after --help or --version.
    """
    values, table = parse_values(RunConfig, argv, environ)
    if table.rows is not None:
        raise BadInput(
            f"--config {table.file}: [search] is for python -m raykfold.search, which tries many "
            "runs; want a file without it"
        )
    return RunConfig(**values)


@dataclass(frozen=True)
class SearchTable:
    """The [search] table of a TOML file.

    Attributes:
        file: as it was named; None without one.
        rows: its keys and values, as TOML has them; None if there is none.
    """

    file: str | None = None
    rows: Mapping[str, Any] | None = None


def parse_values(
    cls: type[RunConfig], argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[dict[str, Any], SearchTable]:
    """What the command line, the environment and the TOML file say, for a class of configurations;
    and, as `named`, which of it the last two do.

    Raises:
        BadInput, SystemExit: as `parse_config`.
    """
    flags = vars(_parser(cls).parse_args(_unknown_refused(cls, argv)))
    config_file = flags.pop("config") or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    content = _from_toml(Path(config_file)) if config_file else {}
    table = SearchTable(config_file, content.pop("search", None))
    values = _read_toml(cls, content, f"--config {config_file}")
    values |= _from_environment(cls, environ)
    named = frozenset(values)
    values |= {
        name: read_option(cls, name, text, f"--{name}")
        for name, text in flags.items()
        if text is not None
    }
    return {**values, "named": named}, table


def _from_environment(cls: type[RunConfig], environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == f"{ENVIRONMENT_PREFIX}CONFIG":
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in options(cls):
            nearest = _nearest(cls, name, "variable")
            raise BadInput(f"environment variable {variable}: unknown{nearest}")
        values[name] = read_option(cls, name, text, f"environment variable {variable}")
    if "address" not in values and environ.get("RAY_ADDRESS"):
        values["address"] = environ["RAY_ADDRESS"]
    return values


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"--config {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path}: is no TOML ({error})") from None


def _read_toml(cls: type[RunConfig], content: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = {}
    for key, value in _network_in_one(content, where).items():
        name = key.replace("-", "_")
        if name not in options(cls):
            raise BadInput(f"{where}: unknown key {key!r}{_nearest(cls, name, 'key')}")
        if name in values:
            raise BadInput(f"{where}: {key}: stands there twice, as {name}, too")
        values[name] = read_option(cls, name, toml_text(value), f"{where}: {key}")
    return values


def _network_in_one(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With the arguments of the network, ``model.NAME``, in the text that stands for it."""
    model = content.get("model", RunConfig.model)
    written = [
        (key.removeprefix("model."), value)
        for key, value in content.items()
        if key.startswith("model.")
    ]
    if isinstance(model, Mapping):  # as TOML has it where the key is not quoted
        written, model = [*written, *model.items()], RunConfig.model
    arguments: dict[str, Any] = {}
    for key, value in written:
        name = key.replace("-", "_")
        if name in arguments:
            raise BadInput(f"{where}: model.{name}: stands there twice")
        arguments[name] = value
    if not arguments:
        return dict(content)
    try:
        text = str(Blueprint.read(str(model)).having(arguments))
    except ValueError as error:
        raise BadInput(f"{where}: model: {error}") from None
    others = {key: value for key, value in content.items() if not key.startswith("model.")}
    return {**others, "model": text}


def toml_text(value: Any) -> str:
    """A value of a TOML file as it would stand on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def read_option(cls: type[RunConfig], name: str, text: str, where: str) -> Any:
    """The value that a text stands for.

    Args:
        where: it stood, for messages.

    Raises:
        BadInput: for none that the option can have.
    """
    field = options(cls)[name]
    try:
        value = field.metadata["parse"](text)
    except ValueError as error:
        raise BadInput(f"{where} {without_password(text)!r}: {error}") from None
    wrong = (
        field.metadata["check"](value) if field.metadata["check"] and value is not None else None
    )
    if wrong:
        raise BadInput(f"{where} {text!r}: {wrong}")
    return value


def _read_place(name: str, value: str | Place) -> Place:
    try:
        str(value).encode()  # as files, the Hub and W&B have it
        return place(value)
    except UnicodeEncodeError:
        raise BadInput(f"--{name} {value}: want a path in UTF-8") from None
    except ValueError as error:
        raise BadInput(f"--{name} {without_password(str(value))}: {error}") from None


def _network(text: str) -> str:
    try:
        return str(Blueprint.read(text))
    except ValueError as error:
        raise BadInput(f"--model {text}: {error}") from None


def options(cls: type[RunConfig]) -> dict[str, dataclasses.Field[Any]]:
    """What can be a flag, an environment variable and a key of the TOML file, by name."""
    fields = dataclasses.fields(cls)
    return {field.name: field for field in fields if "parse" in field.metadata}


def _nearest(cls: type[RunConfig], name: str, kind: str) -> str:
    spelling = {
        "flag": lambda n: f"--{n}",
        "variable": lambda n: f"{ENVIRONMENT_PREFIX}{n.upper()}",
        "key": lambda n: n,
    }[kind]
    near = difflib.get_close_matches(name, [*options(cls), "config", "version", "help"], n=1)
    return f"; did you mean {spelling(near[0])}?" if near else ""


def _unknown_refused(cls: type[RunConfig], argv: Sequence[str]) -> Sequence[str]:
    known = {*options(cls), "config", "version", "help"}
    for argument in argv:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name not in known:
            nearest = _nearest(cls, name, "flag") or "; see --help"
            raise BadInput(f"{argument.partition('=')[0]}: unknown flag{nearest}")
    return argv


def _parser(cls: type[RunConfig]) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"python -m {cls._module}",
        description=cls._about,
        epilog="Each flag is also an environment variable (RAYKFOLD_EPOCHS) and a key of the "
        f"--config file (epochs). Exit codes: 0 done, 2 bad input, {cls._exit_codes}, "
        "130 interrupted, 1 anything else.",
    )
    docs = _docs(cls)
    # Those of a class derived from this one first: its command is about them.
    for name, field in sorted(options(cls).items(), key=lambda each: each[0] in options(RunConfig)):
        silent = field.default is None or field.default is False or field.default == ""
        shown = "" if silent else f" [{field.default}]"
        more: dict[str, Any] = {"default": None, "help": docs[name] + shown}
        if field.metadata["parse"] is switch:
            more |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            more["metavar"] = name.rpartition("_")[2].upper()
        add_flag(parser, name, **more)
    parser.add_argument("--config", metavar="FILE.toml", help="TOML file with any of these keys.")
    parser.add_argument("--version", action="version", version=f"raykfold {_version()}")
    return parser


def _docs(cls: type[RunConfig]) -> dict[str, str]:
    """The docstring under each option, which Python itself does not keep."""
    docs: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):  # the last is object
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(body, ast.ClassDef)
        for statement, following in itertools.pairwise(body.body):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    docs[name] = " ".join(text.split()).replace("%", "%%")
    return docs


def _version() -> str:
    from raykfold import __version__

    return __version__
