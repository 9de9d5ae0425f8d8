"""The pictures of a run: learning curves, folds, classes, confusion matrix, spectrograms."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raykfold.pages.drawing import (
    FOLD_COLOURS,
    WIDTH,
    Picture,
    Theme,
    add_axes,
    ems,
    fitting,
    grid,
    or_nan,
    points,
    whole_numbers,
)
from raykfold.training.statistics import ClassMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

_MOST_COUNTED = 60  # classes; the counts of more would be too small, and take seconds to draw
_CELLS = ((5, 46.0), (10, 30.0), (25, 20.0), (math.inf, 13.0))  # up to how many classes, points


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


# --- learning curves -----------------------------------------------------------------------------


def curves(folds: Sequence[Curve]) -> Picture:
    """Validation accuracy and loss, side by side."""

    def draw(figure: Figure, theme: Theme) -> None:
        accuracy = add_axes(figure, (46, 34), (312, 196))
        loss = add_axes(figure, (416, 34), (312, 196))
        _draw_curves(accuracy, theme, folds, "accuracy")
        _draw_curves(loss, theme, folds, "loss")
        _legend(loss, theme, folds, anchor=(1.02, 1.0))

    return Picture("curves", 756 + (74 if len(folds) <= FOLD_COLOURS else 60), 262, draw)


def curve(folds: Sequence[Curve], what: str) -> Picture:
    """One of the two, ``accuracy`` or ``loss``."""
    legend = 16 * _legend_rows(len(folds))

    def draw(figure: Figure, theme: Theme) -> None:
        axes = add_axes(figure, (40, 38 + legend), (WIDTH - 50, 180))
        _draw_curves(axes, theme, folds, what)
        _legend(axes, theme, folds, below=True)

    return Picture(what, WIDTH, 180 + 38 + legend + 24, draw)


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
    whole_numbers(axes)
    grid(axes, theme, "y")


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
    width = min(max(WIDTH, 60 + 14 * len(accuracies)), 800)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = add_axes(figure, (40, 70), (width - 50, 180))
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
            heights = [or_nan(getattr(each, what)) for each in accuracies]
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
        grid(axes, theme, "y")
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
    names = [fitting(each.name) for each in ranked]
    # Room between a name and a mark at 0; a wide letter takes more than is counted for it.
    margin = 22 + max(map(ems, names), default=0) * 9
    row = 20.0 if len(ranked) <= 20 else 14.0
    height = row * len(ranked)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = add_axes(figure, (margin, 42), (WIDTH - margin - 14, height))
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
            [or_nan(each.precision) for each in ranked],
            places,
            marker="o",
            color=theme["accent"],
            label="precision",
            **mark,
        )
        axes.plot(
            [or_nan(each.recall) for each in ranked],
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
        grid(axes, theme, "x")
        axes.tick_params(axis="y", labelcolor=theme["ink"], pad=8)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles[::-1],
            labels[::-1],
            loc="lower left",
            ncols=3,
            labelcolor=theme["ink"],
            bbox_to_anchor=(min(margin - 4, WIDTH - 200) / WIDTH, 2 / (height + 68)),
            borderpad=0.0,
            columnspacing=1.2,
            handlelength=1.3,
            handletextpad=0.4,
        )

    return Picture("classes", WIDTH, height + 68, draw)


# --- confusion matrix ----------------------------------------------------------------------------


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Picture:
    """Which class was taken for which.

    Args:
        matrix: (classes, classes) counts, a row for each true class, a column for each predicted.
        names: of the classes.
    """
    size = len(names)
    cell = next(points for most, points in _CELLS if size <= most)
    shown = [fitting(name) for name in names]
    font = 9.0 if size <= 25 else 7.0
    margin = 22 + max(map(ems, shown), default=0) * font * 0.95
    # Names below stand on end, unless they are short.
    lying = all(ems(name) * font * 0.7 < cell - 4 for name in shown)
    foot = 32.0 if lying else margin
    width, height = max(margin + cell * size + 14, 200.0), foot + cell * size + 26

    def draw(figure: Figure, theme: Theme) -> None:
        axes = add_axes(figure, (margin, foot), (cell * size, cell * size))
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
            transform=points(figure, (4, foot + cell * size / 2)),
        )
        axes.text(
            0,
            0,
            "predicted",
            color=theme["muted"],
            va="bottom",
            ha="center",
            transform=points(figure, (margin + cell * size / 2, 4)),
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
