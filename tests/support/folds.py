"""Comparison of folds in training."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from raykfold.training.fold import FoldTrainer


def assert_same(a: FoldTrainer, b: FoldTrainer) -> None:
    """Assert that two trainers of a fold came to the same results, to the bit."""
    histories = (
        [dataclasses.replace(metrics, seconds=0) for metrics in each.history] for each in (a, b)
    )
    one, other = histories
    assert one == other
    states = [
        (each.model.state_dict(), each.evaluated.state_dict(), each.kept_weights) for each in (a, b)
    ]
    for first, second in zip(*states, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), name
    assert np.array_equal(a.held_out_probabilities(), b.held_out_probabilities())
