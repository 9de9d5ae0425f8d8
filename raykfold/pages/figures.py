"""The pictures of a run, from plain values: learning curves, folds, classes, confusion matrix;
and of a search: its hyper-parameters, and how it went.

Each can be had as a PNG, and as an SVG for use within a page, whose colours are the page's CSS
variables and so follow its light or dark theme. The same values give the same bytes. Nothing of
matplotlib's global state is used or left changed.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raykfold.text import one_line
from raykfold.training.statistics import ClassMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

Theme: TypeAlias = Mapping[str, str]

# The folds' colours start from M. Petroff's ten for data visualisation (arXiv:2107.02270), which
# people with colour vision deficiencies tell apart; those that were faint on white are darker.
# The scale is viridis (S. van der Walt and N. Smith), which they read too; what is high
# stands out most from the paper.
LIGHT: Theme = {
    "paper": "#ffffff",
    "card": "#f5f7f9",
    "ink": "#1a1f26",
    "muted": "#59636f",
    "line": "#d7dde4",
    "accent": "#1c69ad",
    "wrong": "#c2510a",
    "on": "#ffffff",
    "fold0": "#2f7fc9",
    "fold1": "#bd7b00",
    "fold2": "#bd1f01",
    "fold3": "#7c8e8b",
    "fold4": "#832db6",
    "fold5": "#a05f4d",
    "fold6": "#e76300",
    "fold7": "#9a8d48",
    "fold8": "#5f6470",
    "fold9": "#21898e",
    "scale0": "#a9be2c",
    "scale1": "#5cb257",
    "scale2": "#28a07a",
    "scale3": "#21868a",
    "scale4": "#2c6a8e",
    "scale5": "#3b4d8b",
    "scale6": "#440f5c",
}
DARK: Theme = {
    "paper": "#12161b",
    "card": "#1b2129",
    "ink": "#e8ecf1",
    "muted": "#9ba7b4",
    "line": "#323b46",
    "accent": "#6db3f5",
    "wrong": "#ff9a55",
    "on": "#0d1116",
    "fold0": "#58a6ee",
    "fold1": "#ffb833",
    "fold2": "#f0654c",
    "fold3": "#a9b9b6",
    "fold4": "#ba85ea",
    "fold5": "#cf907e",
    "fold6": "#ff8430",
    "fold7": "#cfc287",
    "fold8": "#969cab",
    "fold9": "#7fdbe0",
    "scale0": "#6257ad",
    "scale1": "#4a70b5",
    "scale2": "#3a8bb0",
    "scale3": "#2ba597",
    "scale4": "#48c27c",
    "scale5": "#9ddb4a",
    "scale6": "#fde725",
}
# What stands for a theme's colour while matplotlib draws.
_SENTINELS: Theme = {name: f"#0100{number:02x}" for number, name in enumerate(LIGHT)}
_VARIABLES = {colour: f"var(--{name})" for name, colour in _SENTINELS.items()}

FOLD_COLOURS = 10
SCALE_COLOURS = 7
_FONT = "DejaVu Sans"  # comes with matplotlib: text is measured alike on every machine
_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans")
_POINTS = 72.0  # to an inch
_DPI = 150
_WIDTH = 300.0  # points: fits a phone at a size that can be read
_WIDEST_WITHOUT_SCROLLING = 430.0
_LONGEST_NAME = 22
_MOST_COUNTED = 60  # classes; the counts of more would be too small, and take seconds to draw
_MOST_CHOICES_NAMED = 16  # on one axis
_MOST_TICKS = 6
_LEAST_RANGE = 0.02  # of an axis of accuracies: less would show noise as if it were much
_CELLS = ((5, 46.0), (10, 30.0), (25, 20.0), (math.inf, 13.0))  # up to how many classes, points
_SETTINGS: dict[str, Any] = {
    "axes.edgecolor": "none",
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "raykfold",
    "text.parse_math": False,  # a class may be called $x^2$
    "text.usetex": False,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
}


@dataclass(frozen=True)
class Curve:
    """What a fold has learnt, epoch by epoch.

    Attributes:
        fold: its label.
        accuracy: validation accuracy after each epoch, 0 to 1.
        loss: validation loss after each epoch.
        kept: epoch whose weights are kept, counted from 0.
    """

    fold: int
    accuracy: Sequence[float]
    loss: Sequence[float]
    kept: int | None = None


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracies of a fold's epochs, 0 to 1; None where there is no such epoch."""

    fold: int
    best: float | None
    last: float | None
    chosen: float | None = None


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


@dataclass(frozen=True)
class Picture:
    """Something that can be drawn in any theme.

    Attributes:
        name: of the file, and what its ids begin with among several on one page.
        width: points.
        height: points.
        draw: puts everything into a figure.
    """

    name: str
    width: float
    height: float
    draw: Callable[[Figure, Theme], None]

    @property
    def needs_scrolling(self) -> bool:
        """Whether a phone would make it too small to read."""
        return self.width > _WIDEST_WITHOUT_SCROLLING

    def svg(self, label: str) -> str:
        """An ``<svg>`` element for a page that sets ``--ink`` and the other names of a theme.

        Args:
            label: what the picture shows, for those who do not see it.
        """
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        with _drawing():
            figure = self._figure(_SENTINELS)
            file = io.StringIO()
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        # As wide as it is drawn at most, and where it is scrolled no narrower than can be read.
        least = f"min-width:{self.width:.0f}px;" if self.needs_scrolling else ""
        size = f"{least}width:100%;max-width:{self.width * 4 / 3:.0f}px"
        return _for_a_page(file.getvalue(), self.name, {"aria-label": label, "style": size})

    def png(self) -> bytes:
        """In the light theme."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        with _drawing():
            figure = self._figure(LIGHT)
            figure.set_facecolor(LIGHT["paper"])
            figure.set_dpi(_DPI)
            file = io.BytesIO()
            # Without the version of matplotlib in it.
            FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
        return file.getvalue()

    def _figure(self, theme: Theme) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width / _POINTS, self.height / _POINTS), facecolor="none")
        self.draw(figure, theme)
        return figure


@contextmanager
def _drawing() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's settings are."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    fonts = [_FONT, *(name for name in _WIDE_FONTS if name in installed)]
    settings: Any = {
        name: value
        for name, value in matplotlib.rcParamsDefault.items()
        if not name.startswith(("backend", "toolbar", "interactive", "webagg", "date.epoch"))
    }
    with warnings.catch_warnings(), matplotlib.rc_context(settings | _SETTINGS):
        matplotlib.rcParams["font.family"] = fonts
        # Of letters that no font here has: a box stands for them, and the browser has more fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


# --- learning curves -----------------------------------------------------------------------------


def curves(folds: Sequence[Curve]) -> Picture:
    """Validation accuracy and loss, side by side."""

    def draw(figure: Figure, theme: Theme) -> None:
        accuracy = _axes(figure, (46, 34), (312, 196))
        loss = _axes(figure, (416, 34), (312, 196))
        _draw_curves(accuracy, theme, folds, "accuracy")
        _draw_curves(loss, theme, folds, "loss")
        _legend(loss, theme, folds, anchor=(1.02, 1.0))

    return Picture("curves", 756 + (74 if len(folds) <= FOLD_COLOURS else 60), 262, draw)


def curve(folds: Sequence[Curve], what: str) -> Picture:
    """One of the two, ``accuracy`` or ``loss``."""
    legend = 16 * _legend_rows(len(folds))

    def draw(figure: Figure, theme: Theme) -> None:
        axes = _axes(figure, (40, 38 + legend), (_WIDTH - 50, 180))
        _draw_curves(axes, theme, folds, what)
        _legend(axes, theme, folds, below=True)

    return Picture(what, _WIDTH, 180 + 38 + legend + 24, draw)


def means(series: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(epochs,) count of series that have the epoch, their mean and standard deviation (ddof 0).

    What is not finite does not count; where nothing does, mean and deviation are NaN.
    """
    values = np.full((len(series), max(map(len, series), default=0)), np.nan)
    for row, each in zip(values, series, strict=True):
        row[: len(each)] = each
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    known = np.where(finite, values, 0.0)
    divisor = np.where(count, count, np.nan)
    mean = known.sum(axis=0) / divisor
    spread = np.where(finite, values - mean, 0.0)
    return count, mean, np.sqrt((spread**2).sum(axis=0) / divisor)


def _draw_curves(axes: Axes, theme: Theme, folds: Sequence[Curve], what: str) -> None:
    series = [[float(value) for value in getattr(each, what)] for each in folds]
    for position, (each, values) in enumerate(zip(folds, series, strict=True)):
        style = _fold_style(theme, position, len(folds))
        epochs = np.arange(1, len(values) + 1)
        heights = np.where(np.isfinite(values), values, np.nan)
        axes.plot(epochs, heights, **style, marker="o" if len(values) == 1 else None, markersize=3)
        if each.kept is not None and len(folds) <= FOLD_COLOURS:
            axes.plot(
                [each.kept + 1],
                [heights[each.kept]],
                marker="o",
                markersize=4,
                ls="none",
                color=style["color"],
            )
    count, mean, spread = means(series)
    shared = count >= 2
    if shared.any():
        epochs, mean, spread = np.arange(1, len(count) + 1)[shared], mean[shared], spread[shared]
        low, high = mean - spread, mean + spread
        axes.fill_between(epochs, low, high, color=theme["ink"], alpha=0.13, linewidth=0)
        dot = "o" if len(epochs) == 1 else None
        axes.plot(epochs, mean, color=theme["ink"], linewidth=2.2, marker=dot, markersize=4)
    title = {"accuracy": "Validation accuracy", "loss": "Validation loss"}[what]
    axes.set_title(title, color=theme["ink"])
    axes.set_xlabel("epoch", color=theme["muted"])
    longest = max(map(len, series), default=1)
    margin = 0.03 * max(longest, 5)
    axes.set_xlim(1 - margin, max(longest, 2) + margin)
    _whole_numbers(axes)
    _grid(axes, theme, "y")


def _fold_style(theme: Theme, position: int, folds: int) -> dict[str, Any]:
    if folds > FOLD_COLOURS:
        return {"color": theme["muted"], "linewidth": 0.6, "alpha": 0.5}
    dashes = "-" if position < FOLD_COLOURS // 2 else (0, (4.0, 1.6))
    return {"color": theme[f"fold{position}"], "linewidth": 1.2, "linestyle": dashes}


def _legend_rows(folds: int) -> int:
    return -(-(folds + 1) // 4) if folds <= FOLD_COLOURS else 1


def _legend(
    axes: Axes,
    theme: Theme,
    folds: Sequence[Curve],
    *,
    below: bool = False,
    anchor: tuple[float, float] = (0.0, 0.0),
) -> None:
    from matplotlib.lines import Line2D

    entries = [
        (f"fold {each.fold}", Line2D([], [], **_fold_style(theme, position, len(folds))))
        for position, each in enumerate(folds)
    ]
    if len(folds) > FOLD_COLOURS:
        entries = [("a fold", entries[0][1])]
    if len(folds) > 1:
        entries.append(("mean", Line2D([], [], color=theme["ink"], linewidth=2.2)))
    labels, handles = zip(*entries, strict=True)
    if below:
        places: dict[str, Any] = {
            "loc": "upper left",
            "bbox_to_anchor": (-0.02, -0.17),
            "ncols": -(-len(entries) // _legend_rows(len(folds))),
            "columnspacing": 0.9,
            "handlelength": 1.3,
            "handletextpad": 0.4,
            "borderpad": 0.0,
        }
    else:
        places = {"loc": "upper left", "bbox_to_anchor": anchor, "handlelength": 1.5}
    axes.legend(handles, labels, labelcolor=theme["ink"], **places)


# --- folds ---------------------------------------------------------------------------------------


def folds(accuracies: Sequence[FoldAccuracy], mean: float | None, mean_of: str) -> Picture:
    """Accuracy of each fold: of its best, its last and its chosen epoch.

    Args:
        accuracies: in the order in which they are drawn.
        mean: drawn as a line; None leaves it out.
        mean_of: what it is of, in a word.
    """
    width = min(max(_WIDTH, 60 + 14 * len(accuracies)), 800)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = _axes(figure, (40, 70), (width - 50, 180))
        places = np.arange(len(accuracies))
        if mean is not None:
            axes.axhline(mean, color=theme["ink"], linewidth=1.2, linestyle=(0, (2, 2)), alpha=0.8)
        for place, each in zip(places, accuracies, strict=True):
            known = [x for x in (each.best, each.last, each.chosen) if x is not None]
            if known:
                axes.vlines(place, min(known), max(known), color=theme["line"], linewidth=2.5)
        wide = len(accuracies) <= 30
        colour, other = theme["accent"], theme["wrong"]
        # The last epoch is a ring around the best one where it is the same.
        marks: list[tuple[str, dict[str, Any]]] = [
            ("best", {"marker": "o", "ms": 5.0, "mfc": colour, "mec": colour}),
            ("last", {"marker": "o", "ms": 8.5, "mfc": "none", "mec": colour}),
            ("chosen", {"marker": "D", "ms": 5.0, "mfc": other, "mec": other}),
        ]
        for what, mark in marks:
            heights = [_or_nan(getattr(each, what)) for each in accuracies]
            if np.isfinite(heights).any():
                size = mark.pop("ms") if wide else mark.pop("ms") / 2
                label = f"{what} epoch"
                axes.plot(places, heights, ls="none", ms=size, label=label, **mark)
        axes.set_title("Accuracy of each fold", color=theme["ink"])
        axes.set_xlabel("fold", color=theme["muted"])
        step = -(-len(accuracies) // int((width - 50) / 22))
        axes.set_xticks(places[::step], [str(each.fold) for each in accuracies[::step]])
        axes.set_xlim(-0.7, len(accuracies) - 0.3)
        if mean is not None:
            axes.plot(
                [],
                [],
                color=theme["ink"],
                linewidth=1.2,
                linestyle=(0, (2, 2)),
                label=f"mean ({mean_of})",
            )
        _grid(axes, theme, "y")
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.17),
            ncols=2,
            labelcolor=theme["ink"],
            columnspacing=0.9,
            handlelength=1.3,
            handletextpad=0.4,
            borderpad=0.0,
        )

    return Picture("folds", width, 274, draw)


# --- classes -------------------------------------------------------------------------------------


def classes(scores: Sequence[ClassMetrics]) -> Picture:
    """F1 of each class as a bar, precision and recall as marks on it; the best class on top."""
    ranked = sorted(scores, key=lambda each: -(each.f1 or 0.0))
    names = [_fitting(each.name) for each in ranked]
    # Room between a name and a mark at 0; a wide letter takes more than is counted for it.
    margin = 22 + max(map(_ems, names), default=0) * 9
    row = 20.0 if len(ranked) <= 20 else 14.0
    height = row * len(ranked)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = _axes(figure, (margin, 42), (_WIDTH - margin - 14, height))
        places = np.arange(len(ranked))
        axes.barh(
            places,
            [each.f1 or 0.0 for each in ranked],
            height=0.62,
            color=theme["accent"],
            alpha=0.35,
            label="F1",
        )
        mark: dict[str, Any] = {"ls": "none", "markersize": 5.5, "clip_on": False}
        axes.plot(
            [_or_nan(each.precision) for each in ranked],
            places,
            marker="o",
            color=theme["accent"],
            label="precision",
            **mark,
        )
        axes.plot(
            [_or_nan(each.recall) for each in ranked],
            places,
            marker="D",
            color=theme["wrong"],
            label="recall",
            **{**mark, "markersize": 4.5},
        )
        axes.set_yticks(places, names)
        axes.set_ylim(len(ranked) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_title("Classes", color=theme["ink"], x=0.0)
        _grid(axes, theme, "x")
        axes.tick_params(axis="y", labelcolor=theme["ink"], pad=8)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles[::-1],
            labels[::-1],
            loc="lower left",
            ncols=3,
            labelcolor=theme["ink"],
            bbox_to_anchor=(min(margin - 4, _WIDTH - 200) / _WIDTH, 2 / (height + 68)),
            borderpad=0.0,
            columnspacing=1.2,
            handlelength=1.3,
            handletextpad=0.4,
        )

    return Picture("classes", _WIDTH, height + 68, draw)


# --- confusion matrix ----------------------------------------------------------------------------


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Picture:
    """Which class was taken for which.

    Args:
        matrix: (classes, classes) counts, a row for each true class, a column for each predicted.
        names: of the classes.
    """
    size = len(names)
    cell = next(points for most, points in _CELLS if size <= most)
    shown = [_fitting(name) for name in names]
    font = 9.0 if size <= 25 else 7.0
    margin = 22 + max(map(_ems, shown), default=0) * font * 0.95
    # Names below stand on end, unless they are short.
    lying = all(_ems(name) * font * 0.7 < cell - 4 for name in shown)
    foot = 32.0 if lying else margin
    width, height = max(margin + cell * size + 14, 200.0), foot + cell * size + 26

    def draw(figure: Figure, theme: Theme) -> None:
        axes = _axes(figure, (margin, foot), (cell * size, cell * size))
        _draw_cells(axes, theme, matrix)
        _write_counts(axes, theme, matrix, cell)
        places = np.arange(size)
        axes.set_xticks(places, shown, rotation=0 if lying else 90)
        axes.set_yticks(places, shown)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.tick_params(colors=theme["ink"], labelsize=font, pad=3)
        axes.set_title("Confusion matrix", color=theme["ink"])
        axes.text(
            0,
            0,
            "true",
            color=theme["muted"],
            rotation=90,
            va="center",
            ha="left",
            transform=_points(figure, (4, foot + cell * size / 2)),
        )
        axes.text(
            0,
            0,
            "predicted",
            color=theme["muted"],
            va="bottom",
            ha="center",
            transform=_points(figure, (margin + cell * size / 2, 4)),
        )

    return Picture("confusion", width, height, draw)


def _draw_cells(axes: Axes, theme: Theme, matrix: np.ndarray) -> None:
    """Each cell as strong as its share of the row, so that small classes count as much."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    size = len(matrix)
    axes.add_patch(
        Rectangle((-0.5, -0.5), size, size, facecolor=theme["line"], alpha=0.3, linewidth=0)
    )
    shares = _row_shares(matrix)
    cells, colours = [], []
    for row, column in zip(*np.nonzero(matrix), strict=True):
        cells.append(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94))
        colour = theme["accent" if row == column else "wrong"]
        colours.append(to_rgba(colour, _strength(float(shares[row, column]))))
    axes.add_collection(PatchCollection(cells, facecolors=colours, linewidths=0))


def _write_counts(axes: Axes, theme: Theme, matrix: np.ndarray, cell: float) -> None:
    if len(matrix) > _MOST_COUNTED:
        return
    font = min(9.0, cell * 0.42)
    shares = _row_shares(matrix)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        text = str(int(matrix[row, column]))
        if len(text) * font * 0.62 > cell * 0.95:
            continue
        colour: ColorType = theme["on" if shares[row, column] > 0.5 else "ink"]
        axes.text(column, row, text, ha="center", va="center_baseline", fontsize=font, color=colour)


def _strength(share: float) -> float:
    """How opaque a cell is. It leaps at a half, where the count on it turns from dark to light (or
    the other way round in the dark): between, neither could be read.
    """
    return 0.08 + 0.8 * share if share <= 0.5 else 0.5 + 0.5 * share


def _row_shares(matrix: np.ndarray) -> np.ndarray:
    totals = matrix.sum(axis=1, keepdims=True)
    return np.asarray(matrix / np.where(totals, totals, 1))


# --- spectrograms --------------------------------------------------------------------------------


def spectrogram(feature: np.ndarray, most: tuple[int, int] = (96, 192)) -> bytes:
    """A PNG, low frequencies at the bottom, scaled between the clip's lowest and highest value.

    Args:
        feature: (n_mels, time), finite, any float type.
        most: rows and columns at most; neighbours are averaged to get there.
    """
    from matplotlib.image import imsave

    values = np.asarray(feature, dtype=np.float64)
    for axis, limit in enumerate(most):
        values = _thinned(values, axis, limit)
    low, high = float(values.min()), float(values.max())
    unsigned: Any = {"Software": None}
    file = io.BytesIO()
    imsave(
        file,
        (values - low) / ((high - low) or 1.0),
        vmin=0,
        vmax=1,
        cmap="magma",
        origin="lower",
        format="png",
        metadata=unsigned,
        pil_kwargs={"optimize": True},
    )
    return file.getvalue()


def _thinned(values: np.ndarray, axis: int, most: int) -> np.ndarray:
    step = -(-values.shape[axis] // most)
    starts = np.arange(0, values.shape[axis], step)
    sums = np.add.reduceat(values, starts, axis=axis)
    shape = [1, 1]
    shape[axis] = len(starts)
    sizes = np.diff(np.append(starts, values.shape[axis])).reshape(shape)
    return np.asarray(sums / sizes)


# --- a search ------------------------------------------------------------------------------------


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


def cut(name: str, most: int) -> str:
    """A name of so many letters at most; what is left out is in its middle."""
    text = one_line(name)
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


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
    rise = 12.0 if any(_ems(name) * 9 > between - 6 for name in names) else 0.0
    longest = max(_ems(cut(text, _room(between))) for _, text in scales[0].ticks)
    left = max(16 + longest * 8.5, _ems(names[0]) * 4.5 + 6)
    wide = left + between * len(dimensions) + 54
    columns = max(int(wide / 82), 1)
    kinds = _kinds(trials)
    bottom, tall = 18 + 16.0 * -(-len(kinds) // columns), 200.0
    size = wide, bottom + tall + 45 + rise

    def draw(figure: Figure, theme: Theme) -> None:
        axes = _axes(figure, (left, bottom), (between * len(dimensions), tall))
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
            axes = _axes(figure, (left, 70), (312, 196))
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
        part(_axes(figure, (40, 60), (_WIDTH - 50, 180)), theme, trials)

    return Picture(name, _WIDTH, 264, draw)


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
        places = [0.0, *(_or_nan(scale.place(end)) for end in ends), 1.0]
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
            heights = [_or_nan(each.accuracy) for each in known]
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
    _grid(axes, theme, "y")
    handles, labels = axes.get_legend_handles_labels()
    _legend_below(axes, theme, handles, labels)


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
    _grid(axes, theme, "y")
    handles = _trial_handles(theme, _kinds(shown), stops=True)
    _legend_below(axes, theme, handles, [handle.get_label() for handle in handles])


def _limit(axes: Axes, first: int, last: int) -> None:
    margin = min(0.04 * max(last - first, 12), 0.9)  # less than would show one that is not there
    axes.set_xlim(first - margin, last + margin)
    _whole_numbers(axes)


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


def _legend_below(axes: Axes, theme: Theme, handles: Sequence[Any], labels: Sequence[Any]) -> None:
    if handles:
        axes.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.17),
            ncols=4 if len(handles) <= 4 else 3,
            labelcolor=theme["ink"],
            columnspacing=0.9,
            handlelength=1.3,
            handletextpad=0.4,
            borderpad=0.0,
        )


def _write(figure: Figure, theme: Theme, at: tuple[float, float], text: str, **style: Any) -> None:
    """Text at a place in points from the figure's lower left corner."""
    figure.text(0, 0, text, color=theme["ink"], transform=_points(figure, at), **style)


def _room(between: float) -> int:
    """Letters that a value has beside its axis."""
    return int((between - 16) / 5.4)


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- the parts of a figure -----------------------------------------------------------------------


def _axes(figure: Figure, corner: tuple[float, float], size: tuple[float, float]) -> Axes:
    """Axes whose lower left corner and size are given in points."""
    width, height = (float(inches) * _POINTS for inches in figure.get_size_inches())
    (left, bottom), (across, up) = corner, size
    return figure.add_axes((left / width, bottom / height, across / width, up / height))


def _points(figure: Figure, point: tuple[float, float]) -> Any:
    """A transform that puts (0, 0) at `point`, in points from the figure's lower left corner."""
    from matplotlib.transforms import ScaledTranslation

    return figure.dpi_scale_trans + ScaledTranslation(
        point[0] / _POINTS, point[1] / _POINTS, figure.dpi_scale_trans
    )


def _grid(axes: Axes, theme: Theme, axis: str) -> None:
    axes.grid(axis=axis, color=theme["line"], linewidth=0.8)  # type: ignore[arg-type]
    axes.tick_params(colors=theme["muted"])


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _fitting(name: str) -> str:
    """The name of a class, as much of it as there is room for beside an axis."""
    most = _LONGEST_NAME
    while _ems(cut(name, most)) > _ems("n" * _LONGEST_NAME):
        most -= 1
    return cut(name, most)


def _ems(text: str) -> float:
    """About how wide a text is, in letters' heights."""
    return sum(1.0 if unicodedata.east_asian_width(mark) in "WF" else 0.62 for mark in text)


# --- SVG for a page ------------------------------------------------------------------------------


def _for_a_page(svg: str, name: str, attributes: Mapping[str, str]) -> str:
    """matplotlib's file as an element: own ids, the page's colours and fonts, no style sheet."""
    root = ET.fromstring(svg)
    _strip(root)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _for_attribute(key.rpartition("}")[2], value, name)
            for key, value in element.attrib.items()
        }
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", **attributes}
    return ET.tostring(root, encoding="unicode")


def _strip(root: ET.Element) -> None:
    """A style sheet would be the whole page's, and who made the picture is of no use in it."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)


def _for_attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-", 1)
    if key in ("style", "fill", "stroke"):
        value = re.sub("#0100[0-9a-f]{2}", lambda found: _VARIABLES[found[0]], value)
        value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
        return re.sub(r"font-family: [^;]*;? ?", "", value)
    if key == "d":
        return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
    return value
