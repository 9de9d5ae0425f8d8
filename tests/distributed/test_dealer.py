"""The dealer and shares that do not come to a round, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_file import FeatureFile
from raykfold.distributed import dealer as module
from raykfold.distributed.deal import WorkerSize
from raykfold.distributed.dealer import Dealer
from raykfold.distributed.events import CopyBegun, Event, NodeUnfit, ShareStarted
from raykfold.distributed.feature_copy import FeatureSource
from raykfold.distributed.trainer import End
from raykfold.errors import BadInput

Play = Callable[[str], list[Event]]


@pytest.fixture
def deal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], tuple[Dealer, MagicMock]]:
    """Make a dealer and its ledger of one fold. A share's events are those that the argument says.

    A share ends after its events; after a copy that has begun, by a crash.
    """

    def make(play: Play) -> tuple[Dealer, MagicMock]:
        events: list[Event] = []

        class Trainer:
            def __init__(self, name: str, *_: Any, **__: Any) -> None:
                self.name, self.stop, self.free_slot = name, MagicMock(), MagicMock()

            def fit(self) -> None:
                events.extend(play(self.name))
                if isinstance(events[-1], CopyBegun):
                    raise RuntimeError("killed")

        def events_from(number: int, _: float) -> list[Event]:
            time.sleep(0.01)
            return events[number:]

        board = SimpleNamespace(events_from=SimpleNamespace(remote=events_from))
        for name, value in {
            "ray": SimpleNamespace(get=lambda value: value),
            "start_actor": lambda _: board,
            "ShareTrainer": Trainer,
            "free_slots": lambda size, unusable: 1 - len(unusable),
            "inventory": lambda size: "1 node",
            "end_of": lambda error: End("killed", died=True, failed=True),
            "is_up": lambda node: True,
            "Watch": MagicMock(),
            "Request": MagicMock(),
            "_POLL_SECONDS": 0.01,
            "_UNFIT_SECONDS": 0.05,
        }.items():
            monkeypatch.setattr(module, name, value)
        module.Watch.return_value.leaving.return_value = set()  # type: ignore[attr-defined]
        module.Watch.return_value.silent.return_value = set()  # type: ignore[attr-defined]
        monkeypatch.setattr(Dealer, "_task", lambda self, ledger, name, folds: name)
        features = FeatureSource(FeatureFile(Path("/f"), 0, (8,), "uint8", None), None, "key", None)
        config = RunConfig(demo=True, wait_timeout=0.5)
        data = MagicMock(fold_labels=(1,))
        dealer = Dealer(
            config, data, features, MagicMock(), WorkerSize(1, 0), MagicMock(), None, False
        )
        ledger = MagicMock(waiting={1}, fold_names=lambda folds: f"fold {folds[0]}")
        ledger.unfinished.return_value = 1
        ledger.take_back.side_effect = lambda fold, death: ledger.waiting.add(fold)
        dealer.add(ledger)
        return dealer, ledger

    return make


def for_long(began: float) -> bool:
    assert time.monotonic() - began < 5, "the dealer waits for ever"
    return False


def test_a_node_that_is_left_out_again_and_again_is_no_slot(
    deal: Callable[[Play], tuple[Dealer, MagicMock]],
) -> None:
    def play(share: str) -> list[Event]:
        started = ShareStarted(share, "node", "10.0.0.1", 7, "")
        return [started, NodeUnfit(share, "node", "10.0.0.1", "it has no locks")]

    dealer, _ = deal(play)
    began = time.monotonic()
    with pytest.raises(BadInput, match=r"no free slot .*; node 10.0.0.1 is left out: it has no lo"):
        dealer.work(lambda: for_long(began))


def test_no_fold_is_blamed_for_a_worker_that_dies_while_it_copies(
    deal: Callable[[Play], tuple[Dealer, MagicMock]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(share: str) -> list[Event]:
        started = ShareStarted(share, "node", "10.0.0.1", 7, "")
        return [started, CopyBegun(share, "node", "10.0.0.1", "/told")]

    dealer, ledger = deal(play)
    began = time.monotonic()
    with pytest.raises(BadInput, match="no worker has come to a round; the last ended: killed"):
        dealer.work(lambda: for_long(began))
    assert ledger.take_back.call_args.args == (1, None)

    order: list[Any] = []
    dealer._request.close = lambda: order.append("request")  # type: ignore[union-attr,method-assign]
    monkeypatch.setattr(module, "all_nodes", lambda: [SimpleNamespace(id="node")])
    monkeypatch.setattr(module, "run_on", lambda nodes, task, *args, seconds: order.append(args))
    dealer.close()
    assert order == ["request", ("key", {Path("/told")})]
