"""Features in a file, which workers map: the one that was read, or one that is written for them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raykfold.data.labels import Array
from raykfold.errors import BadInput, StorageError
from raykfold.files.scratch import free_bytes, scratch_dir, temporary_folder
from raykfold.text import size_text

_WRITE_BYTES = 64 * 2**20  # copied at a time where features do not lie in memory as in the file

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class FeatureFile:
    """Where features lie in a file, and how to notice that it is another one by now.

    Attributes:
        path: of the file.
        offset: bytes before the first value.
        shape: (N, *sample_shape).
        dtype: NumPy's name of their type.
        stamp: of the file when it was read (`stamp_of`); None if nobody else writes to it.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    stamp: Stamp | None

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

    @property
    def nbytes(self) -> int:
        """Size of the features in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def is_seen(self) -> bool:
        """Return whether this process can read the file, and it is the one that was read."""
        try:
            self.check()
        except StorageError:
            return False
        return os.access(self.path, os.R_OK)

    def read_bytes(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Read some of the features' bytes, counted from the first value; at the end, fewer.

        Raises:
            StorageError: the file has gone, or cannot be read, or is another one by now.
        """
        count = min(count, self.nbytes - start)
        try:
            read = np.fromfile(self.path, np.uint8, count, offset=self.offset + start)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read any more ({error})") from error
        self.check()
        if len(read) < count:  # NumPy is silent about an error of the disk
            raise StorageError(f"{self.path}: cannot be read any more (its end is missing)")
        return read

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
        if self.stamp is None:
            return
        try:
            stamp = stamp_of(self.path)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read any more ({error})") from error
        if stamp != self.stamp:
            raise StorageError(
                f"{self.path}: has changed since the run started, which goes on once the data is "
                "as it was"
            )


@contextmanager
def temporary_feature_file(features: Array, folder: Path | None) -> Iterator[FeatureFile]:
    """Write features to a file, in C order, that is removed at the end.

    Args:
        features: (N, *sample_shape).
        folder: the file goes into a folder within this one; by default the system's for temporary
            files.

    Raises:
        BadInput: there is no room for it.
    """
    folder, needed = folder or temporary_folder(), features.nbytes
    option = f"--scratch_dir {folder}"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = stack.enter_context(scratch_dir(folder)) / "features"
            free = free_bytes(folder)  # without what killed runs have left there
            if free < needed:
                raise BadInput(
                    f"{option}: has {size_text(free)} free, and the features, which workers read "
                    f"from a file, take {size_text(needed)}; expected a folder with that room"
                )
            step = max(1, len(features) * _WRITE_BYTES // max(1, needed))
            with open(path, "xb") as file:
                for first in range(0, len(features), step):
                    file.write(np.ascontiguousarray(features[first : first + step]).data)
        except OSError as error:
            raise BadInput(
                f"{option}: cannot be written ({error.strerror or error}), and the features, which "
                f"workers read from a file, take {size_text(needed)}; expected a folder with that "
                "room"
            ) from error
        yield FeatureFile(path, 0, features.shape, features.dtype.name, stamp=None)


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file is replaced or written to: inode, size and time."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
