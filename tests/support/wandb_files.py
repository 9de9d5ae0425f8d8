"""Read W&B's offline files with W&B's own reader."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.util import get_core_path


@dataclass
class Logged:
    """A W&B run, as one file holds it."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    preempting: bool = False
    exit_code: int | None = None

    def column(self, name: str) -> list[Any]:
        """Return a metric's value in each row, None where a row lacks it."""
        return [row.get(name) for row in self.rows]


def read(file: Path) -> Logged:
    """Read one ``.wandb`` file."""
    command = [get_core_path(), "leet", "inspect", "-json", "-no-observability", "-run-file"]
    printed = subprocess.run([*command, str(file)], check=True, capture_output=True, text=True)
    logged = Logged(file.parent)
    for record in map(json.loads, printed.stdout.splitlines()):
        if record["type"] == "run":
            logged.run = record["run"]
        elif record["type"] == "history":
            logged.rows.append(record["history"]["item"])
        elif record["type"] == "summary":
            logged.summary |= record["summary"].get("update", {})
        elif record["type"] == "preempting":
            logged.preempting = True
        elif record["type"] == "exit":
            logged.exit_code = record["exit"]["exit_code"]
    return logged


def files(folder: Path, kind: str = "offline-run") -> dict[str, list[Logged]]:
    """Return by display name what each session wrote below `folder`, oldest first.

    A session that was killed before it wrote which run it is of is left out.
    """
    found: dict[str, list[Logged]] = {}
    for file in sorted((folder / "wandb").glob(f"{kind}-*/*.wandb")):
        logged = read(file)
        if logged.run:
            found.setdefault(logged.run["display_name"], []).append(logged)
    return found


def newest(folder: Path, kind: str = "offline-run") -> dict[str, Logged]:
    """Return by display name what the newest session wrote below `folder`."""
    return {name: sessions[-1] for name, sessions in files(folder, kind).items()}
