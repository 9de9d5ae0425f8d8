"""How many folds of a share are stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

# In the first rounds libraries set themselves up, and steps are recorded: that of a batch whose
# size comes once an epoch in the fourth.
_UNTIMED_ROUNDS = 4


class Pace:
    """A number that was asked for, or else what proves faster: one after the other, or all at once.

    The rounds that it is found out in are rounds like others: a fold's result is the same either
    way. One after the other is timed in the fifth round, all at once in the sixth.

    Args:
        together: how many; None to find out.
    """

    def __init__(self, together: int | None) -> None:
        self._together = together
        self._rounds = 0
        self._seconds: dict[bool, float] = {}  # an epoch of a fold; by whether all were at once

    def groups(self, folds: Sequence[_T]) -> list[Sequence[_T]]:
        """The folds that are stepped together, group by group, in this round."""
        size = self._together or (max(len(folds), 1) if self._at_once() else 1)
        return [folds[start : start + size] for start in range(0, len(folds), size)]

    def took(self, seconds: float) -> None:
        """Take note of how long an epoch of a fold took in this round, on average."""
        if self._rounds >= _UNTIMED_ROUNDS:
            self._seconds.setdefault(self._at_once(), seconds)
        self._rounds += 1

    def _at_once(self) -> bool:
        if len(self._seconds) < 2:
            return bool(self._seconds)
        return self._seconds[True] < self._seconds[False]
