"""Parquet files as the library `datasets` writes them, with sounds in an Audio column."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def wav(seed: int, seconds: float = 0.1) -> bytes:
    """Return a WAV file of noise."""
    import soundfile

    file = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(8000 * seconds))
    soundfile.write(file, noise, 8000, format="WAV")
    return file.getvalue()


def audio(contents: Sequence[bytes | None], names: Sequence[str | None] | None = None) -> pa.Array:
    """Return an Audio column of files and their names."""
    paths = names or [None] * len(contents)
    cells = [{"bytes": each, "path": path} for each, path in zip(contents, paths, strict=True)]
    return pa.array(cells, AUDIO)


def parquet(
    columns: Mapping[str, Any],
    features: Mapping[str, Any] | None = None,
    row_group_size: int | None = None,
) -> bytes:
    """Return a Parquet file.

    Args:
        columns: name → values.
        features: what `datasets` writes of the columns into the schema's metadata, if it wrote it.
        row_group_size: rows; all of them by default.
    """
    table = pa.table(dict(columns))
    if features is not None:
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=row_group_size)
    return file.getvalue()


def class_label(*names: str) -> dict[str, Any]:
    """Return how `datasets` describes a column of classes."""
    return {"names": list(names), "_type": "ClassLabel"}
