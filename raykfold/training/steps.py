"""Steps over one batch, which a GPU can replay from recordings.

At small batch sizes a step is some hundred kernels of a few microseconds each, and Python takes
longer to start them than the GPU to run them. A CUDA graph starts all of them at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# Takes the indices of a batch, (B,) long, and its samples unless they are on the device already;
# returns its mean loss and its number of correctly classified samples, both scalars.
Step: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
# Records a step over the given batch: `recorder(step, *batch)`. The step that it returns does the
# same for any batch of that size, and returns the same two tensors each time, with new values.
Recorder: TypeAlias = Callable[..., Step]

# Libraries initialize themselves in the first calls, which a recording must not contain.
_RUNS_BEFORE_RECORDING = 3


class RecordedStep:
    """A step that is recorded, for each batch size, once it has run a few times.

    Each recording is compared with the step itself on one batch, and used only if all results are
    equal to the bit. If they differ, or recording fails, the step runs without recordings.

    Args:
        step: the step to record. A recording refers to tensors by their addresses and contains
            every decision that Python made. So the step may change the tensors of `state`, in
            place, and the GPU's random generator, but nothing else that later steps depend on.
        recorder: makes recordings; None where that is impossible.
        state: returns the tensors that the step changes, always in the same order.
    """

    def __init__(
        self, step: Step, recorder: Recorder | None, state: Callable[[], Sequence[Tensor]]
    ) -> None:
        self.refused: str | None = None  # why recordings are not used
        self._step = step
        self._recorder = recorder
        self._state = state
        self._runs: Counter[int] = Counter()
        self._recordings: dict[int, Step] = {}

    def __call__(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        size = len(batch[0])
        if size in self._recordings:
            return self._recordings[size](*batch)
        if self._recorder is None or self._runs[size] < _RUNS_BEFORE_RECORDING:
            self._runs[size] += 1
            return self._step(*batch)
        return self._record(self._recorder, batch)

    def forget(self) -> None:
        """Drop the recordings, because the step has other constants or other tensors now."""
        self._recordings.clear()

    def _record(self, recorder: Recorder, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        # Run the step itself. Its results count, whatever becomes of the recording.
        device = batch[0].device
        before, host_before = _copy(self._state(), device), _host_random_state()
        loss, right = (value.clone() for value in self._step(*batch))
        after = _copy(self._state(), device)
        try:
            if device.type == "cuda" and _host_random_state() != host_before:
                raise RuntimeError("the step draws random numbers that are not the GPU's")

            # Record the step from the same state.
            _restore(self._state(), before)
            addresses = [tensor.data_ptr() for tensor in self._state()]
            recording = recorder(self._step, *batch)
            if [tensor.data_ptr() for tensor in self._state()] != addresses:
                raise RuntimeError("the step does not change its tensors in place")

            # Replay the recording, again from the same state, and compare.
            _restore(self._state(), before)
            replayed = recording(*batch)
            pairs = zip(
                [*after, loss, right], [*_copy(self._state(), device), *replayed], strict=True
            )
            # A NaN equals a NaN: where training diverges, it does so in both.
            if not all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs):
                raise RuntimeError("a recording of the step gives other results")
        except Exception as error:  # a network can do anything that cannot be recorded
            self._recorder = None
            self.refused = _first_cause(error)
            self._recordings.clear()
            _restore(self._state(), after)
            return loss, right
        self._recordings[len(batch[0])] = recording
        return replayed


def no_recordings(why: str) -> Recorder:
    """Return a recorder that refuses, for steps that should not be recorded though they could."""

    def record(step: Step, *batch: Tensor) -> Step:
        raise NotImplementedError(why)

    return record


def cuda_graphs(stream: torch.cuda.Stream) -> Recorder:
    """Return a recorder that makes CUDA graphs on `stream`.

    Its graphs share a memory pool: what one leaves there, like gradients, is valid until the next
    one is replayed.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(step: Step, *example: Tensor) -> Step:
        inputs = [tensor.clone() for tensor in example]
        graph = torch.cuda.CUDAGraph()
        # Only this thread: another one gathers the next batches into pinned memory meanwhile.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            loss, right = step(*inputs)

        def replay(*batch: Tensor) -> tuple[Tensor, Tensor]:
            for there, new in zip(inputs, batch, strict=True):
                there.copy_(new)
            graph.replay()
            return loss, right

        return replay

    return record


def _first_cause(error: BaseException) -> str:
    """Return the first error of a chain: CUDA's later ones only say that there was one before."""
    while error.__context__ is not None:
        error = error.__context__
    text = str(error).partition("\n")[0]
    if type(error) in (RuntimeError, NotImplementedError):
        return text
    return f"{type(error).__name__}: {text}"


def _host_random_state() -> tuple[object, ...]:
    numpy_state: Any = np.random.get_state()
    _, words, *rest = numpy_state
    return random.getstate(), words.tolist(), rest, torch.get_rng_state().tolist()


def _copy(tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Return copies, followed by the state of the random generator that steps draw from."""
    generator = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return [*(tensor.detach().clone() for tensor in tensors), generator]


def _restore(tensors: Iterable[Tensor], copies: Sequence[Tensor]) -> None:
    """Set tensors and random generator to their `copies`, in place: recordings have addresses."""
    *values, generator = copies
    device = torch.device("cpu")
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
            device = tensor.device
    if device.type == "cuda":
        torch.cuda.set_rng_state(generator, device)
    else:
        torch.set_rng_state(generator)
