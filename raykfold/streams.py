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
        self._device = device if device.type == "cuda" else None
        with self.kept():
            random.seed(seeds[0])
            np.random.seed(seeds[1] % 2**32)
            torch.manual_seed(seeds[2])
            if self._device is not None:
                torch.cuda.manual_seed(seeds[3])
            self._state = self._capture()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The fold's streams are the global generators inside, and go on from there next time."""
        with self.kept():
            self._restore(self._state)
            yield
            self._state = self._capture()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is drawn inside, the global generators are afterwards as they were."""
        outside = self._capture()
        try:
            yield
        finally:
            self._restore(outside)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state = dict(state)

    def _capture(self) -> dict[str, Any]:
        numpy_state: Any = np.random.get_state(legacy=False)
        version, words, gauss = random.getstate()
        state = {
            "python": (version, tuple(words), gauss),
            "numpy_words": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "numpy_position": int(numpy_state["state"]["pos"]),
            "numpy_has_gauss": int(numpy_state["has_gauss"]),
            "numpy_gauss": float(numpy_state["gauss"]),
            "torch": torch.get_rng_state(),
        }
        if self._device is not None:
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
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
        if self._device is not None:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self._device)
