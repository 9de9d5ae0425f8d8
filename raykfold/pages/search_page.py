"""The page of a search: which configuration has won, and what its accuracy is worth.

What it shows is in ``search.json`` alone, while the search goes on or after. A trial is a whole
cross-validation, and has a page of its own (`raykfold.pages.run_page`) that this one leads to.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from raykfold.files.paths import ModelDir
from raykfold.pages.frame import figure, render, write_page
from raykfold.text import (
    NOTHING,
    accuracy_text,
    capital,
    counted,
    duration,
    interval_text,
    one_line,
    plus_minus,
    times,
)
from raykfold.training.statistics import ROUNDING

if TYPE_CHECKING:
    from raykfold.pages.drawing import Picture
    from raykfold.pages.search_figures import Dimension, Trial

MOST_FOLDS_SHOWN = 10
_MOST_ERRORS = 12
_FEW_CHOICES = 8  # numbers to choose from that get an evenly spaced place each
_LONGEST_VALUE = 28
_LONGEST_ERROR = 400
_STATUSES = ("complete", "stopped", "running", "failed")
_TEMPLATE = "search_page.html.j2"

Row: TypeAlias = Mapping[str, Any]


def overview(search: Mapping[str, Any]) -> str:
    """The page, as HTML.

    Args:
        search: the content of ``search.json``.
    """
    return render(_TEMPLATE, _page(_Search(search)))


def search_plots(search: Mapping[str, Any]) -> dict[str, bytes]:
    """Name → PNG, of what there is to draw: ``parallel``, ``history``."""
    from raykfold.pages import search_figures

    found = _Search(search)
    drawn = [found.parallel()]
    if found.has_accuracies:
        drawn.append(search_figures.history(found.drawn))
    return {picture.name: picture.png() for picture in drawn if picture is not None}


def write_overview(search: Mapping[str, Any], outputs: ModelDir) -> Path:
    """Write the page and its pictures into `outputs`; pictures of an earlier page go.

    Returns:
        Where the page is.

    Raises:
        StorageError: it cannot be written.
    """
    return write_page(outputs, overview(search), search_plots(search))


# --- what is known of a search -------------------------------------------------------------------


class _Search:
    """A search in plain values, and in pictures."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.trials: Sequence[Row] = content["trials"]
        self.folds: Sequence[int] = content["folds"]
        self.best: Row | None = content["best"]
        self.nested: Row | None = content["nested"]
        self.is_running = content["status"] == "running"

    @cached_property
    def names(self) -> list[str]:
        """Of the hyper-parameters: those that are searched, and what else trials were told."""
        told = (name for trial in self.trials for name in trial["config"])
        return list(dict.fromkeys([*self.content["space"], *told]))

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Status → trials that have it."""
        return Counter(trial["status"] for trial in self.trials)

    @cached_property
    def complete(self) -> list[Row]:
        """With an accuracy, best first; of equal ones the earlier."""
        known = [each for each in self.trials if each["status"] == "complete"]
        known = [each for each in known if _mean(each) is not None]
        return sorted(known, key=lambda each: (-each["mean_accuracy"], each["trial"]))

    @cached_property
    def compared(self) -> int:
        """Trials among which the best was chosen."""
        return sum(_mean(each) is not None for each in self.trials if each["status"] != "running")

    def is_best(self, trial: Row) -> bool:
        return self.best is not None and trial["trial"] == self.best["trial"]

    @cached_property
    def ranked(self) -> list[tuple[int | None, Row]]:
        """Rank and trial: first the best and what else is complete, then the others.

        Trials that are equal share a rank. One that is not complete has none: its accuracy is of
        fewer epochs.
        """

        def order(trial: Row) -> tuple[bool, int, float, int]:
            status = trial["status"]
            place = _STATUSES.index(status) if status in _STATUSES else len(_STATUSES)
            return (not self.is_best(trial), place, -(_mean(trial) or 0.0), trial["trial"])

        return [(self._rank(trial), trial) for trial in sorted(self.trials, key=order)]

    def _rank(self, trial: Row) -> int | None:
        if self.is_best(trial):
            return 1
        if trial["status"] != "complete" or _mean(trial) is None:
            return None
        own = trial["mean_accuracy"] + ROUNDING
        return 1 + sum(each["mean_accuracy"] > own for each in self.complete)

    @property
    def has_accuracies(self) -> bool:
        return any(_mean(trial) is not None for trial in self.trials)

    @cached_property
    def drawn(self) -> list[Trial]:
        from raykfold.pages.search_figures import Trial

        return [
            Trial(
                number=each["trial"],
                config=each["config"],
                status=each["status"],
                accuracy=_mean(each),
                history=each["history"] or (),
                is_best=self.is_best(each),
            )
            for each in self.trials
        ]

    @cached_property
    def dimensions(self) -> list[Dimension]:
        return [_dimension(name, domain) for name, domain in self.content["space"].items()]

    def parallel(self) -> Picture | None:
        from raykfold.pages import search_figures

        if not self.has_accuracies or not self.dimensions:
            return None
        return search_figures.parallel(self.dimensions, self.drawn)


def _mean(trial: Row) -> float | None:
    """None of a trial that has failed: what it has of some folds is not to be compared."""
    return None if trial["status"] == "failed" else trial["mean_accuracy"]


def _dimension(name: str, domain: Any) -> Dimension:
    from raykfold.pages.search_figures import Dimension

    kind, values = _kind_and_values(domain)
    if kind in ("choice", "grid"):
        numbers = all(isinstance(each, int | float) for each in values)
        if not numbers or len(values) <= _FEW_CHOICES:
            return Dimension(name, sorted(values) if numbers else values, is_choice=True)
        return Dimension(name, values)
    ends = values[:2] if kind.endswith(("uniform", "randint")) else []
    return Dimension(name, ends, is_log="log" in kind)


def _kind_and_values(domain: Any) -> tuple[str, list[Any]]:
    """``loguniform`` and its ends, ``choice`` and what there is to choose."""
    if not isinstance(domain, Mapping) or len(domain) != 1:
        return "choice", [domain]
    (kind, values), *_ = domain.items()
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    return str(kind), list(values) if is_list else [values]


# --- what the page says --------------------------------------------------------------------------


def _page(search: _Search) -> dict[str, Any]:
    """The template's values."""
    return {
        "run_name": one_line(search.content["run_name"]),
        "made_from": "search.json",
        "about": _about(search),
        "headline": _headline(search),
        "state": _state(search),
        "tiles": [{"name": n, "value": v, "note": note} for n, v, note in _tiles(search)],
        "remarks": [{"text": text, "serious": serious} for serious, text in _doubts(search)],
        "best": _best(search),
        "nested": _nested(search),
        "parallel": _parallel(search),
        "pictures": list(_pictures(search)),
        "table": _table(search) if search.trials else None,
        "errors": list(_errors(search)),
        "space": [(_name(n), _domain(d)) for n, d in search.content["space"].items()],
        "command": one_line(search.content["command"], longest=None),
        "facts": list(_facts(search)),
        "versions": [(one_line(name), one_line(value)) for name, value in _versions(search)],
    }


def _about(search: _Search) -> str:
    parameters = counted(len(search.content["space"]), "hyper-parameter")
    folds = counted(len(search.folds), "fold")
    epochs = counted(search.content["epochs"], "epoch")
    return f"search over {parameters}; each trial is a cross-validation of {folds}, up to {epochs}"


def _headline(search: _Search) -> Row | None:
    """The figure that comes first, if there is one: of a nested search only the nested one."""
    if search.is_running:
        return None
    if search.nested is not None:
        return _nested_headline(search, search.nested)
    if search.best is None:
        return None
    std = None if len(search.folds) == 1 else accuracy_text(search.best["std_accuracy"])
    mean = accuracy_text(search.best["mean_accuracy"])
    is_optimistic = search.compared > 1 or search.content["score"] == "best"
    badge = "optimistic" if is_optimistic else None
    return {"mean": mean, "std": std, "badge": badge, "what": _what_the_best_is_worth(search)}


def _nested_headline(search: _Search, nested: Row) -> Row | None:
    if nested["mean_accuracy"] is None:
        return None
    within = f", 95 % interval {interval_text(nested['interval'])}" if nested["interval"] else ""
    over = counted(len(nested["folds"]), "outer fold")
    spread = "" if len(nested["folds"]) == 1 else ": mean ± standard deviation"
    what = (
        f"Accuracy of the whole procedure over {over}{spread}{within}. The search was done anew "
        "inside each outer fold, each epoch chosen on an inner split; the outer fold itself had no "
        "part in any choice."
    )
    std = None if len(nested["folds"]) == 1 else accuracy_text(nested["std_accuracy"])
    return {"mean": accuracy_text(nested["mean_accuracy"]), "std": std, "badge": None, "what": what}


def _what_the_best_is_worth(search: _Search) -> str:
    assert search.best is not None
    folds = counted(len(search.folds), "fold")
    spread = "" if len(search.folds) == 1 else ": mean ± standard deviation"
    what = f"Accuracy of trial {search.best['trial']}, the best, over {folds}{spread}. "
    if search.compared > 1:
        return what + (
            "The folds that it is measured on have chosen this configuration among "
            f"{search.compared}, so it is optimistic; --nested measures the whole procedure."
        )
    return what + "No other trial has an accuracy: nothing was chosen."


def _state(search: _Search) -> Row:
    """What stands in place of a mean where there is none."""
    if search.is_running:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        what = f"As of {now}: {_trials_so_far(search)}; {_epochs_so_far(search)}."
        if search.nested is not None:
            done = sum(each["status"] == "complete" for each in search.nested["folds"])
            what += f" {done} of {counted(len(search.nested['folds']), 'outer fold')} are complete."
        if search.best is not None:
            what += (
                f" The best so far is trial {search.best['trial']}, with {_spread(search.best)}: "
                "optimistic, as these folds choose it."
            )
        return {"title": "Searching", "what": what}
    if search.nested is not None:
        rows = search.nested["folds"]
        done = sum(each["status"] == "complete" for each in rows)
        what = f"{done} of {counted(len(rows), 'outer fold')} are complete, so there is no mean."
        return {"title": "Partial", "what": what}
    return {
        "title": "No result",
        "what": f"No configuration was chosen, of {_trials_so_far(search)}.",
    }


def _trials_so_far(search: _Search) -> str:
    counts = [f"{search.counts[name]} {name}" for name in _STATUSES if search.counts[name]]
    return counted(len(search.trials), "trial") + (f" ({', '.join(counts)})" if counts else "")


def _epochs_so_far(search: _Search) -> str:
    run, most = search.content["epochs_run"], search.content["epochs_of_all"]
    return f"{counted(run, 'epoch')} trained, of at most {most}"


def _tiles(search: _Search) -> Iterator[tuple[str, str, str]]:
    """Name, value and note."""
    if search.nested is not None and search.best is not None:
        note = "optimistic: the folds that it is measured on have chosen it"
        if search.compared > 1:
            note += f" among {search.compared}"
        yield f"Trial {search.best['trial']}, the best, by itself", _spread(search.best), note
    counts = search.counts
    others = [f"{counts[name]} {name}" for name in ("stopped", "failed", "running") if counts[name]]
    yield "Trials complete", f"{counts['complete']} of {len(search.trials)}", ", ".join(others)
    run, most = search.content["epochs_run"], search.content["epochs_of_all"]
    fewer = ""
    if most and run < most and not search.is_running:
        fewer = f"{1 - run / most:.0%} left out, by stopped trials and folds that stopped early"
    yield "Epochs trained, of all folds", f"{run} of at most {most}", fewer.replace("%", " %")
    if search.nested is not None:
        within = sum(each["epochs_run"] for each in search.nested["folds"])
        yield "Epochs of the searches within outer folds", str(within), "trained besides"
    seconds = search.content.get("wall_seconds")
    if seconds is not None:
        resumes = (search.content.get("sessions") or 1) - 1
        yield "Time", duration(seconds), f"resumed {times(resumes)}" if resumes > 0 else ""
    yield "Sampler and scheduler", _how(search), _what_the_scheduler_does(search)


def _how(search: _Search) -> str:
    names = {"optuna": "Optuna", "asha": "ASHA", "none": "no scheduler"}
    told = (search.content["sampler"], search.content["scheduler"])
    return ", ".join(names.get(each, one_line(each)) for each in told)


def _what_the_scheduler_does(search: _Search) -> str:
    return {
        "asha": "what lags behind at a rung is stopped there",
        "median": "what falls below the median of the others is stopped",
        "none": "every trial is trained to its end",
    }.get(search.content["scheduler"], "")


def _doubts(search: _Search) -> Iterator[tuple[bool, str]]:
    """What a reader of the figures should know, and whether it may change what they are worth."""
    if failed := search.counts["failed"]:
        errors = "Their errors stand" if failed > 1 else "Its error stands"
        yield True, f"{counted(failed, 'trial')} failed. {errors} below the table of trials."
    if search.nested is not None:
        for each in search.nested["folds"]:
            if each["status"] == "failed":
                error = one_line(each["error"] or "unknown", longest=_LONGEST_ERROR)
                yield True, f"Outer fold {each['fold']} failed: {error}"
    if search.content["score"] == "best" and search.has_accuracies:
        yield (
            False,
            (
                "A trial's accuracy is that of each fold's best epoch, which the fold held out has "
                "chosen itself: that flatters all of them."
            ),
        )
    yield from _doubts_of_the_choice(search)
    if (search.nested or {}).get("interval"):
        yield (
            False,
            (
                "The interval of the mean is approximate: outer folds share training samples, and "
                "nobody has an exact one."
            ),
        )
    for line in search.content["warnings"] or ():
        yield True, f"{capital(one_line(line, longest=600)).rstrip('.')}."


def _doubts_of_the_choice(search: _Search) -> Iterator[tuple[bool, str]]:
    """How clearly the best stands out."""
    if search.best is None or search.is_running or len(search.folds) == 1:
        return
    least = search.best["mean_accuracy"] - search.best["std_accuracy"]
    others = [each for each in search.complete if not search.is_best(each)]
    near = [each for each in others if each["mean_accuracy"] >= least]
    if near:
        which = _numbered([each["trial"] for each in near])
        is_are = "is" if len(near) == 1 else "are"
        yield (
            False,
            (
                f"{which} {is_are} less than one standard deviation over folds from the best: "
                "another seed may well put them in another order."
            ),
        )


def _numbered(trials: Sequence[int]) -> str:
    """``Trial 3``, ``Trials 3, 4``, ``Trials 3, 4 and 20 others``."""
    if len(trials) == 1:
        return f"Trial {trials[0]}"
    named = ", ".join(map(str, trials[:8]))
    more = len(trials) - 8
    return f"Trials {named}" + (f" and {counted(more, 'other')}" if more > 0 else "")


def _best(search: _Search) -> Row | None:
    if search.best is None:
        return None
    scores = _by_fold(search, search.best)
    folds = [(f"fold {fold}", accuracy_text(value)) for fold, value in scores]
    so_far = " so far" if search.is_running else ""
    return {
        "caption": f"Configuration of trial {search.best['trial']}, the best{so_far}",
        "config": [
            (_name(name), _text(value, digits=6, longest=200))
            for name, value in search.best["config"].items()
        ],
        "folds": folds if len(folds) <= MOST_FOLDS_SHOWN else [],
        "command": one_line(search.best["command"], longest=None),
        "file": Path(str(search.best["config_file"])).name,
    }


def _by_fold(search: _Search, trial: Row) -> list[tuple[int, float | None]]:
    return [(fold, trial["fold_scores"].get(str(fold))) for fold in search.folds]


def _nested(search: _Search) -> Row | None:
    if search.nested is None:
        return None
    rows = search.nested["folds"]
    told = [name for each in rows for name in each["config"] or {}]
    names = list(dict.fromkeys([*search.content["space"], *told]))
    return {
        "caption": (
            "For each outer fold, a search on the other folds alone. Inner is the accuracy that "
            "this search saw of its choice, and is optimistic; outer is what the choice reached on "
            "the outer fold, which had no part in it."
        ),
        "columns": ["inner", "outer", *map(_name, names)],
        "rows": [
            {
                "fold": each["fold"],
                "status": one_line(each["status"]),
                "cells": [
                    accuracy_text(each["inner_mean_accuracy"]),
                    accuracy_text(each["outer_accuracy"]),
                    *_values(each["config"] or {}, names),
                ],
            }
            for each in rows
        ],
    }


def _table(search: _Search) -> Row:
    folds = list(search.folds) if len(search.folds) <= MOST_FOLDS_SHOWN else []
    spread = "" if len(search.folds) == 1 else " ± std"
    names = list(map(_name, search.names))
    return {
        "caption": (
            "Accuracy is the mean over the folds. Trials that are complete come first, the best on "
            "top; one that was stopped has no rank, as its accuracy is of fewer epochs. Epochs are "
            "those that all folds have behind them."
        ),
        "columns": ["status", f"mean{spread}", "epochs", *names, *(f"fold {f}" for f in folds)],
        "rows": [_trial_row(search, rank, trial, folds) for rank, trial in search.ranked],
    }


def _trial_row(search: _Search, rank: int | None, trial: Row, folds: Sequence[int]) -> Row:
    badge = {"stopped": "plain", "failed": "bad"}.get(trial["status"])
    scores = dict(_by_fold(search, trial)) if trial["fold_scores"] else {}
    return {
        "rank": NOTHING if rank is None else rank,
        "trial": trial["trial"],
        # Only what is over has a page that will stay as it is.
        "page": f"trials/{int(trial['trial'])}/report.html"
        if trial["status"] == "complete"
        else None,
        "is_best": search.is_best(trial),
        "badge": badge,
        "status": one_line(trial["status"]),
        "cells": [
            NOTHING if _mean(trial) is None else _spread(trial),
            trial["rounds"],
            *_values(trial["config"], search.names),
            *(accuracy_text(scores.get(fold)) for fold in folds),
        ],
    }


def _errors(search: _Search) -> Iterator[tuple[str, str]]:
    """Trials and what they failed of; those with the same error together."""
    trials: dict[str, list[int]] = {}
    for each in search.trials:
        if each["status"] == "failed":
            error = one_line(each["error"] or "unknown", longest=_LONGEST_ERROR)
            trials.setdefault(error, []).append(each["trial"])
    found = [(_numbered(numbers), error) for error, numbers in trials.items()]
    yield from found[:_MOST_ERRORS]
    if len(found) > _MOST_ERRORS:
        yield "Others", f"{counted(len(found) - _MOST_ERRORS, 'more error')}, in search.json"


def _parallel(search: _Search) -> dict[str, Any] | None:
    picture = search.parallel()
    if picture is None:
        return None
    caption = (
        "A line a trial, through its values to its accuracy, which colours it. "
        f"{_colours(search)}{_left_out(search)}"
    )
    label = "Hyper-parameters and accuracy of each trial"
    return figure(picture, label, caption)


def _colours(search: _Search) -> str:
    if len(search.complete) > 1 and search.counts["stopped"]:
        return (
            "Colours span the complete trials; a stopped one below them has the lowest colour, "
            "and a fainter line. "
        )
    return ""


def _left_out(search: _Search) -> str:
    words = {"failed": "has failed", "running": "goes on"}
    ends = [text for status, text in words.items() if search.counts[status]]
    return f"One that {' or '.join(ends)} ends before the accuracy." if ends else ""


def _pictures(search: _Search) -> Iterator[dict[str, Any]]:
    from raykfold.pages import search_figures

    if not search.has_accuracies:
        return
    caption = "Each trial's accuracy, in the order in which they began; the line is the best so far"
    yield figure(
        search_figures.progress(search.drawn),
        "Accuracy of each trial and the best so far",
        f"{caption} of those that are complete.",
    )
    if any(trial.history for trial in search.drawn):
        stopped = ", and the dot is where one was stopped" if search.counts["stopped"] else ""
        yield figure(
            search_figures.learning(search.drawn),
            "Accuracy of each trial after each epoch",
            f"The mean over the folds after each epoch, coloured by where it led{stopped}.",
        )


def _facts(search: _Search) -> Iterator[tuple[str, str]]:
    content = search.content
    yield "status", one_line(content["status"])
    if content.get("wall_seconds") is not None:
        yield "wall time", duration(content["wall_seconds"])
    yield "resumed", times(max((content.get("sessions") or 1) - 1, 0))
    yield "sampler", one_line(content["sampler"])
    yield "scheduler", one_line(content["scheduler"])
    yield "seed", one_line(content["seed"])
    yield "folds", ", ".join(map(str, search.folds))
    yield "epochs of a fold, at most", one_line(content["epochs"])
    epoch = {"best": "its best", "chosen": "the one that an inner validation split chose"}
    yield "epoch of a fold that counts", epoch.get(content["score"], one_line(content["score"]))
    for name, value in (content.get("identity") or {}).items():
        if name in content:  # told already
            continue
        yield (
            "fingerprint of the data" if name == "data" else _text(name),
            _text(value, longest=200),
        )


def _versions(search: _Search) -> Sequence[tuple[str, Any]]:
    return list((search.content.get("versions") or {}).items())


def _domain(domain: Any) -> str:
    """What is tried of a hyper-parameter, in words."""
    kind, values = _kind_and_values(domain)
    listed = ", ".join(_text(value, longest=100) for value in values)
    if kind in ("choice", "grid"):
        return f"{'each' if kind == 'grid' else 'one'} of {listed}" if len(values) > 1 else listed
    if kind.endswith(("uniform", "randint")) and len(values) >= 2:
        step = f", in steps of {_text(values[2])}" if len(values) > 2 else ""
        whole = "whole numbers, " if "int" in kind else ""
        log = " on a log scale" if "log" in kind else ""
        return f"{whole}{_text(values[0])} to {_text(values[1])}{step}, evenly{log}"
    return f"{one_line(kind)}: {listed}"


def _values(config: Row, names: Sequence[str]) -> list[str]:
    return [_text(config[name]) if name in config else NOTHING for name in names]


def _name(parameter: str) -> str:
    return _text(parameter, longest=60)


def _text(value: Any, digits: int = 3, longest: int = _LONGEST_VALUE) -> str:
    from raykfold.pages.drawing import cut
    from raykfold.pages.search_figures import as_text

    return cut(as_text(value, digits), longest)


def _spread(each: Row) -> str:
    """Mean and deviation of a trial, or of the best; one fold has no deviation."""
    return plus_minus(each["mean_accuracy"], each["std_accuracy"], len(each["fold_scores"]))
