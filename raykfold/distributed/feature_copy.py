"""How features come to a worker: in the driver's file, or in a copy on the disk of its node.

    the driver's file ── FeatureServer, on the driver's node ── chunks ──▶ a file in --scratch_dir

The copy is made by the first worker of a node, once for all of them (see
`raykfold.files.scratch.shared_file`). Whatever the size of the features, Ray's object store holds
the chunks that are on their way and no more.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from raykfold.data.feature_file import FeatureFile
from raykfold.errors import RaykfoldError
from raykfold.files.scratch import (
    free_bytes,
    remove_shared,
    scratch_dir,
    shared_bytes,
    shared_file,
    shared_path,
    temporary_folder,
)
from raykfold.text import size_text

Bytes = npt.NDArray[np.uint8]

# An object store of 80 MB, on the driver's node, holds what ten nodes at once have on their way.
_CHUNK_BYTES = 2 * 2**20
_IN_FLIGHT = 2
_FLUSH_BYTES = 128 * 2**20  # what may wait in memory for a slow disk


class ScratchError(Exception):
    """A node cannot hold a copy; the text says why."""


class FeatureServer:
    """Reads the features on the driver's node for the others.

    It is an actor of its own: where the object store is full, its answers wait for room, and the
    board's events must not.
    """

    def __init__(self, file: FeatureFile) -> None:
        self._file = file

    def chunk(self, start: int) -> Bytes:
        """Return bytes of the features from `start` on.

        Raises:
            StorageError: the file has gone, or is another one by now.
        """
        return self._file.read_bytes(start, _CHUNK_BYTES)


@dataclass(frozen=True)
class FeatureSource:
    """Where a worker finds the features.

    Attributes:
        file: that holds them, as the driver sees it.
        scratch: folder of a node for its copy; None for the system's for temporary files.
        session: name of the copies; no other session of Ray has it.
        server: handle of the `FeatureServer`; None on an own instance, where all see the file.
    """

    file: FeatureFile
    scratch: Path | None
    session: str
    server: Any | None

    @property
    def folder(self) -> Path:
        """This node's folder for a copy."""
        return self.scratch or temporary_folder()

    @contextmanager
    def on_this_node(
        self,
        count: Callable[[], object],
        copying: Callable[[], object],
        copied: Callable[[float], object],
    ) -> Iterator[FeatureFile]:
        """Yield the file that holds the features on this node: the driver's, or the node's copy.

        Args:
            count: called after each chunk, and while another worker makes the copy.
            copying: called before this worker makes the copy.
            copied: called with the seconds that it took.

        Raises:
            ScratchError: the copy cannot be written.
            StorageError: the driver's file has changed.
        """
        if self.server is None or self.file.is_seen():
            yield self.file
            return

        def write(path: Path) -> None:
            obstacle = self._lack_of_room()
            if obstacle is not None:
                raise ScratchError(obstacle)
            copying()
            began = time.monotonic()
            copy_features(self.file.nbytes, self._chunk, path, count)
            copied(time.monotonic() - began)

        with ExitStack() as stack:
            try:
                copy = stack.enter_context(shared_file(self.folder, self.session, write, count))
            except OSError as error:
                reason = error.strerror or error
                raise ScratchError(f"{self.folder} cannot be written ({reason})") from error
            yield replace(self.file, path=copy, offset=0, stamp=None)

    def obstacle(self) -> str | None:
        """Return why this node cannot have the features, or None if it can."""
        if self.server is None or self.file.is_seen():
            return None
        try:
            # A copy that is there stays, even if nobody uses it now. Leftovers of killed runs go.
            if shared_path(self.folder, self.session).exists():
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            with (
                scratch_dir(self.folder) as folder,
                shared_file(folder, "lock", Path.touch, lambda: None),
            ):
                pass
        except OSError as error:
            return f"{self.folder} cannot be written ({error.strerror or error})"
        return self._lack_of_room()

    def _lack_of_room(self) -> str | None:
        # A copy that is being made has taken some already.
        free = free_bytes(self.folder) + shared_bytes(self.folder, self.session)
        return f"{self.folder} has {size_text(free)} free" if free < self.file.nbytes else None

    def _chunk(self, start: int) -> Bytes:
        assert self.server is not None
        try:
            chunk: Bytes = ray.get(self.server.chunk.remote(start))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RaykfoldError):
                raise error.cause from None
            raise
        return chunk


def node_obstacle(source: FeatureSource) -> str | None:
    """Return `FeatureSource.obstacle`, as a task of Ray."""
    return source.obstacle()


def remove_copies(session: str, folders: Iterable[Path]) -> None:
    """Remove this node's copies from these folders, if any. Who has one mapped keeps it so."""
    for folder in folders:
        remove_shared(folder, session)


def copy_features(
    total: int, chunk: Callable[[int], Bytes], path: Path, count: Callable[[], object]
) -> None:
    """Write a copy of the features.

    Args:
        total: bytes of the features.
        chunk: returns the bytes from a position on, at least one; called in two threads.
        path: of the copy.
        count: called after each chunk.

    Raises:
        OSError: the copy cannot be written, or chunks are too short.
    """
    with open(path, "xb") as file, ThreadPoolExecutor(_IN_FLIGHT) as pool:
        starts = iter(range(0, total, _CHUNK_BYTES))
        ahead: deque[Future[Bytes]] = deque()
        while True:
            while len(ahead) < _IN_FLIGHT and (start := next(starts, None)) is not None:
                ahead.append(pool.submit(chunk, start))
            if not ahead:
                break
            file.write(ahead.popleft().result().data)
            count()
            if file.tell() % _FLUSH_BYTES == 0:
                file.flush()
                os.fsync(file.fileno())
        if file.tell() != total:
            raise OSError(f"{file.tell()} of {total} bytes came")
