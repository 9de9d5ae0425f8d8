"""The pictures of a search: its hyper-parameters, and how it went."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from raykfold.pages.drawing import (
    SCALE_COLOURS,
    WIDTH,
    Picture,
    Theme,
    add_axes,
    cut,
    ems,
    grid,
    legend_below,
    or_nan,
    points,
    whole_numbers,
)
from raykfold.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CHOICES_NAMED = 16  # on one axis
_MOST_TICKS = 6
_LEAST_RANGE = 0.02  # of an axis of accuracies: less would show noise as if it were much


@dataclass(frozen=True)
class Dimension:
    """A hyper-parameter that a search has values tried of.

    Attributes:
        name: its own.
        values: the choices, in the order in which they are drawn; or the ends of a range, as far
            as they are known.
        is_choice: whether they are choices.
        is_log: whether a range is drawn by its logarithm.
    """

    name: str
    values: Sequence[Any]
    is_choice: bool = False
    is_log: bool = False


@dataclass(frozen=True)
class Trial:
    """A cross-validation with one choice of hyper-parameters.

    Attributes:
        number: which of the search's it is.
        config: value of each hyper-parameter.
        status: ``complete``, ``stopped``, ``failed`` or ``running``.
        accuracy: mean over the folds, 0 to 1; None if there is none.
        history: the same after each epoch; None or NaN leaves a gap.
        is_best: whether it is the one that the search has chosen.
    """

    number: int
    config: Mapping[str, Any]
    status: str
    accuracy: float | None
    history: Sequence[float | None] = ()
    is_best: bool = False


def as_text(value: Any, digits: int = 3) -> str:
    """A value of a hyper-parameter as it reads best: ``16``, ``0.0012``, ``3.2e-5``, ``yes``.

    Args:
        digits: of a number, those that count.
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
        decimals = digits - 1 - math.floor(math.log10(abs(value) or 1.0))
        return _trimmed(f"{value:.{max(0, decimals)}f}")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{_trimmed(mantissa)}e{int(exponent)}"


def parallel(dimensions: Sequence[Dimension], trials: Sequence[Trial]) -> Picture:
    """A line a trial, through its value of each hyper-parameter to its accuracy, and coloured by
    it. A trial that has failed or goes on ends before that.

    Args:
        dimensions: one axis each, from the left; at least one.
        trials: one or more, at least one of which has an accuracy.
    """
    scales = [
        _scale(each, [trial.config.get(each.name) for trial in trials]) for each in dimensions
    ]
    scales.append(_accuracy_scale(trials))
    between = {1: 170.0, 2: 118.0}.get(len(dimensions), 112.0 if len(dimensions) < 6 else 100.0)
    names = [cut(each.name, int(2 * between / 6.0) - 2) for each in dimensions]
    names.append("accuracy")
    # Names that would meet stand on two levels.
    rise = 12.0 if any(ems(name) * 9 > between - 6 for name in names) else 0.0
    longest = max(ems(cut(text, _room(between))) for _, text in scales[0].ticks)
    left = max(16 + longest * 8.5, ems(names[0]) * 4.5 + 6)
    wide = left + between * len(dimensions) + 54
    columns = max(int(wide / 82), 1)
    kinds = _kinds(trials)
    bottom, tall = 18 + 16.0 * -(-len(kinds) // columns), 200.0
    size = wide, bottom + tall + 45 + rise

    def draw(figure: Figure, theme: Theme) -> None:
        axes = add_axes(figure, (left, bottom), (between * len(dimensions), tall))
        axes.set_xlim(0, len(dimensions))
        axes.set_ylim(0, 1)
        axes.set_axis_off()
        _write(figure, theme, (6, size[1] - 17), "Hyper-parameters and accuracy", fontsize=11)
        for place, (name, scale) in enumerate(zip(names, scales, strict=True)):
            _draw_scale(axes, theme, place, scale, between)
            at = (left + between * place, bottom + tall + 12 + rise * (place % 2))
            _write(figure, theme, at, name, ha="center", fontsize=9)
        _draw_colours(axes, theme, trials, scales[-1], between)
        _draw_ways(axes, theme, dimensions, trials, scales)
        _legend_of_trials(figure, theme, _trial_handles(theme, kinds), columns)

    return Picture("parallel", *size, draw)


def history(trials: Sequence[Trial]) -> Picture:
    """`progress` and `learning`, side by side."""

    def draw(figure: Figure, theme: Theme) -> None:
        for left, part in ((46, _draw_progress), (416, _draw_learning)):
            axes = add_axes(figure, (left, 70), (312, 196))
            part(axes, theme, trials)

    return Picture("history", 756, 298, draw)


def progress(trials: Sequence[Trial]) -> Picture:
    """The accuracy of each trial, and the best of those complete so far, in their order."""
    return _single("progress", trials, _draw_progress)


def learning(trials: Sequence[Trial]) -> Picture:
    """The accuracy of each trial, epoch by epoch, and where it was stopped."""
    return _single("learning", trials, _draw_learning)


def _single(
    name: str,
    trials: Sequence[Trial],
    part: Callable[[Axes, Theme, Sequence[Trial]], None],
) -> Picture:
    def draw(figure: Figure, theme: Theme) -> None:
        part(add_axes(figure, (40, 60), (WIDTH - 50, 180)), theme, trials)

    return Picture(name, WIDTH, 264, draw)


# Of a line of a trial, and in the legend. A trial that did not come to its end is fainter.
_TRIAL_LINES: Mapping[str, Mapping[str, Any]] = {
    "failed": {"linewidth": 0.9, "alpha": 0.7, "linestyle": (0, (3.0, 2.0))},
    "running": {"linewidth": 1.2, "alpha": 0.9, "linestyle": (0, (1.0, 1.6))},
    "stopped": {"linewidth": 0.8, "alpha": 0.6},
    "complete": {"linewidth": 1.5, "alpha": 0.95},
    "best": {"linewidth": 3.0},
}


_WHOLE = ("complete", "best")


def _kind(trial: Trial) -> str:
    if trial.is_best:
        return "best"
    return trial.status if trial.status in _TRIAL_LINES else "running"


def _from_the_back(trials: Sequence[Trial]) -> list[Trial]:
    """What matters most is drawn last, over the others."""
    kinds = list(_TRIAL_LINES)
    return sorted(trials, key=lambda each: (kinds.index(_kind(each)), each.accuracy or 0.0))


def _range(trials: Sequence[Trial]) -> tuple[float, float]:
    """Lowest and highest accuracy of the trials that are over; at least one has one."""
    known = [each.accuracy for each in trials if each.status != "running" or each.is_best]
    values = [value for value in known if value is not None]
    values = values or [each.accuracy for each in trials if each.accuracy is not None]
    return min(values, default=0.0), max(values, default=1.0)


def _coloured(trials: Sequence[Trial]) -> tuple[float, float]:
    """Accuracies that have the first and the last colour: where two trials are complete, those of
    the complete ones, so that these are told apart, however low one was that was stopped.
    """
    whole = [each for each in trials if each.accuracy is not None and _kind(each) in _WHOLE]
    return _range(whole if len(whole) > 1 else trials)


def _share(trials: Sequence[Trial], accuracy: float) -> float:
    """Where it lies between the first colour, 0, and the last, 1; 1 where they are equal."""
    low, high = _coloured(trials)
    return min(max((accuracy - low) / (high - low), 0.0), 1.0) if high > low else 1.0


def _colour_of(theme: Theme, trials: Sequence[Trial], trial: Trial) -> str:
    if trial.accuracy is None or trial.status == "failed":
        return theme["muted"]
    return theme[f"scale{round(_share(trials, trial.accuracy) * (SCALE_COLOURS - 1))}"]


@dataclass(frozen=True)
class _Scale:
    """An axis of `parallel`.

    Attributes:
        place: of a value, 0 at the foot to 1 on top; None if it is not on the axis.
        ticks: place and text.
        is_choice: whether trials share their values, so that their lines would lie in one.
    """

    place: Callable[[Any], float | None]
    ticks: Sequence[tuple[float, str]]
    is_choice: bool = False


def _scale(dimension: Dimension, values: Sequence[Any]) -> _Scale:
    if dimension.is_choice:
        return _choice_scale(dimension.values)
    numbers = [float(each) for each in (*dimension.values, *values) if _is_number(each)]
    if not numbers:
        return _choice_scale([each for each in values if each is not None])
    is_whole = all(isinstance(each, int) for each in (*dimension.values, *values) if each)
    return _number_scale(min(numbers), max(numbers), is_log=dimension.is_log, is_whole=is_whole)


def _choice_scale(values: Sequence[Any]) -> _Scale:
    choices: list[Any] = []
    for value in values:
        if value not in choices:
            choices.append(value)
    places = [0.5] if len(choices) == 1 else np.linspace(0, 1, len(choices)).tolist()

    def place(value: Any) -> float | None:
        return places[choices.index(value)] if value in choices else None

    step = -(-len(choices) // _MOST_CHOICES_NAMED)
    named = zip(places[::step], map(as_text, choices[::step]), strict=True)
    return _Scale(place, list(named) or [(0.5, "")], is_choice=True)


def _number_scale(low: float, high: float, *, is_log: bool, is_whole: bool) -> _Scale:
    is_log = is_log and low > 0
    known: Callable[[float], float] = math.log10 if is_log else float
    start, span = known(low), known(high) - known(low)

    def place(value: Any) -> float | None:
        if not _is_number(value) or (is_log and value <= 0):
            return None
        return (known(value) - start) / span if span > 0 else 0.5

    ticks = _log_ticks(low, high) if is_log else _plain_ticks(low, high, is_whole)
    texts = list(map(as_text, ticks)) if is_log else _alike(ticks)
    return _Scale(
        place, [(place(tick) or 0.0, text) for tick, text in zip(ticks, texts, strict=True)]
    )


def _plain_ticks(low: float, high: float, is_whole: bool) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    if low == high:
        return [low]
    locator = MaxNLocator(5, integer=is_whole, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2)
    slack = 1e-9 * (high - low)
    ticks = [float(tick) for tick in locator.tick_values(low, high)]
    within = [tick for tick in ticks if low - slack <= tick <= high + slack]
    return within if len(within) > 1 else [low, high]


def _alike(ticks: Sequence[float]) -> list[str]:
    """With as many decimals as the one that needs most, unless one is too small for them."""
    texts = list(map(as_text, ticks))
    if any("e" in text for text in texts):
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _log_ticks(low: float, high: float) -> list[float]:
    """Of 1, 2, 5, 10, …, of 1, 3, 10, … or of 1, 10, …: as many as there is room for."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        within = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if 2 <= len(within) <= _MOST_TICKS:
            return within
    return within[:: -(-len(within) // _MOST_TICKS)] if within[1:] else sorted({low, high})


def _accuracy_scale(trials: Sequence[Trial]) -> _Scale:
    low, high = _range(trials)
    if high - low < _LEAST_RANGE:  # all are equal, or as good as
        centre = (low + high) / 2
        low, high = centre - _LEAST_RANGE / 2, centre + _LEAST_RANGE / 2
    return _number_scale(low, high, is_log=False, is_whole=False)


def _draw_scale(axes: Axes, theme: Theme, place: int, scale: _Scale, between: float) -> None:
    """The axis and its values: of the last one, the accuracy, to the right."""
    last = place == axes.get_xlim()[1]
    axes.plot([place, place], [0, 1], color=theme["line"], linewidth=1.2, clip_on=False, zorder=1)
    for height, text in scale.ticks:
        axes.annotate(
            cut(text, _room(between)),
            (place, height),
            (13 if last else -5, 0),
            textcoords="offset points",
            ha="left" if last else "right",
            va="center",
            color=theme["ink"],
            fontsize=8.5,
            annotation_clip=False,
            zorder=8,
            # Lines pass below; what they hide of a word would be missed more than they are.
            bbox={"facecolor": theme["paper"], "alpha": 0.85, "linewidth": 0, "pad": 0.6},
        )


def _draw_colours(
    axes: Axes, theme: Theme, trials: Sequence[Trial], scale: _Scale, between: float
) -> None:
    """What each colour stands for: a strip along the accuracy."""
    from matplotlib.patches import Rectangle

    right = axes.get_xlim()[1]
    low, high = _coloured(trials)
    if low == high:  # all have the last colour
        places, colours = [0.0, 1.0], [SCALE_COLOURS - 1]
    else:
        ends = np.linspace(low, high, SCALE_COLOURS + 1)[1:-1].tolist()
        # What lies below the first colour, or above the last, has it too.
        places = [0.0, *(or_nan(scale.place(end)) for end in ends), 1.0]
        colours = list(range(SCALE_COLOURS))
    for colour, (foot, top) in zip(colours, pairwise(places), strict=True):
        corner, size = (right + 4 / between, foot), (6 / between, top - foot)
        painted: dict[str, Any] = {"facecolor": theme[f"scale{colour}"], "linewidth": 0}
        axes.add_patch(Rectangle(corner, *size, clip_on=False, **painted))


def _draw_ways(
    axes: Axes,
    theme: Theme,
    dimensions: Sequence[Dimension],
    trials: Sequence[Trial],
    scales: Sequence[_Scale],
) -> None:
    from matplotlib.patches import PathPatch

    for layer, trial in enumerate(_from_the_back(trials)):
        heights = [
            _apart(scale, scale.place(trial.config.get(each.name)), trials, trial)
            for each, scale in zip(dimensions, scales, strict=False)
        ]
        if trial.accuracy is not None and (
            trial.is_best or trial.status in ("complete", "stopped")
        ):
            heights.append(scales[-1].place(trial.accuracy))
        style = dict(_TRIAL_LINES[_kind(trial)])
        colour, order = _colour_of(theme, trials, trial), 2 + layer / len(trials)
        shared: dict[str, Any] = {"facecolor": "none", "clip_on": False, "zorder": order}
        way = _way(heights)
        if trial.is_best:  # set off from what it crosses
            axes.add_patch(PathPatch(way, edgecolor=theme["paper"], linewidth=5.5, **shared))
        axes.add_patch(PathPatch(way, edgecolor=colour, **style, **shared))
        if trial.is_best:
            known = [(place, height) for place, height in enumerate(heights) if height is not None]
            across, up = zip(*known, strict=True) if known else ((), ())
            axes.plot(across, up, "o", ms=6, color=colour, mec=theme["paper"], clip_on=False)


def _apart(
    scale: _Scale, place: float | None, trials: Sequence[Trial], trial: Trial
) -> float | None:
    """Lines through one choice lie a little apart, the most accurate on top."""
    if place is None or not scale.is_choice or trial.accuracy is None:
        return place
    return place + 0.08 * (_share(trials, trial.accuracy) - 0.5)


def _way(heights: Sequence[float | None]) -> Any:
    """A path through the heights, level at each axis; broken where there is none."""
    from matplotlib.path import Path

    corners: list[tuple[float, float]] = []
    codes: list[int] = []
    for place, height in enumerate(heights):
        if height is None:
            continue
        before = heights[place - 1] if place else None
        if before is None:
            corners.append((place, height))
            codes.append(int(Path.MOVETO))
        else:
            corners += [(place - 0.6, before), (place - 0.4, height), (place, height)]
            codes += [int(Path.CURVE4)] * 3
    return Path(corners or [(0, 0)], codes or [int(Path.MOVETO)])


def _draw_progress(axes: Axes, theme: Theme, trials: Sequence[Trial]) -> None:
    small = 0.6 if len(trials) > 40 else 1.0
    accent, muted, wrong = theme["accent"], theme["muted"], theme["wrong"]
    marks: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "ms": 6 * small, "color": accent},
        "stopped": {"marker": "o", "ms": 5 * small, "mfc": "none", "color": muted},
        "running": {"marker": "D", "ms": 4.5 * small, "mfc": "none", "color": accent},
    }
    numbers, best = _best_so_far(trials)
    if numbers:
        axes.plot(
            numbers,
            best,
            color=theme["ink"],
            linewidth=1.6,
            drawstyle="steps-post",
            label="best so far",
            zorder=3,
        )
    for status, mark in marks.items():
        known = [each for each in trials if each.status == status and each.accuracy is not None]
        if known:
            numbers = [each.number for each in known]
            heights = [or_nan(each.accuracy) for each in known]
            axes.plot(numbers, heights, ls="none", label=status, zorder=4, **mark)
    if failed := [each.number for each in trials if each.status == "failed"]:
        foot = axes.get_xaxis_transform()
        mark = {"marker": "x", "ms": 5.5 * small, "color": wrong, "mew": 1.4}
        axes.plot(
            failed,
            [0.03] * len(failed),
            ls="none",
            transform=foot,
            label="failed",
            zorder=4,
            **mark,
        )
        axes.margins(y=0.14)  # room for them below the others
    axes.set_title("Accuracy, trial by trial", color=theme["ink"])
    axes.set_xlabel("trial", color=theme["muted"])
    _limit(axes, min(each.number for each in trials), max(each.number for each in trials))
    grid(axes, theme, "y")
    handles, labels = axes.get_legend_handles_labels()
    legend_below(axes, theme, handles, labels)


def _best_so_far(trials: Sequence[Trial]) -> tuple[list[int], list[float]]:
    """Number and height of each step, from the first complete trial to the last trial."""
    numbers: list[int] = []
    best: list[float] = []
    for each in sorted(trials, key=lambda each: each.number):
        counts = each.accuracy is not None and (each.status == "complete" or each.is_best)
        if counts or best:
            numbers.append(each.number)
            known = each.accuracy if counts and each.accuracy is not None else best[-1]
            best.append(max(known, best[-1]) if best else known)
    return numbers, best


def _draw_learning(axes: Axes, theme: Theme, trials: Sequence[Trial]) -> None:
    shown = [each for each in _from_the_back(trials) if each.history]
    for each in shown:
        style = dict(_TRIAL_LINES[_kind(each)])
        colour = _colour_of(theme, trials, each)
        heights = [float("nan") if value is None else value for value in each.history]
        epochs = np.arange(1, len(heights) + 1)
        if each.is_best:
            axes.plot(epochs, heights, color=theme["paper"], linewidth=5)
        ends = each.status == "stopped" or len(heights) == 1
        axes.plot(
            epochs, heights, color=colour, **{**style, "linewidth": style["linewidth"] * 0.85}
        )
        if ends:
            axes.plot(epochs[-1:], heights[-1:], "o", ms=3.5, color=colour)
    axes.set_title("Accuracy, epoch by epoch", color=theme["ink"])
    axes.set_xlabel("epoch", color=theme["muted"])
    _limit(axes, 1, max((len(each.history) for each in shown), default=1))
    grid(axes, theme, "y")
    handles = _trial_handles(theme, _kinds(shown), stops=True)
    legend_below(axes, theme, handles, [handle.get_label() for handle in handles])


def _limit(axes: Axes, first: int, last: int) -> None:
    margin = min(0.04 * max(last - first, 12), 0.9)  # less than would show one that is not there
    axes.set_xlim(first - margin, last + margin)
    whole_numbers(axes)


def _kinds(trials: Sequence[Trial]) -> list[str]:
    """Those that there are, as a legend has them."""
    found = set(map(_kind, trials))
    return [kind for kind in reversed(list(_TRIAL_LINES)) if kind in found]


def _trial_handles(theme: Theme, kinds: Sequence[str], *, stops: bool = False) -> list[Any]:
    """For a legend: the lines of trials."""
    from matplotlib.lines import Line2D

    colours = {"best": "scale6", "complete": "scale4", "stopped": "scale2"}
    handles = []
    for kind in kinds:
        colour = theme[colours.get(kind, "muted")]
        mark: dict[str, Any] = (
            {"marker": "o", "markersize": 3.5} if stops and kind == "stopped" else {}
        )
        handles.append(Line2D([], [], color=colour, label=kind, **{**_TRIAL_LINES[kind], **mark}))
    return handles


def _legend_of_trials(figure: Figure, theme: Theme, handles: Sequence[Any], columns: int) -> None:
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 0.0),
        ncols=columns,
        labelcolor=theme["ink"],
        columnspacing=1.0,
        handlelength=1.8,
        handletextpad=0.5,
        borderpad=0.3,
    )


def _write(figure: Figure, theme: Theme, at: tuple[float, float], text: str, **style: Any) -> None:
    """Text at a place in points from the figure's lower left corner."""
    figure.text(0, 0, text, color=theme["ink"], transform=points(figure, at), **style)


def _room(between: float) -> int:
    """Letters that a value has beside its axis."""
    return int((between - 16) / 5.4)


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
