from __future__ import annotations

import pytest

from raykfold.state.deaths import Death, verdict


@pytest.mark.parametrize(
    "epochs",
    [[], [3], [3, 4], [None, None], [2, None, 3], [None, 3]],
    ids=str,
)
def test_a_fold_is_tried_again_after_bad_luck(epochs: list[int | None]) -> None:
    assert verdict([Death("killed", epoch) for epoch in epochs], allowed=4) is None


def test_two_deaths_in_one_epoch_are_the_folds_own_fault() -> None:
    wrong = verdict([Death("killed", 3), Death("elsewhere"), Death("segfault", 3)], allowed=9)
    assert wrong == "quarantined: its worker died 2 times in epoch 4; the last: segfault"


def test_a_death_that_folds_share_is_held_against_none_of_them() -> None:
    shared = Death("killed", 3, together=True)
    assert verdict([shared], allowed=1) is None
    assert verdict([shared, Death("segfault", 3)], allowed=2) is None
    wrong = verdict([shared, Death("killed", 3), Death("segfault", 3)], allowed=9)
    assert wrong == "quarantined: its worker died 2 times in epoch 4; the last: segfault"


def test_deaths_anywhere_are_too_many_at_some_point() -> None:
    deaths = [Death("killed", 3), Death("no memory"), Death("segfault", 4)]
    assert verdict(deaths, allowed=4) is None
    wrong = verdict(deaths, allowed=3)
    assert wrong == "its worker died 3 times in a row; the last: segfault"
