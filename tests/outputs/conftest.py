from __future__ import annotations

import time
from types import SimpleNamespace

import pytest


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub's client try again after a twentieth of its pauses, which begin with a second."""
    from huggingface_hub.utils import _http  # reads the environment, which is not set up before

    hurried = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 20))
    monkeypatch.setattr(_http, "time", hurried)
