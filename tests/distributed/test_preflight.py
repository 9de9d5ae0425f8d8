from __future__ import annotations

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.distributed import preflight
from raykfold.distributed.deal import WorkerSize
from raykfold.errors import BadInput


def test_a_gpu_that_a_ray_of_our_own_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "most_gpus", lambda: 0)
    config = RunConfig(use_gpu=True)
    with pytest.raises(BadInput, match="--use_gpu true: Ray has no GPU"):
        preflight.worker_size(config, own_instance=True, before=None)
    in_a_cluster = preflight.worker_size(config, own_instance=False, before=None)
    assert in_a_cluster == WorkerSize(cpus=1, gpus=1)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (0, "--cpus_per_worker 1: the local Ray instance has no room for a worker of 1 CPU"),
        (1, "--num_workers 2: the local Ray instance has 1 slot of 1 CPU"),
    ],
)
def test_too_few_slots_of_a_ray_of_our_own_are_refused(
    slots: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_slots", lambda size: slots)
    with pytest.raises(BadInput, match=message):
        preflight.check_slots(RunConfig(num_workers=2), WorkerSize(cpus=1, gpus=0))
