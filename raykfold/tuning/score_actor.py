"""The actor that passes scores from the driver to Ray Tune's actors, and what those run.

Ray Tune's actors import this module without torch: each is a process of some 100 MB that only
reports to Ray Tune what the trial's cross-validation reaches. The dealer's workers train that
cross-validation like any other, so a trial that waits for a slot holds none.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import ray


class ScoreActor:
    """Keeps the scores of each trial in order, and whether more may come."""

    def __init__(self) -> None:
        self._scores: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
        self._ended: set[int] = set()
        self._changes: defaultdict[int, asyncio.Condition] = defaultdict(asyncio.Condition)

    async def add(self, trial: int, score: Mapping[str, Any]) -> None:
        """Add a trial's next score; one that was added before is ignored."""
        async with self._changes[trial]:
            if score["epoch"] == len(self._scores[trial]) + 1:
                self._scores[trial].append(score)
            self._changes[trial].notify_all()

    async def end(self, trial: int) -> None:
        """Declare that a trial gets no more scores."""
        async with self._changes[trial]:
            self._ended.add(trial)
            self._changes[trial].notify_all()

    async def scores_from(self, trial: int, start: int) -> list[Mapping[str, Any]]:
        """Wait for a trial's score `start`, from 0, and return it and those after it.

        The list is empty once the trial has ended and has no such score.
        """
        async with self._changes[trial]:
            await self._changes[trial].wait_for(
                lambda: len(self._scores[trial]) > start or trial in self._ended
            )
        return self._scores[trial][start:]


def report_scores(config: Mapping[str, Any], score_actor: Any) -> None:
    """Report a trial's scores to Ray Tune, from the first until it ends: what its actor runs.

    Args:
        config: ``trial``, its number.
        score_actor: the handle of a `ScoreActor`.
    """
    from ray import tune

    reported = 0
    while scores := ray.get(score_actor.scores_from.remote(config["trial"], reported)):
        for score in scores:
            tune.report(dict(score))
        reported += len(scores)
