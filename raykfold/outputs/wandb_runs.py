"""The run in Weights & Biases: one W&B run for each fold, and one for the summary.

One background thread makes every call to W&B. It takes events from a queue, so training never
waits, and any failure ends in one line for the user. W&B is not the record of a run: what it
missed is logged from the histories of the folds when the run is resumed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar

from raykfold.config.environment import home_is_writable
from raykfold.config.run_config import RunConfig
from raykfold.files.paths import fold_name
from raykfold.observers import Observer, RunStart
from raykfold.text import one_line
from raykfold.training.results import (
    FIGURES,
    EpochMetrics,
    FoldResult,
    Histogram,
    Summary,
    best_of,
)
from raykfold.training.statistics import mean, population_std

if TYPE_CHECKING:
    import wandb
    from wandb import Run

# W&B's settings for each run. A version that lacks some of them goes without; see `PRIVACY`.
SETTINGS: dict[str, Any] = {
    "init_timeout": 8.0,  # for the server to accept a run; after that, all are recorded offline
    "finish_timeout": 6.0,  # to send the rest of a run
    "finish_timeout_raises": True,
    "stop_fn": lambda: None,  # a stop requested on the web would interrupt the main thread
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "label_disable": True,
    "symlink": False,
    "use_dot_wandb": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
# Those without which W&B would send the command line, code and its git remote, the machine's name
# and packages, or what the terminal shows. A version that lacks one of them records nothing.
PRIVACY = {
    *("console", "save_code", "disable_code", "disable_git"),
    *("x_disable_machine_info", "x_disable_meta", "x_save_requirements"),
}
CLOSE_SECONDS = 30.0  # to send what is left at the end of a session

# What W&B's modes come to here: two of them are other words for online, and one for offline.
_MODES = {
    **dict.fromkeys(("online", "run", "shared"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    "disabled": "disabled",
}

# Not in the summary of the W&B run: what it shows elsewhere, and what is not a plain value.
_NOT_IN_SUMMARY = {
    *("run_name", "folds", "classes", "versions"),
    *("per_class", "confusion_matrix", "by_recording", "repeats", "leakage"),
}


class WandbRuns(Observer):
    """Logs the epochs of each fold, and their mean and standard deviation over the folds, to W&B.

    No call raises or waits for W&B, except `close`, which waits at most `CLOSE_SECONDS`. Nothing
    is contacted or written before `run_started`.

    Args:
        config: configuration of the run; each W&B run shows it. It holds no secrets. If its
            `wandb_mode` is None, W&B's own settings decide: WANDB_DISABLED, WANDB_MODE, or the
            files that ``wandb offline`` and ``wandb disabled`` write; else it is ``online``.
            Without a key or an answer from the server, everything is recorded offline.
        run_id: start of the ids of the W&B runs; the same in each session of the run.
        api_key: None for the key that ``wandb login`` stored, if any.
        say: takes lines for the user; only called from the observer's methods.
    """

    def __init__(
        self, config: RunConfig, run_id: str, api_key: str | None, say: Callable[[str], None]
    ) -> None:
        self._disabled = config.wandb_mode == "disabled"
        self._say = say
        self._notices: SimpleQueue[str] = SimpleQueue()
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._runs = _Runs(config, run_id, api_key, self._notices.put)

    def run_started(self, start: RunStart) -> None:
        if self._thread is None and not self._disabled:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()
        self._tell(self._runs.begin, start)

    def weights_watched(self, fold: int, epoch: int, histograms: Mapping[str, Histogram]) -> None:
        self._tell(self._runs.watch, fold, epoch, dict(histograms))

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._tell(self._runs.log_epoch, fold, metrics)

    def fold_finished(self, result: FoldResult) -> None:
        self._tell(self._runs.end_fold, result)

    def run_finished(self, summary: Summary) -> None:
        self._tell(self._runs.end_run, summary)

    def close(self) -> None:
        """Send what is left. An unfinished run is marked so that a later session can resume it."""
        self._tell(self._runs.leave)
        thread, self._thread = self._thread, None
        if thread is not None:
            self._events.put(None)
            thread.join(CLOSE_SECONDS)
            if thread.is_alive():
                self._notices.put(self._runs.not_sent("not everything"))
        self._pass_on_notices()

    def _tell(self, event: Callable[..., None], *args: Any) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._events.put(partial(event, *args))
        self._pass_on_notices()

    def _pass_on_notices(self) -> None:
        while not self._notices.empty():
            self._say(self._notices.get())

    def _work(self) -> None:
        try:
            for event in iter(self._events.get, None):
                event()
        except _Disabled as disabled:
            if str(disabled):
                self._notices.put(f"W&B: {disabled}; nothing is recorded there")
        except Exception as error:
            self._runs.give_up(error)


class _Runs:
    """The W&B runs of one cross-validation; only the background thread uses them."""

    _active: ClassVar[set[_Runs]] = set()  # all share the one W&B service of the process
    _told: ClassVar[set[str]] = set()  # lines on this W&B, which one run of a search says for all

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        api_key: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._run_id = _valid_id(run_id)
        self._api_key = api_key
        self._online = False  # until it is known that W&B's settings allow it
        self._say = say
        self._folder = config.model_path / "wandb"
        self._settings = SETTINGS
        self._open: dict[str, Run] = {}  # by name
        self._last: dict[int, int] = {}  # fold → newest epoch that W&B has
        self._best: dict[int, EpochMetrics] = {}  # fold → its best epoch so far
        self._watched: dict[int, tuple[int, Mapping[str, Histogram]]] = {}
        self._unsent: list[str] = []

    # --- events of the run -----------------------------------------------------------------

    def begin(self, start: RunStart) -> None:
        mode, why = self._config.wandb_mode or "", ""
        if not mode:
            mode, why = _mode_of_environment() or ("", "")
        if mode == "disabled":
            raise _Disabled(why)

        if not home_is_writable():  # where its caches go by default
            for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
                os.environ.setdefault(name, str(self._folder))
        self._active.add(self)
        settings = _start_wandb(mode)
        import wandb

        if not mode:
            mode, why = _mode_of_files(settings)
            if mode == "disabled":
                self._active.discard(self)
                self._end_wandb()
                raise _Disabled(why)
        self._online = mode == "online"
        if lacking := [name for name in SETTINGS if not hasattr(settings, name)]:
            self._settings = {name: SETTINGS[name] for name in SETTINGS if name not in lacking}
            lacks = f"W&B: {wandb.__version__} lacks the settings"
            if private := [name for name in lacking if name in PRIVACY]:
                self._active.discard(self)
                self._end_wandb()
                self._say_once(
                    f"{lacks} {', '.join(private)}, and could send more than metrics; nothing is "
                    "recorded there"
                )
                raise _Disabled
            self._say_once(
                f"{lacks} {', '.join(lacking)}: it may print more than other versions, or take "
                "longer"
            )

        # W&B would silently use the system's temporary folder instead of one it cannot write.
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder):
            pass
        if why and not self._online:
            self._go_offline(why)
        if self._online and self._api_key is None and not wandb.login(prompt=False, verify=False):
            self._go_offline("no API key (WANDB_API_KEY, or `wandb login`)")
        try:
            self._catch_up(start)
        except Exception as error:
            exiting = not threading.main_thread().is_alive()  # which ends the service
            if exiting or not self._online:
                raise
            self._go_offline(self._reason(error))
            self._finish_all()
            self._unsent.clear()  # all of it is recorded again
            self._end_wandb()  # the service keeps the id of a run that the server refused
            _start_wandb("offline")
            self._catch_up(start)

    def _catch_up(self, start: RunStart) -> None:
        """Start or resume every run, and log what W&B does not have of earlier sessions."""
        group = start.run_name[:128]
        for fold in start.folds:
            run = self._start_run(fold_name(fold), "fold", f"{self._run_id}-fold-{fold}", group)
            self._last[fold] = run.starting_step - 1
            finished = start.finished.get(fold)
            for metrics in finished.history if finished else start.histories.get(fold, ()):
                self._log(fold, metrics)
            if finished:
                self._finish_fold(finished)
        self._start_run("summary", "summary", f"{self._run_id}-summary", group)
        self._log_means()

    def watch(self, fold: int, epoch: int, histograms: Mapping[str, Histogram]) -> None:
        # Logged with the epoch: W&B takes one row for each step, and a session that ends before
        # the epoch is committed would leave a row without its metrics.
        self._watched[fold] = epoch, histograms

    def log_epoch(self, fold: int, metrics: EpochMetrics) -> None:
        if self._log(fold, metrics):
            self._log_means()

    def end_fold(self, result: FoldResult) -> None:
        for metrics in result.history:
            self._log(result.fold, metrics)
        self._finish_fold(result)

    def end_run(self, summary: Summary) -> None:
        import wandb

        values = summary.to_json()
        rows = [{name: _finite(value) for name, value in row.items()} for row in values["folds"]]
        if (by_recording := summary.recordings_over_folds()) is not None:
            values["mean_accuracy_by_recording"] = by_recording.mean
        run = self._open["summary"]
        run.summary.update(_known({k: v for k, v in values.items() if k not in _NOT_IN_SUMMARY}))

        def show(what: str, content: Callable[[], dict[str, Any]]) -> None:
            try:
                run.log(content())
            except Exception as error:  # online it asks the server, which may be down by now
                self._say(f"W&B: {what} not sent: {self._reason(error)}")

        columns, cells = list(rows[0]), [list(row.values()) for row in rows]
        show("the table of folds is", lambda: {"fold_results": wandb.Table(columns, cells)})
        if plots := self._config.outputs.all_plots():
            show(
                "the pictures are",
                lambda: {f"plots/{file.stem}": wandb.Image(str(file)) for file in plots},
            )
        self._finish("summary", exit_code=0)

    def leave(self) -> None:
        """End the open runs as interrupted, and report what was not sent."""
        self._finish_all()
        self._end_wandb()  # the file of a finished run is complete only after that
        self._active.discard(self)
        if self._unsent:
            self._say(self.not_sent(", ".join(sorted(self._unsent)) + " not"))

    def give_up(self, error: Exception) -> None:
        self._say(f"W&B: {self._reason(error)}; nothing more is recorded there")
        self._finish_all()
        self._end_wandb()
        self._active.discard(self)

    # --- messages --------------------------------------------------------------------------

    def not_sent(self, what: str) -> str:
        """Return a line on data that is on disk but not on the server."""
        option = "--include-online " if self._online else ""
        return (
            f"W&B: {what} sent in time; the rest is on disk, and can be sent with: "
            f"wandb sync {option}{self._pattern()}"
        )

    def _say_once(self, line: str) -> None:
        """Say a line that holds for every run of this process, such as the trials of a search."""
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    def _go_offline(self, why: str) -> None:
        self._online = False
        self._say(
            f"W&B: {why}; metrics go to {self._folder}, and can be sent later with: "
            f"wandb sync {self._pattern()}"
        )

    def _pattern(self) -> str:
        kind = "run" if self._online else "offline-run"
        return f"{shlex.quote(str(self._folder))}/{kind}-*"

    def _reason(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        return one_line(text.replace(self._api_key, "***") if self._api_key else text)

    # --- single runs -----------------------------------------------------------------------

    def _start_run(self, name: str, job_type: str, run_id: str, group: str) -> Run:
        import wandb

        # Offline, each session writes a new file, which holds the whole history.
        settings: dict[str, Any] = {"mode": "offline"}
        if self._online:
            settings = {"mode": "online", "resume": "allow", "api_key": self._api_key}
        self._open[name] = wandb.init(
            project=self._config.wandb_project,
            entity=self._config.wandb_entity,
            group=group,
            job_type=job_type,
            name=name,
            id=run_id,
            dir=self._folder.parent,
            config=self._config.to_json(),
            reinit="create_new",
            settings=wandb.Settings(**self._settings, **settings),
        )
        return self._open[name]

    def _log(self, fold: int, metrics: EpochMetrics) -> bool:
        """Log an epoch, unless W&B has it: after a worker died, or when the run is resumed."""
        best = best_of([each for each in (self._best.get(fold), metrics) if each is not None])
        if best is not None and math.isfinite(metrics.val_accuracy):
            self._best[fold] = best
        watched_epoch, histograms = self._watched.pop(fold, (None, {}))
        if metrics.epoch <= self._last[fold]:
            return False
        self._last[fold] = metrics.epoch
        row = _known({"epoch": metrics.epoch, **scalars(metrics)})
        if watched_epoch == metrics.epoch:
            row |= _wandb_histograms(histograms)
        # Without `commit`, a row waits for the next one.
        self._open[fold_name(fold)].log(row, step=metrics.epoch, commit=True)
        return True

    def _log_means(self) -> None:
        best = list(self._best.values())
        row: dict[str, float] = {"folds": len(best)}
        for figure in FIGURES:
            known = [value for each in best if (value := each.figure(figure)) is not None]
            if known and len(known) == len(best):
                row[f"mean_best_val_{figure}"] = mean(known)
                if len(known) > 1:
                    row[f"std_best_val_{figure}"] = population_std(known)
        if best:
            self._open["summary"].log(row)

    def _finish_fold(self, result: FoldResult) -> None:
        name = fold_name(result.fold)
        facts = {
            "best_val_accuracy": result.best_val_accuracy,
            "best_epoch": result.best_epoch,
            "chosen_epoch": result.chosen_epoch,
            "chosen_val_accuracy": result.chosen_val_accuracy,
            "kept_val_balanced_accuracy": result.kept_val_balanced_accuracy,
            "kept_val_macro_f1": result.kept_val_macro_f1,
            "stopped_early": result.stopped_early,
            "status": result.status,
            "error": result.error,
        }
        self._open[name].summary.update(_known(facts))
        self._finish(name, exit_code=1 if result.status == "failed" else 0)

    def _finish_all(self) -> None:
        """End the open runs as interrupted; all at once, because each may take its full time."""

        def interrupt(name: str) -> None:
            with suppress(Exception):  # a dead service also fails to finish the run
                self._open[name].mark_preempting()
            self._finish(name, exit_code=1)

        threads = [
            threading.Thread(target=interrupt, args=(name,), daemon=True) for name in self._open
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _finish(self, name: str, exit_code: int) -> None:
        try:
            self._open.pop(name).finish(exit_code=exit_code)
        except Exception:  # out of time, or the service is dead
            self._unsent.append(name)

    def _end_wandb(self) -> None:
        """End the service process, even a broken one, unless others need it."""
        # What it raises does not matter here; at the exit of the interpreter it would be a
        # traceback.
        with suppress(Exception, SystemExit):
            import wandb

            if wandb.run is None and self._active <= {self}:
                wandb.teardown(exit_code=1)


class _Disabled(Exception):
    """Nothing is recorded: W&B's own settings turn it off, and the text names the one that does.

    Without a text, the user has been told.
    """


def _mode_of_environment() -> tuple[str, str] | None:
    """Return what environment variables ask for, online, offline or disabled, and which one does.

    Raises:
        _Disabled: WANDB_MODE is none of W&B's modes; nothing may be sent then.
    """
    # Older clients, and libraries that use W&B, obey this variable; W&B 0.31 does not.
    switch = os.environ.get("WANDB_DISABLED", "")
    if switch.strip().lower() not in ("", "0", "false", "no", "off"):
        return "disabled", f"disabled by WANDB_DISABLED={switch}"
    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        return None
    if mode not in _MODES:
        raise _Disabled(f"WANDB_MODE={mode}: expected one of {', '.join(_MODES)}")
    return _MODES[mode], f"{_MODES[mode]} by WANDB_MODE={mode}"


def _mode_of_files(settings: wandb.Settings) -> tuple[str, str]:
    """Return what W&B's settings files ask for: online, offline or disabled; and where.

    W&B passes over a file of which it does not know a key or a value, and goes online. But older
    clients wrote ``disabled`` beside the mode, so the files are read here. A mode that is not known
    means offline.
    """
    files = settings.read_system_settings()
    stored = files.all()
    older = "offline" if stored.get("disabled", "").lower() == "true" else "online"
    mode = stored.get("mode", older)
    known = _MODES.get(mode, "offline")
    return known, f"{known} by {' and '.join(map(str, files.sources))}"


def _start_wandb(mode: str) -> wandb.Settings:
    """Import W&B and start its service process, without other effects on this process.

    Args:
        mode: overrides that of W&B's own settings; "" does not.

    Returns:
        W&B's settings.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    service = os.environ.get("WANDB_SERVICE")
    before = {name: getattr(sys, name) for name in ("exit", "excepthook")}
    import wandb

    override: dict[str, Any] = {"mode": mode} if mode else {}
    settings = wandb.setup(wandb.Settings(silent=True, **override)).settings
    for name, function in before.items():
        if str(getattr(sys, name).__module__).startswith("wandb"):
            setattr(sys, name, function)
    if service is None:  # otherwise every process started from now on would find the service
        os.environ.pop("WANDB_SERVICE", None)
    return settings


def _valid_id(text: str) -> str:
    """Return `text` as a W&B id; a hash tells apart texts that would become the same."""
    valid = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:64]
    return valid if valid == text else f"{valid}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def scalars(metrics: EpochMetrics) -> dict[str, float]:
    """Return the metrics of an epoch by the names that W&B and TensorBoard show."""
    values = {
        "train/loss": metrics.loss,
        "train/accuracy": metrics.accuracy,
        "val/loss": metrics.val_loss,
        "lr": metrics.learning_rate,
        "epoch_seconds": metrics.seconds,
    }
    for figure in FIGURES:
        value = metrics.figure(figure)
        if value is not None:
            values[f"val/{figure}"] = value
    if metrics.inner_loss is not None and metrics.inner_accuracy is not None:
        values |= {"inner/loss": metrics.inner_loss, "inner/accuracy": metrics.inner_accuracy}
    return values


def _wandb_histograms(histograms: Mapping[str, Histogram]) -> dict[str, Any]:
    import wandb

    return {
        name: wandb.Histogram(np_histogram=(list(each.counts), list(each.edges)))  # type: ignore[arg-type]
        for name, each in histograms.items()
        if all(map(math.isfinite, each.edges))
    }


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _finite(value) is not None}


def _finite(value: Any) -> Any:
    """Return `value`, or None for a number that W&B cannot draw."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
