"""The pictures of a search: its hyper-parameters, and how it went."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raykfold.pages.drawing import (
    INK,
    LIGHT,
    MUTED,
    PAPER,
    SCALE_COLOURS,
    WIDTH,
    Picture,
    add_axes,
    add_legend_below,
    cut,
    legend_rows,
    text_width,
    whole_number_ticks,
)
from raykfold.text import capital, one_line
from raykfold.training.search_results import Trial, best_trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

_MOST_CHOICES_NAMED = 16  # on one axis
_MOST_TICKS = 6
_FEW_CHOICES = 8  # numbers that get an evenly spaced place each
_LEAST_RANGE = 0.02  # of an axis of accuracies: less would make noise look like much
# The line of each kind of trial, from the back to the front; incomplete ones are fainter.
_LINES: dict[str, dict[str, Any]] = {
    "failed": {"linewidth": 0.9, "alpha": 0.7, "linestyle": (0, (3.0, 2.0))},
    "running": {"linewidth": 1.2, "alpha": 0.9, "linestyle": (0, (1.0, 1.6))},
    "stopped": {"linewidth": 0.8, "alpha": 0.6},
    "complete": {"linewidth": 1.5, "alpha": 0.95},
    "best": {"linewidth": 3.0},
}
_LEGEND_COLOURS = {"best": "scale6", "complete": "scale4", "stopped": "scale2"}

Domain: TypeAlias = Mapping[str, Sequence[Any]]  # kind of range → its values


def as_text(value: Any, digits: int = 3) -> str:
    """Return a value of a hyper-parameter as text: ``16``, ``0.0012``, ``3.2e-5``, ``yes``.

    Args:
        digits: significant digits of a float.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(as_text(each, digits) for each in value)
    if not isinstance(value, float) or not math.isfinite(value):
        return one_line(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value) or 1.0)))
        text, exponent = f"{value:.{decimals}f}", ""
    else:
        text, _, power = f"{value:.{digits - 1}e}".partition("e")
        exponent = f"e{int(power)}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + exponent


# --- hyper-parameters and accuracy ---------------------------------------------------------------


def parallel(
    space: Mapping[str, Domain], trials: Sequence[Trial], figure_name: str = "accuracy"
) -> Picture:
    """Draw a line for each trial, through its value of each hyper-parameter to its score.

    The score gives the line its colour. The line of a failed or running trial ends before it.

    Args:
        space: hyper-parameter → kind of range → its values; an axis each, from the left; not empty.
        trials: one or more, at least one of which has a score.
        figure_name: what the scores are.
    """
    scales = [
        _scale(domain, [trial.values.get(name) for trial in trials])
        for name, domain in space.items()
    ]
    low, high = _range(trials)
    if high - low < _LEAST_RANGE:
        centre = (low + high) / 2
        low, high = centre - _LEAST_RANGE / 2, centre + _LEAST_RANGE / 2
    scales.append(_number_scale(low, high, is_log=False, is_whole=False))
    between = {1: 170.0, 2: 118.0}.get(len(space), 112.0 if len(space) < 6 else 100.0)
    room = int((between - 16) / 5.4)  # letters of a value beside its axis
    names = [cut(name, int(2 * between / 6.0) - 2) for name in space]
    names.append(figure_name)
    # Names that would meet alternate between two levels.
    rise = 12.0 if any(text_width(name) * 9 > between - 6 for name in names) else 0.0
    longest = max(text_width(cut(text, room)) for _, text in scales[0].ticks)
    left = max(16 + longest * 8.5, text_width(names[0]) * 4.5 + 6)
    width = left + between * len(space) + 54
    columns = max(int(width / 82), 1)
    kinds = {kind for kind, _ in _from_the_back(trials)}
    bottom = 18 + 16.0 * legend_rows(len(kinds), columns)
    top = bottom + 200
    height = top + 45 + rise

    def draw(figure: Figure) -> None:
        axes = add_axes(figure, (left, bottom), (between * len(space), top - bottom))
        axes.set_xlim(0, len(space))
        axes.set_ylim(0, 1)
        axes.set_axis_off()
        points: Any = {"xycoords": "figure points"}
        title = f"Hyper-parameters and {figure_name}"
        axes.annotate(title, (6, height - 17), fontsize=11, **points)
        for place, (name, scale) in enumerate(zip(names, scales, strict=True)):
            _draw_axis(axes, place, scale, room)
            above = (left + between * place, top + 12 + rise * (place % 2))
            axes.annotate(name, above, ha="center", fontsize=9, **points)
        _draw_colour_bar(axes, trials, scales[-1], between)
        _draw_trials(axes, list(space), trials, scales)
        _add_kinds(axes, kinds)
        whole: Any = {"bbox_to_anchor": (0.01, 0.01), "bbox_transform": figure.transFigure}
        axes.legend(loc="lower left", ncols=columns, **whole)

    return Picture("parallel", width, height, draw)


def _range(trials: Sequence[Trial], *, of_complete: bool = False) -> tuple[float, float]:
    """Return the lowest and the highest accuracy of the trials that are over, or else of all.

    Args:
        of_complete: leave out those that are not complete, if two are.
    """
    known = [(each.status, each.mean) for each in trials if each.mean is not None]
    complete = [accuracy for status, accuracy in known if status == "complete"]
    over = [accuracy for status, accuracy in known if status != "running"]
    values = over or [accuracy for _, accuracy in known]
    if of_complete and len(complete) > 1:
        values = complete
    return min(values, default=0.0), max(values, default=1.0)


def _height(trial: Trial, trials: Sequence[Trial]) -> float:
    """Return where its accuracy lies on the scale of colours, from 0 to 1; 0.5 if it has none.

    The scale spans the complete trials, so that they are told apart however low a stopped one was.
    """
    low, high = _range(trials, of_complete=True)
    if trial.mean is None:
        return 0.5
    if low == high:
        return 1.0
    return min(max((trial.mean - low) / (high - low), 0.0), 1.0)


def _colour(trial: Trial, trials: Sequence[Trial]) -> str:
    if trial.mean is None:
        return MUTED
    return LIGHT[f"scale{round(_height(trial, trials) * (SCALE_COLOURS - 1))}"]


def _from_the_back(trials: Sequence[Trial]) -> list[tuple[str, Trial]]:
    """Return trials in the order in which they are drawn: what matters most comes last.

    Each comes with its kind: ``best``, or else its status.
    """
    best, kinds = best_trial(trials), list(_LINES)
    found = [("best" if each is best else str(each.status), each) for each in trials]
    return sorted(found, key=lambda pair: (kinds.index(pair[0]), pair[1].mean or 0.0))


def _draw_axis(axes: Axes, place: int, scale: _Scale, room: int) -> None:
    """Draw an axis of `parallel` and its values: to its left, or of the last one to its right."""
    axes.plot([place, place], [0, 1], color=LIGHT["line"], linewidth=1.2, clip_on=False, zorder=1)
    shift, side = (13, "left") if place == axes.get_xlim()[1] else (-5, "right")
    style: Any = {"ha": side, "va": "center", "fontsize": 8.5, "zorder": 8}
    # Texts lie over the lines, which can be followed nevertheless.
    style["bbox"] = {"facecolor": PAPER, "alpha": 0.85, "linewidth": 0, "pad": 0.6}
    style |= {"textcoords": "offset points", "annotation_clip": False}
    for height, text in scale.ticks:
        axes.annotate(cut(text, room), (place, height), (shift, 0), **style)


def _draw_colour_bar(axes: Axes, trials: Sequence[Trial], accuracy: _Scale, between: float) -> None:
    """Draw a bar of the scale's colours along the axis of the accuracy, `between` points wide."""
    low, high = _range(trials, of_complete=True)
    ends = np.linspace(low, high, SCALE_COLOURS + 1)[1:-1].tolist() if low < high else []
    # Below the first colour, and above the last, it goes on as far as the axis does.
    places = [0.0, *map(accuracy.place, ends), 1.0]
    colours = [LIGHT[f"scale{each}"] for each in range(SCALE_COLOURS)][-len(places) + 1 :]
    left, width = axes.get_xlim()[1] + 4 / between, 6 / between
    shape: Any = {"width": width, "align": "edge", "clip_on": False}
    axes.bar(left, np.diff(places), bottom=places[:-1], color=colours, **shape)


def _draw_trials(
    axes: Axes, names: Sequence[str], trials: Sequence[Trial], scales: Sequence[_Scale]
) -> None:
    from matplotlib.patches import PathPatch

    for layer, (kind, trial) in enumerate(_from_the_back(trials)):
        # Lines through one choice lie a little apart, the most accurate on top.
        shift = 0.08 * (_height(trial, trials) - 0.5)
        heights = [
            scale.place(trial.values.get(name)) + (shift if scale.is_choice else 0.0)
            for name, scale in zip(names, scales, strict=False)
        ]
        if trial.status in ("complete", "stopped"):
            heights.append(scales[-1].place(trial.mean))
        colour, path = _colour(trial, trials), _path(heights)
        shared: Any = {"fc": "none", "clip_on": False, "zorder": 2 + layer / len(trials)}
        if kind == "best":  # a margin sets it off from what it crosses
            axes.add_patch(PathPatch(path, ec=PAPER, linewidth=5.5, **shared))
            dots: Any = {"ms": 6, "color": colour, "mec": PAPER, "clip_on": False, "zorder": 3}
            axes.plot(range(len(heights)), heights, "o", **dots)
        axes.add_patch(PathPatch(path, ec=colour, **_LINES[kind], **shared))


def _path(heights: Sequence[float]) -> Path:
    """Return a curve through the heights, level at each axis and broken at each NaN."""
    from matplotlib.path import Path

    corners, codes = [(0.0, 0.0)], [Path.MOVETO]  # a path must not be empty
    before = math.nan
    for place, height in enumerate(heights):
        if not math.isnan(before + height):
            corners += [(place - 0.6, before), (place - 0.4, height), (place, height)]
            codes += [Path.CURVE4] * 3
        elif not math.isnan(height):
            corners.append((place, height))
            codes.append(Path.MOVETO)
        before = height
    return Path(corners, codes)


# --- the axes of `parallel` ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """An axis of `parallel`.

    Attributes:
        place: function from a value to its height, 0 to 1; NaN if it is not on the axis.
        ticks: heights and texts.
        is_choice: whether trials share its values, so that their lines would coincide.
    """

    place: Callable[[Any], float]
    ticks: Sequence[tuple[float, str]]
    is_choice: bool = False


def _scale(domain: Domain, values: Sequence[Any]) -> _Scale:
    """Return the axis of a hyper-parameter.

    Args:
        values: those of the trials.
    """
    ((kind, known),) = domain.items()
    if kind not in ("choice", "grid"):
        known = known[:2]  # without the step
    elif not all(isinstance(each, int | float) for each in known):
        return _choice_scale(known)
    elif len(known) <= _FEW_CHOICES:
        return _choice_scale(sorted(known))
    numbers = [float(each) for each in (*known, *values) if _is_number(each)]
    if not numbers:
        return _choice_scale([each for each in values if each is not None])
    is_whole = all(isinstance(each, int) for each in (*known, *values) if each)
    return _number_scale(min(numbers), max(numbers), is_log="log" in kind, is_whole=is_whole)


def _choice_scale(values: Sequence[Any]) -> _Scale:
    choices: list[Any] = []
    for value in values:  # which may not be hashable
        if value not in choices:
            choices.append(value)
    places = [0.5] if len(choices) == 1 else np.linspace(0, 1, len(choices)).tolist()

    def place(value: Any) -> float:
        return places[choices.index(value)] if value in choices else math.nan

    step = -(-len(choices) // _MOST_CHOICES_NAMED)
    named = zip(places[::step], map(as_text, choices[::step]), strict=True) if choices else ()
    return _Scale(place, list(named) or [(0.5, "")], is_choice=True)


def _number_scale(low: float, high: float, *, is_log: bool, is_whole: bool) -> _Scale:
    is_log = is_log and low > 0
    known: Callable[[float], float] = math.log10 if is_log else float
    start, span = known(low), known(high) - known(low)

    def place(value: Any) -> float:
        if not _is_number(value) or (is_log and value <= 0):
            return math.nan
        return (known(value) - start) / span if span > 0 else 0.5

    ticks = _log_ticks(low, high) if is_log else _even_ticks(low, high, is_whole)
    texts = list(map(as_text, ticks))
    if not is_log and not any("e" in text for text in texts):
        decimals = max(len(text.partition(".")[2]) for text in texts)
        texts = [f"{tick:.{decimals}f}" for tick in ticks]
    return _Scale(place, list(zip(map(place, ticks), texts, strict=True)))


def _even_ticks(low: float, high: float, is_whole: bool) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    if low == high:
        return [low]
    locator = MaxNLocator(5, integer=is_whole, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2)
    slack = 1e-9 * (high - low)
    ticks = [float(tick) for tick in locator.tick_values(low, high)]
    within = [tick for tick in ticks if low - slack <= tick <= high + slack]
    return within if len(within) > 1 else [low, high]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return ticks 1, 2, 5, 10, …, or 1, 3, 10, …, or 1, 10, …: as many as there is room for."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        within = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if 2 <= len(within) <= _MOST_TICKS:
            return within
    return within[:: -(-len(within) // _MOST_TICKS)] if within[1:] else sorted({low, high})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- how the search went -------------------------------------------------------------------------


def history(trials: Sequence[Trial], figure_name: str = "accuracy") -> Picture:
    """Draw `progress` and `learning` side by side."""

    def draw(figure: Figure) -> None:
        _draw_progress(add_axes(figure, (46, 70), (312, 196)), trials, figure_name)
        _draw_learning(add_axes(figure, (416, 70), (312, 196)), trials, figure_name)

    return Picture("history", 756, 298, draw)


def progress(trials: Sequence[Trial], figure_name: str = "accuracy") -> Picture:
    """Draw the score of each trial by its number, and the best complete one so far."""

    def draw(figure: Figure) -> None:
        axes = add_axes(figure, (40, 60), (WIDTH - 50, 180))
        _draw_progress(axes, trials, figure_name)

    return Picture("progress", WIDTH, 264, draw)


def learning(trials: Sequence[Trial], figure_name: str = "accuracy") -> Picture:
    """Draw the score of each trial by epoch, with a dot where it was stopped."""

    def draw(figure: Figure) -> None:
        axes = add_axes(figure, (40, 60), (WIDTH - 50, 180))
        _draw_learning(axes, trials, figure_name)

    return Picture("learning", WIDTH, 264, draw)


def _draw_progress(axes: Axes, trials: Sequence[Trial], figure_name: str) -> None:
    small = 0.6 if len(trials) > 40 else 1.0
    accent, wrong = LIGHT["accent"], LIGHT["wrong"]
    marks: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "ms": 6 * small, "color": accent},
        "stopped": {"marker": "o", "ms": 5 * small, "mfc": "none", "color": MUTED},
        "running": {"marker": "D", "ms": 4.5 * small, "mfc": "none", "color": accent},
    }
    ordered = sorted(trials, key=lambda each: each.number)
    numbers = [each.number for each in ordered]
    complete = [each.mean if each.status == "complete" else None for each in ordered]
    best = np.fmax.accumulate(np.array(complete, dtype=float))
    if np.isfinite(best).any():
        style: Any = {"color": INK, "linewidth": 1.6, "drawstyle": "steps-post"}
        axes.plot(numbers, best, label="best so far", zorder=3, **style)
    for status, mark in marks.items():
        shown = [each for each in trials if each.status == status and each.mean is not None]
        if shown:
            heights = np.array([each.mean for each in shown], dtype=float)
            places = [each.number for each in shown]
            axes.plot(places, heights, ls="none", label=status, zorder=4, **mark)
    if failed := [each.number for each in trials if each.status == "failed"]:
        cross: Any = {"marker": "x", "ms": 5.5 * small, "color": wrong, "mew": 1.4}
        cross["transform"] = axes.get_xaxis_transform()  # at the foot of the axes
        axes.plot(failed, [0.03] * len(failed), ls="none", label="failed", zorder=4, **cross)
        axes.margins(y=0.14)  # room for them below the others
    axes.set_title(f"{capital(figure_name)}, trial by trial")
    axes.set_xlabel("trial")
    _set_limits(axes, min(numbers), max(numbers))
    add_legend_below(axes)


def _draw_learning(axes: Axes, trials: Sequence[Trial], figure_name: str) -> None:
    shown = [(kind, each) for kind, each in _from_the_back(trials) if each.history]
    for kind, each in shown:
        style = {"color": _colour(each, trials), **_LINES[kind]}
        style["linewidth"] *= 0.85
        heights = np.array(each.history, dtype=float)
        epochs = np.arange(1, heights.size + 1)
        if kind == "best":
            axes.plot(epochs, heights, color=PAPER, linewidth=5)
        if each.status == "stopped" or heights.size == 1:
            style |= {"marker": "o", "markersize": 3.5, "markevery": [-1]}
        axes.plot(epochs, heights, **style)
    axes.set_title(f"{capital(figure_name)}, epoch by epoch")
    axes.set_xlabel("epoch")
    _set_limits(axes, 1, max((len(each.history) for _, each in shown), default=1))
    _add_kinds(axes, {kind for kind, _ in shown}, stopped={"marker": "o", "markersize": 3.5})
    add_legend_below(axes)


def _set_limits(axes: Axes, first: int, last: int) -> None:
    """Set the limits of an x axis of whole numbers, and draw the grid."""
    margin = min(0.04 * max(last - first, 12), 0.9)  # a wider one would have a tick of its own
    axes.set_xlim(first - margin, last + margin)
    whole_number_ticks(axes)
    axes.grid(axis="y")


def _add_kinds(axes: Axes, kinds: Collection[str], **extra: Mapping[str, Any]) -> None:
    """Add an entry to the legend for each kind of trial that there is.

    Args:
        extra: style of a kind, beyond that of its line.
    """
    for kind in reversed(_LINES):
        if kind in kinds:
            style = {"color": LIGHT[_LEGEND_COLOURS.get(kind, "muted")], **_LINES[kind]}
            axes.plot([], [], label=kind, **style, **extra.get(kind, {}))
