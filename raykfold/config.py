"""What a run is told: flag, then environment variable, then TOML file, then default.

One table: the fields of `RunConfig`. The parser of the command line, the names of the environment
variables and the keys of the TOML file follow from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykfold.command import Parser, add_flag
from raykfold.errors import BadInput
from raykfold.paths import ModelDir, RunDir, absolute, seed_name, whole, working_copy
from raykfold.remote import Place, RemotePath, place, without_password

ENVIRONMENT_PREFIX = "RAYKFOLD_"
# Ray sets this for the entrypoint of `ray job submit`.
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def _option(
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


def _integer(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError("want a whole number") from None


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("want a number") from None


def _switch(value: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.strip().lower() not in known:
        raise ValueError("want true or false")
    return known[value.strip().lower()]


def _one_of(*choices: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        return None if value in choices else f"want {' or '.join(choices)}"

    return check


def _repository(value: str) -> str | None:
    # As the Hub has them: an owner and a name, or the name alone for what is one's own.
    if re.fullmatch(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", value, re.ASCII) and len(value) <= 96:
        return None
    return "want a repository of the Hugging Face Hub, as in owner/name"


def _or(word: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads `word` as None, and everything else by `parse`."""

    def parse_or_word(value: str) -> Any:
        if value.strip().lower() == word:
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {word}") from None

    return parse_or_word


def _fold_list(value: str) -> tuple[int, ...] | None:
    if value.strip().lower() == "all":
        return None
    try:
        return tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        raise ValueError("want fold labels with commas between, as in 1,3, or all") from None


def _positive(value: float) -> str | None:
    return None if value > 0 and math.isfinite(value) else "want more than 0"


def _not_negative(value: float) -> str | None:
    return None if value >= 0 else "want 0 or more"


def _plain_name(value: str) -> str | None:
    if "/" in value or "\\" in value or value in (".", ".."):
        return "want a plain name without slashes"
    return None


@dataclass(frozen=True)
class RunConfig:
    """Everything that a cross-validation is told. `python -m raykfold.run --help` prints it."""

    processed_dir: Place = _option(Path("data/processed"), _place)
    """Folder with features, labels and folds, as `raykfold.prepare` writes it; or a URI of one."""

    hf_repo_id: str | None = _option(None, _text, _repository)
    """Dataset on the Hugging Face Hub that what is missing in processed_dir is fetched from."""

    demo: bool = _option(False, _switch)
    """Train on built-in, synthesised sounds instead of `processed_dir`."""

    epochs: int = _option(50, _integer, _positive)
    """Most epochs of a fold."""

    batch_size: int = _option(32, _integer, _positive)
    """Samples in a training batch."""

    learning_rate: float = _option(0.001, _number, _positive)
    """Adam's learning rate at the start."""

    early_stopping_patience: int = _option(10, _integer, _positive)
    """Epochs without a lower validation loss after which a fold stops."""

    seed: int = _option(0, _integer, _not_negative)
    """Seed of initial weights, order of samples and dropout."""

    model: str = _option("raykfold.models:AudioCNN", _text)
    """The network, `module:Class`, called with (n_mels, num_classes, target_len)."""

    precision: str = _option("auto", _text, _one_of("auto", "fp32", "bf16"))
    """Of training steps: fp32 or bf16 (auto: bf16 for AudioCNN on GPUs that have it, else fp32)."""

    repeats: int = _option(1, _integer, _positive)
    """Seeds to train every fold with: seed, seed + 1, and so on."""

    select: str = _option("best", _text, _one_of("best", "inner"))
    """How the epoch that is kept is chosen: best on the held-out fold, or on an inner split."""

    folds: tuple[int, ...] | None = _option(None, _fold_list)
    """Folds to hold out, as in 1,3 (all by default); training splits stay whole."""

    model_dir: Place | None = _option(None, _place)
    """Folder of the outputs, or a URI, s3:// or gs:// (~/raykfold/<run_name> by default)."""

    storage_path: Place | None = _option(None, _place)
    """Folder, or URI, of the checkpoints that a run resumes from (<model_dir>/ray by default)."""

    run_name: str = _option("", _text, _plain_name)
    """Name of the run (demo, or the last part of processed_dir, by default)."""

    fresh: bool = _option(False, _switch)
    """Set an earlier run of that name aside, and start anew."""

    address: str | None = _option(None, _text)
    """Ray cluster to use (RAY_ADDRESS by default, else a local instance of its own)."""

    local_cpus: int | None = _option(None, _or("auto", _integer), _positive)
    """CPUs that a local Ray instance offers (all by default)."""

    num_workers: int | None = _option(None, _or("auto", _integer), _positive)
    """Most workers at once (auto: one a fold, as far as there are slots)."""

    cpus_per_worker: int = _option(1, _integer, _positive)
    """CPUs, and threads, of a worker."""

    folds_per_slot: int | None = _option(None, _or("auto", _integer), _positive)
    """Folds that a worker steps together (auto: what is fastest on a GPU, one on a CPU)."""

    use_gpu: bool | None = _option(None, _or("auto", _switch))
    """Whether each worker takes a GPU (auto: if Ray has any)."""

    wait_timeout: float | None = _option(None, _or("never", _number), _positive)
    """Seconds to wait for a free slot when no fold has one (never: as long as it takes)."""

    max_failures: int = _option(3, _integer, _positive)
    """Deaths in a row of a fold's worker, no round completed between, that fail the fold."""

    checkpoint_every: int = _option(1, _integer, _positive)
    """Rounds from one checkpoint to the next."""

    hf_model_repo_id: str | None = _option(None, _text, _repository)
    """Model repository on the Hugging Face Hub that weights and results go up to."""

    hf_private: bool = _option(False, _switch)
    """Make that repository a private one, if it has still to be made."""

    hub_upload: str = _option("all", _text, _one_of("all", "best"))
    """Weights that go up: of all epochs and the best of each fold, or only the best."""

    hub_interval: float = _option(60.0, _number, _positive)
    """Seconds from one commit on the Hub to the next, at least."""

    hub_timeout: float = _option(600.0, _number, _not_negative)
    """Seconds to wait, at the end, for what has still to go up."""

    wandb_project: str | None = _option(None, _text, _plain_name)
    """Project on Weights & Biases that each fold is logged to, as a run."""

    wandb_entity: str | None = _option(None, _text, _plain_name)
    """User or team on Weights & Biases (your own default)."""

    wandb_mode: str | None = _option(None, _text, _one_of("online", "offline", "disabled"))
    """online, offline or disabled (WANDB_MODE by default, else online if there is a key)."""

    wandb_watch: bool = _option(False, _switch)
    """Log histograms of weights and gradients, after each epoch."""

    tensorboard: bool = _option(False, _switch)
    """Write TensorBoard's event files of each fold, below model_dir/tensorboard."""

    verbose: bool = _option(False, _switch)
    """Say what becomes of each share, let Ray and the workers print, show errors' tracebacks."""

    def __post_init__(self) -> None:
        """Fill what follows from other fields, make paths absolute, refuse impossible values.

        Raises:
            BadInput: a value is out of range; a relative output path in a submitted job.
        """
        for field in dataclasses.fields(self):
            check, value = field.metadata["check"], getattr(self, field.name)
            wrong = check(value) if check and value not in (None, "") else None
            if wrong:
                raise BadInput(f"--{field.name} {value}: {wrong}")
        for name in ("processed_dir", "model_dir", "storage_path"):  # text is fine from Python
            if getattr(self, name) is not None:
                self._set(name, _read_place(name, getattr(self, name)))
        if self.folds is not None:
            self._set("folds", tuple(sorted(set(self.folds))))
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
            field.name: str(value) if isinstance(value, Place) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }

    def command(self) -> list[str]:
        """The command that starts or resumes this run, only with what is not the default."""
        command = ["python", "-m", "raykfold.run"]
        for name, value in self.changed().items():
            if value is True and _fields()[name].metadata["parse"] is _switch:
                command.append(f"--{name}")
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                command += [f"--{name}", text]
        return command

    def changed(self) -> dict[str, Any]:
        """Fields that are not the default, but for `fresh`, which is of one start only."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in values.items()
            if name != "fresh" and value != self._default_of(_fields()[name])
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
    flags = vars(_parser().parse_args(_unknown_refused(argv)))
    config_file = flags.pop("config") or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    values = _from_toml(Path(config_file)) if config_file else {}
    values |= _from_environment(environ)
    values |= {
        name: _read(name, text, f"--{name}") for name, text in flags.items() if text is not None
    }
    return RunConfig(**values)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == f"{ENVIRONMENT_PREFIX}CONFIG":
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in _fields():
            raise BadInput(f"environment variable {variable}: unknown{_nearest(name, 'variable')}")
        values[name] = _read(name, text, f"environment variable {variable}")
    if "address" not in values and environ.get("RAY_ADDRESS"):
        values["address"] = environ["RAY_ADDRESS"]
    return values


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--config {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path}: is no TOML ({error})") from None
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in _fields():
            raise BadInput(f"--config {path}: unknown key {key!r}{_nearest(name, 'key')}")
        values[name] = _read(name, _toml_text(value), f"--config {path}: {key}")
    return values


def _toml_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def _read(name: str, text: str, where: str) -> Any:
    field = _fields()[name]
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
        return place(value)
    except ValueError as error:
        raise BadInput(f"--{name} {without_password(str(value))}: {error}") from None


def _fields() -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(RunConfig)}


def _nearest(name: str, kind: str) -> str:
    spelling = {
        "flag": lambda n: f"--{n}",
        "variable": lambda n: f"{ENVIRONMENT_PREFIX}{n.upper()}",
        "key": lambda n: n,
    }[kind]
    near = difflib.get_close_matches(name, [*_fields(), "config", "version", "help"], n=1)
    return f"; did you mean {spelling(near[0])}?" if near else ""


def _unknown_refused(argv: Sequence[str]) -> Sequence[str]:
    known = {*_fields(), "config", "version", "help"}
    for argument in argv:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name not in known:
            raise BadInput(
                f"{argument.partition('=')[0]}: unknown flag{_nearest(name, 'flag')}"
                if _nearest(name, "flag")
                else f"{argument.partition('=')[0]}: unknown flag; see --help"
            )
    return argv


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m raykfold.run",
        description="Cross-validate: train every fold as a Ray Train worker, all folds at once.",
        epilog="Each flag is also an environment variable (RAYKFOLD_EPOCHS) and a key of the "
        "--config file (epochs). Exit codes: 0 done, 2 bad input, 3 some folds failed, "
        "130 interrupted, 1 anything else.",
    )
    docs = _field_docs()
    for name, field in _fields().items():
        shown = "" if field.default in (None, "", False) else f" [{field.default}]"
        options: dict[str, Any] = {"default": None, "help": docs[name] + shown}
        if field.metadata["parse"] is _switch:
            options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            options["metavar"] = name.rpartition("_")[2].upper()
        add_flag(parser, name, **options)
    parser.add_argument("--config", metavar="FILE.toml", help="TOML file with any of these keys.")
    parser.add_argument("--version", action="version", version=f"raykfold {_version()}")
    return parser


def _field_docs() -> dict[str, str]:
    """The docstring under each field of `RunConfig`, which Python itself does not keep."""
    lines = [line.strip() for line in inspect.getsource(RunConfig).splitlines()]
    docs: dict[str, str] = {}
    for line, following in itertools.pairwise(lines):
        name = line.partition(":")[0]
        if name in _fields() and following.startswith('"""'):
            docs[name] = following.strip('"').replace("%", "%%")
    return docs


def _version() -> str:
    from raykfold import __version__

    return __version__
