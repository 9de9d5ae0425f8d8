"""What a search prints: a line for each event, and its results at the end."""

from __future__ import annotations

from collections.abc import Iterator

from raykfold.text import counted, mean_text
from raykfold.training.search_results import SearchResults, Trial, ranked
from raykfold.tuning.observer import SearchObserver
from raykfold.tuning.scores import Score
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

    def trial_scored(self, trial: Trial, score: Score) -> None:
        epochs = self._config.epochs_of(trial.values)
        self.noticed(
            f"trial {trial.number}  epoch {score.epoch}/{epochs}  "
            f"mean {mean_text(score.mean, score.std, len(score.folds))}"
        )

    def trial_ended(self, trial: Trial) -> None:
        if trial.status == "failed":
            self.noticed(f"trial {trial.number} failed: {trial.error}")
        elif trial.mean is not None:
            after = f"stopped after epoch {len(trial.history)}"
            how = "complete" if trial.status == "complete" else after
            self.noticed(f"trial {trial.number} {how}: {_accuracy(trial)}")

    def noticed(self, text: str) -> None:
        print(self._prefix + text, flush=True)

    def of_outer(self, fold: int) -> SearchConsole:
        return SearchConsole(self._config, f"without fold {fold}: ")


def result_lines(results: SearchResults) -> Iterator[str]:
    """Yield the lines that a search prints at its end."""
    yield from _trial_table(results)
    yield ""
    yield from _best_lines(results)
    yield from _nested_lines(results)
    most, count = results.epochs_of_all, len(results.trials)
    if most:
        yield (
            f"Epochs trained, summed over folds: {results.epochs_run} of at most {most} for "
            f"{counted(count, 'trial')} ({results.epochs_run / most:.0%})"
        )
    if results.best is not None:
        yield f"To run the best: {results.best_command}"


def _trial_table(results: SearchResults) -> Iterator[str]:
    shown = ranked(results.trials)[:_MOST_TRIALS_SHOWN]
    rows = [["trial", *results.space, "mean", "std", "epochs", "status"]]
    for trial in shown:
        values = (value_text(trial.values[name]) for name in results.space)
        figures = (_four(trial.mean), _four(trial.std), str(len(trial.history)))
        rows.append([str(trial.number), *values, *figures, trial.status])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    left = len(results.trials) - len(shown)
    if left:
        yield f"and {counted(left, 'trial')} more: see search.json, or the page"
    for trial in results.trials:
        if trial.status == "failed":
            yield f"trial {trial.number} failed: {trial.error}"


def _best_lines(results: SearchResults) -> Iterator[str]:
    best = results.best
    if best is None:
        yield "No trial is complete, so there is no best one"
        return
    yield (
        f"Best: trial {best.number}, {_accuracy(best)} over {counted(len(best.folds), 'fold')}, "
        f"{results.score} epochs: {values_text(best.values)}"
    )
    complete = sum(trial.status == "complete" for trial in results.trials)
    if len(results.trials) > 1:
        yield (
            f"That is the highest of {len(results.trials)} trials ({complete} complete), on the "
            "folds that chose it, and so optimistic"
            + ("" if results.outer else "; --nested measures the search on folds it has not seen")
        )


def _nested_lines(results: SearchResults) -> Iterator[str]:
    if not results.outer:
        return
    yield ""
    yield "outer fold  inner mean  accuracy  chosen on the other folds"
    for each in results.outer:
        inner = each.winner.mean if each.winner else None
        chosen = each.error or (values_text(each.winner.values) if each.winner else "-")
        yield f"{each.fold:>10}  {_four(inner):>10}  {_four(each.accuracy):>8}  {chosen}"
    epochs = sum(each.epochs_run for each in results.outer)
    yield f"The searches within outer folds trained {counted(epochs, 'epoch')}, summed over folds"
    estimate, count = results.nested, len(results.outer)
    if estimate is None:
        yield "Nested: no mean, because not every outer fold has an accuracy"
        return
    interval = ""
    if estimate.interval:
        low, high = estimate.interval
        interval = f", 95 % interval {low:.4f} to {high:.4f} (approximate)"
    yield (
        f"Nested: {mean_text(estimate.mean, estimate.std, count)} over "
        f"{counted(count, 'outer fold')}{interval}: of search and training together, on folds that "
        "chose neither configuration nor epoch"
    )


def _accuracy(trial: Trial) -> str:
    if trial.mean is None or trial.std is None:
        return "-"
    return mean_text(trial.mean, trial.std, len(trial.folds))


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
