"""Whether a fold caused the deaths of its workers: a pure function over plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SAME_EPOCH = 2


@dataclass(frozen=True)
class Death:
    """The end of a worker's process, by itself or by a kill, on a node that lived on.

    Attributes:
        reason: what Ray reports.
        epoch: the epoch, from 0, that the worker was training the fold in; None if in none.
        together: whether the worker trained other folds at the same time, so that any of them can
            have caused the death.
    """

    reason: str
    epoch: int | None = None
    together: bool = False


def verdict(deaths: Sequence[Death], allowed: int) -> str | None:
    """Return why a fold is not tried again, or None if it is.

    A segmentation fault, or a sample that exhausts the memory, occurs again at the same place: a
    fold whose worker dies twice in the same epoch is quarantined. Deaths elsewhere are bad luck, up
    to `allowed` of them. Deaths that several folds share do not count, because those folds are then
    trained one by one.

    Args:
        deaths: deaths of the fold's workers since it last completed a round.
        allowed: number of deaths after which a fold fails in any case.
    """
    deaths = [death for death in deaths if not death.together]
    if not deaths:
        return None
    last = deaths[-1]
    there = sum(death.epoch == last.epoch for death in deaths)
    if last.epoch is not None and there >= _SAME_EPOCH:
        return (
            f"quarantined: its worker died {there} times in epoch {last.epoch + 1}; the last: "
            f"{last.reason}"
        )
    if len(deaths) >= allowed:
        return f"its worker died {len(deaths)} times in a row; the last: {last.reason}"
    return None
