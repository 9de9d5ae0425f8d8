"""The results of a run on a disk or on a store: writing them, and reading them at any time."""

from __future__ import annotations

import io
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from raykfold.errors import BadInput, StorageError
from raykfold.files.atomic import Damaged, read_folder, write_file, write_json
from raykfold.files.paths import HISTORY, RUN_RECORD, ModelDir, RunDir, absolute
from raykfold.files.remote import Place, RemotePath, place, reason, without_password
from raykfold.state.record import RunRecord
from raykfold.state.states import read_index
from raykfold.text import one_line
from raykfold.training.predictions import OutOfFold
from raykfold.training.results import FoldResult, Summary

Known = dict[tuple[str, int, Place], FoldResult]  # start of the run, session, folder

_OUTPUTS = ModelDir(Path())
_READERS = 16
# What NumPy and Python say of an archive with bytes of another kind in it.
_UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, BadZipFile, zlib.error)
_TRIES = 5  # what the index names can be replaced between two looks


@dataclass(frozen=True)
class Archive:
    """What a run has left so far. Each part is read once, when it is first asked for.

    Attributes:
        place: the run's outputs (`--model_dir`), or its folder on storage where that was named.
        record: what the run is.
        run_dir: what the run resumes from; it may be out of reach from here.
        known: what this look and those before have read of folds.
    """

    place: Place
    record: RunRecord
    run_dir: RunDir
    known: Known = field(default_factory=dict)

    @property
    def run_name(self) -> str:
        return self.record.run_name

    @cached_property
    def summary(self) -> Summary | None:
        """The results from ``summary.json``; None while the run is not over.

        Raises:
            BadInput: the file is damaged.
        """
        return read_summary(self.place / _OUTPUTS.summary.name)

    @cached_property
    def state(self) -> Mapping[str, Any] | None:
        """Content of ``training_state.json``, if it is there."""
        return _json(self.place / _OUTPUTS.training_state.name)

    @cached_property
    def predictions(self) -> OutOfFold | None:
        """The held-out predictions of the folds that are complete; None while the run goes on.

        Raises:
            BadInput: their file is damaged.
        """
        if self.summary is None:  # what is there is of an earlier session
            return None
        content = _content(self.place / _OUTPUTS.predictions.name)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = OutOfFold(**arrays)
            if len({len(value) for name, value in vars(found).items() if name != "classes"}) > 1:
                raise ValueError("its arrays are of several lengths")
            return found
        except (*_UNREADABLE, TypeError, KeyError) as error:
            file = self.place / _OUTPUTS.predictions.name
            raise BadInput(f"{file}: cannot be read ({one_line(error)})") from None

    @cached_property
    def folds(self) -> dict[int, FoldResult]:
        """What is known of each fold that has an epoch behind it, in fold order.

        Raises:
            BadInput: the file of a finished run is damaged.
        """
        name = _OUTPUTS.fold_results.name
        rows = _json(self.place / name) if self.summary is not None else None
        if rows is None:
            return self._on_storage()
        try:
            if not isinstance(rows, list):
                raise TypeError("no list of folds")
            return {row["fold"]: FoldResult.from_json(row) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{self.place / name}: cannot be read ({_why(error)})") from None

    def repeats(self) -> Iterator[Archive]:
        """Repeats of the run that have begun: each is a run of its own, within its storage."""
        if self.record.repeats > 1:
            records: list[Place] = sorted(self.run_dir.repeats.glob(f"*/{RUN_RECORD}"))
            for record in records:
                yield open_run(record.parent, self.known)

    def _on_storage(self) -> dict[int, FoldResult]:
        """A fold whose newest state stays unreadable is left out, and the others are not."""
        found: dict[int, FoldResult] = {}
        for _ in range(_TRIES):
            index, _notes = read_index(self.run_dir)
            left = {f: self._here(folder) for f, folder in index.folds.items() if f not in found}
            with ThreadPoolExecutor(_READERS) as readers:  # a store takes its time for each
                results = readers.map(partial(self._result, index.sessions), left.values())
                found |= {f: each for f, each in zip(left, results, strict=True) if each}
            if len(found) == len(index.folds):
                break
        return dict(sorted(found.items()))

    def _result(self, session: int, folder: Place) -> FoldResult | None:
        """From an earlier look, where nobody writes that folder twice in a session."""
        key = (self.record.created, session, folder)
        if key in self.known:
            return self.known[key]
        result = _read_result(folder)
        if result is not None and folder.parent != self.run_dir.handed_over_folds:
            self.known[key] = result
        return result

    def _here(self, folder: Place) -> Place:
        """Where a folder that the index names is now: on a disk it names them from the root."""
        before = Path(self.record.config["storage_path"]) / self.run_name
        if isinstance(folder, Path) and folder.is_relative_to(before):
            return self.run_dir.root / folder.relative_to(before)
        return folder


def read_summary(file: Place) -> Summary | None:
    """Read a ``summary.json``; None if there is none.

    Raises:
        BadInput: the file is damaged.
    """
    content = _json(file)
    try:
        return None if content is None else Summary.from_json(content)
    except ValueError as error:
        raise BadInput(f"{file}: is not the summary of a run ({one_line(error)})") from None


def _json(file: Place) -> Any:
    content = _content(file)
    try:
        return None if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: is not valid JSON ({one_line(error)})") from None


def _content(file: Place) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None


def _read_result(folder: Place) -> FoldResult | None:
    """As `checkpoint.load_result`, which imports torch; None where no whole one can be read."""
    try:
        return FoldResult.from_json(json.loads(read_folder(folder, only=(HISTORY,))[HISTORY]))
    except (Damaged, OSError, ValueError, KeyError, TypeError):
        return None


def write_results(
    outputs: ModelDir,
    summary: Summary,
    weights: Mapping[int, bytes],
    predictions: OutOfFold | None,
) -> None:
    """Write the results of a run. ``summary.json`` comes last: it means that all are there.

    Args:
        outputs: where to write them.
        summary: the results.
        weights: fold → content of the safetensors file of its kept weights.
        predictions: of the folds that are complete.

    Raises:
        StorageError: a file cannot be written.
    """
    for fold, content in sorted(weights.items()):
        write_file(outputs.best_weights(fold), content)
    write_file(outputs.histories, pickle.dumps([_history(r) for r in summary.folds], protocol=4))
    write_json(outputs.fold_results, [result.to_json() for result in summary.folds])
    if predictions is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **vars(predictions))
        write_file(outputs.predictions, buffer.getvalue())
    else:
        outputs.predictions.unlink(missing_ok=True)
    write_json(outputs.summary, summary.to_json())


def _history(result: FoldResult) -> dict[str, list[float]]:
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    return {name: [getattr(metrics, name) for metrics in result.history] for name in names}


def open_run(named: str | Place, known: Known | None = None) -> Archive:
    """The run whose `--model_dir`, or whose folder on storage, is `named`.

    A store that does not answer is given up within seconds: somebody waits for the look.

    Args:
        named: a path, or a URI.
        known: what an earlier look at the run has read, so that it is not read again; added to.

    Raises:
        BadInput: no run is there.
        StorageError: the store of its checkpoints cannot be reached.
    """
    shown = without_password(str(named))
    try:
        folder = _impatient(absolute(place(named) if isinstance(named, str) else named))
    except ValueError as error:
        raise BadInput(f"{shown}: {error}") from None
    try:
        record = RunRecord.from_json(json.loads((folder / RUN_RECORD).read_bytes()))
        storage, name = _impatient(place(record.config["storage_path"])), record.run_name
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{shown}: no run is there; want the --model_dir of one") from None
    except (OSError, StorageError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{shown}: its {RUN_RECORD} cannot be read ({_why(error)})") from None
    if record.is_search:
        raise BadInput(
            f"{shown}: is a search, and {_OUTPUTS.search.name} there says how it is; want the "
            "folder of one of its trials, as in trials/1"
        )
    # The folder may have been moved, be a copy, or be seen here under another path.
    inside = folder / "ray" / name
    candidates = [folder, storage / name, inside]
    if (
        record.config["storage_path"] == f"{record.config['model_dir']}/ray"
    ):  # where a copy has a copy of it
        candidates.insert(1, inside)
    there = next((each for each in candidates if RunDir(each).index.exists()), storage / name)
    known = {} if known is None else known
    return Archive(place=folder, record=record, run_dir=RunDir(there), known=known)


def open_outputs(named: str | Place) -> Archive:
    """As `open_run`; where the run's folder on storage is named, and its outputs are here, as those
    have it.
    """
    archive = open_run(named)
    if archive.place != archive.run_dir.root:
        return archive
    try:
        there = open_run(archive.record.config["model_dir"])
    except BadInput:
        return archive
    return there if there.record.created == archive.record.created else archive


def _impatient(place: Place) -> Place:
    return place.impatient() if isinstance(place, RemotePath) else place


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return reason(error) if isinstance(error, StorageError) else one_line(error)
