"""Cross-validation for PyTorch on Ray: every fold at once, one mean ± std at the end.

from raykfold import RunConfig, cross_validate
summary = cross_validate(RunConfig(processed_dir=Path("data/processed"), epochs=15))
print(summary.mean_accuracy, summary.std_accuracy)

The data may also be arrays, and folds one of scikit-learn's splitters:

summary = cross_validate(RunConfig(epochs=15), X=X, y=y, folds=StratifiedKFold(5))
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raykfold.config.run_config import RunConfig
    from raykfold.data.feature_set import FeatureSet, SoundDataset
    from raykfold.data.reading import read_feature_set
    from raykfold.driver import cross_validate
    from raykfold.errors import RaykfoldError
    from raykfold.models import AudioCNN
    from raykfold.observers import Observer
    from raykfold.outputs.weights import FoldModel, load_fold
    from raykfold.training.evaluation import Evaluation
    from raykfold.training.recipe import Recipe
    from raykfold.training.results import EpochMetrics, FoldResult, Summary

try:
    __version__ = version("raykfold")
except PackageNotFoundError:  # a source tree that is on the path and not installed
    __version__ = "unknown"

# Imported when first used: torch and Ray take seconds, and a usage error should not.
_HOMES = {
    "AudioCNN": "models",
    "EpochMetrics": "training.results",
    "Evaluation": "training.evaluation",
    "FeatureSet": "data.feature_set",
    "FoldResult": "training.results",
    "Observer": "observers",
    "RaykfoldError": "errors",
    "Recipe": "training.recipe",
    "RunConfig": "config.run_config",
    "SoundDataset": "data.feature_set",
    "Summary": "training.results",
    "FoldModel": "outputs.weights",
    "cross_validate": "driver",
    "load_fold": "outputs.weights",
    "read_feature_set": "data.reading",
}
__all__ = [
    "AudioCNN",
    "EpochMetrics",
    "Evaluation",
    "FeatureSet",
    "FoldModel",
    "FoldResult",
    "Observer",
    "RaykfoldError",
    "Recipe",
    "RunConfig",
    "SoundDataset",
    "Summary",
    "cross_validate",
    "load_fold",
    "read_feature_set",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
