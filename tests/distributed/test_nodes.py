from __future__ import annotations

import queue
from collections.abc import Mapping
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


def test_an_autoscaler_that_cannot_be_asked_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: queue.Queue[int] = queue.Queue()

    def ask(self: Autoscaler, resources: Mapping[str, float], workers: int) -> None:
        asked.put(workers)
        raise RaySystemError("the head is away")

    monkeypatch.setattr(Autoscaler, "ask", ask)
    monkeypatch.setattr(Autoscaler, "withdraw", lambda self: asked.put(0))
    with closing(Request("run", WorkerSize(cpus=1, gpus=0))) as request:
        for workers in (3, 2):
            request.want(workers)
            assert asked.get(timeout=20) == workers
    assert asked.get(timeout=20) == 0
