"""The observers of a run: who is told, and what becomes of one that fails."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from raykfold.errors import StorageError
from raykfold.observers import Audience, Observer
from raykfold.outputs.console import console
from raykfold.training.results import EpochMetrics


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 1.5, 0.25, 1.25, 0.5 + number / 10, 0.001, 2.0)


def test_an_observer_that_does_not_know_of_repeats_is_not_told_of_them() -> None:
    failing = Failing(OSError("told"))
    Audience([failing]).of_repeat(4).epoch_committed(1, epoch(0))
    assert failing.heard == 0


class Failing(Observer):
    """Fails each time that it hears of an epoch."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.heard = 0

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self.heard += 1
        raise self.error


def test_an_observer_that_fails_is_told_no_more_and_the_others_are() -> None:
    failing, stream = Failing(OSError("service\nis down")), io.StringIO()
    audience = Audience([failing, console(stream)])
    audience.epoch_committed(1, epoch(0))
    audience.epoch_committed(1, epoch(1))
    assert failing.heard == 1
    assert stream.getvalue().count("fold 1  epoch") == 2
    assert "Failing failed and is not told any more: service is down" in stream.getvalue()


class Sending(Observer):
    """Has files to send, also while it is closed."""

    def __init__(self, place: str, count: int | Exception) -> None:
        self.place = place
        self.count = count
        self.asks: object = None

    def pending(self) -> dict[str, int]:
        if isinstance(self.count, Exception):
            raise self.count
        return {self.place: self.count}

    def close(self) -> None:
        assert isinstance(self.asks, Audience)
        assert self.asks.pending() == {"Hub": 3, "s3": 4}


def test_what_is_pending_is_summed_also_while_observers_are_closed() -> None:
    sending = [Sending("Hub", 1), Sending("Hub", 2), Sending("s3", 4)]
    failing = Sending("Hub", OSError("gone"))
    audience = Audience([Observer(), sending[0]])
    for observer in (*sending[1:], failing):
        audience.add(observer)
    for observer in (*sending, failing):
        observer.asks = audience
    audience.close()
    assert audience.pending() == {"Hub": 3, "s3": 4}


def test_all_hear_of_workers() -> None:
    class Hearing(Observer):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def workers_changed(self, at_work: Sequence[Sequence[int]]) -> None:
            self.heard.append(at_work)

        def worker_lost(self, folds: Sequence[int], reason: str) -> None:
            self.heard.append((folds, reason))

    both = [Hearing(), Hearing()]
    audience = Audience(both)
    audience.workers_changed([(1, 2)])
    audience.worker_lost((1, 2), "killed")
    assert both[0].heard == both[1].heard == [[(1, 2)], ((1, 2), "killed")]


def test_an_observer_can_end_the_run() -> None:
    with pytest.raises(StorageError, match="disk"):
        Audience([Failing(StorageError("the disk is full"))]).epoch_committed(1, epoch(0))


class Closing(Observer):
    """Says its name when it is closed, and can be interrupted at that."""

    def __init__(self, name: str, said: list[str], *, interrupted: bool = False) -> None:
        self.name = name
        self.said = said
        self.interrupted = interrupted

    def close(self) -> None:
        self.said.append(self.name)
        if self.interrupted:
            raise KeyboardInterrupt


def test_the_last_observer_is_closed_first_and_each_once_even_if_interrupted() -> None:
    said: list[str] = []
    audience = Audience([Closing("a", said), Closing("b", said, interrupted=True)])
    audience.add(Closing("c", said))
    with pytest.raises(KeyboardInterrupt):
        audience.close()
    audience.close()
    assert said == ["c", "b", "a"]
