"""What a package index gets: complete, and at work where nothing of the source tree is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.layers import layer

from raykfold.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    python = layer(tmp_path_factory.mktemp("build"), "build", "pyproject_hooks")
    subprocess.run([python, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of scripts of an environment with the wheel, which borrows all other packages."""
    return layer(tmp_path_factory.mktemp("clean"), str(wheel)).parent


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        packed = {name for name in content.namelist() if name.startswith("raykfold/")}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "raykfold").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == there
    assert "raykfold/py.typed" in packed


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_sdist_has_every_file_of_the_repository(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as content:
        packed = {name.partition("/")[2] for name in content.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    assert set(listed.stdout.decode().split()) == packed - {"PKG-INFO"}


@pytest.mark.slow
def test_an_index_shows_no_link_that_leads_nowhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        (metadata,) = (name for name in content.namelist() if name.endswith("/METADATA"))
        shown = content.read(metadata).decode()
    assert "# raykfold" in shown and "report.html`.\n\n`prepare` stops" in shown
    targets = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", shown)
    assert targets and all("".join(pair).startswith("https://") for pair in targets)


@pytest.mark.slow
def test_the_script_of_the_wheel_trains_from_another_folder(scripts: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = call(str(scripts / "python"), "-c", "import raykfold; print(raykfold.__file__)")
    assert Path(where.strip()).is_relative_to(scripts.parent)
    for name in COMMANDS:
        assert f"raykfold.{name} " in call(
            str(scripts / "python"), "-m", "raykfold", name, "--help"
        )
    arguments = ("--demo", "--epochs", "1", "--folds", "1,2", "--model_dir", "out")
    printed = call(str(scripts / "raykfold"), "run", *arguments)
    assert "Average Best Validation Accuracy" in printed
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "complete"
    assert "2 of 2 folds complete, over" in call(str(scripts / "raykfold"), "status", "out")
