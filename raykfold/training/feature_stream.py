"""Features that stay in host memory, or in a file, while batches of them go to the device."""

from __future__ import annotations

import mmap
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from raykfold.data.labels import Array

_AHEAD = 2  # batches that are gathered before a step asks for them
_ANNOUNCED = 2  # batches more that the kernel is told about
# Batches of a fold that may be on a GPU, waiting for their steps: two turns of `run_epochs`, so
# that folds are computed side by side, or fewer if they are large.
_QUEUED = 16
_QUEUED_BYTES = 2**28
# Small samples in a small file are all in memory soon. To announce each, and to hand batches from
# thread to thread, would cost more than it saves: 0.1 ms a batch, a third of a small step.
_SMALL_SAMPLE = mmap.PAGESIZE
_SMALL_FILE = 2**30
_PART_BYTES = 64 * 2**20  # that are copied to the device at once


class FeatureStream:
    """Batches of features, gathered ahead in a thread where that saves time.

    Features may be a map of a file that is larger than memory: the kernel keeps of it what there is
    room for. It is told which samples come next, because what it reads by itself around a sample
    would be for nothing: batches are in random order.

    On a GPU, a batch is gathered into pinned memory and copied on a CUDA stream of its own, while
    steps before it are computed.

    Args:
        features: (N, *input_shape) floats, integers or bools, in host memory.
        device: gets the batches.
    """

    def __init__(self, features: Array, device: torch.device) -> None:
        self.device = device
        with warnings.catch_warnings():
            # A map of the features is read-only, and so is what becomes of it: it is only read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._features = torch.from_numpy(np.asarray(features))
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._announcer = _Announcer.of(features)
        # Only copies to a GPU, and reading from a disk, are waited for.
        waits = self._copies is not None or self._announcer is not None
        self._thread = ThreadPoolExecutor(1, "features") if waits else None

    @property
    def shape(self) -> torch.Size:
        return self._features.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._features.dtype

    @property
    def nbytes(self) -> int:
        return self._features.nbytes

    def on_device(self, on_batch: Callable[[], None] = lambda: None) -> Tensor:
        """Return all features on the device, (N, *input_shape), in memory of their own.

        Args:
            on_batch: called after each part of them.

        Raises:
            torch.OutOfMemoryError, RuntimeError: there is too little memory.
        """
        features = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        size = max(_PART_BYTES // self._features[0].nbytes, 1)
        for there, part in zip(features.split(size), self._features.split(size), strict=True):
            there.copy_(part)
            on_batch()
        return features

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the samples of each batch, (B, *input_shape), on the device, in the features' type.

        Args:
            batches: (B,) long each, indices of samples in host memory.
        """
        if self._thread is None:
            for rows in batches:
                yield self._features.index_select(0, rows)
            return
        coming = iter(batches)
        announced: deque[Tensor] = deque()
        gathered: deque[Future[tuple[Tensor, torch.cuda.Event | None]]] = deque()
        steps: deque[torch.cuda.Event] = deque()
        while True:
            for rows in islice(coming, _AHEAD + _ANNOUNCED - len(gathered) - len(announced)):
                if self._announcer is not None:
                    self._thread.submit(self._announcer.announce, rows)
                announced.append(rows)
            while announced and len(gathered) < _AHEAD:
                gathered.append(self._thread.submit(self._gather, announced.popleft()))
            if not gathered:
                return
            samples, copied = gathered.popleft().result()
            if copied is None:
                yield samples
                continue
            # The step's stream waits for the copy, and its memory for the step.
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copied)
            samples.record_stream(stream)
            yield samples
            # Steps are queued sooner than they are computed, and each has its samples on the GPU.
            steps.append(stream.record_event())
            if len(steps) > min(_QUEUED, _QUEUED_BYTES // samples.nbytes + 1):
                steps.popleft().synchronize()

    def _gather(self, rows: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Return samples on the device, and what says when their copy is complete."""
        if self._copies is None:
            return self._features.index_select(0, rows), None
        size = (len(rows), *self.shape[1:])
        with torch.cuda.stream(self._copies):  # PyTorch asks for this thread's, also to pin memory
            samples = torch.empty(size, dtype=self.dtype, pin_memory=True)
            torch.index_select(self._features, 0, rows, out=samples)
            # The pinned memory is not used again before the copy is complete: PyTorch sees to it.
            return samples.to(self.device, non_blocking=True), self._copies.record_event()


class _Announcer:
    """Tells the kernel which samples of a mapped file are needed soon, in the order of the file.

    It then reads these alone, many at a time. Measured on a cold file of 6 GB, batches of 32: 2 ms
    instead of 60 where a sample has 88 KB, and 1 ms instead of 90 where it has 8 KB.

    Args:
        file: the map.
        start: of the first sample in the map, in bytes.
        sample: bytes of one.
    """

    def __init__(self, file: mmap.mmap, start: int, sample: int) -> None:
        self._file = file
        self._start = start
        self._sample = sample

    @classmethod
    def of(cls, features: Array) -> _Announcer | None:
        """Return the announcer of features in a mapped file; None for others, and small ones."""
        base: object = features
        while isinstance(base, np.ndarray):
            base = base.base
        if not (isinstance(base, mmap.mmap) and features.flags.c_contiguous):
            return None
        sample = features[0].nbytes
        is_small = sample < _SMALL_SAMPLE and features.nbytes < _SMALL_FILE
        if is_small or not hasattr(mmap, "MADV_WILLNEED"):
            return None
        whole = np.frombuffer(base, np.uint8)
        return cls(base, features.ctypes.data - whole.ctypes.data, sample)

    def announce(self, rows: Tensor) -> None:
        """Have the samples of these rows, (B,) long, read into memory; do not wait for them."""
        for row in rows.sort().values.tolist():
            start = self._start + row * self._sample
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._file.madvise(mmap.MADV_WILLNEED, first, start + self._sample - first)
