from __future__ import annotations

import pytest

from raykfold.distributed.pace import Pace

FOLDS = [1, 2, 3, 4, 5]


def rounds(pace: Pace, alone: float, at_once: float, count: int) -> list[int]:
    """Sizes of the first group in so many rounds, where an epoch takes so many seconds."""
    sizes = []
    for number in range(count):
        size = len(pace.groups(FOLDS)[0])
        sizes.append(size)
        slow_start = 100.0 if number < 4 else 0.0
        pace.took(slow_start + (alone if size == 1 else at_once))
    return sizes


def test_a_number_is_kept_to() -> None:
    pace = Pace(2)
    assert pace.groups(FOLDS) == [[1, 2], [3, 4], [5]]
    assert rounds(pace, alone=1.0, at_once=9.0, count=5) == [2] * 5
    assert Pace(9).groups(FOLDS) == [FOLDS]
    assert Pace(1).groups([]) == []


@pytest.mark.parametrize(("at_once", "then"), [(0.5, 5), (2.0, 1)])
def test_what_is_faster_is_found_out_in_six_rounds(at_once: float, then: int) -> None:
    assert rounds(Pace(None), 1.0, at_once, count=11) == [1] * 5 + [5] + [then] * 5


def test_one_fold_is_a_group() -> None:
    pace = Pace(None)
    for _ in range(5):
        assert pace.groups([7]) == [[7]]
        pace.took(1.0)
