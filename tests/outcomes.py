"""What a run has come to, held against another; and how tests start the command."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the tests' folder on the Python path for networks that live there."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAYKFOLD_")}
    here.pop("RAY_ADDRESS", None)
    return {**here, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def read_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """Lines of its output up to the first that has `pattern`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"no {pattern!r} in: {''.join(lines)}")


@dataclass(frozen=True)
class Outcome:
    """All that must not depend on how a run went."""

    folds: list[dict[str, Any]]
    histories: list[dict[str, list[float]]]
    weights: dict[str, bytes]
    predictions: dict[str, np.ndarray]

    @classmethod
    def of(cls, model_dir: Path) -> Outcome:
        with np.load(model_dir / "oof_predictions.npz") as file:
            predictions = {name: file[name] for name in file.files}
        return cls(
            folds=json.loads((model_dir / "summary.json").read_text())["folds"],
            histories=pickle.loads((model_dir / "all_fold_histories_pytorch.pkl").read_bytes()),
            weights={
                str(path.relative_to(model_dir)): path.read_bytes()
                for path in sorted(model_dir.glob("**/*.safetensors"))
                if "ray" not in path.relative_to(model_dir).parts
            },
            predictions=predictions,
        )


def assert_same(first: Outcome, second: Outcome) -> None:
    """To the bit."""
    assert first.folds == second.folds
    assert first.histories == second.histories
    assert first.weights.keys() == second.weights.keys()
    for name, content in first.weights.items():
        assert content == second.weights[name], name
    for name, values in first.predictions.items():
        np.testing.assert_array_equal(values, second.predictions[name], err_msg=name)
