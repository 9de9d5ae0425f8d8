"""Steps and their recordings; on a CPU, a recording is made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raykfold.training.steps import RecordedStep, Recorder, Step, no_recordings


class Walk:
    """A random walk: each step adds noise, and half of the mean of the batch."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.position = torch.zeros(3)
        self.times_run = 0
        self.pace = 0.5

    def step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.times_run += 1
        self.position += torch.randn(3) + self.pace * rows.float().mean()
        return self.position.mean(), (rows % 2).sum()

    def recorded(self, recorder: Recorder | None) -> RecordedStep:
        return RecordedStep(self.step, recorder, lambda: [self.position])


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [8] * 9 + [5] * 5 + [8]
    return [torch.randint(0, 100, (size,), generator=generator) for size in sizes]


def plainly(walk: Walk) -> list[tuple[float, int]]:
    return [(float(loss), int(right)) for loss, right in map(walk.step, batches())]


class ByHand:
    """Recordings that keep the inputs and outputs of a recording where they are, as a GPU does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, step: Step, rows: Tensor) -> Step:
        self.sizes.append(len(rows))
        inputs = rows.clone()
        loss, right = (value.clone() for value in step(inputs))

        def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
            inputs.copy_(batch)
            for output, new in zip((loss, right), step(inputs), strict=True):
                output.copy_(new)
            return loss, right

        return replay


def test_a_recorded_step_does_what_the_step_does() -> None:
    plain, recorder = Walk(), ByHand()
    expected = plainly(plain)
    walk = Walk()
    step = walk.recorded(recorder)
    assert [(float(loss), int(right)) for loss, right in map(step, batches())] == expected
    assert torch.equal(walk.position, plain.position)
    assert recorder.sizes == [8, 5]  # each size once
    assert step.refused is None


def test_without_a_recorder_it_is_the_step() -> None:
    walk = Walk()
    for rows in batches():
        walk.recorded(None)(rows)
    assert walk.times_run == len(batches())


def fails(step: Step, rows: Tensor) -> Step:
    torch.randn(5)  # what a recording has drawn when it fails must not count
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def fails_later(step: Step, rows: Tensor) -> Step:
    def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
        step(batch)
        raise ValueError("cannot be replayed")

    return replay


def fails_at_the_end(step: Step, rows: Tensor) -> Step:
    """As CUDA does, whose second error says only that there was a first."""
    try:
        raise RuntimeError("operation not permitted when stream is capturing")
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


def moves_its_tensors(step: Step, rows: Tensor) -> Step:
    step(rows)
    MOVED[-1].position = MOVED[-1].position.clone()
    return step


MOVED: list[Walk] = []


def forgets_the_draw(step: Step, rows: Tensor) -> Step:
    def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
        torch.randn(1)
        return step(batch)

    return replay


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (fails, "operation not permitted when stream is capturing"),
        (fails_later, "ValueError: cannot be replayed"),
        (fails_at_the_end, "operation not permitted when stream is capturing"),
        (moves_its_tensors, "the step does not change its tensors in place"),
        (no_recordings("not wanted"), "not wanted"),
        (forgets_the_draw, "a recording of the step gives other results"),
    ],
)
def test_a_recording_that_will_not_do_is_refused_and_leaves_no_trace(
    recorder: Recorder, reason: str
) -> None:
    plain = Walk()
    expected = plainly(plain)
    walk = Walk()
    MOVED.append(walk)
    step = walk.recorded(recorder)
    assert [(float(loss), int(right)) for loss, right in map(step, batches())] == expected
    assert torch.equal(walk.position, plain.position)
    assert step.refused == reason


def test_a_recording_that_is_forgotten_is_made_again() -> None:
    def stale(walk: Walk) -> Callable[[Step, Tensor], Step]:
        def recorder(step: Step, rows: Tensor) -> Step:
            pace = walk.pace  # a constant of the recording

            def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
                now, walk.pace = walk.pace, pace
                try:
                    return step(batch)
                finally:
                    walk.pace = now

            return replay

        return recorder

    def walked(walk: Walk, step: Step, forget: Callable[[], None]) -> Tensor:
        for number, rows in enumerate(batches()):
            if number == 6:
                walk.pace = 0.25
                forget()
            step(rows)
        return walk.position

    plain = Walk()
    expected = walked(plain, plain.step, lambda: None)
    walk = Walk()
    recorded = walk.recorded(stale(walk))
    assert torch.equal(walked(walk, recorded, recorded.forget), expected)
    assert recorded.refused is None
    careless = Walk()
    unaware = careless.recorded(stale(careless))
    assert not torch.equal(walked(careless, unaware, lambda: None), expected)


def test_a_loss_that_is_no_number_is_no_reason_to_refuse() -> None:
    walk = Walk()
    walk.position.fill_(torch.nan)
    step = walk.recorded(ByHand())
    for rows in batches():
        step(rows)
    assert step.refused is None
