"""How many folds of a share are stepped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

# In the first rounds libraries set themselves up and steps are recorded. The step of a batch size
# that occurs once an epoch is recorded in the fourth.
_UNTIMED_ROUNDS = 4


class Pace:
    """Says how many folds are stepped together: a given number, or what proves to be faster.

    To find that out, the fifth round steps folds one by one and the sixth all together. Either way
    gives the same results, so these rounds count like any other.

    Args:
        together: how many; None to find out whether one by one or all together is faster.
    """

    def __init__(self, together: int | None) -> None:
        self._together = together
        self._rounds = 0
        self._seconds: dict[bool, float] = {}  # all together? → seconds of an epoch of one fold

    def groups(self, folds: Sequence[_T]) -> list[Sequence[_T]]:
        """Return the groups of folds that are stepped together in this round."""
        size = self._together or (max(len(folds), 1) if self._all_together() else 1)
        return [folds[start : start + size] for start in range(0, len(folds), size)]

    def took(self, seconds: float) -> None:
        """Note how long an epoch of one fold took in this round, on average."""
        if self._rounds >= _UNTIMED_ROUNDS:
            self._seconds.setdefault(self._all_together(), seconds)
        self._rounds += 1

    def _all_together(self) -> bool:
        if len(self._seconds) < 2:
            return bool(self._seconds)
        return self._seconds[True] < self._seconds[False]
