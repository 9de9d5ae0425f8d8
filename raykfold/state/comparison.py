"""Whether one run is better than another, fold by fold and sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from raykfold.errors import BadInput
from raykfold.files.remote import without_password
from raykfold.state.archive import Archive
from raykfold.text import fold_with_seed
from raykfold.training.predictions import OutOfFold
from raykfold.training.results import Figure, Summary
from raykfold.training.statistics import McNemar, PairedTest, corrected_t_test, mcnemar

EPOCHS = {"best": "best epochs", "chosen": "chosen epochs", "last": "last epochs"}


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same folds.

    Attributes:
        names: of the two, as they were given.
        by: which epochs are compared: ``best``, ``chosen`` or ``last``.
        seeds: of each; the first of one is paired with the first of the other, and so on.
        folds: labels of the folds.
        figure: what is compared: what both runs are summed up by, at the epochs that they kept, or
            else the accuracy.
        values: (2, seeds, folds), of that figure.
        test: of the second's values less the first's; each fold's is the mean over the seeds.
        predictions: the two on all held-out samples, with the first seed; None where the kept
            weights are not those of the epochs that are compared.
        settings: what the runs were told differently: name → (of the first, of the second).
        compared: what the two are compared on in `predictions`: samples, or recordings where
            samples are windows, which are not independent.
    """

    names: tuple[str, str]
    by: str
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    folds: tuple[int, ...]
    figure: Figure
    values: np.ndarray
    test: PairedTest
    predictions: McNemar | None
    settings: Mapping[str, tuple[Any, Any]]
    compared: Literal["samples", "recordings"] = "samples"

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": list(self.names),
            "by": self.by,
            "seeds": [list(seeds) for seeds in self.seeds],
            "folds": list(self.folds),
            "figure": self.figure,
            "values": self.values.tolist(),
            "test": asdict(self.test),
            "mcnemar": None if self.predictions is None else asdict(self.predictions),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "compared": self.compared,
        }


def compare(
    first: Archive,
    second: Archive,
    by: str | None = None,
    names: tuple[str, str] | None = None,
) -> Comparison:
    """Compare two runs that are complete.

    Args:
        first: a run.
        second: another run, over the same folds of the same data.
        by: ``best``, ``chosen`` or ``last`` epochs; by default those whose weights the runs kept.
        names: what to call the two; by default where they are.

    Raises:
        BadInput: a run is not complete, or the two differ in data, folds or number of seeds.
    """
    runs = first, second
    summaries = [_complete_summary(run) for run in runs]
    prints = [run.record.fingerprint for run in runs]
    if prints[0] != prints[1]:
        raise BadInput(
            f"{first.place} and {second.place}: are of different data or folds (fingerprints "
            f"{prints[0][:12]}… and {prints[1][:12]}…); only runs over the same folds of the same "
            "data can be compared"
        )
    folds = _same(runs, "folds", [[fold.fold for fold in each.folds] for each in summaries])
    seeds = [
        each.repeats.seeds if each.repeats else (run.record.seed,)
        for run, each in zip(runs, summaries, strict=True)
    ]
    _same(runs, "numbers of repeats", [len(each) for each in seeds])
    kept = [summary.kept_epochs for summary in summaries]
    if by is None:
        by = str(_same(runs, "choices of epochs (--select; see --by)", kept))

    # (seeds, folds) of each run, and each fold's difference as the mean over the seeds.
    headlines = {summary.headline for summary in summaries}
    figure = headlines.pop() if len(headlines) == 1 and kept == [by, by] else "accuracy"
    found = []
    for run, summary in zip(runs, summaries, strict=True):
        rows = [
            [fold.accuracy(by) if figure == "accuracy" else fold.figure(figure) for fold in folds]
            for _, folds in summary.by_seed
        ]
        if any(value is None for row in rows for value in row):
            raise BadInput(f"--by {by}: {run.place} has no {EPOCHS[by]}")
        found.append(rows)
    values = np.array(found)
    differences = (values[1] - values[0]).mean(axis=0).tolist()

    # What is right more often: windows of one recording are not independent.
    predictions = [run.predictions for run in runs] if kept == [by, by] else []
    windows = all(each is not None and each.recording is not None for each in predictions)
    if windows:
        predictions = [each and each.of_recordings() for each in predictions]

    # What decides results, where the two differ in it.
    a, b = ({**run.record.identity, "epochs": run.record.epochs} for run in runs)
    return Comparison(
        names=names or (str(first.place), str(second.place)),
        by=by,
        seeds=(seeds[0], seeds[1]),
        folds=tuple(folds),
        figure=figure,
        values=values,
        test=corrected_t_test(differences, max(summary.test_to_train for summary in summaries)),
        predictions=_compare_predictions(*predictions) if predictions else None,
        settings={name: (a[name], b[name]) for name in a if name in b and a[name] != b[name]},
        compared="recordings" if predictions and windows else "samples",
    )


def _complete_summary(run: Archive) -> Summary:
    if run.summary is None:
        outputs = without_password(str(run.record.config["model_dir"]))
        where = f", or its outputs are elsewhere ({outputs})" if outputs != str(run.place) else ""
        raise BadInput(f"{run.place}: the run is not over{where}; expected a run that is complete")
    if run.summary.incomplete:
        failed = ", ".join(fold_with_seed(each.fold, seed) for seed, each in run.summary.incomplete)
        raise BadInput(f"{run.place}: {failed} failed; expected a run that is complete")
    return run.summary


def _same(runs: Sequence[Archive], what: str, values: Sequence[Any]) -> Any:
    """Return the value that two runs share; refuse two that differ in it."""
    if values[0] != values[1]:
        first, second = (
            ",".join(map(str, value)) if isinstance(value, list) else str(value) for value in values
        )
        raise BadInput(
            f"{runs[0].place} and {runs[1].place}: have different {what}, {first} and {second}; "
            "expected two that are alike in that"
        )
    return values[0]


def _compare_predictions(a: OutOfFold | None, b: OutOfFold | None) -> McNemar | None:
    if a is None or b is None or not np.array_equal(a.index, b.index):
        return None
    return mcnemar(a.prediction == a.label, b.prediction == b.label)
