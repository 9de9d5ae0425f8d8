"""How numbers, folds and times are written for people."""

from __future__ import annotations

from collections.abc import Sequence


def one_line(about: object, longest: int | None = 200) -> str:
    """Text from a file or a library, made fit for one line of a terminal."""
    text = " ".join(str(about).split()) or type(about).__name__
    return "".join(mark if mark.isprintable() else "?" for mark in text)[:longest]


def mean_text(mean: float, std: float, folds: int) -> str:
    """``0.7163 (+/- 0.1464)``; of one fold there is no spread."""
    return f"{mean:.4f} (+/- {std:.4f})" if folds > 1 else f"{mean:.4f}"


def plus_minus(mean: float, std: float, folds: int) -> str:
    """``0.7163 ± 0.1464``, as pages have it."""
    return f"{mean:.4f} ± {std:.4f}" if folds > 1 else f"{mean:.4f}"


def counted(number: int, noun: str) -> str:
    """``1 fold``, ``2 folds``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def named(folds: Sequence[int]) -> str:
    """``fold 3``, ``folds 1, 2``."""
    return f"fold{'s' * (len(folds) != 1)} {', '.join(map(str, folds))}"


def duration(seconds: float) -> str:
    """3 s, 2 min 05 s, 1 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
