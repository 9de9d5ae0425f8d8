"""How folds are dealt to slots: pure functions over plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerSize:
    """What one worker takes of a node.

    Attributes:
        cpus: CPUs, and so many threads.
        gpus: 1 if workers train on GPUs, else 0.
    """

    cpus: int
    gpus: int

    @property
    def resources(self) -> dict[str, float]:
        """The same as Ray names it."""
        gpu = {"GPU": float(self.gpus)} if self.gpus else {}
        return {"CPU": float(self.cpus), **gpu}

    def __str__(self) -> str:
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)}{' and a GPU' * self.gpus}"


def slots(nodes: Sequence[Mapping[str, float]], size: WorkerSize) -> int:
    """Return how many workers of this size fit on nodes with these resources, each on one node."""
    return sum(
        min(int(node.get(name, 0.0) // amount) for name, amount in size.resources.items())
        for node in nodes
    )


def deal(waiting: Sequence[int], free_slots: int) -> list[tuple[int, ...]]:
    """Return the folds for each slot, as even as possible and in turn.

    Folds 1 to 5 on two slots are ``[(1, 3, 5), (2, 4)]``.
    """
    folds = sorted(waiting)
    count = min(len(folds), max(free_slots, 0))
    return [tuple(folds[start::count]) for start in range(count)]


@dataclass(frozen=True)
class Load:
    """What a share still has to do.

    Attributes:
        folds: active folds → epochs left.
        epoch_seconds: how long an epoch of one fold takes there.
    """

    folds: Mapping[int, int]
    epoch_seconds: float

    @property
    def seconds(self) -> float:
        return sum(self.folds.values()) * self.epoch_seconds


def hand_over(
    loads: Mapping[str, Load], free_slots: int, start_seconds: float
) -> dict[str, tuple[int, ...]]:
    """Return the folds that each share should give away, so that free slots have work.

    The shares with the most work give first, one for each free slot. A share gives half of its
    folds, those with the most epochs left, if that work takes longer than the start of a worker.

    Args:
        loads: share → what it still has to do.
        free_slots: slots that no waiting fold needs.
        start_seconds: time from dealing a share to its first step.
    """
    asked: dict[str, tuple[int, ...]] = {}
    heaviest_first = sorted(loads, key=lambda share: (-loads[share].seconds, share))
    for share in heaviest_first[: max(free_slots, 0)]:
        load = loads[share]
        by_work_left = sorted(load.folds, key=lambda fold: (-load.folds[fold], fold))
        given = tuple(sorted(by_work_left[1::2]))
        seconds = sum(load.folds[fold] for fold in given) * load.epoch_seconds
        if given and seconds > start_seconds:
            asked[share] = given
    return asked
