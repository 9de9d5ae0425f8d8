"""An observer: the run in Weights & Biases, one W&B run a fold and one for the summary.

Everything that touches W&B happens on one background thread, which takes events from a queue:
training never waits for it, and what fails there ends in one line for the user. W&B is never the
record: what it misses is logged from the folds' histories when the run is resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar

from raykfold.files.paths import ModelDir
from raykfold.observers import Observer, RunStart
from raykfold.text import one_line
from raykfold.training.results import EpochMetrics, FoldResult, Histogram, Summary
from raykfold.training.statistics import mean, population_std

if TYPE_CHECKING:
    from wandb import Run


INIT_SECONDS = 8.0  # for the server to take a run; then all are recorded offline
FINISH_SECONDS = 6.0  # for the rest of a run to be sent
CLOSE_SECONDS = 30.0  # for all that is left at the end of a session


class Tracker(Observer):
    """Logs each fold's epochs, and mean and standard deviation over the folds, to W&B.

    No call raises or waits for W&B, but for `close`, which waits `CLOSE_SECONDS` at most.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        mode: str | None,
        run_id: str,
        folder: Path,
        config: Mapping[str, Any],
        api_key: str | None,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is contacted or written before `run_started`.

        Args:
            project: W&B's project.
            entity: W&B's user or team; None is the key's own.
            mode: ``online``, ``offline``, ``disabled``; None is what WANDB_MODE says, else online
                where there is a key. Without a key or an answer it is offline in any case.
            run_id: start of the ids, the same in each session of a run.
            folder: W&B writes to ``wandb/`` below it.
            config: plain values that every W&B run shows as its configuration; no secrets.
            api_key: None is what ``wandb login`` left behind, if anything.
            say: takes lines for the user; called from within the observer's methods only.
        """
        mode = mode or os.environ.get("WANDB_MODE")
        self._disabled = mode == "disabled"
        self._say = say
        self._news: SimpleQueue[str] = SimpleQueue()
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._runs = _Runs(
            project=project,
            entity=entity,
            online=mode != "offline",
            run_id=_fit_for_an_id(run_id),
            folder=folder,
            config=config,
            api_key=api_key,
            say=self._news.put,
        )

    def run_started(self, start: RunStart) -> None:
        if self._thread is None and not self._disabled:
            self._thread = threading.Thread(target=self._work, name="raykfold-wandb", daemon=True)
            self._thread.start()
        self._tell(self._runs.begin, start)

    def weights_watched(self, fold: int, epoch: int, histograms: Mapping[str, Histogram]) -> None:
        """Before the `epoch_committed` that it belongs to; names as they are to be shown."""
        self._tell(self._runs.watch, fold, epoch, dict(histograms))

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._tell(self._runs.epoch, fold, metrics)

    def fold_finished(self, result: FoldResult) -> None:
        self._tell(self._runs.fold_over, result)

    def run_finished(self, summary: Summary) -> None:
        self._tell(self._runs.run_over, summary)

    def close(self) -> None:
        """Send what is left; a run that is not over is left so that it can go on."""
        self._tell(self._runs.leave)
        thread, self._thread = self._thread, None
        if thread is not None:
            self._events.put(None)
            thread.join(CLOSE_SECONDS)
            if thread.is_alive():
                self._news.put(self._runs.not_sent("not everything"))
        self._pass_on_news()

    def _tell(self, event: Callable[..., None], *args: Any) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._events.put(partial(event, *args))
        self._pass_on_news()

    def _pass_on_news(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._say(self._news.get_nowait())

    def _work(self) -> None:
        try:
            for event in iter(self._events.get, None):
                event()
        except Exception as error:
            self._runs.give_up(error)


class _Runs:
    """W&B's runs of one cross-validation; used by the background thread only."""

    _at_work: ClassVar[set[_Runs]] = set()  # all share the process's one W&B service

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        online: bool,
        run_id: str,
        folder: Path,
        config: Mapping[str, Any],
        api_key: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._project = project
        self._entity = entity
        self._online = online
        self._run_id = run_id
        self._folder = folder
        self._config = dict(config)
        self._api_key = api_key
        self._say = say
        self._group = ""
        self._open: dict[str, Run] = {}  # by name
        self._last: dict[int, int] = {}  # fold → newest epoch that W&B has
        self._best: dict[int, float] = {}  # fold → best validation accuracy so far
        self._watched: dict[int, tuple[int, Mapping[str, Histogram]]] = {}
        self._unsent: list[str] = []

    def begin(self, start: RunStart) -> None:
        self._group = start.run_name[:128]
        _check_writable(self._wandb_folder)
        self._at_work.add(self)
        _start_wandb()
        self._check_key()
        try:
            self._catch_up(start)
        except Exception as error:
            exiting = not threading.main_thread().is_alive()  # which ends the service
            if exiting or not self._online:
                raise
            self._go_offline(self._reason(error))
            self._finish_all()
            self._unsent.clear()  # all of it is written anew
            self._end_wandb()  # which keeps the id of a run that the server did not take
            _start_wandb()
            self._catch_up(start)

    def _catch_up(self, start: RunStart) -> None:
        """Begin all runs, or go on with them, and log what earlier sessions left to log."""
        for fold in start.folds:
            run = self._start_run(_fold_name(fold), "fold", f"{self._run_id}-fold-{fold}")
            self._last[fold] = run.starting_step - 1
            finished = start.finished.get(fold)
            for metrics in finished.history if finished else start.histories.get(fold, ()):
                self._log(fold, metrics)
            if finished:
                self._end_fold(finished)
        self._start_run("summary", "summary", f"{self._run_id}-summary")
        self._log_means()

    def watch(self, fold: int, epoch: int, histograms: Mapping[str, Histogram]) -> None:
        # Not logged by themselves: a session that ends before the epoch is committed would leave
        # a row without its metrics, and W&B takes no second one for the step.
        self._watched[fold] = epoch, histograms

    def epoch(self, fold: int, metrics: EpochMetrics) -> None:
        if self._log(fold, metrics):
            self._log_means()

    def fold_over(self, result: FoldResult) -> None:
        for metrics in result.history:
            self._log(result.fold, metrics)
        self._end_fold(result)

    def run_over(self, summary: Summary) -> None:
        import wandb

        values = summary.to_json()
        rows = [{name: _plain(value) for name, value in row.items()} for row in values["folds"]]
        left_out = (
            *("run_name", "folds", "classes", "versions"),
            *("per_class", "confusion_matrix", "repeats", "leakage"),
        )
        run = self._open["summary"]
        run.summary.update(_known({k: v for k, v in values.items() if k not in left_out}))
        self._show(
            "the table of folds is",
            lambda: {
                "fold_results": wandb.Table(
                    columns=list(rows[0]), data=[list(row.values()) for row in rows]
                )
            },
        )
        plots = ModelDir(self._folder).all_plots()
        if plots:
            self._show(
                "the pictures are",
                lambda: {f"plots/{file.stem}": wandb.Image(str(file)) for file in plots},
            )
        self._finish("summary", exit_code=0)

    def _show(self, what: str, made: Callable[[], Mapping[str, Any]]) -> None:
        try:
            self._open["summary"].log(dict(made()))
        except Exception as error:  # online it asks the server, which may be gone since
            self._say(f"W&B: {what} not sent: {self._reason(error)}")

    def leave(self) -> None:
        """End the runs that are still open, as interrupted, and report what was not sent."""
        self._finish_all()
        self._end_wandb()  # a finished run's file is whole only then
        self._at_work.discard(self)
        if self._unsent:
            self._say(self.not_sent(", ".join(sorted(self._unsent)) + " not"))

    def give_up(self, error: Exception) -> None:
        self._say(f"W&B: {self._reason(error)}; nothing more is recorded there")
        self._finish_all()
        self._end_wandb()
        self._at_work.discard(self)

    def not_sent(self, what: str) -> str:
        """One line on data that is on the disk but not with the server."""
        runs = "--include-online " if self._online else ""
        return (
            f"W&B: {what} sent in time; the rest is on the disk, and can be sent with: "
            f"wandb sync {runs}{self._pattern()}"
        )

    @property
    def _wandb_folder(self) -> Path:
        return self._folder / "wandb"

    def _pattern(self) -> str:
        kind = "run" if self._online else "offline-run"
        return f"{shlex.quote(str(self._wandb_folder))}/{kind}-*"

    def _check_key(self) -> None:
        import wandb

        if not self._online or self._api_key is not None:
            return
        if not wandb.login(prompt=False, verify=False):
            self._go_offline("no API key (WANDB_API_KEY, or `wandb login`)")

    def _go_offline(self, why: str) -> None:
        self._online = False
        self._say(
            f"W&B: {why}; metrics go to {self._wandb_folder}, and can be sent later with: "
            f"wandb sync {self._pattern()}"
        )

    def _start_run(self, name: str, job_type: str, run_id: str) -> Run:
        import wandb

        # Offline each session begins a new file, which holds the whole history.
        settings: dict[str, Any] = {"mode": "offline"}
        if self._online:
            settings = {"mode": "online", "resume": "allow", "api_key": self._api_key}
        self._open[name] = wandb.init(
            project=self._project,
            entity=self._entity,
            group=self._group,
            job_type=job_type,
            name=name,
            id=run_id,
            dir=self._folder,
            config=self._config,
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
                # A stop that is asked for in the web would interrupt the main thread.
                stop_fn=lambda: None,
                silent=True,
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                label_disable=True,
                symlink=False,
                use_dot_wandb=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                **settings,
            ),
        )
        return self._open[name]

    def _log(self, fold: int, metrics: EpochMetrics) -> bool:
        """Log an epoch unless W&B has it, as after the death of a worker or on resume."""
        if math.isfinite(metrics.val_accuracy):
            self._best[fold] = max(self._best.get(fold, 0.0), metrics.val_accuracy)
        epoch, histograms = self._watched.pop(fold, (None, {}))
        if metrics.epoch <= self._last[fold]:
            return False
        self._last[fold] = metrics.epoch
        row = _row(metrics) | (_drawn(histograms) if epoch == metrics.epoch else {})
        # Without `commit` a row waits for the next one.
        self._open[_fold_name(fold)].log(row, step=metrics.epoch, commit=True)
        return True

    def _log_means(self) -> None:
        if best := list(self._best.values()):
            row = {"mean_best_val_accuracy": mean(best), "folds": len(best)}
            if len(best) > 1:
                row["std_best_val_accuracy"] = population_std(best)
            self._open["summary"].log(row)

    def _end_fold(self, result: FoldResult) -> None:
        name = _fold_name(result.fold)
        facts = {
            "best_val_accuracy": result.best_val_accuracy,
            "best_epoch": result.best_epoch,
            "chosen_epoch": result.chosen_epoch,
            "chosen_val_accuracy": result.chosen_val_accuracy,
            "stopped_early": result.stopped_early,
            "status": result.status,
            "error": result.error,
        }
        self._open[name].summary.update(_known(facts))
        self._finish(name, exit_code=1 if result.status == "failed" else 0)

    def _finish_all(self) -> None:
        """End the open runs as interrupted, at once: each may take its full time."""
        names = list(self._open)
        threads = [
            threading.Thread(target=self._interrupt, args=(name,), daemon=True) for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _interrupt(self, name: str) -> None:
        with contextlib.suppress(Exception):  # a service that died also fails to finish the run
            self._open[name].mark_preempting()
        self._finish(name, exit_code=1)

    def _finish(self, name: str, exit_code: int) -> None:
        try:
            self._open.pop(name).finish(exit_code=exit_code)
        except Exception:  # out of time, or the service died
            self._unsent.append(name)

    def _end_wandb(self) -> None:
        """End the service process, also one that is broken, unless others need it."""
        # Whatever it answers, it is over: at the exit of the interpreter it would be a traceback.
        with contextlib.suppress(Exception, SystemExit):
            import wandb

            if wandb.run is None and self._at_work <= {self}:
                wandb.teardown(exit_code=1)

    def _reason(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        return one_line(text.replace(self._api_key, "***") if self._api_key else text)


def _check_writable(folder: Path) -> None:
    """W&B itself would take the system's temporary folder instead, without a word on it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _start_wandb() -> None:
    """Import W&B and start its service process, leaving this process as it was otherwise."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    service = os.environ.get("WANDB_SERVICE")
    before = {name: getattr(sys, name) for name in ("exit", "excepthook")}
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    for name, function in before.items():
        if str(getattr(sys, name).__module__).startswith("wandb"):
            setattr(sys, name, function)
    if service is None:  # else every process that is started from now on finds the service
        os.environ.pop("WANDB_SERVICE", None)


def _fit_for_an_id(text: str) -> str:
    """`text` as W&B's ids allow it; a hash tells apart what would become the same."""
    fit = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:64]
    return fit if fit == text else f"{fit}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _fold_name(fold: int) -> str:
    return f"fold_{fold}"


def scalars(metrics: EpochMetrics) -> dict[str, float]:
    """What is drawn of an epoch, by the names that W&B and TensorBoard show."""
    return {
        "train/loss": metrics.loss,
        "train/accuracy": metrics.accuracy,
        "val/loss": metrics.val_loss,
        "val/accuracy": metrics.val_accuracy,
        "lr": metrics.learning_rate,
        "epoch_seconds": metrics.seconds,
        **_inner(metrics),
    }


def _inner(metrics: EpochMetrics) -> dict[str, float]:
    if metrics.inner_loss is None or metrics.inner_accuracy is None:
        return {}
    return {"inner/loss": metrics.inner_loss, "inner/accuracy": metrics.inner_accuracy}


def _row(metrics: EpochMetrics) -> dict[str, Any]:
    return _known({"epoch": metrics.epoch, **scalars(metrics)})


def _drawn(histograms: Mapping[str, Histogram]) -> dict[str, Any]:
    import wandb

    bars: dict[str, Any] = {
        name: (list(histogram.counts), list(histogram.edges))
        for name, histogram in histograms.items()
        if all(map(math.isfinite, histogram.edges))
    }
    return {name: wandb.Histogram(np_histogram=pair) for name, pair in bars.items()}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _plain(value) is not None}


def _plain(value: Any) -> Any:
    """`value`, or None for what W&B cannot draw."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
