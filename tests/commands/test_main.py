"""`raykfold COMMAND`, the script, and `python -m raykfold COMMAND`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import raykfold
from raykfold.__main__ import COMMANDS, main


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in COMMANDS)


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"raykfold {raykfold.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: python -m raykfold.{name}" in capsys.readouterr().out


def test_what_is_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serch", "--config", "a.toml"]) == 2
    assert capsys.readouterr().err == (
        "raykfold: serch: there is no such command; did you mean search?\n"
    )


def test_the_arguments_reach_the_command() -> None:
    command = [sys.executable, "-m", "raykfold", "run", "--demo", "--epochs", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "raykfold: --epochs 'x': expected a whole number\n"


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_what_cannot_be_printed_is_one_line(flag: str) -> None:
    command = f"{sys.executable} -m raykfold {flag} >/dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("raykfold: standard output: cannot be written")


def test_the_script_finds_modules_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("raise ImportError('this file')\n")
    code = "import sys; sys.path[0] = '/usr/bin'; from raykfold.__main__ import script; script()"
    words = ["run", "--demo", "--model", "mine:Net", "--model_dir", str(tmp_path / "out")]
    monkeypatch.chdir(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(Path(raykfold.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=env
    )
    assert done.returncode == 2
    assert "cannot be imported (ImportError: this file)" in done.stderr
