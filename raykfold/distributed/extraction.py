"""Makes features of recordings in Ray tasks, in the order of the recordings."""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raykfold.config.environment import worker_runtime_env
from raykfold.data.audio import NoFfmpeg, NoSuchFile
from raykfold.data.log_mel import FeatureParameters, features_of_file
from raykfold.data.parquet_audio import AudioSources, ParquetCell
from raykfold.data.spool import Spool
from raykfold.errors import BadData, BadInput, RaykfoldError

MOST_FILES = 50  # in a task: a worker's first one waits seconds for librosa to load
_MOST_FEATURES = 16 * 2**20  # bytes that a task returns, if recordings are one sample each
# Bytes of files in a task, if recordings are cut into windows, for each window that a moment is in.
_MOST_AUDIO = 32 * 2**20
# Tasks in flight for each CPU. Those that are done wait in the object store for the ones before
# them; with more of them, a slow task holds up less, and more memory is needed.
_TASKS_PER_CPU = 3


class Chunk(NamedTuple):
    """What a task returns of some recordings.

    Attributes:
        features: (rows, n_mels, frames).
        windows: number of rows of each recording.
        problems: index → why that recording could not be read.
        node: where the task ran.
    """

    features: np.ndarray
    windows: list[int]
    problems: dict[int, BadData]
    node: str


def extract_features(
    spool: Spool,
    audio_dir: Path | None,
    paths: Sequence[Path | ParquetCell],
    sizes: Sequence[int],
    parameters: FeatureParameters,
    dtype: npt.DTypeLike,
    *,
    strict: bool,
    own_instance: bool,
    advance: Callable[[int], None],
) -> None:
    """Add the features of the recordings that `spool` lacks to it.

    Args:
        spool: what earlier calls have done, of the first recordings in `paths`.
        audio_dir: the folder that every node should have, if the recordings are in one.
        paths: of all recordings.
        sizes: of the recordings in bytes, about.
        parameters: of the features.
        dtype: of the features.
        strict: stop at a recording that cannot be read.
        own_instance: whether Ray is this process's own.
        advance: called with the number of recordings that are done since the last call.

    Raises:
        BadData: a recording could not be read, and `strict`.
        BadInput: a node lacks `audio_dir` or librosa, or a recording, or ffmpeg, that is here.
        RaykfoldError: Ray lost a task more often than it retries.
        StorageError: the spool cannot be written.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(num_cpus=1, runtime_env=worker_runtime_env(own_instance))(chunk_features)
    chunks = chunk_ends(sizes, spool.done, parameters, dtype)
    # The driver holds one chunk at a time, and the object store those in flight.
    in_flight: deque[tuple[int, ray.ObjectRef[Any]]] = deque()  # with where it stops
    start = stop = spool.done
    try:
        while True:
            most = _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(in_flight) < most and (end := next(chunks, None)) is not None:
                chunk_paths = paths[start:end]
                in_flight.append((end, task.remote(audio_dir, chunk_paths, parameters, dtype)))
                start = end
            if not in_flight:
                return
            stop, reference = in_flight.popleft()
            chunk: Chunk = ray.get(reference)
            require_same_machine(chunk, paths[spool.done : stop])
            if chunk.problems and strict:
                raise BadData(f"--strict: {next(iter(chunk.problems.values()))}")
            problems = {index: str(error) for index, error in chunk.problems.items()}
            spool.append(chunk.features, chunk.windows, problems)
            advance(len(chunk.windows))
    except RayTaskError as error:
        if isinstance(error.cause, RaykfoldError):
            raise error.cause from None
        if isinstance(error.cause, ImportError):
            raise BadInput(
                f"a node cannot import what is needed there ({error.cause}); expected raykfold "
                "installed on it, or prepare submitted by ray job submit --working-dir"
            ) from error
        where = _names(paths[spool.done : stop])
        raise RaykfoldError(f"a task failed{where}: {error.cause!r}") from error
    except RayError as error:
        where = _names(paths[spool.done : stop])
        raise RaykfoldError(f"Ray lost a task{where}: {error}") from error


def _names(paths: Sequence[Path | ParquetCell]) -> str:
    """Return which recordings a task had, for a message."""
    if not paths:
        return ""
    more = f" to {paths[-1]}" if len(paths) > 1 else ""
    return f", of {paths[0]}{more}"


def require_same_machine(chunk: Chunk, paths: Sequence[Path | ParquetCell]) -> None:
    """Check that no recording is lost for what its node lacks and this machine has.

    Else it would depend on where Ray runs a task which recordings are lost.

    Raises:
        BadInput: one is; it names the node.
    """
    for index, error in chunk.problems.items():
        path = paths[index]
        if isinstance(error, NoSuchFile) and isinstance(path, Path) and os.path.exists(path):
            raise BadInput(
                f"{path}: does not exist on node {chunk.node}; expected every node of the cluster "
                "to be able to read it"
            )
        if isinstance(error, NoFfmpeg) and shutil.which("ffmpeg"):
            raise BadInput(
                f"{error} on node {chunk.node}, and is here; expected the program ffmpeg on the "
                "PATH of every node"
            )


def chunk_ends(
    sizes: Sequence[int], start: int, parameters: FeatureParameters, dtype: npt.DTypeLike
) -> Iterator[int]:
    """Yield where each task's recordings end, from recording `start` on, in bounded memory."""
    n_mels, frames = parameters.shape
    row = n_mels * frames * np.dtype(dtype).itemsize
    most_files = min(MOST_FILES, max(1, _MOST_FEATURES // row))
    # How many windows a moment is in.
    overlap = 1 if parameters.hop is None else math.ceil(parameters.seconds / parameters.hop)
    first, audio = start, 0
    for index in range(start, len(sizes)):
        audio += sizes[index] * overlap
        too_long = parameters.hop is not None and audio > _MOST_AUDIO
        if index > first and (index - first == most_files or too_long):
            yield index
            first, audio = index, sizes[index] * overlap
    if first < len(sizes):
        yield len(sizes)


def chunk_features(
    audio_dir: Path | None,
    paths: Sequence[Path | ParquetCell],
    parameters: FeatureParameters,
    dtype: npt.DTypeLike,
) -> Chunk:
    """Return the features of some recordings.

    Raises:
        BadInput: this node lacks `audio_dir`, or a Parquet file.
    """
    if audio_dir is not None and not audio_dir.is_dir():
        raise BadInput(
            f"--audio_dir {audio_dir}: does not exist on node {socket.gethostname()}; "
            "every node of the cluster should be able to read it"
        )
    parts: list[np.ndarray] = []
    windows: list[int] = []
    problems: dict[int, BadData] = {}
    sources = AudioSources()
    for index, path in enumerate(paths):
        try:
            parts.append(features_of_file(sources.open(path), parameters, dtype))
        except BadData as error:
            problems[index] = type(error)(str(error))  # without the frames, which hold the audio
            windows.append(0)
        else:
            windows.append(len(parts[-1]))
    if len(parts) == 1:  # one may be an hour long: no copy
        features = parts[0]
    else:
        features = np.concatenate([np.empty((0, *parameters.shape), dtype), *parts])
    return Chunk(features, windows, problems, socket.gethostname())
