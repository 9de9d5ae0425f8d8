from __future__ import annotations

from raykfold.distributed.start_mode import StartMode


def test_shares_that_fail_together_switch_once_and_the_next_one_switches_back() -> None:
    mode = StartMode()
    assert not mode.is_plain
    assert [mode.share_failed(0) for _ in range(3)] == [True, False, False]
    assert mode.is_plain
    assert mode.share_failed(mode.attempt)
    assert not mode.is_plain


def test_the_first_way_that_comes_to_a_round_stays() -> None:
    mode = StartMode()
    mode.share_failed(0)
    mode.round_committed(1)
    mode.round_committed(0)  # of a share that was on its way
    assert not mode.share_failed(1)
    assert mode.is_plain


def test_the_changed_start_is_taken_again_if_a_share_of_it_comes_to_a_round_after_all() -> None:
    mode = StartMode()
    mode.share_failed(0)
    mode.round_committed(0)
    assert not mode.is_plain


def test_folds_are_excused_in_the_first_attempt_only_and_not_once_it_works() -> None:
    mode = StartMode()
    assert mode.excuses(0)
    mode.share_failed(0)
    assert mode.excuses(0)  # shares that were started with the one that failed first
    assert not mode.excuses(mode.attempt)
    works = StartMode()
    works.round_committed(0)
    assert not works.excuses(0)
