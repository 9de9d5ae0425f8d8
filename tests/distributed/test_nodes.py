from __future__ import annotations

import queue
from contextlib import closing

import pytest
from ray.exceptions import RaySystemError

from raykfold.distributed.deal import WorkerSize
from raykfold.distributed.nodes import Request, gpus_have_bf16
from raykfold.distributed.ray_private import Autoscaler


@pytest.mark.parametrize(
    ("kinds", "have"),
    [
        (["H200"], True),
        (["A100-40G", "L4"], True),
        (["H100", "T4"], False),
        (["V100S"], False),
        (["GeForce-RTX-2080-Ti"], False),
        (["TITAN-V"], False),
        ([], False),  # none yet, or none that Ray has a name for
    ],
)
def test_bf16_is_for_gpus_that_are_known_to_have_it(kinds: list[str], have: bool) -> None:
    resources = ["CPU", "GPU", *(f"accelerator_type:{kind}" for kind in kinds)]
    assert gpus_have_bf16(resources) is have


class Head:
    """Takes the place of what an autoscaler asks; it can be away, and notes each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: queue.Queue[tuple[int, bool]] = queue.Queue()
        self.is_away = False
        monkeypatch.setattr(Autoscaler, "interval", 0.01)
        monkeypatch.setattr(Autoscaler, "ask", lambda _, resources, workers: self._take(workers))
        monkeypatch.setattr(Autoscaler, "withdraw", lambda _: self._take(0))

    def _take(self, workers: int) -> None:
        is_away = self.is_away
        self.calls.put((workers, is_away))
        if is_away:
            raise RaySystemError("the head is away")

    def hears(self, workers: int) -> None:
        """Return once it was asked for so many workers, twice if not to withdraw (0).

        So the first of these calls has returned, or raised.
        """
        for _ in range(2 if workers else 1):
            while self.calls.get(timeout=20) != (workers, self.is_away):
                pass


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    return Head(monkeypatch)


def test_an_autoscaler_that_cannot_be_asked_is_asked_again(head: Head) -> None:
    head.is_away = True
    with closing(Request("run", WorkerSize(cpus=1, gpus=0))) as request:
        for workers in (3, 2):
            request.want(workers)
            head.hears(workers)
        head.is_away = False
        head.hears(2)
    head.hears(0)


def test_what_was_never_asked_is_not_withdrawn(head: Head) -> None:
    head.is_away = True
    with closing(Request("run", WorkerSize(cpus=1, gpus=0))) as request:
        request.want(3)
        head.hears(3)
    assert {workers for workers, _ in head.calls.queue} <= {3}


def test_a_request_that_cannot_be_withdrawn_is_withdrawn_later(head: Head) -> None:
    with closing(Request("run", WorkerSize(cpus=1, gpus=0))) as request:
        request.want(3)
        head.hears(3)
        head.is_away = True
        request.want(0)
        head.hears(0)
        head.hears(0)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_head_that_is_away_at_the_end_raises_nothing(head: Head) -> None:
    with closing(Request("run", WorkerSize(cpus=1, gpus=0))) as request:
        request.want(3)
        head.hears(3)
        head.is_away = True
    head.hears(0)
