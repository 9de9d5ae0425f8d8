"""Large arrays in temporary files without a name: mapped, they take no memory of their own.

The file goes when nothing maps it any more, however the process ends.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from raykfold.data.labels import Array
from raykfold.errors import BadData
from raykfold.files.scratch import free_bytes, temporary_folder
from raykfold.text import size_text

MOST_IN_MEMORY = 256 * 2**20  # bytes


def fits_in_memory(size: int) -> bool:
    """Return whether a copy of so many bytes is not worth a file."""
    return size <= MOST_IN_MEMORY


def copy_to_disk(
    name: str,
    parts: Iterable[bytes | memoryview],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    order: Literal["C", "F"] = "C",
) -> Array:
    """Write an array to a temporary file, and return its map, read-only.

    Args:
        name: what messages call the array.
        parts: its values, in `order`.
        dtype: their type.
        shape: of the array, not empty.
        order: as of NumPy.

    Raises:
        BadData: the disk has no room for it.
    """
    folder, needed = temporary_folder(), dtype.itemsize * math.prod(shape)
    expected = "expected more room there, or another folder as TMPDIR"
    free = free_bytes(folder)
    if needed > free:
        raise BadData(
            f"{name}: a copy needs {size_text(needed)} in {folder}, which has {size_text(free)} "
            f"free; {expected}"
        )
    try:
        with tempfile.TemporaryFile(prefix="raykfold-", dir=folder) as file:
            # Not into a map: a disk that is full would end the process, by SIGBUS.
            file.writelines(parts)
            file.flush()
            return np.memmap(file, dtype, "r", shape=shape, order=order)
    except OSError as error:
        reason = error.strerror or error
        raise BadData(f"{name}: cannot be copied to {folder} ({reason}); {expected}") from error
