"""Time a training step on a CPU, with each change that made it faster.

    python tests/benchmarks/step.py [--threads 1]

Prints the median milliseconds of a step of 32 samples, and the seconds of the first step, in which
`torch.compile` compiles. Each way runs in a process of its own, because glibc reads what to do
with freed memory when a process starts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from sequential import PlainCNN
from torch import nn

from raykfold.config.environment import allocator
from raykfold.models import AudioCNN

SHAPES = {"64x32": 40, "128x173": 8}  # shape → steps to time
# network, channels last, freed memory stays, fused Adam, compiled, bf16
WAYS: dict[str, tuple[str, bool, bool, bool, bool, bool]] = {
    "plain modules": ("plain", False, False, False, False, False),
    "freed memory stays": ("plain", False, True, False, False, False),
    "and channels last": ("plain", True, True, False, False, False),
    "and the fused block": ("fused", False, True, False, False, False),
    "and fused Adam": ("fused", False, True, True, False, False),
    "and bf16": ("fused", False, True, True, False, True),
    "without bf16, freed memory returned": ("fused", False, False, True, False, False),
    "torch.compile, freed memory stays, channels last": ("plain", True, True, True, True, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, shape = arguments.child
        measure(way, shape, arguments.threads)
        return
    print("| way | shape | first, s | step, ms | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for shape in SHAPES:
        reference: float | None = None
        for way in WAYS:
            first, step = child(way, shape, arguments.threads)
            reference = reference or step
            print(f"| {way} | {shape} | {first:.1f} | {step:.1f} | {reference / step:.2f} |")
            sys.stdout.flush()


def child(way: str, shape: str, threads: int) -> tuple[float, float]:
    kept = allocator(os.environ) if WAYS[way][2] else {}
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, "--threads", str(threads), "--child", way, shape],
            env={**os.environ, **kept, "TORCHINDUCTOR_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    first, step = done.stdout.split()[-2:]
    return float(first), float(step)


def measure(way: str, shape: str, threads: int) -> None:
    network, channels_last, _, fused_adam, compiled, bf16 = WAYS[way]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    n_mels, frames = map(int, shape.split("x"))
    model: nn.Module = PlainCNN(n_mels, 10) if network == "plain" else AudioCNN(n_mels, 10, frames)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), fused=fused_adam)
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if compiled else model
    features, classes = torch.randn(400, n_mels, frames), torch.randint(0, 10, (400,))

    def step() -> float:
        started = time.perf_counter()
        rows = torch.randint(0, 400, (32,))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            logits = forward(features.index_select(0, rows))
        loss = nn.functional.cross_entropy(logits.float(), classes.index_select(0, rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    first, *_ = [step() for _ in range(4)]
    print(first, 1000 * statistics.median(step() for _ in range(SHAPES[shape])))


if __name__ == "__main__":
    main()
