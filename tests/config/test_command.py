from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys

import pytest

from raykfold.config.command import without_gc


def test_garbage_is_collected_again_after_imports_whatever_came_of_them() -> None:
    with without_gc():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), without_gc():
        importlib.import_module("raykfold.nowhere")
    assert gc.isenabled()


def test_it_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        with without_gc():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=60,
    )


MUCH = """
import sys
from raykfold.config.command import exit_code
sys.exit(exit_code(lambda: print("much " * 100_000), stopped=""))
"""


def test_whoever_has_read_enough_of_the_output_gets_no_traceback() -> None:
    done = shell(f"{sys.executable} -c '{MUCH}' | true")
    assert (done.returncode, done.stderr) == (1, "")


def test_a_letter_that_the_terminal_lacks_is_no_reason_to_fail() -> None:
    done = shell(f"{sys.executable} -m raykfold.status /nowhere/größe", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "raykfold: /nowhere/gr\\xf6\\xdfe: there is no run; expected the --model_dir of one"
    ]
