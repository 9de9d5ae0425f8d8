"""What the errors of Ray Train are taken for. For a share's run see test_run."""

from __future__ import annotations

import errno

import pytest
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from raykfold.distributed.trainer import end_of


def of_worker(failure: Exception) -> WorkerGroupError:
    return WorkerGroupError("rank 0", {0: failure})


def raised(error: Exception) -> WorkerGroupError:
    return of_worker(UserExceptionWithTraceback(error, "Traceback …"))


def health(failure: Exception) -> WorkerGroupError:
    return of_worker(WorkerHealthCheckFailedError("a worker died", failure))


def unavailable() -> ActorUnavailableError:
    return ActorUnavailableError("reset by peer", b"0" * 16)


@pytest.mark.parametrize(
    ("error", "death", "failure"),
    [
        (health(ActorDiedError()), True, True),
        (health(unavailable()), False, False),
        (raised(torch.OutOfMemoryError("CUDA out of memory")), True, True),
        (raised(torch.AcceleratorError("CUDA error: device-side assert")), True, True),
        (raised(MemoryError()), True, True),
        (raised(ValueError("a bug")), False, True),
        (raised(OSError(errno.ESTALE, "Stale file handle")), False, False),
        (raised(ObjectLostError("00" * 28, None, "")), False, False),
        (ControllerError(WorkerGroupStartupFailedError("one did not initialize")), False, True),
        (
            ControllerError(WorkerGroupStartupFailedError("died because its node has died.")),
            False,
            False,
        ),
        (ControllerError(WorkerGroupStartupTimeoutError(1)), False, False),
        (ActorDiedError(), False, False),
    ],
    ids=lambda each: end_of(each).reason[:40] if isinstance(each, Exception) else str(each),
)
def test_what_a_fold_can_be_blamed_for(error: Exception, death: bool, failure: bool) -> None:
    assert (end_of(error).died, end_of(error).failed) == (death, failure)


@pytest.mark.parametrize(
    ("error", "displaced", "unexplained"),
    [
        (ControllerError(WorkerGroupStartupTimeoutError(1)), True, False),
        (
            ControllerError(WorkerGroupStartupFailedError("died because its node has died.")),
            True,
            False,
        ),
        (ControllerError(WorkerGroupStartupFailedError("one did not initialize")), False, False),
        (raised(AttributeError("no such method")), False, True),
        (ControllerError(TypeError("one argument too many")), False, True),
        (raised(MemoryError()), False, False),
        (raised(OSError(errno.ESTALE, "Stale file handle")), False, False),
        (health(ActorDiedError()), False, False),
        (ActorDiedError(), False, False),
    ],
    ids=lambda each: end_of(each).reason[:40] if isinstance(each, Exception) else str(each),
)
def test_what_the_start_of_a_worker_can_be_blamed_for(
    error: Exception, displaced: bool, unexplained: bool
) -> None:
    assert (end_of(error).displaced, end_of(error).unexplained) == (displaced, unexplained)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (raised(ValueError("first\nlast")), "ValueError: last"),
        (ControllerError(WorkerGroupStartupTimeoutError(1)), "its slot was taken by somebody else"),
        (ActorDiedError(), "its Ray Train controller died"),
    ],
    ids=["exception", "slot", "controller"],
)
def test_a_cause_is_one_line(error: Exception, line: str) -> None:
    assert end_of(error).reason == line
