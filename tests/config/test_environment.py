from __future__ import annotations

import os
import platform
import site
import subprocess
import sys
from pathlib import Path

import pytest

from raykfold.config.environment import (
    SECRETS,
    allocator,
    import_path,
    python_path,
    without_secrets,
    worker_runtime_env,
)
from raykfold.errors import BadInput

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


def test_secrets_are_gone_inside_and_back_afterwards() -> None:
    environ = {"HF_TOKEN": " hf_a\n", "WANDB_API_KEY": "b", "HOME": "/home/me"}
    before = dict(environ)
    with without_secrets(environ) as credentials:
        assert environ == {"HOME": "/home/me"}
        assert (credentials.hf_token, credentials.wandb_api_key) == ("hf_a", "b")
        assert "hf_a" not in repr(credentials)
    assert environ == before


def test_what_the_environment_lacks_is_none() -> None:
    with without_secrets({"HF_TOKEN": " "}) as credentials:
        assert (credentials.hf_token, credentials.wandb_api_key) == (None, None)


@pytest.mark.parametrize("secret", ["hf_a\nhf_b", "hf_a hf_b", "hf_a\x00", "hf_\u00e4"])
def test_a_malformed_secret_is_refused_without_being_shown(secret: str) -> None:
    environ = {"HF_TOKEN": secret}
    with pytest.raises(BadInput, match="HF_TOKEN") as refused, without_secrets(environ):
        raise AssertionError("taken for a token")
    assert "hf_" not in str(refused.value)
    assert environ == {"HF_TOKEN": secret}


def test_a_pth_file_that_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = import_path()
    (tmp_path / "dangling.pth").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.pth").mkdir()
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path))
    assert import_path() == before


def test_a_deleted_working_directory_adds_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(sys, "path", ["", "relative", str(tmp_path / "modules")])
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        assert import_path() == ((str(tmp_path / "modules"),), ())
    finally:
        os.chdir(tmp_path)


def test_a_folder_of_a_modules_name_does_not_hide_where_the_module_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first/mine", "first/parts", "second/mine"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "second" / "mine" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert python_path("mine") == str(tmp_path / "second")
    assert python_path("parts.net") == str(tmp_path / "first")
