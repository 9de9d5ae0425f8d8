"""What a run is: its record ``run.json``, and the identity that a resumed run must share."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raykfold.config.class_spec import SPECS
from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput
from raykfold.files.atomic import write_json
from raykfold.files.paths import RUN_RECORD
from raykfold.files.remote import Place, RemotePath
from raykfold.text import one_line

_IDENTITY_HINTS = {
    "data": "the features, labels or folds differ",
    "epochs": "a schedule of the learning rate, or of a search, follows from it",
    "space": "the [search] table differs",
    "device": "another kind of processor, or another number of threads, rounds differently",
}


@dataclass(frozen=True)
class RunRecord:
    """Content of ``run.json``, which lies beside the outputs and beside the checkpoints.

    Attributes:
        run_name: the run's name.
        created: when the run was first started, as ``YYYYmmdd-HHMMSS`` of the driver's clock.
        identity: what another run must have in common with this one to resume it: see `identity`.
        config: what the run was told, as `RunConfig.to_json` has it.
        hyperparameters: names of the options that the model card shows.
        folds: labels of the folds that are held out.
        versions: of Python and of the packages that decide results.
    """

    run_name: str
    created: str
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    hyperparameters: tuple[str, ...]
    folds: tuple[int, ...]
    versions: Mapping[str, str]

    @property
    def is_search(self) -> bool:
        return "space" in self.identity

    @property
    def fingerprint(self) -> str:
        """Of the data."""
        return str(self.identity["data"])

    @property
    def epochs(self) -> int:
        """Most epochs of a fold."""
        return int(self.config["epochs"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def repeats(self) -> int:
        """Number of seeds."""
        return int(self.config["repeats"])

    @property
    def inner(self) -> bool:
        """Whether an inner split chooses the epoch whose weights are kept."""
        return bool(self.config["select"] == "inner")

    @classmethod
    def of(
        cls, config: RunConfig, identity: Mapping[str, Any], created: str, folds: Sequence[int]
    ) -> RunRecord:
        """Return the record of a run that starts or resumes now."""
        return cls(
            run_name=config.run_name,
            created=created,
            identity=dict(identity),
            config=config.to_json(),
            hyperparameters=tuple(config.hyperparameters()),
            folds=tuple(folds),
            versions=versions(),
        )

    def to_json(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    @classmethod
    def from_json(cls, content: object) -> RunRecord:
        """Return the record that `to_json` made.

        Raises:
            KeyError, TypeError, ValueError: the content is not that of a record.
        """
        if not isinstance(content, dict):
            raise TypeError("not a JSON object")
        record = cls(
            run_name=str(content["run_name"]),
            created=str(content["created"]),
            identity=dict(content["identity"]),
            config=dict(content["config"]),
            hyperparameters=tuple(map(str, content["hyperparameters"])),
            folds=tuple(map(int, content["folds"])),
            versions=dict(content["versions"]),
        )
        # Readers count on these: a property raises for a value that it cannot make sense of.
        if not all(isinstance(record.config[name], str) for name in ("model_dir", "storage_path")):
            raise TypeError("its folders are not texts")
        _ = record.epochs, record.seed, record.repeats, record.inner, record.fingerprint
        return record

    def write(self, config: RunConfig) -> None:
        """Write the record beside the outputs and beside the checkpoints of the run.

        Raises:
            StorageError: it cannot be written.
        """
        for path in (config.run_dir.run_record, config.outputs.run_record):
            write_json(path, self.to_json())


def read_record(path: Place) -> RunRecord | None:
    """Return the record in a file; None if there is no file.

    Raises:
        BadInput: the file holds no record.
    """
    try:
        return RunRecord.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: is not the record of a run ({one_line(error)})") from None


@dataclass(frozen=True)
class EarlierRun:
    """The records that lie where a run is about to write. They are read once, at its start.

    Attributes:
        config: of the run that is about to start.
        stored: the record beside the checkpoints; None if there is no earlier run.
        of_outputs: the records beside the outputs. If these go to a store, it and this machine have
            one each, and either may be missing or old.
    """

    config: RunConfig
    stored: RunRecord | None
    of_outputs: tuple[tuple[Place, RunRecord], ...]
    created: str

    @classmethod
    def read(cls, config: RunConfig) -> EarlierRun:
        """Return what lies in the folders that a run writes.

        Raises:
            BadInput: a record is there and cannot be read.
        """
        place = config.model_place
        paths: list[Place] = [place / RUN_RECORD] if isinstance(place, RemotePath) else []
        try:
            stored = read_record(config.run_dir.run_record)
            found = [(path, read_record(path)) for path in (*paths, config.outputs.run_record)]
        except BadInput as error:
            raise BadInput(f"{error}; set the run aside with --fresh") from None
        return cls(
            config,
            stored,
            tuple((path, record) for path, record in found if record is not None),
            created=stored.created if stored else time.strftime("%Y%m%d-%H%M%S"),
        )

    def identity_value(self, name: str) -> str | None:
        """Return a value of the earlier run's identity, like its device; None if unknown."""
        value = self.stored.identity.get(name) if self.stored else None
        return None if value is None else str(value)

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuse to resume a run that is a different one.

        Args:
            identity: of the run that is about to start, as far as it is known.

        Raises:
            BadInput: an earlier run differs in its name, its identity, or has more epochs or
                repeats; the text names the field.
        """
        config = self.config
        for _, record in self.of_outputs:
            if record.run_name != config.run_name:
                raise BadInput(
                    f"--model_dir {config.model_dir}: belongs to the run {record.run_name!r}, "
                    f"not to {config.run_name!r}; choose another, or that --run_name"
                )
        stored = [(config.run_dir.run_record, self.stored)] if self.stored else []
        for path, record in (*stored, *self.of_outputs):
            if record.is_search != ("space" in identity):
                kind = "a search" if record.is_search else "a run, and not a search"
                raise BadInput(
                    f"--run_name {config.run_name}: is taken by {kind}, in {path.parent}; choose "
                    "another --run_name and --model_dir, or set that aside with --fresh"
                )
            for name, value in identity.items():
                before = record.identity.get(name)
                if before is not None and before != value:
                    raise self._differs(*_part(name, before, value), record.is_search)
            for name in ("epochs", "repeats"):
                before, now = record.config[name], getattr(config, name)
                if before > now:
                    raise BadInput(
                        f"--{name} {now}: the run {config.run_name!r} was started with {before}; "
                        f"{name} can be raised, not lowered (or --fresh)"
                    )

    def renew(self) -> None:
        """Write what the run was told this time, if nothing is left to train: outputs may be new.

        Raises:
            StorageError: the record cannot be written.
        """
        if self.stored is not None:
            dataclasses.replace(self.stored, config=self.config.to_json()).write(self.config)

    def _differs(self, name: str, before: Any, value: Any, is_search: bool) -> BadInput:
        hint = f" ({_IDENTITY_HINTS[name]})" if name in _IDENTITY_HINTS else ""
        kind = "search" if is_search else "run"
        earlier, this = (
            text if len(text) <= 40 else f"{text[:12]}…" for text in (str(before), str(value))
        )
        both = (
            f"{name} {earlier}, and this one has {this}" if earlier != this else f"another {name}"
        )
        return BadInput(
            f"--run_name {self.config.run_name}: is taken by a {kind} with {both}{hint}; choose "
            f"another --run_name and --model_dir, or set the earlier {kind} aside with --fresh"
        )


def _part(name: str, before: Any, value: Any) -> tuple[str, Any, Any]:
    """Return the argument in which two specs of one class differ, and its values.

    Other values are returned as they are given.
    """
    if name in SPECS:
        with suppress(ValueError):  # a record that somebody has edited
            one, other = (SPECS[name].parse(str(spec)) for spec in (before, value))
            for argument in sorted({*one.arguments, *other.arguments}):
                first, second = (s.arguments.get(argument, "unset") for s in (one, other))
                if one.name == other.name and first != second:
                    return f"{name}.{argument}", first, second
    return name, before, value


def identity(
    config: RunConfig, fingerprint: str, device: str | None = None, precision: str | None = None
) -> dict[str, Any]:
    """Return what two runs must have in common for one to resume the other.

    Args:
        config: of the run; its options say which of them decide results.
        fingerprint: of the data.
        device: ``gpu``, or ``cpu x<threads>``; None while it is not known yet.
        precision: what ``auto`` stands for; None while that is not known yet.
    """
    if config.precision != "auto":
        precision = config.precision
    later = {"precision": precision, "device": device}
    known = {name: value for name, value in later.items() if value is not None}
    return {"data": fingerprint, **config.deciding(), **known}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in ("raykfold", "torch", "ray", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
