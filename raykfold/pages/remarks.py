"""Remarks: what a reader should know of a number before trusting it, each worded once.

The terminal, the pages, the model card, `raykfold.compare` and a search show these sentences beside
their numbers. The methods and their sources are in `raykfold.training.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from raykfold.data.leakage import Leakage
from raykfold.text import (
    accuracy_text,
    capital,
    comma_list,
    count_of,
    figure_text,
    fold_names,
    fold_with_seed,
    one_line,
)
from raykfold.training.results import BEST_EPOCHS as BEST_EPOCHS
from raykfold.training.results import CHOSEN_EPOCHS as CHOSEN_EPOCHS
from raykfold.training.results import KeptEpochs, Monitor, Summary
from raykfold.training.search_results import SearchResults

SELECT_INNER = "The last epoch is where training ended; --select inner chooses on other samples."
APPROXIMATE = (
    "Intervals and tests over folds are approximate: folds share training samples. The correction "
    "of Nadeau and Bengio allows for that, but no exact method is known."
)
POOLED = (
    "The interval of the pooled accuracy (Wilson) takes the samples as independent, and leaves out "
    "that other training sets would give other networks."
)
RECORDINGS = (
    "Samples are windows of recordings. Windows of one recording are not independent, so the "
    "interval of the pooled accuracy by window is too narrow: read the one by recording. There a "
    "recording counts once, by the class of the highest mean probability over its windows."
)
ONE_FOLD = "One fold does not show how results vary from fold to fold."
SOME_FOLDS = "Not every fold of the data was held out (--folds)."
MCNEMAR = (
    "McNemar's test compares these trained networks, not others that the same settings would give."
)
MORE_EPOCHS = (
    "The run with more epochs to choose from is the more optimistic, which the test does not allow "
    "for; --by last is free of that."
)

# What chooses epochs, as in "the epoch of the highest accuracy".
CHOSEN_BY: Mapping[Monitor, str] = {
    "accuracy": "highest accuracy",
    "balanced_accuracy": "highest balanced accuracy",
    "macro_f1": "highest macro F1",
    "loss": "lowest loss",
    "score": "highest score by the recipe",
}

NESTED = (
    "The nested result is of search and training together: an outer fold has no part in the "
    "choice of the configuration and the epoch that are measured on it."
)


class Remark(NamedTuple):
    """A sentence, and whether what it says may change what the numbers are worth."""

    text: str
    serious: bool = False


def on_summary(summary: Summary) -> Iterator[Remark]:
    """Yield the remarks on the numbers of a run that is over."""
    if summary.ranked:
        if summary.monitor != "accuracy":
            yield Remark(on_monitor(summary.monitor))
        yield from map(Remark, on_epochs(summary.kept_epochs))
    if summary.kept is not None and summary.kept.interval is not None:
        yield Remark(APPROXIMATE)
    if summary.out_of_fold is not None:
        yield Remark(POOLED)
    if summary.by_recording is not None and summary.by_recording.pooled is not None:
        yield Remark(RECORDINGS)
    if len(summary.folds) == 1:
        yield Remark(ONE_FOLD)
    if outliers := summary.outlier_folds:
        verb = "is" if len(outliers) == 1 else "are"
        text = f"{capital(fold_names(outliers))} {verb} apart from the others"
        yield Remark(f"{text}: look at the samples before you trust the mean.", serious=True)
    if summary.leakage:
        yield from _on_leakage(summary.leakage)


def _on_leakage(leakage: Leakage) -> Iterator[Remark]:
    for line in leakage.about_twins():
        yield Remark(f"Leakage: {one_line(line, longest=600)}.", serious=True)
    for line in leakage.about_labels():
        yield Remark(f"Labels: {one_line(line, longest=600)}.", serious=True)


def on_monitor(monitor: Monitor) -> str:
    """Return what chose the epochs."""
    return f"The epoch of each fold is that of the {CHOSEN_BY[monitor]}."


def on_epochs(kept: KeptEpochs) -> list[str]:
    """Return the remarks on results of the best or of the chosen epochs."""
    return [BEST_EPOCHS, SELECT_INNER] if kept == "best" else [CHOSEN_EPOCHS, BEST_EPOCHS]


def on_partial(summary: Summary) -> str:
    """Return why a partial run has no mean, and the mean over the folds that are complete."""
    total = sum(len(folds) for _, folds in summary.by_seed)
    complete = total - len(summary.incomplete)
    verb = "is" if total == 1 else "are"
    text = f"{complete} of {count_of(total, 'fold')} {verb} complete, so there is no mean."
    partial = summary.partial_mean
    if partial is None or partial.mean is None:
        return text
    seeds = ", complete with every seed," if summary.repeats else ""
    it = "it" if summary.headline == "accuracy" else "that of the accuracy"
    return (
        f"{text} Over {fold_names(partial.folds)}{seeds} alone {it} would be "
        f"{accuracy_text(partial.mean)} at the {summary.kept_epochs} epochs, which is not the mean "
        "of the whole cross-validation."
    )


def on_failures(summary: Summary) -> str:
    """Return the folds that failed: ``fold 3, fold 4 with seed 1``."""
    return comma_list(fold_with_seed(each.fold, seed) for seed, each in summary.incomplete)


def on_seeds(summary: Summary) -> str:
    """Return how the accuracy varies with the seed; an empty text without repeats."""
    if summary.repeats is None or summary.spread is None:
        return ""
    apart, seeds = summary.spread, len(summary.repeats.seeds)
    text = (
        f"The accuracy of a fold is its mean over {seeds} seeds. From seed to seed it varies by "
        f"{apart.over_seeds:.4f} (standard deviation)"
    )
    if apart.over_folds is not None:
        text += (
            f", and the mean over folds by {apart.of_means:.4f}; from fold to fold it varies by "
            f"{apart.over_folds:.4f}, without what seeds add"
        )
    return f"{text}."


def of_seed(summary: Summary | None) -> str:
    """Return ``, seed 0`` for numbers of the first of several seeds, else an empty text."""
    return f", seed {summary.repeats.seeds[0]}" if summary and summary.repeats else ""


def on_search(results: SearchResults) -> Iterator[Remark]:
    """Yield the remarks on the numbers of a search."""
    best, compared = results.best, len(results.compared)
    if results.nested is not None:
        yield Remark(NESTED)
        if results.nested.interval is not None:
            yield Remark(APPROXIMATE)
    if best is not None and compared > 1:
        text = (
            f"The folds that measure the best trial have chosen it among {compared}, so its "
            f"{figure_text(results.figure)} is optimistic"
        )
        yield Remark(
            f"{text}{'.' if results.outer else '; --nested measures the whole procedure.'}"
        )
    if results.score == "best" and compared:
        yield Remark(BEST_EPOCHS)
    if results.close_to_best:
        trials = trial_names([each.number for each in results.close_to_best])
        verb = "is" if len(results.close_to_best) == 1 else "are"
        yield Remark(
            f"{trials} {verb} less than one standard deviation over folds below the best: another "
            "seed may put them in another order."
        )
    if results.leakage:
        yield from _on_leakage(results.leakage)


def trial_names(trials: Sequence[int]) -> str:
    """Return ``Trial 3``, ``Trials 3, 4`` or ``Trials 3, 4 and 20 others``."""
    if len(trials) == 1:
        return f"Trial {trials[0]}"
    more = len(trials) - 8
    return f"Trials {comma_list(trials[:8])}" + (
        f" and {count_of(more, 'other')}" if more > 0 else ""
    )
