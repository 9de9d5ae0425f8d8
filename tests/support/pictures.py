"""Pictures of runs and of searches to look into, and what can be read from one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

import numpy as np

from raykfold.pages import run_figures, search_figures
from raykfold.pages.drawing import LIGHT, Picture
from raykfold.pages.search_figures import Domain
from raykfold.training.results import EpochMetrics, FoldResult
from raykfold.training.search_results import Trial, TrialStatus
from raykfold.training.statistics import ClassMetrics

# Among them what could be taken for markup, mathematics, a colour of the theme or an id.
COLOUR = f"fill: {LIGHT['ink']}"
NAMES = ("dog", "<script>alert(1)</script>", "$x^2$", "a & b", "雨の音", "جرس", COLOUR, 'id="x"')
SPACE: Mapping[str, Domain] = {
    "learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.dropout": {"uniform": [0.1, 0.5]},
    "<b>model</b>": {"choice": NAMES},
}


def trained(fold: int, accuracies: Sequence[float], losses: Sequence[float]) -> FoldResult:
    """Return a fold with these validation accuracies and losses."""
    history = [
        EpochMetrics(epoch, 1.0, 0.5, loss, accuracy, 0.001, 1.0)
        for epoch, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]
    return FoldResult.of(fold, "complete", 40, 10, history)


def curves(folds: int = 3, epochs: int = 6) -> list[FoldResult]:
    """Return folds with curves of unequal length: the last one has one epoch fewer."""
    rng = np.random.default_rng(0)
    lengths = [epochs] * (folds - 1) + [epochs - 1]
    return [
        trained(fold, rng.uniform(size=n).tolist(), rng.uniform(size=n).tolist())
        for fold, n in enumerate(lengths, start=1)
    ]


def matrix(size: int) -> np.ndarray:
    """Return the counts of a confusion matrix."""
    return np.random.default_rng(0).poisson(0.5, (size, size)) + 30 * np.eye(size, dtype=int)


def trials(number: int = 12) -> list[Trial]:
    """Return trials: the first is best, each fourth has failed, those before were stopped, and
    the last is running.
    """
    rng = np.random.default_rng(0)
    statuses: tuple[TrialStatus, ...] = ("complete", "complete", "stopped", "failed")
    found = []
    for each in range(number):
        status: TrialStatus = "running" if 0 < each == number - 1 else statuses[each % 4]
        config = {
            "learning_rate": float(10 ** rng.uniform(-4, -2)),
            "model.dropout": float(rng.uniform(0.1, 0.5)),
            "<b>model</b>": NAMES[each % len(NAMES)],
        }
        history = (0.2,) if status != "complete" else (0.2, 0.3, 0.5)
        found.append(Trial(each + 1, config, status, (*history, 0.9 - 0.3 * each / number)))
    return found


def pictures() -> dict[str, Picture]:
    """Return a picture of each sort by its name."""
    results = [
        FoldResult(1, "complete", 40, 10, 3, 0, 0.9, 1, 0.85, 0.8),
        FoldResult(2, "running", 40, 10, 3, 0, 0.7),
        FoldResult(3, "running", 40, 10),
    ]
    scores = [
        ClassMetrics(label, name, None if label == 1 else 0.5, 0.25, 1 / 3, 8)
        for label, name in enumerate(NAMES)
    ]
    found = (
        run_figures.curves(curves()),
        run_figures.curve(curves(), "accuracy"),
        run_figures.curve(curves(12), "loss"),
        run_figures.folds(results, 0.8, "best epoch"),
        run_figures.classes(scores),
        run_figures.confusion(matrix(len(NAMES)), NAMES),
        search_figures.parallel(SPACE, trials()),
        search_figures.history(trials()),
        search_figures.progress(trials()),
        search_figures.learning(trials()),
    )
    return {picture.name: picture for picture in found}


def texts(picture: Picture) -> list[str]:
    """Return the texts of its SVG, in their order."""
    root = ET.fromstring(picture.svg("a picture"))
    return ["".join(element.itertext()).strip() for element in root.iter("text")]


def points(line: str) -> list[tuple[float, float]]:
    """Return the points that a path of an SVG goes through, and those that bend it."""
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", line)]


def size_of(png: bytes) -> tuple[int, int]:
    """Return width and height in pixels."""
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
