"""``python -m raykfold.search``: tune hyper-parameters on the cross-validated score.

    python -m raykfold.search --config search.toml --trials 30

Each trial is a whole cross-validation, the same run as `raykfold.run` makes, and its score the mean
over the folds at equal epochs; Ray Tune begins trials, and stops poor ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from raykfold.config.command import PARTIAL, run_configured, without_gc
from raykfold.files.remote import RemotePath, leave
from raykfold.text import duration, mean_text
from raykfold.tuning.journal import Score, SearchObserver, Trial, values_text
from raykfold.tuning.space import SearchConfig, parse_search


def main(argv: Sequence[str] | None = None) -> int:
    """Search, print, and return the exit code: 0, 1, 2, 3 or 130 (see `raykfold.errors`)."""
    return run_configured(parse_search, _search, argv)


def _search(config: SearchConfig) -> int:
    with without_gc():
        from raykfold.tuning.findings import lines
        from raykfold.tuning.search import search

    findings = search(config, observer=Console(config))
    print()
    print("\n".join(lines(findings)))
    print(f"{duration(findings.wall_seconds)}; outputs in {config.model_dir}")
    if isinstance(config.model_place, RemotePath) or config.outputs.report.is_file():
        print(f"page: {config.model_place / config.outputs.report.name}")
    return 0 if findings.status == "complete" else PARTIAL


class Console(SearchObserver):
    """Prints a line for each thing that happens.

    Args:
        config: the search's.
        prefix: before each line.
    """

    def __init__(self, config: SearchConfig, prefix: str = "") -> None:
        self._config = config
        self._prefix = prefix

    def trial_began(self, trial: Trial) -> None:
        goes_on = f", after epoch {len(trial.history)}" if trial.history else ""
        verb = "goes on" if trial.history else "begins"
        self._say(f"trial {trial.number} {verb}{goes_on}: {values_text(trial.values)}")

    def trial_scored(self, trial: Trial, score: Score) -> None:
        epochs = self._config.epochs_of(trial.values)
        self._say(
            f"trial {trial.number}  epoch {score.epoch}/{epochs}  "
            f"mean {mean_text(score.mean, score.std, len(score.folds))}"
        )

    def trial_ended(self, trial: Trial) -> None:
        if trial.status == "failed":
            self._say(f"trial {trial.number} failed: {trial.error}")
        elif trial.mean is not None and trial.std is not None:
            after = f"after epoch {len(trial.history)}"
            how = "complete" if trial.status == "complete" else f"stopped {after}"
            reached = mean_text(trial.mean, trial.std, len(trial.folds))
            self._say(f"trial {trial.number} {how}: {reached}")

    def noticed(self, text: str) -> None:
        self._say(text)

    def of_outer(self, fold: int) -> Console:
        return Console(self._config, f"without fold {fold}: ")

    def _say(self, text: str) -> None:
        print(self._prefix + text, flush=True)


if __name__ == "__main__":
    leave(main())
