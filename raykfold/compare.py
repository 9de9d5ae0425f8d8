"""``python -m raykfold.compare``: whether one run is better than another, fold by fold.

python -m raykfold.compare runs/a runs/b
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raykfold.config.command import Parser, add_flag, exit_code
from raykfold.errors import BadInput
from raykfold.files.remote import without_password
from raykfold.pages import remarks
from raykfold.state.archive import Archive, open_outputs
from raykfold.state.record import RunRecord
from raykfold.text import counted, fold_with_seed, mean_text
from raykfold.training.results import Summary
from raykfold.training.statistics import (
    ROUNDING,
    McNemar,
    PairedTest,
    corrected_t_test,
    mcnemar,
    mean_accuracy,
    population_std,
)

_SIGNIFICANT = 0.05
_EPOCHS = {"best": "best epochs", "chosen": "chosen epochs", "last": "last epochs"}


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same folds.

    Attributes:
        names: of the two, as they were given.
        by: which epochs: ``best``, ``chosen`` or ``last``.
        seeds: of each; the first of one is paired with the first of the other, and so on.
        folds: labels.
        accuracies: (2, seeds, folds).
        test: of the second's accuracies less the first's, each fold's the mean over the seeds.
        predictions: the two on all held-out samples, with the first seed; None where the kept
            weights are not those of the epochs that are compared.
        settings: what the runs were told differently: name → (of the first, of the second).
    """

    names: tuple[str, str]
    by: str
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    folds: tuple[int, ...]
    accuracies: np.ndarray
    test: PairedTest
    predictions: McNemar | None
    settings: Mapping[str, tuple[Any, Any]]

    @property
    def verdict(self) -> str:
        """One sentence in plain words."""
        difference, test = abs(self.test.difference), self.test
        better, worse = self.names if test.difference < 0 else reversed(self.names)
        over = counted(len(self.folds), "fold")
        if test.p is None:
            return self._without_spread(better, worse, over)
        if difference < ROUNDING:
            return f"On average the two are equally accurate over {over}."
        if test.p < _SIGNIFICANT:
            return (
                f"{better} is better than {worse}: by {difference:.4f} over {over}, which chance "
                f"alone would seldom bring (p = {_p(test.p)})."
            )
        return (
            f"These {over} do not show which is better: {better} is ahead by {difference:.4f}, "
            f"which chance alone can bring (p = {_p(test.p)}){self._of_networks()}."
        )

    def _of_networks(self) -> str:
        """What McNemar's test adds where the other shows nothing."""
        pairs = self.predictions
        if pairs is None or pairs.p >= _SIGNIFICANT:
            return ""
        better = self.names[0] if pairs.only_first > pairs.only_second else self.names[1]
        return (
            f"; the networks of {better} are right on more of the held-out samples than those of "
            f"the other (p = {_p(pairs.p)}), but other training sets could turn that"
        )

    def _without_spread(self, better: str, worse: str, over: str) -> str:
        difference = abs(self.test.difference)
        if difference < ROUNDING and not self.test.degrees:
            return "The two are equally accurate on this fold; one fold shows no more."
        if difference < ROUNDING:
            return f"The two are equally accurate on each of {over}."
        if not self.test.degrees:
            return f"{better} is ahead of {worse} by {difference:.4f}; one fold does not show more."
        return (
            f"{better} is ahead of {worse} by the same {difference:.4f} on each of {over}, so that "
            "there is no spread to judge it by."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": list(self.names),
            "by": self.by,
            "seeds": [list(seeds) for seeds in self.seeds],
            "folds": list(self.folds),
            "accuracies": self.accuracies.tolist(),
            "test": asdict(self.test),
            "mcnemar": None if self.predictions is None else asdict(self.predictions),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "verdict": self.verdict,
        }


def compare(
    first: Archive,
    second: Archive,
    by: str | None = None,
    names: tuple[str, str] | None = None,
) -> Comparison:
    """Compare two runs that are complete.

    Args:
        by: ``best``, ``chosen`` or ``last`` epochs; by default those whose weights the runs kept.
        names: what to call the two; by default where they are.

    Raises:
        BadInput: a run is not complete, or they are not over the same folds of the same data.
    """
    runs = first, second
    summaries = [_complete_summary(run) for run in runs]
    _refuse_other_data(runs)
    folds = _same(runs, "folds", [[fold.fold for fold in each.folds] for each in summaries])
    seeds = [_seeds(*each) for each in zip(runs, summaries, strict=True)]
    _same(runs, "numbers of repeats", [len(each) for each in seeds])
    kept = [summary.kept_epochs for summary in summaries]
    if by is None:
        by = str(_same(runs, "choices of epochs (--select; see --by)", kept))
    accuracies = np.array([_accuracies(*each, by) for each in zip(runs, summaries, strict=True)])
    differences = (accuracies[1] - accuracies[0]).mean(axis=0).tolist()
    return Comparison(
        names=names or (str(first.place), str(second.place)),
        by=by,
        seeds=(seeds[0], seeds[1]),
        folds=tuple(folds),
        accuracies=accuracies,
        test=corrected_t_test(differences, max(summary.test_to_train for summary in summaries)),
        predictions=_of_predictions(first, second) if kept == [by, by] else None,
        settings=_settings(first.record, second.record),
    )


def _complete_summary(run: Archive) -> Summary:
    if run.summary is None:
        outputs = without_password(str(run.record.config["model_dir"]))
        where = f", or its outputs are elsewhere ({outputs})" if outputs != str(run.place) else ""
        raise BadInput(f"{run.place}: the run is not over{where}; want one that is complete")
    if run.summary.incomplete:
        failed = ", ".join(fold_with_seed(each.fold, seed) for seed, each in run.summary.incomplete)
        raise BadInput(f"{run.place}: {failed} failed; expected a run that is complete")
    return run.summary


def _refuse_other_data(runs: Sequence[Archive]) -> None:
    prints = [run.record.fingerprint for run in runs]
    if prints[0] != prints[1]:
        raise BadInput(
            f"{runs[0].place} and {runs[1].place}: are of different data or folds (fingerprints "
            f"{prints[0][:12]}… and {prints[1][:12]}…); only runs over the same folds of the same "
            "data can be compared"
        )


def _same(runs: Sequence[Archive], what: str, values: Sequence[Any]) -> Any:
    if values[0] != values[1]:
        first, second = (_listed(value) for value in values)
        raise BadInput(
            f"{runs[0].place} and {runs[1].place}: have different {what}, {first} and {second}; "
            "want two that are alike in that"
        )
    return values[0]


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _seeds(run: Archive, summary: Summary) -> tuple[int, ...]:
    return summary.repeats.seeds if summary.repeats else (int(run.record.identity["seed"]),)


def _accuracies(run: Archive, summary: Summary, by: str) -> list[list[float | None]]:
    """Return the accuracies (seeds, folds) of the epochs that are compared."""
    values = [[fold.accuracy(by) for fold in folds] for _, folds in summary.by_seed]
    if any(value is None for folds in values for value in folds):
        raise BadInput(f"--by {by}: {run.place} has no {_EPOCHS[by]}")
    return values


def _of_predictions(first: Archive, second: Archive) -> McNemar | None:
    if first.predictions is None or second.predictions is None:
        return None
    a, b = first.predictions, second.predictions
    if not np.array_equal(a.index, b.index):
        return None
    return mcnemar(a.prediction == a.label, b.prediction == b.label)


def _settings(first: RunRecord, second: RunRecord) -> dict[str, tuple[Any, Any]]:
    """What decides results, where the two differ in it; as far as both say it."""
    a, b = ({**run.identity, "epochs": run.epochs} for run in (first, second))
    return {name: (a[name], b[name]) for name in a if name in b and a[name] != b[name]}


# ---- The command


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _main(_parser().parse_args(arguments)), stopped="raykfold: stopped")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.compare",
        description="Tell whether one run is better than another, over the same folds.",
        epilog="Exit codes: 0 done, 2 the two cannot be compared, or bad usage.",
    )
    parser.add_argument("run_a", metavar="RUN_A", help="Outputs of a run: its --model_dir.")
    parser.add_argument("run_b", metavar="RUN_B", help="Those of another.")
    add_flag(
        parser,
        "by",
        choices=list(_EPOCHS),
        help="Of each fold, the epoch to compare by (those whose weights were kept by default).",
    )
    add_flag(parser, "json", action="store_true", help="Print one JSON object.")
    return parser


def _main(options: argparse.Namespace) -> int:
    names = without_password(options.run_a), without_password(options.run_b)
    found = compare(open_outputs(options.run_a), open_outputs(options.run_b), options.by, names)
    if options.json:
        print(json.dumps(found.to_json()))
    else:
        print("\n".join(_lines(found)))
    return 0


def _lines(found: Comparison) -> Iterator[str]:
    for letter, name, accuracies in zip("AB", found.names, found.accuracies, strict=True):
        values = accuracies.mean(axis=0).tolist()
        both = mean_text(mean_accuracy(values), population_std(values), len(values))
        yield f"{letter}: {name}  {both}"
    for name, (first, second) in found.settings.items():
        yield f"   {name}: {first} in A, {second} in B"
    yield ""
    yield from _table(found)
    yield ""
    yield from _tests(found)
    yield ""
    yield found.verdict


def _table(found: Comparison) -> Iterator[str]:
    several = len(found.seeds[0]) > 1
    yield f"fold       A       B     B - A{'   (means over seeds)' if several else ''}"
    means = found.accuracies.mean(axis=1)
    for fold, a, b in zip(found.folds, *means.tolist(), strict=True):
        yield f"{fold:4}  {a:.4f}  {b:.4f}  {b - a:+.4f}"


def _tests(found: Comparison) -> Iterator[str]:
    test, pairs = found.test, found.predictions
    yield f"B - A, {_EPOCHS[found.by]}: {test.difference:+.4f}" + (
        f", 95 % interval {test.interval[0]:+.4f} to {test.interval[1]:+.4f}, approximate"
        if test.interval
        else ""
    )
    if test.t is not None and test.p is not None:
        yield (
            f"Paired t-test, corrected and approximate: t = {test.t:.2f}, {test.degrees} degrees "
            f"of freedom, p = {_p(test.p)}"
        )
    if pairs is not None:
        of_seed = " with the first seed" if len(found.seeds[0]) > 1 else ""
        yield (
            f"McNemar, on all held-out samples{of_seed}: only A is right on {pairs.only_first}, "
            f"only B on {pairs.only_second}, p = {_p(pairs.p)}"
        )
    if test.t is not None:
        yield remarks.APPROXIMATE
    if pairs is not None:
        yield remarks.MCNEMAR
    if found.by == "best":
        yield remarks.BEST_EPOCHS
        if "epochs" in found.settings:
            yield remarks.MORE_EPOCHS


def _p(value: float) -> str:
    if value == 0:  # less than a float can be
        return "0.0000"
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1g}"


if __name__ == "__main__":
    sys.exit(main())
