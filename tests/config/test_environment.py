from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from raykfold.config.credentials import SECRETS
from raykfold.config.environment import allocator, worker_runtime_env

# From a thread, as Ray Train runs a worker. The first steps are for the heap to find its size.
STEPS = """
import resource, threading
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    return [torch.ones(mebibytes, 2**18) for mebibytes in (40, 40, 10)]

def steps():
    for _ in range(40):
        step()
    before = faults()
    for _ in range(10):
        step()
    print(faults() - before)

thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def page_faults_of_ten_steps(environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_a_worker_keeps_the_memory_that_a_step_leaves() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    pages_of_a_step = 90 * 2**20 // os.sysconf("SC_PAGESIZE")
    assert page_faults_of_ten_steps({**plain, **allocator(plain)}) < pages_of_a_step


def test_what_somebody_has_set_stays() -> None:
    assert allocator({"MALLOC_ARENA_MAX": "4"})["MALLOC_ARENA_MAX"] == "4"


def test_a_worker_of_a_cluster_keeps_memory_too_and_sees_no_secret() -> None:
    variables = worker_runtime_env(own_instance=False)["env_vars"]
    assert variables.items() >= allocator({}).items()
    assert all(variables[name] == "" for name in SECRETS)
