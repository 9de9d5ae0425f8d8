"""How numbers, folds and times are written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

NOTHING = "-"  # in place of a number that there is not
RUN_AGAIN = "run its script, or the cell of its notebook, again"  # where no command resumes a run


def one_line(about: object, longest: int | None = 200) -> str:
    """Return text from a file or a library as one printable line."""
    text = " ".join(str(about).split()) or type(about).__name__
    return "".join(mark if mark.isprintable() else "?" for mark in text)[:longest]


def scalar_text(value: object) -> str | None:
    """Return a text, number, date or truth of somebody's file as text; None for anything else.

    What YAML nests by its aliases may take all memory as text.
    """
    if isinstance(value, int) and value.bit_length() > 64:  # str() refuses very many digits
        return None
    return str(value) if isinstance(value, (str, int, float, date)) else None


def accuracy_text(value: float | None) -> str:
    """``0.7163``."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.4f}"


def figure_text(figure: str) -> str:
    """``balanced accuracy``, ``macro F1``: what people call a figure."""
    return figure.replace("_", " ").replace("f1", "F1")


def mean_text(mean: float, std: float, folds: int) -> str:
    """``0.7163 (+/- 0.1464)``, or the mean alone of one fold, which has no spread."""
    return f"{mean:.4f} (+/- {std:.4f})" if folds > 1 else f"{mean:.4f}"


def plus_minus(mean: float, std: float, folds: int) -> str:
    """``0.7163 ± 0.1464``: `mean_text` for pages."""
    return f"{mean:.4f} ± {std:.4f}" if folds > 1 else f"{mean:.4f}"


def interval_text(ends: Sequence[float]) -> str:
    """``0.6012 to 0.8314``."""
    return f"{ends[0]:.4f} to {ends[1]:.4f}"


def epoch_text(epoch: int | None) -> str:
    """The number of an epoch, from 1; epochs count from 0 elsewhere."""
    return NOTHING if epoch is None else str(epoch + 1)


def count_of(number: int, noun: str) -> str:
    """``1 fold``, ``2 folds``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def comma_list(values: Iterable[object]) -> str:
    """``1, 2, 3``."""
    return ", ".join(map(one_line, values))


def fold_names(folds: Sequence[int]) -> str:
    """``fold 3``, ``folds 1, 2``."""
    return f"fold{'s' * (len(folds) != 1)} {comma_list(folds)}"


def with_name(number: int, names: Mapping[int, str]) -> str:
    """``3 (dog)`` for a class or a fold that has a name, else ``3``."""
    name = names.get(number, "").strip()
    return str(number) if name in ("", str(number)) else f"{number} ({one_line(name)})"


def fold_with_seed(fold: int, seed: int | None) -> str:
    """``fold 3``, or ``fold 3 with seed 1`` in a run with repeats."""
    return f"fold {fold}" if seed is None else f"fold {fold} with seed {seed}"


def duration(seconds: float) -> str:
    """``3 s``, ``2 min 05 s``, ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size_text(count: int) -> str:
    """``26.2 GB``, ``420 MB``: a number of bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def times(count: int) -> str:
    """``never``, ``once``, ``2 times``."""
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row of a table, its columns aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)).rstrip() for row in rows]


def capital(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]
