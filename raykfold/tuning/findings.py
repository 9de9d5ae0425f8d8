"""The files of a search: ``search.json``, ``best.toml`` and the page."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from raykfold.config.run_config import RunConfig
from raykfold.errors import RaykfoldError
from raykfold.files.atomic import write_file, write_json
from raykfold.files.remote import Place, RemotePath
from raykfold.pages.search_page import write_search_page
from raykfold.text import figure_text, one_line
from raykfold.training.search_results import SearchResults, Trial
from raykfold.tuning.observer import SearchObserver
from raykfold.tuning.space import SearchConfig

_WRITE_SECONDS = 5.0  # between two versions of search.json, while trials are scored
_DRAW_SECONDS = 60.0  # between two pages, each of which takes a second of a core


def best_run(config: SearchConfig, results: SearchResults) -> RunConfig | None:
    """Return the run that is the best trial; it goes to the Hub if the search was told to."""
    if results.best is None:
        return None
    run = config.trial(results.best.number, results.best.values)
    return replace(run, hf_model_repo_id=config.hf_model_repo_id)


def write_results(config: SearchConfig, results: SearchResults) -> None:
    """Write ``search.json``, and ``best.toml`` if there is a best trial.

    Raises:
        StorageError: they cannot be written.
    """
    outputs, run, best = config.outputs, best_run(config, results), results.best
    if run is not None and best is not None:
        note = (
            f"Trial {best.number} of a search: mean {figure_text(results.figure)} {best.mean:.4f}"
        )
        write_file(outputs.best_config, best_toml(run, note).encode())
    write_json(outputs.search, results.to_json())
    _copy_to_store(config, outputs.run_record, outputs.best_config, outputs.search)


def write_page(config: SearchConfig, results: SearchResults, say: Callable[[str], None]) -> None:
    """Write the page and its pictures; a failure is reported by `say` and ends no search."""
    try:
        page = write_search_page(results, config.outputs)
        _copy_to_store(config, *config.outputs.all_plots(), page)
    except Exception as error:
        say(f"{config.outputs.report}: could not be made ({one_line(error)})")


class ResultsWriter(SearchObserver):
    """Keeps ``search.json`` and the page up to date, and passes each event on to an observer.

    Args:
        config: the search's.
        results: returns what it has found so far.
        observer: dropped, as in a run, if it raises.
    """

    def __init__(
        self, config: SearchConfig, results: Callable[[], SearchResults], observer: SearchObserver
    ) -> None:
        self._config = config
        self._results = results
        self._observer: SearchObserver | None = observer
        self._wrote = 0.0
        self._drew = 0.0
        self._lock = threading.Lock()  # complete trials end in a thread of their own

    def trial_began(self, trial: Trial) -> None:
        self._write()
        self._pass_on("trial_began", trial)

    def trial_scored(self, trial: Trial) -> None:
        if time.monotonic() - self._wrote >= _WRITE_SECONDS:
            self._write()
        self._pass_on("trial_scored", trial)

    def trial_ended(self, trial: Trial) -> None:
        self._write()
        # Draw only in the thread in which complete trials end, because nothing waits for that.
        if trial.status == "complete" and time.monotonic() - self._drew >= _DRAW_SECONDS:
            self._drew = time.monotonic()
            write_page(self._config, self._results(), self.noticed)
        self._pass_on("trial_ended", trial)

    def noticed(self, text: str) -> None:
        self._pass_on("noticed", text)

    def _write(self) -> None:
        with self._lock:
            self._wrote = time.monotonic()
            write_results(self._config, self._results())

    def _pass_on(self, event: str, *args: Any) -> None:
        try:
            if self._observer is not None:
                getattr(self._observer, event)(*args)
        except RaykfoldError:
            raise
        except Exception:
            self._observer = None


def _copy_to_store(config: SearchConfig, *files: Path) -> None:
    """Copy files to a `model_dir` on a store; they were written to its working copy."""
    place = config.model_place
    if isinstance(place, RemotePath):
        for file in filter(Path.is_file, files):
            name = file.relative_to(config.outputs.root).as_posix()
            write_file(place / name, file.read_bytes())


def best_toml(config: RunConfig, note: str = "") -> str:
    """Return a TOML file with which `raykfold.run --config` starts or resumes the same run.

    It does not name a cluster: where a run trains is not part of it.

    Args:
        note: a comment on its first line.
    """
    lines = [f"# {note}"] if note else []
    values = config.changed()
    if not (config.demo or config.in_memory):  # the default depends on the working directory
        values = {"processed_dir": config.processed_dir, **values}
    lines += [f"{name} = {_toml(value)}" for name, value in values.items() if name != "address"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Place | str):
        # JSON's strings are TOML's basic strings, except for this character.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
