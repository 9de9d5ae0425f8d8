"""Features in a file that workers map themselves, so that no copy of them is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raykfold.data.labels import Array
from raykfold.errors import StorageError

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class FeatureFile:
    """Where features lie in a file, and how to notice that it is another one by now.

    Attributes:
        path: of the file.
        offset: bytes before the first value.
        shape: (N, *sample_shape).
        dtype: NumPy's name of their type.
        stamp: of the file when it was read (`stamp_of`).
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    stamp: Stamp

    @classmethod
    def of(cls, path: Path, stamp: Stamp, mapped: Array, features: Array) -> FeatureFile | None:
        """Return the file of features, or None if it does not hold them as they are.

        Args:
            path: of an .npy file.
            stamp: of the file before it was mapped.
            mapped: the file's map.
            features: what became of it: the same, without an axis of one channel, or a copy.
        """
        if not (isinstance(mapped, np.memmap) and isinstance(features, np.memmap)):
            return None
        whole = features.nbytes == mapped.nbytes and np.may_share_memory(features, mapped)
        if not (whole and features.flags.c_contiguous):
            return None
        return cls(path, mapped.offset, features.shape, features.dtype.name, stamp)

    def open(self) -> Array:
        """Map the features, (N, *sample_shape), read-only.

        Raises:
            StorageError: the file has gone, or is another one by now.
        """
        try:
            features = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path}: cannot be read any more ({error})") from error
        self.check()
        return np.asarray(features)

    def check(self) -> None:
        """Check that the file is still the one that was read.

        Raises:
            StorageError: it has gone, or it has been replaced or written to.
        """
        try:
            stamp = stamp_of(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read any more ({error})") from error
        if stamp != self.stamp:
            raise StorageError(
                f"{self.path}: has changed since the run started, which goes on once the data is "
                "as it was"
            )


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file is replaced or written to: inode, size and time."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
