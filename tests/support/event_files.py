"""Read TensorBoard's event files.

A record is a length, the checksum of the length, the content, and the checksum of the content.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c


def events(folder: Path) -> list[Any]:
    """Return the events of the one file in `folder`, in order."""
    (file,) = folder.iterdir()
    assert "tfevents" in file.name  # by which TensorBoard knows it
    content, found = file.read_bytes(), []
    while content:
        (size,) = struct.unpack_from("<Q", content)
        record = content[12 : 12 + size]
        sums = struct.unpack_from("<I", content, 8) + struct.unpack_from("<I", content, 12 + size)
        assert sums == (masked_crc32c(content[:8]), masked_crc32c(record))
        found.append(Event.FromString(record))
        content = content[16 + size :]
    assert found[0].file_version == "brain.Event:2"
    return found


def scalars(folder: Path) -> dict[str, list[Any]]:
    """Return by tag the (step, value) of each scalar, in the order of the file."""
    found: dict[str, list[Any]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Return the hyper-parameters that TensorBoard shows for the file in `folder`, by name."""
    for event in events(folder):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                plugin = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                rows = plugin.session_start_info.hparams
                return {name: getattr(v, v.WhichOneof("kind")) for name, v in rows.items()}
    raise AssertionError(f"{folder} shows none")
