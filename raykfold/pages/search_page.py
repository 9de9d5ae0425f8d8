"""The page of a search: which configuration is best, and what its accuracy is worth.

Each trial is a whole cross-validation and has a page of its own (`raykfold.pages.run_page`), to
which this one links.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from raykfold.files.paths import ModelDir
from raykfold.pages import search_figures
from raykfold.pages.drawing import cut
from raykfold.pages.frame import Shown, cell, render, write_page
from raykfold.pages.remarks import Remark, on_search, trial_names
from raykfold.pages.search_figures import as_text
from raykfold.text import (
    NOTHING,
    RUN_AGAIN,
    accuracy_text,
    capital,
    count_of,
    duration,
    figure_text,
    interval_text,
    one_line,
    plus_minus,
    times,
)
from raykfold.training.search_results import TRIAL_STATUSES, SearchResults, Trial, rank
from raykfold.training.statistics import ROUNDING

MOST_FOLDS_SHOWN = 10
_MOST_ERRORS = 12
_LONGEST_VALUE = 28
_LONGEST_ERROR = 400
_TEMPLATE = "search_page.html.j2"

Row: TypeAlias = Mapping[str, Any]


def search_page(results: SearchResults) -> str:
    """Return the page as HTML."""
    status = {"best": "its best", "chosen": "the one that an inner validation split chose"}
    facts = [
        ("status", results.status),
        ("wall time", duration(results.wall_seconds)),
        ("resumed", times(max(results.sessions - 1, 0))),
        ("sampler", results.sampler),
        ("trial scheduler", results.trial_scheduler),
        ("seed", str(results.seed)),
        ("folds", ", ".join(map(str, results.folds))),
        ("epochs of a fold, at most", str(results.epochs)),
        ("epoch of a fold that counts", status[results.score]),
    ]
    shown = {"epochs", "folds", "sampler", "trial_scheduler", "seed", "space"}
    facts += [
        ("fingerprint of the data" if name == "data" else _text(name), _text(value, longest=200))
        for name, value in results.identity.items()
        if name not in shown
    ]
    values = {
        "run_name": one_line(results.run_name),
        "made_from": "search.json",
        "about": (
            f"search over {count_of(len(results.space), 'hyper-parameter')}; each trial is a "
            f"cross-validation of {count_of(len(results.folds), 'fold')}, up to "
            f"{count_of(results.epochs, 'epoch')}"
        ),
        "headline": _headline(results),
        "state": _state(results),
        "tiles": list(_tiles(results)),
        "remarks": list(_remarks(results)),
        "best": _best(results),
        "figure": capital(figure_text(results.figure)),
        "nested": _nested_row(results),
        "parallel": _parallel(results),
        "pictures": list(_pictures(results)),
        "table": _table(results) if results.trials else None,
        "errors": list(_errors(results)),
        "space": [(_name(name), _domain_text(each)) for name, each in results.space.items()],
        "command": one_line(results.command, longest=None) if results.command else None,
        "run_again": RUN_AGAIN,
        "facts": facts,
        "versions": list(results.versions.items()),
    }
    return render(_TEMPLATE, values)


def search_plots(results: SearchResults) -> dict[str, bytes]:
    """Return the pictures that there is something to draw for: name → PNG."""
    if not _has_scores(results):
        return {}
    figure = figure_text(results.figure)
    pictures = [search_figures.history(results.trials, figure)]
    if results.space:
        pictures.append(search_figures.parallel(results.space, results.trials, figure))
    return {picture.name: picture.png() for picture in pictures}


def write_search_page(results: SearchResults, outputs: ModelDir) -> Path:
    """Write the page and its pictures into `outputs`, and remove pictures of an earlier page.

    Returns:
        Where the page is.

    Raises:
        StorageError: it cannot be written.
    """
    return write_page(outputs, search_page(results), search_plots(results))


# --- the top of the page -------------------------------------------------------------------------


def _headline(results: SearchResults) -> Row | None:
    """Return the number at the top, if there is one; with --nested only the nested one."""
    best, nested = results.best, results.nested
    figure = capital(figure_text(results.figure))
    if results.status == "running":
        return None
    if results.outer:
        if nested is None:
            return None
        count, mean, std = len(results.outer), nested.mean, nested.std
        what = f"{figure} of the whole procedure over {count_of(count, 'outer fold')}"
        interval = f", 95 % interval {interval_text(nested.interval)}" if nested.interval else ""
        is_optimistic = False
    elif best is None or best.mean is None or best.std is None:
        return None
    else:
        count, mean, std = len(results.folds), best.mean, best.std
        what = f"{figure} of trial {best.number}, the best, over {count_of(count, 'fold')}"
        interval = ""
        is_optimistic = len(results.compared) > 1 or results.score == "best"
    return {
        "mean": accuracy_text(mean),
        "std": accuracy_text(std) if count > 1 else None,
        "badge": "optimistic" if is_optimistic else None,
        "what": f"{what}{': mean ± standard deviation' if count > 1 else ''}{interval}.",
    }


def _state(results: SearchResults) -> Row:
    """Return what takes the place of the number at the top if there is none."""
    counts = _counts(results)
    listed = [f"{counts[status]} {status}" for status in TRIAL_STATUSES if counts[status]]
    trials = count_of(len(results.trials), "trial") + (f" ({', '.join(listed)})" if listed else "")
    outer = count_of(len(results.outer), "outer fold")
    complete = sum(each.status == "complete" for each in results.outer)
    if results.status != "running":
        if results.outer:
            what = f"{complete} of {outer} are complete, so there is no mean."
            return {"title": "Partial", "what": what}
        return {"title": "No result", "what": f"No configuration was chosen, of {trials}."}
    what = (
        f"As of {time.strftime('%Y-%m-%d %H:%M:%S')}: {trials}; "
        f"{count_of(results.epochs_run, 'epoch')} trained, of at most {results.epochs_of_all}."
    )
    if results.outer:
        what += f" {complete} of {outer} are complete."
    if results.best is not None:
        what += f" The best so far is trial {results.best.number}, with {_spread(results.best)}."
    return {"title": "Searching", "what": what}


def _tiles(results: SearchResults) -> Iterator[tuple[str, str, str]]:
    """Yield names, values and notes."""
    counts = _counts(results)
    if results.outer and results.best is not None:
        name = f"Trial {results.best.number}, the best, by itself"
        yield name, _spread(results.best), "optimistic"
    others = [f"{counts[name]} {name}" for name in ("stopped", "failed", "running") if counts[name]]
    yield "Trials complete", f"{counts['complete']} of {len(results.trials)}", ", ".join(others)
    epochs, most, note = results.epochs_run, results.epochs_of_all, ""
    if epochs < most and results.status != "running":
        share = round(100 * (1 - epochs / most))
        note = f"{share} % left out, by stopped trials and folds that stopped early"
    yield "Epochs trained, of all folds", f"{epochs} of at most {most}", note
    if results.outer:
        inner = sum(each.epochs_run for each in results.outer)
        yield "Epochs of the searches within outer folds", str(inner), "trained besides"
    resumes = results.sessions - 1
    note = f"resumed {times(resumes)}" if resumes > 0 else ""
    yield "Time", duration(results.wall_seconds), note
    names = {"random": "random", "optuna": "Optuna"}
    schedulers = {
        "asha": ("ASHA", "stops at each rung the trials that lag behind"),
        "median": ("median", "stops trials below the median of the others"),
        "none": ("no scheduler", "every trial is trained to its end"),
    }
    scheduler, note = schedulers[results.trial_scheduler]
    yield "Sampler and scheduler", f"{names[results.sampler]}, {scheduler}", note


def _remarks(results: SearchResults) -> Iterator[Remark]:
    if failed := _counts(results)["failed"]:
        errors = "Their errors are" if failed > 1 else "Its error is"
        text = f"{count_of(failed, 'trial')} failed. {errors} below the table of trials."
        yield Remark(text, serious=True)
    for each in results.outer:
        if each.error is not None:
            error = one_line(each.error, _LONGEST_ERROR)
            yield Remark(f"Outer fold {each.fold} failed: {error}", serious=True)
    yield from on_search(results)


# --- best trial, outer folds and trials ----------------------------------------------------------


def _best(results: SearchResults) -> Row | None:
    best = results.best
    if best is None:
        return None
    so_far = " so far" if results.status == "running" else ""
    folds = [(f"fold {fold}", accuracy_text(best.folds.get(fold))) for fold in results.folds]
    return {
        "caption": f"Configuration of trial {best.number}, the best{so_far}",
        "config": [
            (_name(name), _text(value, digits=6, longest=200))
            for name, value in best.values.items()
        ],
        "folds": folds if len(folds) <= MOST_FOLDS_SHOWN else [],
        "command": one_line(results.best_command, longest=None),
        "file": Path(results.best_config).name,
    }


def _nested_row(results: SearchResults) -> Row | None:
    if not results.outer:
        return None
    figure = figure_text(results.figure)
    rows = []
    for each in results.outer:
        winner = each.winner
        accuracies = [accuracy_text(winner.mean if winner else None), accuracy_text(each.value)]
        values = _values(results, winner.values if winner else {})
        rows.append([each.fold, each.status, *accuracies, *values])
    return {
        "caption": (
            f"Each outer fold had a search on the other folds alone. Inner is the {figure} of the "
            f"winner in that search, and is optimistic; outer is the {figure} of the winner on the "
            "outer fold, which had no part in the choice."
        ),
        "columns": ["outer fold", "status", "inner", "outer", *map(_name, results.space)],
        "rows": rows,
    }


def _table(results: SearchResults) -> Row:
    folds = results.folds if len(results.folds) <= MOST_FOLDS_SHOWN else ()
    spread = " ± std" if len(results.folds) > 1 else ""
    best, ranked, figure = results.best, rank(results.trials), figure_text(results.figure)
    rows = []
    for trial in ranked:
        is_complete, place = trial.status == "complete", NOTHING
        if is_complete and trial.mean is not None:  # trials that are equal share a rank
            complete = (each.mean or 0.0 for each in ranked if each.status == "complete")
            place = str(1 + sum(mean > trial.mean + ROUNDING for mean in complete))
        accuracies = {} if trial.mean is None else trial.folds
        # The page of an unfinished trial may still change, or be missing.
        page = f"trials/{trial.number}/report.html" if is_complete else ""
        badge = {"stopped": "plain", "failed": "bad"}.get(trial.status)
        rows.append(
            [
                place,
                cell(trial.number, [("good", "best")] if trial is best else [], page),
                cell("", [(badge, trial.status)]) if badge else trial.status,
                _spread(trial),
                len(trial.history),
                *_values(results, trial.values),
                *(accuracy_text(accuracies.get(fold)) for fold in folds),
            ]
        )
    return {
        "caption": (
            f"{capital(figure)} is the mean over the folds. Complete trials come first, the best "
            f"on top. A stopped trial has no rank, because its {figure} is of fewer epochs. Epochs "
            "are those that all folds have completed."
        ),
        "columns": [
            *("rank", "trial", "status", f"mean{spread}", "epochs"),
            *map(_name, results.space),
            *(f"fold {fold}" for fold in folds),
        ],
        "rows": rows,
    }


def _errors(results: SearchResults) -> Iterator[tuple[str, str]]:
    """Yield the errors of failed trials, each with the trials that have it."""
    trials: dict[str, list[int]] = {}
    for each in results.trials:
        if each.status == "failed":
            error = one_line(each.error or "unknown", longest=_LONGEST_ERROR)
            trials.setdefault(error, []).append(each.number)
    found = [(trial_names(numbers), error) for error, numbers in trials.items()]
    yield from found[:_MOST_ERRORS]
    if len(found) > _MOST_ERRORS:
        yield "Others", f"{count_of(len(found) - _MOST_ERRORS, 'more error')}, in search.json"


# --- pictures ------------------------------------------------------------------------------------


def _parallel(results: SearchResults) -> Shown | None:
    if not _has_scores(results) or not results.space:
        return None
    counts = _counts(results)
    figure = figure_text(results.figure)
    caption = f"One line per trial, through its values to its {figure}, which gives the colour. "
    if counts["complete"] > 1 and counts["stopped"]:
        caption += (
            "Colours span the complete trials; a stopped trial below them has the lowest colour "
            "and a fainter line. "
        )
    ends = {"failed": "has failed", "running": "is running"}
    if ends := {status: text for status, text in ends.items() if counts[status]}:
        caption += f"A line of a trial that {' or '.join(ends.values())} ends before the {figure}."
    picture = search_figures.parallel(results.space, results.trials, figure)
    return picture, f"Hyper-parameters and {figure} of each trial", caption


def _pictures(results: SearchResults) -> Iterator[Shown]:
    if not _has_scores(results):
        return
    figure = figure_text(results.figure)
    yield (
        search_figures.progress(results.trials, figure),
        f"{capital(figure)} of each trial and the best so far",
        f"Each trial's {figure}, in the order in which they began; the line is the best of the "
        "complete trials so far.",
    )
    stopped = "; a dot marks where a trial was stopped" if _counts(results)["stopped"] else ""
    yield (
        search_figures.learning(results.trials, figure),
        f"{capital(figure)} of each trial after each epoch",
        f"The mean over the folds after each epoch, coloured by the last one{stopped}.",
    )


# --- parts of it all -----------------------------------------------------------------------------


def _counts(results: SearchResults) -> Mapping[str, int]:
    """Return the number of trials of each status."""
    return Counter(trial.status for trial in results.trials)


def _has_scores(results: SearchResults) -> bool:
    return any(trial.mean is not None for trial in results.trials)


def _domain_text(domain: Mapping[str, Sequence[Any]]) -> str:
    """Return what is tried of a hyper-parameter, in words."""
    ((kind, values),) = domain.items()
    if kind in ("choice", "grid"):
        listed = ", ".join(_text(value, longest=100) for value in values)
        return f"{'each' if kind == 'grid' else 'one'} of {listed}" if len(values) > 1 else listed
    lower, upper, *step = map(_text, values)
    whole = "whole numbers, " if "int" in kind else ""
    steps = f", in steps of {step[0]}" if step else ""
    log = " on a log scale" if "log" in kind else ""
    return f"{whole}{lower} to {upper}{steps}, evenly{log}"


def _values(results: SearchResults, values: Row) -> list[str]:
    return [_text(values[name]) if name in values else NOTHING for name in results.space]


def _name(parameter: str) -> str:
    return _text(parameter, longest=60)


def _text(value: Any, digits: int = 3, longest: int = _LONGEST_VALUE) -> str:
    return cut(as_text(value, digits), longest)


def _spread(trial: Trial) -> str:
    """Return mean ± deviation of a trial; one fold has no deviation."""
    if trial.mean is None or trial.std is None:
        return NOTHING
    return plus_minus(trial.mean, trial.std, len(trial.folds))
