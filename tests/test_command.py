from __future__ import annotations

import gc
import importlib

import pytest

from raykfold.command import uncollected


def test_garbage_is_collected_again_after_imports_whatever_came_of_them() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), uncollected():
        importlib.import_module("raykfold.nowhere")
    assert gc.isenabled()


def test_it_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
