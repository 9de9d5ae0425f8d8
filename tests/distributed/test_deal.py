"""Dealing folds to slots: nothing but values in, values out."""

from __future__ import annotations

import pytest

from raykfold.distributed.deal import Load, WorkerSize, deal, hand_over, slots

CPU = WorkerSize(cpus=1, gpus=0)
TWO_CPUS = WorkerSize(cpus=2, gpus=0)
GPU = WorkerSize(cpus=1, gpus=1)


def test_one_slot_a_fold_gives_each_fold_a_share_of_its_own() -> None:
    assert deal([3, 1, 2], 3) == [(1,), (2,), (3,)]


def test_more_slots_than_folds_leaves_slots_free() -> None:
    assert deal([1, 2], 10) == [(1,), (2,)]


def test_fewer_slots_deals_in_turn_and_evenly() -> None:
    assert deal(range(1, 11), 3) == [(1, 4, 7, 10), (2, 5, 8), (3, 6, 9)]


@pytest.mark.parametrize("free", [0, -1])
def test_no_slot_deals_nothing(free: int) -> None:
    assert deal([1, 2], free) == []


def test_no_fold_deals_nothing() -> None:
    assert deal([], 4) == []


@pytest.mark.parametrize("folds", range(1, 13))
@pytest.mark.parametrize("free", range(1, 13))
def test_every_fold_is_dealt_once_and_no_share_has_two_more_than_another(
    folds: int, free: int
) -> None:
    shares = deal(range(folds), free)
    assert sorted(fold for share in shares for fold in share) == list(range(folds))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_slots_are_counted_node_by_node() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert slots(nodes, CPU) == 6
    assert slots(nodes, TWO_CPUS) == 2  # the two that are left over lie on different nodes


def test_a_gpu_worker_needs_its_cpu_beside_its_gpu() -> None:
    assert slots([{"CPU": 4.0, "GPU": 2.0}, {"GPU": 8.0}, {"CPU": 8.0}], GPU) == 2


def test_parts_of_a_cpu_are_no_slot() -> None:
    assert slots([{"CPU": 1.9}], CPU) == 1
    assert slots([{"CPU": 0.5}], CPU) == 0


def test_a_share_hands_over_half_of_its_folds() -> None:
    loads = {"a": Load({1: 40, 2: 40, 3: 40, 4: 40}, epoch_seconds=10.0)}
    assert hand_over(loads, 1, start_seconds=20.0) == {"a": (2, 4)}


def test_a_share_of_one_fold_keeps_it() -> None:
    assert hand_over({"a": Load({1: 40}, 10.0)}, 1, start_seconds=20.0) == {}


def test_nothing_moves_that_would_take_less_time_than_the_move() -> None:
    loads = {"a": Load({1: 2, 2: 2}, epoch_seconds=9.0)}
    assert hand_over(loads, 1, start_seconds=20.0) == {}
    assert hand_over(loads, 1, start_seconds=17.0) == {"a": (2,)}


def test_the_heaviest_shares_give_first_and_one_slot_relieves_one_share() -> None:
    loads = {
        "light": Load({1: 10, 2: 10}, 10.0),
        "heavy": Load({3: 40, 4: 40}, 10.0),
    }
    assert hand_over(loads, 1, start_seconds=20.0) == {"heavy": (4,)}
    assert hand_over(loads, 2, start_seconds=20.0) == {"heavy": (4,), "light": (2,)}
    assert hand_over(loads, 0, start_seconds=20.0) == {}
