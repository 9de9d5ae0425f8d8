"""What stands in for Ray Train's meeting point of workers. A share's run itself: see test_run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from raykfold.distributed import ray_private as relay
from raykfold.distributed.ray_private import _Meeting, _ShareWorkerGroup, _StateBuilder
from raykfold.distributed.session import ray_session


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(None, local_cpus=1):
        yield


def test_a_worker_that_is_alone_hears_what_it_says() -> None:
    handle = pickle.loads(pickle.dumps(_Meeting.options(label_selector={}).remote(timeout_s=1)))
    said = handle.broadcast_from_rank_zero.remote(world_rank=0, world_size=1, data="folder")
    assert ray.get(said) == "folder"
    assert ray.get(handle.set_required_ranks.remote([0])) is True
    ray.get(handle.reset.remote())


def test_it_has_what_ray_train_calls() -> None:
    """Of the methods of Ray's own, which other versions may call otherwise."""
    methods = {"broadcast_from_rank_zero", "set_required_ranks", "reset"}
    actor: Any = SynchronizationActor
    assert methods <= set(dir(actor.__ray_metadata__.modified_class))
    assert methods <= set(dir(_Meeting))


class Slot:
    closed = False

    def shutdown(self) -> None:
        self.closed = True


def test_a_group_is_shut_down_with_no_actor_to_kill() -> None:
    slots = [Slot(), Slot()]
    for slot, state in zip(slots, (_StateBuilder(), _StateBuilder()), strict=True):
        state.with_placement_group_handle(slot)  # type: ignore[arg-type]
        state.with_workers([])
        state.with_sync_actor(_Meeting.remote())  # type: ignore[arg-type]
        (state.build() if slot is slots[0] else state).shutdown()
    assert all(slot.closed for slot in slots)


def test_a_start_that_fails_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    slot, used = Slot(), []

    def start(self: Any, builder: Any) -> None:
        used.append(relay.worker_group.SynchronizationActor)  # type: ignore[attr-defined]
        builder.with_placement_group_handle(slot)
        builder.with_sync_actor(_Meeting.remote())
        raise RuntimeError("no worker")

    monkeypatch.setattr(WorkerGroup, "_start_impl", start)
    group = _ShareWorkerGroup.__new__(_ShareWorkerGroup)
    group._worker_group_state = None
    with pytest.raises(RuntimeError, match="no worker"):
        group._start_impl(_StateBuilder())
    assert slot.closed
    assert used == [_Meeting]
    assert relay.worker_group.SynchronizationActor is SynchronizationActor  # type: ignore[attr-defined]


def test_a_worker_has_an_environment_of_its_own_only_where_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    assert _ShareWorkerGroup._get_worker_runtime_env({}) == {}
    asked = _ShareWorkerGroup._get_worker_runtime_env({"env_vars": {"HF_TOKEN": ""}})
    assert asked["env_vars"]["HF_TOKEN"] == ""
    assert asked["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"
