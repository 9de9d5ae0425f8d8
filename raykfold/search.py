"""``python -m raykfold.search``: tune hyper-parameters on the cross-validated score.

    python -m raykfold.search --config search.toml --trials 30

Each trial is a whole cross-validation, the same as `raykfold.run` makes. Its score is the mean over
the folds at equal epochs. Ray Tune begins trials, and stops poor ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from raykfold.config.command import PARTIAL, run_configured, without_gc
from raykfold.files.remote import RemotePath, leave
from raykfold.text import duration
from raykfold.tuning.space import SearchConfig, parse_search


def main(argv: Sequence[str] | None = None) -> int:
    """Search, print, and return the exit code: 0, 1, 2, 3 or 130 (see `raykfold.errors`)."""
    return run_configured(parse_search, _search, argv)


def _search(config: SearchConfig) -> int:
    with without_gc():
        from raykfold.tuning.search import search
        from raykfold.tuning.search_console import SearchConsole, result_lines

    results = search(config, observer=SearchConsole(config))
    print()
    print("\n".join(result_lines(results)))
    print(f"{duration(results.wall_seconds)}; outputs in {config.model_dir}")
    if isinstance(config.model_place, RemotePath) or config.outputs.report.is_file():
        print(f"page: {config.model_place / config.outputs.report.name}")
    return 0 if results.status == "complete" else PARTIAL


if __name__ == "__main__":
    leave(main())
