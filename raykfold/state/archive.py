"""What a run leaves: written when it is over, and read at any time, on a disk or on a store."""

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
from raykfold.files.atomic import Damaged, write_file, write_json
from raykfold.files.paths import RUN_RECORD, ModelDir, RunDir, absolute
from raykfold.files.remote import Place, impatient, place, reason, without_password
from raykfold.state.record import RunRecord
from raykfold.state.states import load_result, read_index
from raykfold.text import one_line
from raykfold.training.predictions import OutOfFold
from raykfold.training.results import FoldResult, Summary

# What was read before, so that it is not read again: (start of the run, session, folder) → result.
Known = dict[tuple[str, int, Place], FoldResult]

_OUTPUTS = ModelDir(Path())
_READERS = 16
# What NumPy and Python raise for an archive with other bytes in it.
_UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, BadZipFile, zlib.error)
_TRIES = 5  # the states that the index names can be replaced while they are read


@dataclass(frozen=True)
class Archive:
    """What a run has left so far. Each part is read once, when it is first used.

    Attributes:
        place: the run's outputs (`--model_dir`), or its folder on storage if that was named.
        record: what the run is.
        run_dir: what the run resumes from; this machine may not see it.
        known: results that this archive and earlier ones of the run have read.
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
        """Content of ``training_state.json``; None without that file."""
        return _json(self.place / _OUTPUTS.training_state.name)

    @cached_property
    def predictions(self) -> OutOfFold | None:
        """Held-out predictions of the complete folds; None while the run trains.

        Raises:
            BadInput: their file is damaged.
        """
        if self.summary is None:  # a file that is there is of an earlier session
            return None
        file = self.place / _OUTPUTS.predictions.name
        content = _content(file)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = OutOfFold(**arrays)
                lengths = {len(arrays[name]) for name in arrays if name != "classes"}
            if len(lengths) > 1:
                raise ValueError("its arrays are of several lengths")
            return found
        except (*_UNREADABLE, TypeError, KeyError) as error:
            raise BadInput(f"{file}: cannot be read ({one_line(error)})") from None

    @cached_property
    def folds(self) -> dict[int, FoldResult]:
        """Results so far of each fold that has completed an epoch, in fold order.

        Raises:
            BadInput: the file of a finished run is damaged.
        """
        name = _OUTPUTS.fold_results.name
        rows = _json(self.place / name) if self.summary is not None else None
        if rows is None:
            return self._on_storage()
        try:
            if not isinstance(rows, list):
                raise TypeError("it is not a list")
            return {row["fold"]: FoldResult.from_json(row) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{self.place / name}: cannot be read ({_why(error)})") from None

    def repeats(self) -> Iterator[Archive]:
        """Yield the repeats that have begun: each is a run of its own, in the run's storage."""
        if self.record.repeats > 1:
            records: list[Place] = sorted(self.run_dir.repeats.glob(f"*/{RUN_RECORD}"))
            for record in records:
                yield open_run(record.parent, self.known)

    def _on_storage(self) -> dict[int, FoldResult]:
        """Read each fold's newest state; a fold whose state stays unreadable is left out."""
        before = Path(self.record.config["storage_path"]) / self.run_name
        found: dict[int, FoldResult] = {}

        def read(session: int, folder: Place) -> FoldResult | None:
            # On a disk the index has absolute paths, and the run may have been moved since.
            if isinstance(folder, Path) and folder.is_relative_to(before):
                folder = self.run_dir.root / folder.relative_to(before)
            key = (self.record.created, session, folder)
            if key in self.known:
                return self.known[key]
            try:
                result = load_result(folder)
            except (Damaged, OSError, ValueError, KeyError, TypeError):
                return None
            if folder.parent != self.run_dir.handed_over_folds:  # others are written once a session
                self.known[key] = result
            return result

        for _ in range(_TRIES):
            index, _notes = read_index(self.run_dir)
            left = {fold: folder for fold, folder in index.folds.items() if fold not in found}
            with ThreadPoolExecutor(_READERS) as readers:  # on a store each takes some time
                results = readers.map(partial(read, index.sessions), left.values())
                found |= {f: each for f, each in zip(left, results, strict=True) if each}
            if len(found) == len(index.folds):
                break
        return dict(sorted(found.items()))


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
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    histories = [
        {name: [getattr(metrics, name) for metrics in result.history] for name in names}
        for result in summary.folds
    ]
    write_file(outputs.histories, pickle.dumps(histories, protocol=4))
    write_json(outputs.fold_results, [result.to_json() for result in summary.folds])
    if predictions is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **{k: v for k, v in vars(predictions).items() if v is not None})
        write_file(outputs.predictions, buffer.getvalue())
    else:
        outputs.predictions.unlink(missing_ok=True)
    write_json(outputs.summary, summary.to_json())


def open_run(named: str | Place, known: Known | None = None) -> Archive:
    """Return the run whose `--model_dir`, or whose folder on storage, is `named`.

    A store that does not answer is given up within seconds, because a user waits.

    Args:
        named: a path or a URI.
        known: results that an earlier archive of the run has read; more are added.

    Raises:
        BadInput: no run is there.
        StorageError: the store of its checkpoints cannot be reached.
    """
    shown = without_password(str(named))
    try:
        folder = impatient(absolute(place(named) if isinstance(named, str) else named))
    except ValueError as error:
        raise BadInput(f"{shown}: {error}") from None
    try:
        record = RunRecord.from_json(json.loads((folder / RUN_RECORD).read_bytes()))
        storage, name = impatient(place(record.config["storage_path"])), record.run_name
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{shown}: there is no run; expected the --model_dir of one") from None
    except (OSError, StorageError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{shown}: its {RUN_RECORD} cannot be read ({_why(error)})") from None
    if record.is_search:
        raise BadInput(
            f"{shown}: is a search, whose results are in {_OUTPUTS.search.name}; expected the "
            "folder of one of its trials, as in trials/1"
        )
    # The folder may have been moved, be a copy, or be seen here under another path.
    inside = folder / "ray" / name
    by_default = record.config["storage_path"] == f"{record.config['model_dir']}/ray"
    candidates = (
        [folder, inside, storage / name] if by_default else [folder, storage / name, inside]
    )
    there = next((each for each in candidates if RunDir(each).index.exists()), storage / name)
    return Archive(folder, record, RunDir(there), {} if known is None else known)


def open_outputs(named: str | Place) -> Archive:
    """Return a run as `open_run` does; if storage is named, from its outputs if they are here."""
    archive = open_run(named)
    if archive.place != archive.run_dir.root:
        return archive
    try:
        there = open_run(archive.record.config["model_dir"])
    except BadInput:
        return archive
    return there if there.record.created == archive.record.created else archive


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return reason(error) if isinstance(error, StorageError) else one_line(error)
