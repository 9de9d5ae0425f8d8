"""Folders of runs that were never trained, written by the package's own writers, without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import write_folder
from raykfold.outputs.model_dir import ModelDirWriter
from raykfold.state.archive import write_results
from raykfold.state.record import RunRecord, identity
from raykfold.state.states import Index
from raykfold.training.predictions import OutOfFold
from raykfold.training.results import EpochMetrics, FoldResult, Monitor, Summary


def history(epochs: int) -> tuple[EpochMetrics, ...]:
    """Return metrics whose validation accuracy is 0.5 in the first epoch, and grows by 0.01."""

    def figures(accuracy: float) -> dict[str, float]:
        return {"val_balanced_accuracy": accuracy - 0.1, "val_macro_f1": accuracy - 0.2}

    return tuple(
        EpochMetrics(epoch, 1.0, 0.4, 0.9, accuracy, 0.001, 2.0, **figures(accuracy))
        for epoch, accuracy in enumerate(0.5 + epoch / 100 for epoch in range(epochs))
    )


def running(fold: int, epochs: int) -> FoldResult:
    return FoldResult.of(fold, "running", 40, 10, history(epochs))


def complete(fold: int, epochs: int = 5) -> FoldResult:
    return FoldResult.of(fold, "complete", 40, 10, history(epochs))


def failed(fold: int, error: str) -> FoldResult:
    return FoldResult.of(fold, "failed", 40, 10, error=error)


def begin(folder: Path, folds: Sequence[int] = (1, 2, 3), **changes: Any) -> RunConfig:
    """Write what a run of these folds leaves when it begins."""
    config = RunConfig(**{"run_name": "run", "model_dir": folder, "epochs": 5, **changes})
    begin_as(config, folds)
    return config


def begin_as(config: RunConfig, folds: Sequence[int] = (1, 2, 3)) -> None:
    """Write what a run of `config` leaves when it begins."""
    RunRecord.of(config, identity(config, "f00d", "cpu x1"), "20250101-000000", folds).write(config)
    Index(sessions=1).write(config.run_dir)


def store(config: RunConfig, *results: FoldResult) -> None:
    """Write the newest state of each fold, complete or running, where a worker does."""
    index = Index(sessions=1)
    for result in results:
        folder = config.run_dir.finished(result.fold)
        if result.status == "running":
            name = f"checkpoint_{result.epochs_run}"
            folder = config.run_dir.shares / "a" / name / f"fold_{result.fold}"
        facts = {"fold": result.fold, "epochs_run": result.epochs_run, "stopped_early": False}
        write_folder(folder, {"history.json": json.dumps(result.to_json()).encode()}, facts)
        index.folds[result.fold] = folder
    index.write(config.run_dir)


def conclude(config: RunConfig, *results: FoldResult, monitor: Monitor = "accuracy") -> Summary:
    """Write the outputs of a run that has ended."""
    classes = {0: "dog", 1: "rain"}
    summary = Summary("run", results, None, classes, 9.0, 2, {"torch": "2.9"}, monitor=monitor)
    labels = np.zeros(4, dtype=np.int64)
    write_results(
        config.outputs,
        summary,
        {},
        OutOfFold(
            index=np.arange(4),
            fold=np.asarray([1, 1, 2, 2]),
            label=labels,
            prediction=labels,
            probabilities=np.tile(np.asarray([1, 0], dtype=np.float32), (4, 1)),
            classes=np.asarray([0, 1]),
        ),
    )
    ModelDirWriter(config).run_finished(summary)
    return summary
