"""Makes features of recordings in Ray tasks, in the order of the recordings."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raykfold.config.environment import worker_runtime_env
from raykfold.data.log_mel import FeatureParameters, features_of_file
from raykfold.data.parquet_audio import AudioSources, ParquetCell
from raykfold.data.spool import Spool
from raykfold.errors import BadData, BadInput, RaykfoldError

MOST_FILES = 50  # in a task: a worker's first one waits seconds for librosa to load
_MOST_FEATURES = 16 * 2**20  # bytes that a task returns, if recordings are one sample each
_MOST_AUDIO = 32 * 2**20  # bytes of files in a task, if recordings are cut into windows
# Tasks in flight for each CPU. Those that are done wait in the object store for the ones before
# them; with more of them, a slow task holds up less, and more memory is needed.
_TASKS_PER_CPU = 3


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
        BadInput: a node lacks `audio_dir` or librosa.
        RaykfoldError: Ray lost a task more often than it retries.
        StorageError: the spool cannot be written.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(num_cpus=1, runtime_env=worker_runtime_env(own_instance))(chunk_features)
    chunks = chunk_ends(sizes, spool.done, parameters, dtype)
    # The driver holds one chunk at a time, and the object store those in flight.
    in_flight: deque[ray.ObjectRef[Any]] = deque()
    start = spool.done
    try:
        while True:
            most = _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(in_flight) < most and (stop := next(chunks, None)) is not None:
                in_flight.append(task.remote(audio_dir, paths[start:stop], parameters, dtype))
                start = stop
            if not in_flight:
                return
            features, windows, problems = ray.get(in_flight.popleft())
            if problems and strict:
                raise BadData(f"--strict: {next(iter(problems.values()))}")
            spool.append(features, windows, problems)
            advance(len(windows))
    except RayTaskError as error:
        if isinstance(error.cause, RaykfoldError):
            raise error.cause from None
        if isinstance(error.cause, ImportError):
            raise BadInput(
                f"a node cannot import what is needed there ({error.cause}); expected raykfold "
                "installed on it, or prepare submitted by ray job submit --working-dir"
            ) from error
        raise RaykfoldError(f"a task failed: {error.cause!r}") from error
    except RayError as error:
        raise RaykfoldError(f"Ray lost a task: {error}") from error


def chunk_ends(
    sizes: Sequence[int], start: int, parameters: FeatureParameters, dtype: npt.DTypeLike
) -> Iterator[int]:
    """Yield where each task's recordings end, from recording `start` on, in bounded memory."""
    n_mels, frames = parameters.shape
    row = n_mels * frames * np.dtype(dtype).itemsize
    most_files = min(MOST_FILES, max(1, _MOST_FEATURES // row))
    first, audio = start, 0
    for index in range(start, len(sizes)):
        audio += sizes[index]
        too_long = parameters.hop is not None and audio > _MOST_AUDIO
        if index > first and (index - first == most_files or too_long):
            yield index
            first, audio = index, sizes[index]
    if first < len(sizes):
        yield len(sizes)


def chunk_features(
    audio_dir: Path | None,
    paths: Sequence[Path | ParquetCell],
    parameters: FeatureParameters,
    dtype: npt.DTypeLike,
) -> tuple[np.ndarray, list[int], dict[int, str]]:
    """Return the features of some recordings.

    Returns:
        The features (rows, n_mels, frames); the number of rows of each recording; and index → why
        that recording could not be read.

    Raises:
        BadInput: this node lacks `audio_dir`, or a Parquet file.
    """
    if audio_dir is not None and not audio_dir.is_dir():
        raise BadInput(
            f"--audio_dir {audio_dir}: does not exist on node {socket.gethostname()}; "
            "every node of the cluster should be able to read it"
        )
    parts = [np.empty((0, *parameters.shape), dtype=dtype)]
    windows, problems = [], {}
    sources = AudioSources()
    for index, path in enumerate(paths):
        try:
            parts.append(features_of_file(sources.open(path), parameters).astype(dtype, copy=False))
        except BadData as error:
            problems[index] = str(error)
            windows.append(0)
        else:
            windows.append(len(parts[-1]))
    return np.concatenate(parts), windows, problems
