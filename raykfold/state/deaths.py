"""When the deaths of a fold's worker are the fold's own fault: pure functions over plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SAME_EPOCH = 2


@dataclass(frozen=True)
class Death:
    """A worker's process ended by itself or was killed, on a node that lived on.

    Attributes:
        reason: what Ray says of it.
        epoch: the epoch, from 0, that the fold was being stepped in; None if none was.
        together: other folds were being stepped, too: it is not known whose fault it was.
    """

    reason: str
    epoch: int | None = None
    together: bool = False


def verdict(deaths: Sequence[Death], allowed: int) -> str | None:
    """Why a fold is not tried again, or None if it is.

    A segmentation fault or a sample that takes all memory strikes again at the same place: a
    worker that dies twice while it steps one epoch of one fold would die for ever. Deaths at
    other places are bad luck until there are `allowed` of them. One that several folds share does
    not count: after it they are stepped one by one.

    Args:
        deaths: of the fold's workers, since it last completed a round.
        allowed: deaths after which a fold fails in any case.
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
