"""Folders of runs for the tests of their pages, by the package's own writers, without Ray."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.data.leakage import Leakage
from raykfold.files.atomic import write_folder
from raykfold.observers import RunStart
from raykfold.outputs.model_dir import ModelDirWriter
from raykfold.pages.run_page import report
from raykfold.state.archive import open_run, write_results
from raykfold.state.record import RunRecord, identity
from raykfold.state.states import Index
from raykfold.training.predictions import OutOfFold, out_of_fold
from raykfold.training.results import EpochMetrics, FoldResult, Repeats, Summary

NAMES = {2: "<script>alert(1)</script>", 3: "$x^2$", 5: "Bär & Söhne", 7: "雨の音"}


EPOCHS = 6


CREATED = "20260102-030405"


def history(fold: int, epochs: int, inner: bool = False) -> tuple[EpochMetrics, ...]:
    """Accuracy is highest one epoch before the last; the inner split likes the one before that."""

    def accuracy(epoch: int) -> float:
        return 0.4 + fold % 9 / 20 + epoch / 50 - 0.1 * (epoch == epochs - 1)

    def liked(epoch: int) -> float | None:
        return float(epoch == epochs - 3) if inner else None

    return tuple(
        EpochMetrics(
            *(epoch, 1.0, 0.5, 1.5 - epoch / 10, accuracy(epoch), 0.001, 10.5),
            inner_loss=1.0 if inner else None,
            inner_accuracy=liked(epoch),
            val_balanced_accuracy=accuracy(epoch) - 0.1,
            val_macro_f1=accuracy(epoch) - 0.2,
        )
        for epoch in range(epochs)
    )


def complete(fold: int, data: FeatureSet, inner: bool = False) -> FoldResult:
    split = data.split(fold)
    epochs = EPOCHS if fold > 1 else EPOCHS - 1
    rows = history(fold, epochs, inner)
    sizes = len(split.train), len(split.validation)
    return FoldResult.of(fold, "complete", *sizes, rows, stopped_early=fold == 1)


def probabilities(data: FeatureSet, fold: int) -> np.ndarray:
    """Right more often than not, and not equally sure."""
    indices = data.split(fold).validation
    rng = np.random.default_rng(fold)
    values = rng.uniform(0, 1, (len(indices), data.num_classes))
    values[np.arange(len(indices)), data.class_indices[indices]] += 0.6
    return np.asarray(values / values.sum(axis=1, keepdims=True), dtype=np.float32)


def begin(folder: Path, data: FeatureSet, **changes: Any) -> RunConfig:
    config = RunConfig(**{"run_name": "sounds", "model_dir": folder, "epochs": EPOCHS, **changes})
    RunRecord.of(
        config, identity(config, data.fingerprint, "cpu x1", "fp32"), CREATED, data.fold_labels
    ).write(config)
    return config


def finish(
    folder: Path,
    data: FeatureSet,
    failed: Mapping[int, str] | None = None,
    seeds: Sequence[int] = (),
    leakage: Leakage | None = None,
    **changes: Any,
) -> RunConfig:
    """Leave what a run does that is over.

    Args:
        failed: fold → its error.
        seeds: of the run's repeats, which are all alike.
        leakage: what was found in the data.
    """
    config = begin(folder, data, **changes)
    inner = config.select == "inner"
    results = {fold: complete(fold, data, inner) for fold in data.fold_labels}
    for fold, error in (failed or {}).items():
        few = history(fold, 2)
        results[fold] = FoldResult.of(fold, "failed", 192, 48, few, error=error)
    held_out = {
        fold: (data.split(fold).validation, probabilities(data, fold))
        for fold, result in results.items()
        if result.status == "complete"
    }
    predictions = out_of_fold(held_out, data)
    assert predictions is not None
    folds = tuple(results.values())
    summary = Summary(
        run_name=config.run_name,
        folds=folds,
        out_of_fold=None if failed else predictions.metrics(data.class_mapping),
        by_recording=predictions.by_recording(data.class_mapping, data.fold_labels),
        classes=data.class_mapping,
        wall_seconds=305.0,
        num_workers=2,
        versions={"python": "3.11.7", "torch": "2.13.0"},
        sessions=3,
        select=config.select,
        repeats=Repeats(tuple(seeds), (folds,) * len(seeds)) if seeds else None,
        leakage=leakage,
        monitor=config.monitor,
    )
    writer = ModelDirWriter(config)
    writer.run_finished(summary)
    weights = dict.fromkeys(held_out, b"weights")
    write_results(config.outputs, summary, weights, predictions)
    return config


def go_on(folder: Path, data: FeatureSet, **changes: Any) -> RunConfig:
    """Leave what a run does that goes on: fold 1 complete, 2 and 3 at work, 4 and 5 waiting."""
    config = begin(folder, data, **changes)
    index = Index()
    results = [
        complete(1, data),
        *(FoldResult.of(f, "running", 192, 48, history(f, 3)) for f in (2, 3)),
    ]
    for result in results:
        index.folds[result.fold] = config.run_dir.finished(result.fold)
        write_folder(
            config.run_dir.finished(result.fold),
            {"history.json": json.dumps(result.to_json()).encode()},
            {},
        )
    index.write(config.run_dir)
    writer = ModelDirWriter(config)
    writer.run_started(
        RunStart(
            run_name=config.run_name,
            epochs=EPOCHS,
            folds=data.fold_labels,
            histories={2: history(2, 3), 3: history(3, 3)},
            finished={1: results[0]},
        )
    )
    return config


def summary_of(config: RunConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.outputs.summary.read_bytes())
    return content


def predictions_of(config: RunConfig) -> OutOfFold:
    predictions = open_run(config.model_path).predictions
    assert predictions is not None
    return predictions


def text_of(page: str) -> str:
    """About what a reader sees of a page, without its pictures."""
    shown = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", shown).split())


def page_of(config: RunConfig, data: FeatureSet | None = None) -> str:
    return report(open_run(config.model_path), data)
