"""The pictures of a run: learning curves, folds, classes, confusion matrix, samples."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raykfold.pages.drawing import (
    FOLD_COLOURS,
    INK,
    LIGHT,
    MUTED,
    WIDTH,
    Picture,
    add_axes,
    add_legend_below,
    class_name,
    legend_rows,
    text_width,
    whole_number_ticks,
)
from raykfold.text import figure_text
from raykfold.training.results import FoldResult
from raykfold.training.statistics import ClassMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COUNTED = 60  # classes; the counts of more would be too small, and take seconds to draw
_MOST_PIXELS = (96, 192)  # rows and columns of a sample's picture
_MARGIN = 6  # rows above and below a waveform, and the shade of its line
_LINE = 0.75
_SHORTEST_WAVEFORM = 256  # values; fewer are an embedding, whose neighbours say nothing of it
_CELLS = ((5, 46.0), (10, 30.0), (25, 20.0), (math.inf, 13.0))  # up to how many classes, points


# --- learning curves -----------------------------------------------------------------------------


def curves(folds: Sequence[FoldResult]) -> Picture:
    """Draw validation accuracy and loss after each epoch, side by side."""

    def draw(figure: Figure) -> None:
        for left, what in ((46, "accuracy"), (416, "loss")):
            axes = add_axes(figure, (left, 34), (312, 196))
            _draw_curves(axes, folds, what)
        axes.legend(loc="upper left", bbox_to_anchor=(1.03, 1.0))

    return Picture("curves", 828, 262, draw)


def curve(folds: Sequence[FoldResult], what: str) -> Picture:
    """Draw the validation ``loss`` or a figure, as `what` says."""
    entries = len(folds) + 1 if len(folds) <= FOLD_COLOURS else 2
    bottom = 38 + 16 * legend_rows(entries)

    def draw(figure: Figure) -> None:
        axes = add_axes(figure, (40, bottom), (WIDTH - 50, 180))
        _draw_curves(axes, folds, what)
        add_legend_below(axes)

    return Picture(what, WIDTH, bottom + 180 + 24, draw)


def means(series: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over the series at each position that two of them or more have.

    Args:
        series: of any length each. NaN and infinity count as missing.

    Returns:
        Positions, counted from 1, and the mean and the standard deviation (ddof 0) at each.
    """
    values = np.full((len(series), max(map(len, series), default=0)), np.nan)
    for row, each in zip(values, series, strict=True):
        row[: len(each)] = np.where(np.isfinite(each), each, np.nan)
    shared = np.isfinite(values).sum(axis=0) >= 2
    values = values[:, shared]
    return np.flatnonzero(shared) + 1, np.nanmean(values, axis=0), np.nanstd(values, axis=0)


def _draw_curves(axes: Axes, folds: Sequence[FoldResult], what: str) -> None:
    series = [[getattr(epoch, f"val_{what}") for epoch in each.history] for each in folds]
    for position, (each, values) in enumerate(zip(folds, series, strict=True)):
        label, dots = f"fold {each.fold}", [] if each.kept_epoch is None else [each.kept_epoch]
        style: Any = {"linewidth": 1.2, "color": LIGHT.get(f"fold{position}")}
        if position >= FOLD_COLOURS // 2:
            style["linestyle"] = (0, (4.0, 1.6))
        if len(folds) > FOLD_COLOURS:  # too many to tell apart
            label, dots = "a fold" if position == 0 else "", []
            style = {"linewidth": 0.6, "color": MUTED, "alpha": 0.5}
        if len(values) == 1:  # one value makes no line
            dots = [0]
        epochs = np.arange(1, len(values) + 1)
        heights = np.where(np.isfinite(values), values, np.nan)
        axes.plot(epochs, heights, label=label, **style)
        axes.plot(epochs[dots], heights[dots], "o", markersize=4, color=style["color"])
    epochs, mean, std = means(series)
    if epochs.size:
        axes.fill_between(epochs, mean - std, mean + std, color=INK, alpha=0.13, linewidth=0)
        dot = "o" if epochs.size == 1 else None
        axes.plot(epochs, mean, label="mean", color=INK, linewidth=2.2, marker=dot, markersize=4)
    axes.set_title(f"Validation {figure_text(what)}")
    axes.set_xlabel("epoch")
    longest = max(map(len, series), default=1)
    margin = 0.03 * max(longest, 5)
    axes.set_xlim(1 - margin, max(longest, 2) + margin)
    whole_number_ticks(axes)
    axes.grid(axis="y")


# --- folds and classes ---------------------------------------------------------------------------


def folds(results: Sequence[FoldResult], mean: float | None, mean_of: str) -> Picture:
    """Draw the accuracy of each fold at its best, its last and its chosen epoch.

    Args:
        results: one for each fold, in the order in which they are drawn.
        mean: drawn as a line; None leaves it out.
        mean_of: a word or two on what the mean is of, for the legend.
    """
    width = min(max(WIDTH, 60 + 14 * len(results)), 800)
    small = 1.0 if len(results) <= 30 else 0.5
    accent, wrong = LIGHT["accent"], LIGHT["wrong"]
    # The last epoch is a ring around the best one where they are the same.
    marks: dict[str, dict[str, Any]] = {
        "best": {"marker": "o", "markersize": 5.0 * small, "color": accent},
        "last": {"marker": "o", "markersize": 8.5 * small, "color": accent, "mfc": "none"},
        "chosen": {"marker": "D", "markersize": 5.0 * small, "color": wrong},
    }
    heights = {
        what: np.array([each.accuracy(what) for each in results], dtype=float) for what in marks
    }

    def draw(figure: Figure) -> None:
        axes = add_axes(figure, (40, 70), (width - 50, 180))
        places = np.arange(len(results))
        table = np.array(list(heights.values()))
        low, high = np.fmin.reduce(table), np.fmax.reduce(table)
        axes.vlines(places, low, high, color=LIGHT["line"], linewidth=2.5)
        for what, mark in marks.items():
            if np.isfinite(heights[what]).any():
                axes.plot(places, heights[what], ls="none", label=f"{what} epoch", **mark)
        if mean is not None:
            style: Any = {"linewidth": 1.2, "linestyle": (0, (2, 2)), "alpha": 0.8}
            axes.axhline(mean, color=INK, zorder=1.5, label=f"mean ({mean_of})", **style)
        axes.set_title("Accuracy of each fold")
        axes.set_xlabel("fold")
        step = -(-len(results) // int((width - 50) / 22))
        axes.set_xticks(places[::step], [str(each.fold) for each in results[::step]])
        axes.set_xlim(-0.7, len(results) - 0.3)
        axes.grid(axis="y")
        add_legend_below(axes, columns=2)

    return Picture("folds", width, 274, draw)


def classes(scores: Sequence[ClassMetrics]) -> Picture:
    """Draw each class's F1 as a bar, with marks for precision and recall; the best is on top."""
    ranked = sorted(scores, key=lambda each: -(each.f1 or 0.0))
    names = [class_name(each.name) for each in ranked]
    # Letters may be wider than `text_width` says, and a mark at 0 extends to the left.
    margin = 22 + max(map(text_width, names), default=0) * 9
    height = (20.0 if len(ranked) <= 20 else 14.0) * len(ranked)
    accent, wrong = LIGHT["accent"], LIGHT["wrong"]
    f1, precision, recall = (
        np.array([getattr(each, what) for each in ranked], dtype=float)
        for what in ("f1", "precision", "recall")
    )

    def draw(figure: Figure) -> None:
        axes = add_axes(figure, (margin, 42), (WIDTH - margin - 14, height))
        places = np.arange(len(ranked))
        axes.barh(places, np.nan_to_num(f1), height=0.62, color=accent, alpha=0.35, label="F1")
        mark: Any = {"linestyle": "none", "clip_on": False}
        axes.plot(precision, places, "o", ms=5.5, color=accent, label="precision", **mark)
        axes.plot(recall, places, "D", ms=4.5, color=wrong, label="recall", **mark)
        axes.set_yticks(places, names)
        axes.set_ylim(len(ranked) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_title("Classes")
        axes.grid(axis="x")
        axes.tick_params(axis="y", labelcolor=INK, pad=8)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(min(margin - 4, WIDTH - 200) / WIDTH, 2 / (height + 68)),
            bbox_transform=figure.transFigure,
            ncols=3,
            reverse=True,
        )

    return Picture("classes", WIDTH, height + 68, draw)


# --- confusion matrix ----------------------------------------------------------------------------


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Picture:
    """Draw which class was taken for which.

    Args:
        matrix: (classes, classes) counts, a row for each true class, a column for each predicted.
        names: of the classes.
    """
    size = len(names)
    cell = next(points for most, points in _CELLS if size <= most)
    shown = [class_name(name) for name in names]
    font = 9.0 if size <= 25 else 7.0
    margin = 22 + max(map(text_width, shown), default=0) * font * 0.95
    # Names below the matrix are turned unless they are short.
    level = all(text_width(name) * font * 0.7 < cell - 4 for name in shown)
    foot = 32.0 if level else margin
    width, height = max(margin + cell * size + 14, 200.0), foot + cell * size + 26
    centre = cell * size / 2

    def draw(figure: Figure) -> None:
        axes = add_axes(figure, (margin, foot), (cell * size, cell * size))
        _draw_cells(axes, matrix, cell)
        axes.set_xticks(range(size), shown, rotation=0 if level else 90)
        axes.set_yticks(range(size), shown)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.tick_params(labelcolor=INK, labelsize=font, pad=3)
        axes.set_title("Confusion matrix")
        points: Any = {"xycoords": "figure points", "color": MUTED}
        axes.annotate("true", (4, foot + centre), rotation=90, va="center", **points)
        axes.annotate("predicted", (margin + centre, 4), ha="center", va="bottom", **points)

    return Picture("confusion", width, height, draw)


def _draw_cells(axes: Axes, matrix: np.ndarray, cell: float) -> None:
    """Draw a square for each count, and the count where there is room.

    A square is as opaque as its share of the row is high, so that small classes count as much.
    The opacity leaps at a half, where the count on it turns from dark to light (in the dark theme
    from light to dark): neither could be read in between.
    """
    axes.set_facecolor((LIGHT["line"], 0.3))
    rows, columns = np.nonzero(matrix)
    counts = matrix[rows, columns]
    shares = counts / matrix.sum(axis=1)[rows]
    strengths = np.where(shares <= 0.5, 0.08 + 0.8 * shares, 0.5 + 0.5 * shares)
    colours = [
        (LIGHT["accent" if row == column else "wrong"], float(strength))
        for row, column, strength in zip(rows, columns, strengths, strict=True)
    ]
    axes.scatter(columns, rows, s=(0.94 * cell) ** 2, c=colours, marker="s", linewidths=0)
    if len(matrix) > _MOST_COUNTED:
        return
    font = min(9.0, cell * 0.42)
    cells = zip(rows.tolist(), columns.tolist(), counts, shares, strict=True)
    for row, column, count, share in cells:
        text = str(int(count))
        if len(text) * font * 0.62 <= cell * 0.95:
            style: Any = {"ha": "center", "va": "center_baseline", "fontsize": font}
            axes.text(column, row, text, color=LIGHT["on" if share > 0.5 else "ink"], **style)


# --- samples -------------------------------------------------------------------------------------


def sample_kind(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """Return what the picture of a sample is: spectrogram, image or waveform; None without one.

    Args:
        shape, dtype: of the sample. Images are uint8: (height, width), or three axes of which the
            first or last is one of three colours, or the first is of length 1. Of other samples of
            three axes, the first channel is drawn as a spectrogram.
    """
    if len(shape) == 1:
        return "waveform" if shape[0] > _SHORTEST_WAVEFORM else None
    is_image = len(shape) == 2 or shape[0] in (1, 3) or shape[-1] == 3
    if dtype == np.uint8 and len(shape) in (2, 3) and is_image:
        return "image"
    return "spectrogram" if len(shape) in (2, 3) else None


def sample_picture(sample: np.ndarray) -> bytes | None:
    """Return a PNG of a sample as `sample_kind` says; None if there is nothing to draw.

    Args:
        sample: features of one sample, finite.
    """
    kind = sample_kind(sample.shape, sample.dtype)
    if kind == "waveform":
        return waveform(sample)
    if kind == "image":
        return image(sample)
    if kind == "spectrogram":
        return spectrogram(sample if sample.ndim == 2 else sample[0])
    return None


def spectrogram(feature: np.ndarray) -> bytes:
    """Return a PNG, low frequencies at the bottom, scaled to the range of the clip's values.

    Args:
        feature: (n_mels, time), finite.
    """
    values = _shrunk(np.asarray(feature, dtype=np.float64), _steps(feature))
    low, high = float(values.min()), float(values.max())
    return _png((values - low) / ((high - low) or 1.0), cmap="magma", origin="lower")


def image(sample: np.ndarray) -> bytes:
    """Return a PNG of a uint8 image.

    Args:
        sample: (height, width), (1, height, width), (3, height, width) or (height, width, 3).
    """
    colours = sample[None] if sample.ndim == 2 else sample
    if len(colours) in (1, 3):
        colours = np.moveaxis(colours, 0, 2)
    step = max(_steps(colours))  # one for both axes, so that pixels stay square
    values = np.rint(_shrunk(np.asarray(colours, dtype=np.float64), (step, step)))
    return _png(np.broadcast_to(values, (*values.shape[:2], 3)).astype(np.uint8))


def waveform(sample: np.ndarray) -> bytes:
    """Return a PNG of a line over time, scaled to the range of the clip's values.

    Args:
        sample: (time,), finite.
    """
    rows, columns = _MOST_PIXELS
    values = np.asarray(sample, dtype=np.float64)
    starts = np.arange(columns) * len(values) // columns
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    # From each column to the next the line is whole.
    low[1:], high[1:] = np.minimum(low[1:], high[:-1]), np.maximum(high[1:], low[:-1])
    least, size = values.min(), (values.max() - values.min()) or 1.0
    scale = (rows - 1 - 2 * _MARGIN) / size
    bottom, top = (np.rint((each - least) * scale).astype(int) + _MARGIN for each in (low, high))
    height = np.arange(rows)[:, None]
    line = (height >= bottom) & (height <= top)
    return _png(_LINE * line, cmap="magma", origin="lower")


def _steps(values: np.ndarray) -> tuple[int, ...]:
    """Return how many rows, and how many columns, one pixel stands for."""
    return tuple(-(-size // limit) for size, limit in zip(values.shape, _MOST_PIXELS, strict=False))


def _shrunk(values: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """Return (rows, columns, ...) with the mean of so many neighbours in place of them."""
    for axis, step in enumerate(steps):
        starts = np.arange(0, values.shape[axis], step)
        sums, sizes = (
            np.add.reduceat(x, starts, axis=axis) for x in (values, np.ones_like(values))
        )
        values = sums / sizes
    return values


def _png(values: np.ndarray, **options: Any) -> bytes:
    """Return a PNG of (rows, columns) from 0 to 1, which `cmap` colours, or of uint8 RGB."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    options |= {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    imsave(file, values, vmin=0, vmax=1, format="png", **options)
    return file.getvalue()
