"""Where the scores of trials wait for Ray Tune's actors, and what runs in these.

A module of its own, because the actors import it: one a trial, a process of some 100 MB without
torch, which only passes on to Ray Tune what the trial's cross-validation has reached. That one is
trained by the driver's workers, as any other; so no trial holds a slot while it waits for one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class ScoreBoard:
    """Rows of each trial, in order, and whether there will be more."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
        self._over: set[int] = set()
        self._news: defaultdict[int, asyncio.Condition] = defaultdict(asyncio.Condition)

    async def post(self, trial: int, row: Mapping[str, Any]) -> None:
        """One more row of a trial; which one stands in it, so it can come twice."""
        async with self._news[trial]:
            if row["epoch"] == len(self._rows[trial]) + 1:
                self._rows[trial].append(row)
            self._news[trial].notify_all()

    async def end(self, trial: int) -> None:
        """No more rows of that trial."""
        async with self._news[trial]:
            self._over.add(trial)
            self._news[trial].notify_all()

    async def rows_from(self, trial: int, number: int) -> list[Mapping[str, Any]]:
        """Rows from `number`, counted from 0, on; waits for one. None are left when it is empty."""
        async with self._news[trial]:
            await self._news[trial].wait_for(
                lambda: len(self._rows[trial]) > number or trial in self._over
            )
        return self._rows[trial][number:]


def open_score_board() -> Any:
    """Start the board on this process's node; it ends with the driver.

    As with the board of events, each call may come twice on a bad network.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_task_retries": -1}
    return ray.remote(ScoreBoard).options(**options).remote()


def follow(config: Mapping[str, Any], board: Any) -> None:
    """What Ray Tune runs as a trial: report its scores, from the first, until there are no more.

    Args:
        config: ``trial``, its number.
        board: the handle of a `ScoreBoard`.
    """
    from ray import tune

    seen = 0
    while rows := ray.get(board.rows_from.remote(config["trial"], seen)):
        for row in rows:
            tune.report(dict(row))
        seen += len(rows)
