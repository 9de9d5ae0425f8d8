"""What happens in the shares, on its way to the driver; what the driver asks, on its way back.

    worker ── ray.train.report ──▶ Train controller ── ShareCallback ──▶ EventBoard ──▶ driver
       ▲                                                                     │
       └────────────── the round is committed; hand these folds over ────────┘

The board is an actor without CPUs of its own on the driver's node. It keeps nothing that is not
also on storage: when it dies the run dies, and resumes.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykfold.errors import RaykfoldError
from raykfold.training.results import Round


@dataclass(frozen=True)
class ShareStarted:
    """A share's worker runs.

    Attributes:
        share: the share's name.
        node: id of its node.
        address: of its node.
        pid: of its process there.
        gpu: the GPU that it sees, by its number on the node; empty where it trains on CPUs.
    """

    share: str
    node: str
    address: str
    pid: int
    gpu: str


@dataclass(frozen=True)
class ShareReady:
    """A share's worker has its data and its folds, and takes the first step."""

    share: str


@dataclass(frozen=True)
class FoldsStepping:
    """A share's worker begins an epoch of each of these folds; of none, when it is empty.

    Attributes:
        epochs: fold → the epoch, from 0.
    """

    share: str
    epochs: Mapping[int, int]


@dataclass(frozen=True)
class ShareNotice:
    """Something that the user should know."""

    share: str
    text: str


@dataclass(frozen=True)
class NodeIsBlind:
    """A share's worker does not see the run's storage from its node, and ends."""

    share: str
    node: str
    address: str


@dataclass(frozen=True)
class ShareStopping:
    """A share's worker met what ends the whole run (a full disk), and says so before it ends."""

    share: str
    error: RaykfoldError


@dataclass(frozen=True)
class RoundCommitted:
    """A round whose checkpoint, if it has one, is whole on storage and known to Ray Train."""

    share: str
    round: Round
    checkpoint: str | None


Event = (
    ShareStarted
    | ShareReady
    | FoldsStepping
    | ShareNotice
    | NodeIsBlind
    | ShareStopping
    | RoundCommitted
)


class EventBoard:
    """Carries events to the driver, and to each worker what has been committed."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._forgotten = 0
        self._committed: dict[str, int] = {}
        self._wanted: dict[str, tuple[int, ...]] = {}
        self._leaving: set[str] = set()
        self._posted = asyncio.Event()
        # One a share: a commit wakes the worker that waits for it, and not those of all shares.
        self._commits: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)

    async def post(self, event: Event) -> None:
        self._events.append(event)
        self._posted.set()
        if isinstance(event, RoundCommitted):
            self._committed[event.share] = event.round.number
            commit = self._commits[event.share]
            async with commit:
                commit.notify_all()

    async def stepping(self, share: str, epochs: Mapping[int, int]) -> bool:
        """Say which folds' epochs begin; whether the share is to stop, and leave, instead."""
        if share in self._leaving:
            return True
        await self.post(FoldsStepping(share, epochs))
        return False

    async def ask(self, share: str, folds: tuple[int, ...], *, leave: bool) -> None:
        """Leave word for a share's worker to give these folds back at its next round.

        Args:
            leave: that round is to end with the epoch that is being stepped now.
        """
        self._wanted[share] = folds
        if leave:
            self._leaving.add(share)

    async def committed(self, share: str, number: int) -> tuple[int, ...]:
        """Wait until round `number` of the share is committed; the folds it is to give back."""
        commit = self._commits[share]
        async with commit:
            await commit.wait_for(lambda: self._committed.get(share, 0) >= number)
        # Not taken away: the answer can get lost on the network, and is then asked for again.
        return self._wanted.get(share, ())

    async def events_from(self, number: int, wait_seconds: float) -> list[Event]:
        """The events from `number`, counted from 0, on; waits for one if there is none.

        What came before it has arrived, and is forgotten.
        """
        del self._events[: number - self._forgotten]
        self._forgotten = number
        if not self._events:
            self._posted.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._posted.wait(), timeout=wait_seconds)
        return list(self._events)


def open_board() -> Any:
    """Start the board on this process's node; it ends with the driver.

    A call that a bad network cuts short is made again, by Ray, for as long as the board lives:
    each of the calls may come twice.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_task_retries": -1}
    return ray.remote(EventBoard).options(**options).remote()
