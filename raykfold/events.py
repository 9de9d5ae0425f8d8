"""What happens in the shares, on its way to the driver; what the driver asks, on its way back.

    worker ── ray.train.report ──▶ Train controller ── ShareCallback ──▶ EventBoard ──▶ driver
       ▲                                                                     │
       └────────────── the round is committed; hand these folds over ────────┘

The board is an actor without CPUs of its own on the driver's node. It keeps nothing that is not
also on storage: when it dies the run dies, and resumes.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykfold.errors import RaykfoldError
from raykfold.results import Round


@dataclass(frozen=True)
class ShareStarted:
    """A share's worker runs."""

    share: str
    node: str
    pid: int


@dataclass(frozen=True)
class ShareReady:
    """A share's worker has its data and its folds, and takes the first step."""

    share: str


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


Event = ShareStarted | ShareReady | ShareStopping | RoundCommitted


class EventBoard:
    """Carries events to the driver, and to each worker what has been committed."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._committed: dict[str, int] = {}
        self._wanted: dict[str, tuple[int, ...]] = {}
        self._changed = asyncio.Condition()

    async def post(self, event: Event) -> None:
        async with self._changed:
            self._events.append(event)
            if isinstance(event, RoundCommitted):
                self._committed[event.share] = event.round.number
            self._changed.notify_all()

    async def ask(self, share: str, folds: tuple[int, ...]) -> None:
        """Leave word for a share's worker to give these folds back at its next round."""
        self._wanted[share] = folds

    async def committed(self, share: str, number: int) -> tuple[int, ...]:
        """Wait until round `number` of the share is committed; the folds it is to give back."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._committed.get(share, 0) >= number)
        return self._wanted.pop(share, ())

    async def drain(self, wait_seconds: float) -> list[Event]:
        """The events since the last call, in order; waits for one if there is none."""
        deadline = time.monotonic() + wait_seconds
        async with self._changed:
            while not self._events and (left := deadline - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._changed.wait(), timeout=left)
                except TimeoutError:
                    break
            events, self._events = self._events, []
        return events


def open_board() -> Any:
    """Start the board on this process's node; it ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(EventBoard).options(num_cpus=0, scheduling_strategy=here).remote()
