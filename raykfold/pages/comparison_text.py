"""A comparison of two runs as lines for a terminal, with a verdict in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from raykfold.pages import remarks
from raykfold.state.comparison import EPOCHS, Comparison
from raykfold.text import count_of, figure_text, mean_text
from raykfold.training.statistics import ROUNDING, mean_accuracy, population_std

_SIGNIFICANT = 0.05


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Yield both means, what the runs were told differently, folds, tests, remarks, verdict."""
    for letter, name, of_run in zip("AB", comparison.names, comparison.values, strict=True):
        values = of_run.mean(axis=0).tolist()
        both = mean_text(mean_accuracy(values), population_std(values), len(values))
        yield f"{letter}: {name}  {both}"
    for name, (first, second) in comparison.settings.items():
        yield f"   {name}: {first} in A, {second} in B"

    yield ""
    several = len(comparison.seeds[0]) > 1
    yield f"fold       A       B     B - A{'   (means over seeds)' if several else ''}"
    means = comparison.values.mean(axis=1)
    for fold, a, b in zip(comparison.folds, *means.tolist(), strict=True):
        yield f"{fold:4}  {a:.4f}  {b:.4f}  {b - a:+.4f}"

    yield ""
    test, pairs = comparison.test, comparison.predictions
    interval = ""
    if test.interval:
        ends = f"{test.interval[0]:+.4f} to {test.interval[1]:+.4f}"
        interval = f", 95 % interval {ends}, approximate"
    what = f"{figure_text(comparison.figure)} of the " if comparison.figure != "accuracy" else ""
    yield f"B - A, {what}{EPOCHS[comparison.by]}: {test.difference:+.4f}{interval}"
    if test.t is not None and test.p is not None:
        yield (
            f"Paired t-test, corrected and approximate: t = {test.t:.2f}, {test.degrees} degrees "
            f"of freedom, p = {_p(test.p)}"
        )
    if pairs is not None:
        of_seed = " with the first seed" if several else ""
        yield (
            f"McNemar, on all held-out {comparison.compared}{of_seed}: only A is right on "
            f"{pairs.only_first}, only B on {pairs.only_second}, p = {_p(pairs.p)}"
        )
    if test.t is not None:
        yield remarks.APPROXIMATE
    if pairs is not None:
        yield remarks.MCNEMAR
    if comparison.by == "best":
        yield remarks.BEST_EPOCHS
        if "epochs" in comparison.settings:
            yield remarks.MORE_EPOCHS
    yield ""
    yield verdict(comparison)


def verdict(comparison: Comparison) -> str:
    """Return one sentence: which run is better, or that the folds do not show it."""
    test, pairs = comparison.test, comparison.predictions
    difference = abs(test.difference)
    by, alike = f"{difference:.4f}", "equally accurate"
    if comparison.figure != "accuracy":
        name = figure_text(comparison.figure)
        by, alike = f"{by} in {name}", f"equal in {name}"
    better, worse = comparison.names if test.difference < 0 else reversed(comparison.names)
    over = count_of(len(comparison.folds), "fold")
    equal = difference < ROUNDING

    if test.p is None and not test.degrees:  # one fold
        if equal:
            return f"The two are {alike} on this fold; one fold shows no more."
        return f"{better} is ahead of {worse} by {by}; one fold does not show more."
    if test.p is None:  # the same difference on each fold
        if equal:
            return f"The two are {alike} on each of {over}."
        return (
            f"{better} is ahead of {worse} by the same {by} on each of {over}, so "
            "there is no spread to judge it by."
        )
    if equal:
        return f"On average the two are {alike} over {over}."
    if test.p < _SIGNIFICANT:
        return (
            f"{better} is better than {worse}: by {by} over {over}, which chance "
            f"alone would seldom bring (p = {_p(test.p)})."
        )
    # What McNemar's test adds where the folds show nothing.
    networks = ""
    if pairs is not None and pairs.p < _SIGNIFICANT:
        ahead = comparison.names[0 if pairs.only_first > pairs.only_second else 1]
        networks = (
            f"; the networks of {ahead} are right on more of the held-out {comparison.compared} "
            f"than those of the other (p = {_p(pairs.p)}), but other training sets could reverse "
            "that"
        )
    return (
        f"These {over} do not show which is better: {better} is ahead by {by}, "
        f"which chance alone can bring (p = {_p(test.p)}){networks}."
    )


def _p(value: float) -> str:
    if value == 0:  # less than a float can be
        return "0.0000"
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1g}"
