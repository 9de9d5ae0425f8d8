"""A run as it lies on the disk or on a store: read, and not touched, while it goes on or after."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raykfold.artifacts import OutOfFold
from raykfold.checkpoint import load_result
from raykfold.errors import BadInput, StorageError, one_line
from raykfold.files import Damaged
from raykfold.paths import RUN_RECORD, ModelDir, RunDir, whole
from raykfold.remote import Place, place, without_password
from raykfold.results import FoldResult
from raykfold.storage import read_index

_OUTPUTS = ModelDir(Path())
_TRIES = 5  # what the index names can be replaced between two looks


@dataclass(frozen=True)
class Archive:
    """What a run has left so far. Each part is read once, when it is first asked for.

    Attributes:
        place: the run's outputs (`--model_dir`), or its folder on storage where that was named.
        record: content of ``run.json``.
        run_dir: what the run resumes from; it may be out of reach from here.
    """

    place: Place
    record: Mapping[str, Any]
    run_dir: RunDir

    @property
    def run_name(self) -> str:
        return str(self.record["run_name"])

    @cached_property
    def summary(self) -> Mapping[str, Any] | None:
        """Content of ``summary.json``; None while the run is not over."""
        return self._json(_OUTPUTS.summary.name)

    @cached_property
    def state(self) -> Mapping[str, Any] | None:
        """Content of ``training_state.json``, if it is there."""
        return self._json(_OUTPUTS.training_state.name)

    @cached_property
    def predictions(self) -> OutOfFold | None:
        """The held-out predictions of the folds that are complete; None while the run goes on."""
        content = self._content(_OUTPUTS.predictions.name)
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return OutOfFold(**arrays)

    @cached_property
    def folds(self) -> dict[int, FoldResult]:
        """What is known of each fold that has an epoch behind it, in fold order."""
        rows = self._json(_OUTPUTS.fold_results.name) if self.summary is not None else None
        if rows is not None:
            return {row["fold"]: FoldResult.from_json(row) for row in rows}
        return self._on_storage()

    def _on_storage(self) -> dict[int, FoldResult]:
        for _ in range(_TRIES):
            index, _notes = read_index(self.run_dir)
            try:
                return {fold: load_result(folder) for fold, folder in sorted(index.folds.items())}
            except (Damaged, FileNotFoundError):
                continue
        return {}

    def _json(self, name: str) -> Any:
        content = self._content(name)
        return None if content is None else json.loads(content)

    def _content(self, name: str) -> bytes | None:
        try:
            return (self.place / name).read_bytes()
        except FileNotFoundError:
            return None


def open_run(named: str | Place) -> Archive:
    """The run whose `--model_dir`, or whose folder on storage, is `named`.

    Raises:
        BadInput: no run is there.
    """
    try:
        folder = whole(place(named) if isinstance(named, str) else named)
        content = (folder / RUN_RECORD).read_bytes()
        record = json.loads(content)
        config = record["config"]
        storage, name = place(config["storage_path"]), record["run_name"]
    except FileNotFoundError:
        raise BadInput(f"{named}: no run is there; want the --model_dir of one") from None
    except (OSError, StorageError, ValueError, KeyError, TypeError) as error:
        shown = without_password(str(named))
        raise BadInput(f"{shown}: its {RUN_RECORD} cannot be read ({one_line(error)})") from None
    # The folder may have been moved, or be seen here under another path.
    candidates = (folder, storage / name, folder / "ray" / name)
    there = next((each for each in candidates if RunDir(each).index.exists()), storage / name)
    return Archive(place=folder, record=record, run_dir=RunDir(there))
