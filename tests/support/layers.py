"""An environment with packages of its own, which borrows all others from the one that runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path


def layer(place: Path, *requirements: str) -> Path:
    """Return the Python of an environment at `place` with these requirements over this one.

    It is found again the next time, unless its installation was cut short.

    Args:
        place: folder of the environment.
        requirements: as pip takes them; what they depend on is borrowed.
    """
    python = place.absolute() / "bin/python"
    packages = python.parents[1] / sysconfig.get_path("purelib", vars={"base": ""}).lstrip("/")
    complete = packages / ".complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", *requirements], check=True)
        base = sysconfig.get_path("purelib")
        (packages / "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")
        complete.touch()
    return python
