"""What a search prints: a line for each event, and its results at the end."""

from __future__ import annotations

from collections.abc import Iterator

from raykfold.pages.remarks import on_search
from raykfold.text import NOTHING, accuracy_text, count_of, figure_text, interval_text, mean_text
from raykfold.training.search_results import SearchResults, Trial, rank
from raykfold.tuning.observer import SearchObserver
from raykfold.tuning.space import SearchConfig, value_text, values_text

_MOST_TRIALS_SHOWN = 20


class SearchConsole(SearchObserver):
    """Prints a line for each event of a search.

    Args:
        config: the search's.
        prefix: begins each line.
    """

    def __init__(self, config: SearchConfig, prefix: str = "") -> None:
        self._config = config
        self._prefix = prefix

    def trial_began(self, trial: Trial) -> None:
        resumed = f"resumes after epoch {len(trial.history)}" if trial.history else "begins"
        self.noticed(f"trial {trial.number} {resumed}: {values_text(trial.values)}")

    def trial_scored(self, trial: Trial) -> None:
        epochs = f"{len(trial.history)}/{self._config.epochs_of(trial.values)}"
        self.noticed(f"trial {trial.number}  epoch {epochs}  mean {_spread(trial)}")

    def trial_ended(self, trial: Trial) -> None:
        if trial.status == "failed":
            self.noticed(f"trial {trial.number} failed: {trial.error}")
        elif trial.mean is not None:
            after = f"stopped after epoch {len(trial.history)}"
            how = "complete" if trial.status == "complete" else after
            self.noticed(f"trial {trial.number} {how}: {_spread(trial)}")

    def noticed(self, text: str) -> None:
        print(self._prefix + text, flush=True)

    def of_outer(self, fold: int) -> SearchConsole:
        return SearchConsole(self._config, f"without fold {fold}: ")


def result_lines(results: SearchResults) -> Iterator[str]:
    """Yield the lines that a search prints at its end."""
    # The trials, best first.
    shown = rank(results.trials)[:_MOST_TRIALS_SHOWN]
    rows = [["trial", *results.space, "mean", "std", "epochs", "status"]]
    for trial in shown:
        values = (value_text(trial.values[name]) for name in results.space)
        scores = (accuracy_text(trial.mean), accuracy_text(trial.std))
        rows.append([str(trial.number), *values, *scores, str(len(trial.history)), trial.status])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    count = len(results.trials)
    if count > len(shown):
        yield f"and {count_of(count - len(shown), 'trial')} more: see search.json, or the page"
    for trial in results.trials:
        if trial.status == "failed":
            yield f"trial {trial.number} failed: {trial.error}"

    # The best of them.
    yield ""
    best = results.best
    if best is None:
        yield "No trial is complete, so there is no best one"
    else:
        over = count_of(len(best.folds), "fold")
        epochs = f"{results.score} epochs"
        if results.figure != "accuracy":
            epochs = f"{figure_text(results.figure)} of the {epochs}"
        yield (
            f"Best: trial {best.number}, {_spread(best)} over {over}, {epochs}: "
            f"{values_text(best.values)}"
        )

    # With --nested, the winner on each outer fold, and what search and training reach together.
    if results.outer:
        yield ""
        name = figure_text(results.figure)
        yield f"outer fold  inner mean  {name}  chosen on the other folds"
        for each in results.outer:
            inner = accuracy_text(each.winner.mean if each.winner else None)
            value = accuracy_text(each.value)
            chosen = each.error or (values_text(each.winner.values) if each.winner else NOTHING)
            yield f"{each.fold:>10}  {inner:>10}  {value:>{len(name)}}  {chosen}"
        epochs = count_of(sum(each.epochs_run for each in results.outer), "epoch")
        yield f"The searches within outer folds trained {epochs}, summed over folds"
        nested, folds = results.nested, len(results.outer)
        if nested is None:
            yield "Nested: no mean, because not every outer fold is complete"
        else:
            mean = mean_text(nested.mean, nested.std, folds)
            interval = (
                f", 95 % interval {interval_text(nested.interval)}" if nested.interval else ""
            )
            yield f"Nested: {mean} over {count_of(folds, 'outer fold')}{interval}"

    if results.epochs_of_all:
        share = results.epochs_run / results.epochs_of_all
        yield (
            f"Epochs trained, summed over folds: {results.epochs_run} of at most "
            f"{results.epochs_of_all} for {count_of(count, 'trial')} ({share:.0%})"
        )
    yield ""
    yield from (remark.text for remark in on_search(results))
    if best is not None:
        yield f"To run the best: {results.best_command}"


def _spread(trial: Trial) -> str:
    if trial.mean is None or trial.std is None:
        return NOTHING
    return mean_text(trial.mean, trial.std, len(trial.folds))
