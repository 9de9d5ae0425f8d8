"""Read W&B's offline files: LevelDB's log of W&B's own messages, in all of its versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

_BLOCK, _HEADER = 32768, 7  # of LevelDB's log; the file has a header of seven bytes, too
_FULL, _LAST = 1, 4


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
    logged = Logged(file.parent)
    for message in _messages(file.read_bytes()):
        record = Record()
        record.ParseFromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            names = ("project", "run_group", "job_type", "display_name", "run_id", "entity")
            logged.run = {name: getattr(record.run, name) for name in names}
            logged.run["config"] = {"update": _values(record.run.config.update)}
        elif kind == "history":
            logged.rows.append(_values(record.history.item))
        elif kind == "summary":
            logged.summary |= _values(record.summary.update)
        elif kind == "preempting":
            logged.preempting = True
        elif kind == "exit":
            logged.exit_code = record.exit.exit_code
    return logged


def _messages(content: bytes) -> Iterator[bytes]:
    """Yield the messages of a log; one that was cut off by a kill is left out."""
    start, parts = _HEADER, b""
    while start + _HEADER <= len(content):
        left = _BLOCK - start % _BLOCK
        if left < _HEADER:
            start += left
            continue
        size, kind = int.from_bytes(content[start + 4 : start + 6], "little"), content[start + 6]
        parts += content[start + _HEADER : start + _HEADER + size]
        start += _HEADER + size
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""


def _values(items: Any) -> dict[str, Any]:
    return {".".join(each.nested_key or [each.key]): json.loads(each.value_json) for each in items}


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
