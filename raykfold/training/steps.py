"""A step over one batch: as it comes, or replayed from a recording of what it does on a GPU.

A step at small batches is some hundred kernels of a few microseconds each, and Python takes longer
to start them than the GPU to run them. A CUDA graph starts all of them at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of a batch's indices, (B,) long: mean loss, a scalar; how many were classified right, long.
Step = Callable[[Tensor], tuple[Tensor, Tensor]]
# Makes a recording of a step over such a batch. The step that it gives back does the same with a
# batch of equal size; its two tensors are the same ones each time.
Recorder = Callable[[Step, Tensor], Step]

# Libraries set themselves up in the first calls, which a recording must not contain.
_RUNS_BEFORE_RECORDING = 3


class RecordedStep:
    """A step that is recorded, for each size of batch, once it has run a few times.

    A recording is tried against the step itself, on one batch, and taken over only if all is equal
    to the bit. Where it is not, or none can be made, the step goes on to run as it comes.

    Args:
        step: what to do. It may change what `state` gives, in place, and on a GPU the GPU's random
            generator, and nothing else that matters to later steps: a recording knows tensors by
            their addresses, and holds what Python has decided once for all.
        recorder: makes recordings; None where there are none to be had.
        state: the tensors that the step changes, in an order that stays.
    """

    def __init__(
        self, step: Step, recorder: Recorder | None, state: Callable[[], Sequence[Tensor]]
    ) -> None:
        self.refused: str | None = None  # why there is no recording, once that is known
        self._step = step
        self._recorder = recorder
        self._state = state
        self._runs: Counter[int] = Counter()
        self._recordings: dict[int, Step] = {}

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = len(rows)
        if size in self._recordings:
            return self._recordings[size](rows)
        if self._recorder is None or self._runs[size] < _RUNS_BEFORE_RECORDING:
            self._runs[size] += 1
            return self._step(rows)
        return self._record(self._recorder, rows)

    def forget(self) -> None:
        """Drop the recordings: the step has other constants now, or other tensors to work on."""
        self._recordings.clear()

    def _record(self, recorder: Recorder, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Run the step as it comes; do it over with a recording, and compare."""
        before, drawn = _snapshot(self._state(), rows.device), _drawn_on_host()
        loss, right = (value.clone() for value in self._step(rows))
        after = _snapshot(self._state(), rows.device)
        try:
            if rows.device.type == "cuda" and _drawn_on_host() != drawn:
                raise RuntimeError("the step draws random numbers that are not the GPU's")
            _restore(self._state(), before)
            addresses = [tensor.data_ptr() for tensor in self._state()]
            recording = recorder(self._step, rows)
            if [tensor.data_ptr() for tensor in self._state()] != addresses:
                raise RuntimeError("the step does not change its tensors in place")
            _restore(self._state(), before)
            again = recording(rows)
            got = _snapshot(self._state(), rows.device)
            if not _same([*after, loss, right], [*got, *again]):
                raise RuntimeError("a recording of the step gives other results")
        except Exception as error:  # a network can do anything that cannot be recorded
            self._recorder = None
            self.refused = _cause(error)
            self._recordings.clear()
            _restore(self._state(), after)
            return loss, right
        self._recordings[len(rows)] = recording
        return again


def no_recordings(why: str) -> Recorder:
    """For steps that are not to be recorded where they could be."""

    def record(step: Step, rows: Tensor) -> Step:
        raise NotImplementedError(why)

    return record


def cuda_graphs(stream: torch.cuda.Stream) -> Recorder:
    """Recordings as CUDA graphs, made on `stream`.

    They share a pool of memory: what one leaves there (gradients, say) holds until another of them
    is replayed.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(step: Step, rows: Tensor) -> Step:
        inputs = rows.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            loss, right = step(inputs)

        def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
            inputs.copy_(batch)
            graph.replay()
            return loss, right

        return replay

    return record


def _cause(error: BaseException) -> str:
    """The first error: when a recording has failed, CUDA only says that something did before."""
    while error.__context__ is not None:
        error = error.__context__
    text = str(error).partition("\n")[0]
    return (
        text
        if type(error) in (RuntimeError, NotImplementedError)
        else f"{type(error).__name__}: {text}"
    )


def _drawn_on_host() -> tuple[object, ...]:
    numbers: Any = np.random.get_state(legacy=False)
    words, position = numbers["state"]["key"].tolist(), numbers["state"]["pos"]
    return random.getstate(), words, position, torch.get_rng_state().tolist()


def _snapshot(tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Copies, and behind them the state of the generator that steps draw from."""
    drawn = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return [*(tensor.detach().clone() for tensor in tensors), drawn]


def _restore(tensors: Iterable[Tensor], snapshot: Sequence[Tensor]) -> None:
    """In place: recordings know tensors by their addresses."""
    *values, drawn = snapshot
    device = torch.device("cpu")
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
            device = tensor.device
    if device.type == "cuda":
        torch.cuda.set_rng_state(drawn, device)
    else:
        torch.set_rng_state(drawn)


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(_equal(a, b) for a, b in zip(one, other, strict=True))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point():  # where training has gone astray, it has in both
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return torch.equal(one, other)
