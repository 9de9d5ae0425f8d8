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
    """A fold's own state of the generators of Python, NumPy and torch (CPU, and CUDA on a GPU).

    The libraries' generators are global; the fold's states stand in for them while it is stepped.
    """

    def __init__(self, seed: int, fold: int, device: torch.device) -> None:
        digest = hashlib.blake2b(f"raykfold/{seed}/{fold}".encode(), digest_size=32).digest()
        seeds = [int.from_bytes(digest[start : start + 8], "little") for start in range(0, 32, 8)]
        self._cuda = _default_generator(device) if device.type == "cuda" else None
        # A recorded step draws from the state that it was recorded with. Were it one for all folds,
        # those that a GPU steps side by side would write a seed where others are about to read it.
        self._cuda_state = None if self._cuda is None else self._cuda.clone_state()
        with self.kept():
            random.seed(seeds[0])
            np.random.seed(seeds[1] % 2**32)
            torch.manual_seed(seeds[2])
            if self._cuda_state is not None:
                self._cuda_state.manual_seed(seeds[3])
            self._state = _capture()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The fold's streams are the global generators inside, and go on from there next time."""
        with self.kept(), self._cuda_swapped_in():
            _restore(self._state)
            yield
            self._state = _capture()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is drawn inside, the global generators are afterwards as they were."""
        outside = _capture()
        of_cuda = None if self._cuda is None else self._cuda.get_state()
        try:
            yield
        finally:
            _restore(outside)
            if self._cuda is not None and of_cuda is not None:
                self._cuda.set_state(of_cuda)

    def state_dict(self) -> dict[str, Any]:
        of_cuda = {} if self._cuda_state is None else {"cuda": self._cuda_state.get_state()}
        return {**self._state, **of_cuda}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state = dict(state)
        if self._cuda_state is not None:
            self._cuda_state.set_state(state["cuda"].cpu())

    @contextmanager
    def _cuda_swapped_in(self) -> Iterator[None]:
        if self._cuda is None or self._cuda_state is None:
            yield
            return
        outside = self._cuda.graphsafe_get_state()
        self._cuda.graphsafe_set_state(self._cuda_state)
        try:
            yield
        finally:
            self._cuda.graphsafe_set_state(outside)


def _default_generator(device: torch.device) -> torch.Generator:
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def _capture() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)
    version, words, gauss = random.getstate()
    return {
        "python": (version, tuple(words), gauss),
        "numpy_words": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["state"]["pos"]),
        "numpy_has_gauss": int(numpy_state["has_gauss"]),
        "numpy_gauss": float(numpy_state["gauss"]),
        "torch": torch.get_rng_state(),
    }


def _restore(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(
        (
            "MT19937",
            state["numpy_words"].numpy().astype(np.uint32),
            state["numpy_position"],
            state["numpy_has_gauss"],
            state["numpy_gauss"],
        )
    )
    torch.set_rng_state(state["torch"].cpu())
