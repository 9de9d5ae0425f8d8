"""Features in a file that workers map themselves, so that no copy of them is made."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from raykfold.data.labels import Array
from raykfold.errors import StorageError

_SAMPLED = 64  # rows that are compared, evenly spread


@dataclass(frozen=True)
class FeatureFile:
    """Where features lie in a file, and how to notice that it is another one by now.

    Attributes:
        path: of the file.
        offset: bytes before the first value.
        shape: (N, *sample_shape).
        dtype: NumPy's name of their type.
        modified: when the file was written, in nanoseconds.
        digest: of some rows.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    modified: int
    digest: bytes

    @classmethod
    def of(cls, features: Array) -> FeatureFile | None:
        """Return the file that features are mapped from; None if they are in memory."""
        if not isinstance(features, np.memmap) or features.filename is None:
            return None
        path, offset = os.fspath(features.filename), features.offset
        if not features.flags.c_contiguous or not isinstance(path, str):
            return None
        try:
            file = cls(
                path=path,
                offset=offset,
                shape=features.shape,
                dtype=features.dtype.name,
                modified=os.stat(path).st_mtime_ns,
                digest=_digest(features),
            )
            file.open()
        except (OSError, ValueError, StorageError):  # it has been moved or replaced since
            return None
        return file

    def open(self) -> Array:
        """Map the features, (N, *sample_shape), read-only.

        Raises:
            StorageError: the file has gone, or is another one by now.
        """
        try:
            modified = os.stat(self.path).st_mtime_ns
            features = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path}: cannot be read any more ({error})") from error
        if modified != self.modified or _digest(features) != self.digest:
            raise StorageError(f"{self.path}: has changed since the run started")
        return np.asarray(features)


def _digest(features: Array) -> bytes:
    rows = np.unique(np.linspace(0, len(features) - 1, _SAMPLED).astype(int))
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(np.ascontiguousarray(features[row]).data)
    return digest.digest()
