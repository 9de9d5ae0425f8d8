"""Events of the shares on their way to the driver, and the driver's requests on their way back.

    worker ── ray.train.report ──▶ Train controller ── ShareCallback ──▶ EventBoard ──▶ driver
       ▲                                                                     │
       └────────────── the round is committed; hand these folds over ────────┘

The board is an actor on the driver's node that takes no CPU. It holds nothing that is not on
storage too: when it dies the run ends, and resumes.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from raykfold.distributed.stall import Pulse
from raykfold.errors import RaykfoldError
from raykfold.training.results import Round


@dataclass(frozen=True)
class Event:
    """What happens in a share.

    Attributes:
        share: the share's name.
    """

    share: str


@dataclass(frozen=True)
class ShareStarted(Event):
    """The worker of a share has started.

    Attributes:
        node: id of its node.
        address: of its node.
        pid: of its process there.
        gpu: number on the node of the GPU that it sees; empty if it trains on CPUs.
    """

    node: str
    address: str
    pid: int
    gpu: str


class ShareReady(Event):
    """The worker of a share has its data and its folds, and begins the first step."""


@dataclass(frozen=True)
class FoldsStepping(Event):
    """The worker of a share begins an epoch of these folds, or is training none.

    Attributes:
        epochs: fold → the epoch, from 0; empty for none.
    """

    epochs: Mapping[int, int]


@dataclass(frozen=True)
class WorkerAlive(Event):
    """The process of a share's worker is alive; see `raykfold.distributed.stall`.

    Attributes:
        pulse: what it reports of itself.
    """

    pulse: Pulse


@dataclass(frozen=True)
class ShareNotice(Event):
    """Something that a worker has noticed and the user should know."""

    text: str


@dataclass(frozen=True)
class NodeUnfit(Event):
    """A share cannot be trained on the node of its worker, which ends.

    Attributes:
        node: id of the node.
        address: of the node.
        reason: for the user, like "it does not see /shared".
    """

    node: str
    address: str
    reason: str


@dataclass(frozen=True)
class CopyBegun(Event):
    """The worker of a share copies the features to the disk of its node.

    Attributes:
        node: id of the node.
        address: of the node.
        folder: of the copy.
    """

    node: str
    address: str
    folder: str


@dataclass(frozen=True)
class CopyEnded(Event):
    """The copy on a worker's node is whole.

    Attributes:
        address: of the node.
        seconds: that it took.
    """

    address: str
    seconds: float


@dataclass(frozen=True)
class ShareStopping(Event):
    """The worker of a share ends, and with it the whole run, as on a full disk."""

    error: RaykfoldError


@dataclass(frozen=True)
class RoundCommitted(Event):
    """Ray Train has taken note of a round, whose checkpoint, if it has one, is whole on storage.

    Attributes:
        checkpoint: path of the checkpoint; None if no fold was saved in this round.
    """

    round: Round
    checkpoint: str | None


class EventBoard:
    """Carries events to the driver, and commits and requests for folds to the workers."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._forgotten = 0  # events that the driver has received
        self._committed: dict[str, int] = {}
        self._wanted: dict[str, tuple[int, ...]] = {}
        self._leaving: set[str] = set()
        self._posted = asyncio.Event()
        # One for each share: a commit wakes the worker that waits for it, and no other.
        self._commits: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)

    async def post(self, event: Event) -> None:
        """Add an event for the driver."""
        self._events.append(event)
        self._posted.set()
        if isinstance(event, RoundCommitted):
            self._committed[event.share] = event.round.number
            commit = self._commits[event.share]
            async with commit:
                commit.notify_all()

    async def stepping(self, share: str, epochs: Mapping[int, int]) -> bool:
        """Note which folds' epochs begin; return whether the share is to leave instead."""
        if share in self._leaving:
            return True
        await self.post(FoldsStepping(share, epochs))
        return False

    async def ask(self, share: str, folds: tuple[int, ...], *, leave: bool) -> None:
        """Ask the worker of a share to give these folds back when it ends its round.

        Args:
            leave: end the round with the epochs that are being trained now.
        """
        self._wanted[share] = folds
        if leave:
            self._leaving.add(share)

    async def committed(self, share: str, number: int) -> tuple[int, ...]:
        """Wait until round `number` of the share is committed; return the folds to give back."""
        commit = self._commits[share]
        async with commit:
            await commit.wait_for(lambda: self._committed.get(share, 0) >= number)
        # The request stays: the answer can get lost on the network, and is then asked for again.
        return self._wanted.get(share, ())

    async def events_from(self, number: int, wait_seconds: float) -> list[Event]:
        """Return the events from `number` on, counted from 0. If there is none, wait for one.

        Earlier events have reached the driver, and are forgotten.
        """
        del self._events[: number - self._forgotten]
        self._forgotten = number
        if not self._events:
            self._posted.clear()
            with suppress(asyncio.TimeoutError):  # in Python 3.10 it is not the built-in one
                await asyncio.wait_for(self._posted.wait(), timeout=wait_seconds)
        return list(self._events)
