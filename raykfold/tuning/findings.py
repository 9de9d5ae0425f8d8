"""What a search has found: its trials, which of them is best, and how far to trust that."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import write_file, write_json
from raykfold.files.remote import RemotePath
from raykfold.pages.search_page import write_overview
from raykfold.state.record import versions
from raykfold.text import counted, mean_text
from raykfold.training.results import kept_epochs
from raykfold.training.statistics import Estimate
from raykfold.tuning.journal import Trial, best_of_trials, ranked, value_text, values_text
from raykfold.tuning.space import SearchConfig, best_toml

_MOST_SHOWN = 20  # trials of the table on the terminal


@dataclass(frozen=True)
class OuterFold:
    """A fold that a search of its own has left out, and what the winner of it does there.

    Attributes:
        fold: its label.
        winner: the best trial on the other folds; None before there is one.
        epochs_run: of that search, summed over trials and folds.
        accuracy: on this fold, of the epoch that an inner validation split chose; None before.
        failed: trials of that search that have failed.
        error: why there is none.
    """

    fold: int
    winner: Trial | None
    epochs_run: int
    accuracy: float | None
    failed: int = 0
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        over = "failed" if self.error else "running" if self.accuracy is None else "complete"
        return {
            "fold": self.fold,
            "status": over,
            "trial": self.winner.number if self.winner else None,
            "config": dict(self.winner.values) if self.winner else {},
            "epochs_run": self.epochs_run,
            "inner_mean_accuracy": self.winner.mean if self.winner else None,
            "outer_accuracy": self.accuracy,
            "error": self.error,
        }


@dataclass(frozen=True)
class Findings:
    """A search as it stands; `to_json` is the content of ``search.json``.

    Attributes:
        config: the search's.
        folds: those that each trial holds out.
        trials: in order of number.
        is_over: no trial is left to train.
        wall_seconds: summed over the sessions.
        sessions: how many there were.
        identity: what makes two searches the same one.
        warnings: of the data.
        outer: with --nested, each outer fold.
        test_to_train: of these, as in `statistics.corrected_std_error`.
    """

    config: SearchConfig
    folds: tuple[int, ...]
    trials: tuple[Trial, ...]
    is_over: bool
    wall_seconds: float
    sessions: int
    identity: Mapping[str, Any]
    warnings: Sequence[str] = ()
    outer: tuple[OuterFold, ...] = ()
    test_to_train: float = 0.0

    @property
    def status(self) -> Literal["running", "complete", "partial"]:
        """`partial`: a trial, also of a search within an outer fold, or an outer fold failed."""
        pending = [each for each in self.outer if each.accuracy is None and each.error is None]
        if not self.is_over or pending:
            return "running"
        failed = [each for each in self.trials if each.status == "failed"]
        without = [each for each in self.outer if each.error is not None or each.failed]
        return "partial" if failed or without else "complete"

    @property
    def best(self) -> Trial | None:
        """Of the trials that were trained to their end."""
        return best_of_trials(self.trials)

    @property
    def best_run(self) -> RunConfig | None:
        """The best trial as the run that it is; told to go to the Hub, if the search was."""
        if self.best is None:
            return None
        run = self.config.trial(self.best.number, self.best.values)
        return replace(run, hf_model_repo_id=self.config.hf_model_repo_id)

    @property
    def nested(self) -> Estimate | None:
        """Over the outer folds: what the search and the training together are worth."""
        accuracies = [each.accuracy for each in self.outer if each.accuracy is not None]
        if not self.outer or len(accuracies) < len(self.outer):
            return None
        return Estimate(tuple(accuracies), self.test_to_train)

    @property
    def epochs_run(self) -> int:
        """Of all trials, summed over their folds; not those under way when a trial is stopped."""
        return sum(trial.epochs_run for trial in self.trials)

    @property
    def epochs_of_all(self) -> int:
        """What these trials would have taken at most, had each been trained to its end."""
        return len(self.folds) * sum(self.config.epochs_of(each.values) for each in self.trials)

    def to_json(self) -> dict[str, Any]:
        return {
            "run_name": self.config.run_name,
            "status": self.status,
            "score": kept_epochs(self.config.select),
            "sampler": self.config.sampler,
            "scheduler": self.config.scheduler,
            "seed": self.config.seed,
            "epochs": self.config.most_epochs,
            "folds": list(self.folds),
            "space": self.config.space.to_json(),
            "trials": [self._row(trial) for trial in self.trials],
            "best": self._best_row(),
            "epochs_run": self.epochs_run,
            "epochs_of_all": self.epochs_of_all,
            "nested": self._nested_row(),
            "command": shlex.join(self.config.command()),
            "wall_seconds": round(self.wall_seconds, 3),
            "sessions": self.sessions,
            "identity": dict(self.identity),
            "warnings": list(self.warnings),
            "versions": versions(),
        }

    def _row(self, trial: Trial) -> dict[str, Any]:
        place = self.config.trial(trial.number, trial.values).model_dir
        return {**trial.to_json(), "model_dir": str(place)}

    def _best_row(self) -> dict[str, Any] | None:
        if self.best is None:
            return None
        row = self._row(self.best)
        names = ("trial", "config", "mean_accuracy", "std_accuracy", "fold_scores", "model_dir")
        told = {"config_file": self._config_file, "command": self.best_command}
        return {name: row[name] for name in names} | told

    def _nested_row(self) -> dict[str, Any] | None:
        if not self.outer:
            return None
        estimate = self.nested
        return {
            "folds": [each.to_json() for each in self.outer],
            "mean_accuracy": estimate.mean if estimate else None,
            "std_accuracy": estimate.std if estimate else None,
            "interval": list(estimate.interval) if estimate and estimate.interval else None,
        }

    @property
    def _note(self) -> str:
        assert self.best is not None
        return f"Trial {self.best.number} of a search: mean accuracy {_four(self.best.mean)}"

    @property
    def _config_file(self) -> str:
        """On this machine: `raykfold.run` reads no other."""
        return str(self.config.outputs.best_config)

    @property
    def best_command(self) -> str:
        """What runs, or goes on with, the best trial."""
        return shlex.join(["python", "-m", "raykfold.run", "--config", self._config_file])

    def write(self) -> None:
        """Write ``search.json``, and ``best.toml`` if there is a best.

        Raises:
            StorageError: they cannot be written.
        """
        outputs, run = self.config.outputs, self.best_run
        if run is not None:
            write_file(outputs.best_config, best_toml(run, self._note).encode())
        write_json(outputs.search, self.to_json())
        self._send(outputs.run_record, outputs.best_config, outputs.search)

    def write_page(self) -> None:
        """Write the page and its pictures.

        Raises:
            StorageError: they cannot be written.
        """
        outputs = self.config.outputs
        page = write_overview(self.to_json(), outputs)
        self._send(*outputs.all_plots(), page)

    def _send(self, *files: Path) -> None:
        """Where outputs belong on a store, what was made here is a copy."""
        place = self.config.model_place
        if isinstance(place, RemotePath):
            for file in filter(Path.is_file, files):
                name = file.relative_to(self.config.outputs.root).as_posix()
                write_file(place / name, file.read_bytes())


def lines(findings: Findings) -> Iterator[str]:
    """What is printed at the end of a search."""
    yield from _table(findings)
    yield ""
    yield from _best_lines(findings)
    yield from _nested_lines(findings)
    full = findings.epochs_of_all
    if full:
        yield (
            f"Epochs trained, summed over folds: {findings.epochs_run} of at most {full} for "
            f"{counted(len(findings.trials), 'trial')} ({findings.epochs_run / full:.0%})"
        )
    if findings.best is not None:
        yield f"To run the best: {findings.best_command}"


def _table(findings: Findings) -> Iterator[str]:
    names = list(findings.config.space.domains)
    shown = ranked(findings.trials)[:_MOST_SHOWN]
    rows = [["trial", *names, "mean", "std", "epochs", "status"]]
    rows += [
        [
            str(trial.number),
            *(value_text(trial.values[name]) for name in names),
            _four(trial.mean),
            _four(trial.std),
            str(len(trial.history)),
            trial.status,
        ]
        for trial in shown
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    left = len(findings.trials) - len(shown)
    if left:
        yield f"and {counted(left, 'trial')} more: see search.json, or the page"
    for trial in findings.trials:
        if trial.status == "failed":
            yield f"trial {trial.number} failed: {trial.error}"


def _best_lines(findings: Findings) -> Iterator[str]:
    best = findings.best
    if best is None:
        yield "No trial is complete, so there is no best one"
        return
    epochs = kept_epochs(findings.config.select)
    yield (
        f"Best: trial {best.number}, {_reached(best)} over "
        f"{counted(len(best.folds), 'fold')}, {epochs} epochs: {values_text(best.values)}"
    )
    complete = sum(trial.status == "complete" for trial in findings.trials)
    if len(findings.trials) > 1:
        yield (
            f"That is the highest of {len(findings.trials)} trials ({complete} to their end), on "
            "the folds that chose it, and so optimistic"
            + ("" if findings.outer else "; --nested measures the search on folds it has not seen")
        )


def _reached(trial: Trial) -> str:
    if trial.mean is None or trial.std is None:
        return "-"
    return mean_text(trial.mean, trial.std, len(trial.folds))


def _nested_lines(findings: Findings) -> Iterator[str]:
    if not findings.outer:
        return
    yield ""
    yield "outer fold  inner mean  accuracy  chosen on the other folds"
    for each in findings.outer:
        inner = each.winner.mean if each.winner else None
        chosen = each.error or (values_text(each.winner.values) if each.winner else "-")
        yield f"{each.fold:>10}  {_four(inner):>10}  {_four(each.accuracy):>8}  {chosen}"
    epochs = sum(each.epochs_run for each in findings.outer)
    yield f"The searches within outer folds trained {counted(epochs, 'epoch')}, summed over folds"
    estimate = findings.nested
    if estimate is None:
        yield "Nested: no mean, because not every outer fold has an accuracy"
        return
    outer, interval = len(findings.outer), ""
    if estimate.interval:
        low, high = estimate.interval
        interval = f", 95 % interval {low:.4f} to {high:.4f} (approximate)"
    yield (
        f"Nested: {mean_text(estimate.mean, estimate.std, outer)} over "
        f"{counted(outer, 'outer fold')}{interval}: of search and training together, on folds that "
        "chose neither configuration nor epoch"
    )


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
