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
        env={**os.environ, "PYTHONUNBUFFERED": "", **env},
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


SHOW = """
import os, sys
from raykfold.config.command import exit_code
from raykfold.errors import BadInput
def show():
    if sys.argv[1:]:
        raise BadInput(sys.argv[1])
    print("shown")
    with open(os.devnull) as file:
        assert file.fileno() > 2, "a file took the number of a stream"
    return 0
sys.exit(exit_code(show, stopped=""))
"""
CLOSED = "raykfold: standard output is closed; nothing is shown\n"
FULL = "raykfold: standard output: cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("streams", "code", "output", "errors"),
    [
        (">&-", 0, "", CLOSED),
        ("2>&-", 0, "shown\n", ""),
        ("<&-", 0, "shown\n", ""),
        (">&- 2>&- <&-", 0, "", ""),
        (">/dev/full", 1, "", FULL),
        (">/dev/full 2>/dev/full", 1, "", ""),
        ("wrong 2>/dev/full", 2, "", ""),
        ("wrong 2>&-", 2, "", ""),
        ("wrong >&-", 2, "", f"{CLOSED}raykfold: wrong\n"),
        ("wrong >/dev/full", 2, "", "raykfold: wrong\n"),
    ],
)
def test_a_stream_that_is_closed_or_full_is_one_line_at_most(
    streams: str, code: int, output: str, errors: str
) -> None:
    for unbuffered in ("", "1"):
        done = shell(f"{sys.executable} -c '{SHOW}' {streams}", PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stdout, done.stderr) == (code, output, errors)


LATE = """
import os, sys
from raykfold.config.command import exit_code
from raykfold.errors import BadInput
def show():
    print("shown")  # stays in the buffer
    if sys.argv[1] == "wrong":
        raise BadInput("wrong")
    raise OSError(28, "No space left on device") if sys.argv[1] == "full" else KeyboardInterrupt
sys.exit(exit_code(show, stopped="stopped; to resume: it"))
"""


def test_what_ends_the_work_is_said_though_the_output_is_full() -> None:
    for how, code, line in (
        ("wrong", 2, "raykfold: wrong\n"),
        ("stop", 130, "\nstopped; to resume: it\n"),
    ):
        done = shell(f"{sys.executable} -c '{LATE}' {how} >/dev/full")
        assert (done.returncode, done.stderr) == (code, line)


def test_a_full_disk_is_not_taken_for_a_full_output() -> None:
    done = shell(f"{sys.executable} -c '{LATE}' full")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "No space left on device" in done.stderr


def test_help_that_cannot_be_printed_is_one_line() -> None:
    done = shell(f"{sys.executable} -m raykfold.status --help >/dev/full")
    assert (done.returncode, done.stderr) == (1, FULL)
