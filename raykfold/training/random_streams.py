"""The random numbers of a fold, apart from those of the process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomStreams:
    """A fold's own states of the generators of Python, NumPy and torch (CPU, and CUDA on a GPU).

    The libraries' generators are global. While the fold is `active`, they have the fold's states.

    Args:
        seed: seed of the run.
        fold: the fold's label. Each pair of seed and label gives streams of its own.
        device: what the fold trains on.
    """

    def __init__(self, seed: int, fold: int, device: torch.device) -> None:
        digest = hashlib.blake2b(f"raykfold/{seed}/{fold}".encode(), digest_size=32).digest()
        seeds = [int.from_bytes(digest[start : start + 8], "little") for start in range(0, 32, 8)]
        self._cuda = _cuda_generator(device) if device.type == "cuda" else None
        # A recorded step draws from the state object that it was recorded with. If all folds had
        # the same one, one of them could write a seed while another is about to read its own.
        self._cuda_state = None if self._cuda is None else self._cuda.clone_state()
        with self.fork():
            random.seed(seeds[0])
            np.random.seed(seeds[1] % 2**32)
            torch.manual_seed(seeds[2])
            if self._cuda_state is not None:
                self._cuda_state.manual_seed(seeds[3])
            self._state = _get_global_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the global generators draw from the fold's streams, from where they last stopped."""
        with self.fork(), self._active_on_cuda():
            _set_global_state(self._state)
            yield
            self._state = _get_global_state()

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Reset the global generators at the end to what they were at the beginning."""
        before = _get_global_state()
        cuda_before = None if self._cuda is None else self._cuda.get_state()
        try:
            yield
        finally:
            _set_global_state(before)
            if self._cuda is not None and cuda_before is not None:
                self._cuda.set_state(cuda_before)

    @contextmanager
    def _active_on_cuda(self) -> Iterator[None]:
        if self._cuda is None or self._cuda_state is None:
            yield
            return
        before = self._cuda.graphsafe_get_state()
        self._cuda.graphsafe_set_state(self._cuda_state)
        try:
            yield
        finally:
            self._cuda.graphsafe_set_state(before)

    def state_dict(self) -> dict[str, Any]:
        """Return the states as tensors and plain values."""
        cuda = {} if self._cuda_state is None else {"cuda": self._cuda_state.get_state()}
        return self._state | cuda

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state_dict` was taken."""
        self._state = dict(state)
        if self._cuda_state is not None:
            self._cuda_state.set_state(state["cuda"].cpu())


def _cuda_generator(device: torch.device) -> torch.Generator:
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def _get_global_state() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state()
    name, words, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(words.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }


def _set_global_state(state: Mapping[str, Any]) -> None:
    name, words, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
