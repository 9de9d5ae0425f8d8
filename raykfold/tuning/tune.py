"""Ray Tune decides which trials begin and which are stopped. It trains none itself.

    TuneRun ── trial begins ──▶ events ──▶ TrialRunner ── trains ──▶ ScoreActor
       ▲                                                                 │
       └──── scheduler: stop, or continue ◀── tune.report ◀── Tune's actor of the trial

Each session builds what Ray Tune knows from the journal. Ray Tune's own checkpoint of an experiment
is written only now and then, and holds neither later trials nor the state of a scheduler.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from raykfold.errors import RaykfoldError
from raykfold.training.search_results import Trial
from raykfold.tuning.journal import Decision, Journal
from raykfold.tuning.score_actor import report_scores
from raykfold.tuning.space import SearchConfig, SearchSpace

METRIC = "mean"
_EPOCH = "epoch"
_STOP_SECONDS = 10.0
_MAX_FAILURES = 3  # of Ray Tune's actor of a trial
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the driver's observers log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial can fail before its first score
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a frame around the name of the run
}


@dataclass(frozen=True)
class TuneEvent:
    """Ray Tune lets a trial begin, or ends it.

    Attributes:
        trial: its number.
        begins: also True when it begins again because its actor died.
        error: set if its actor died too often.
    """

    trial: int
    begins: bool
    error: str | None = None


class TuneRun:
    """Runs Ray Tune in a thread.

    Args:
        config: the search's.
        journal: its trials; the unfinished ones begin first.
        score_actor: the handle of a `ScoreActor`.
        concurrent: most trials at once.
        folder: for the files that Ray Tune writes, which nobody reads.
    """

    def __init__(
        self,
        config: SearchConfig,
        journal: Journal,
        score_actor: Any,
        *,
        concurrent: int,
        folder: Path,
    ) -> None:
        self._events: queue.SimpleQueue[TuneEvent] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        unfinished = [trial for trial in journal if trial.status == "running"]
        new = max(0, config.num_trials - len(journal))
        # An actor on this node that takes no CPU stands for each trial.
        here = f"node:{ray.util.get_node_ip_address()}"
        trainable = tune.with_resources(
            tune.with_parameters(report_scores, score_actor=score_actor), {"cpu": 0, here: 0.001}
        )
        self._tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=len(unfinished) + new,
                max_concurrent_trials=concurrent,
                search_alg=_JournalSearcher(config, journal, unfinished),
                scheduler=_JournalScheduler(config, journal),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(folder),
                callbacks=[_EventCallback(self._events), _SilentProgress()],
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
                stop=_StopWithDriver(self._stopping),
                verbose=0,
            ),
        )
        self._thread = threading.Thread(target=self._run, name="raykfold-tune", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._tuner.fit()
        except BaseException as error:  # raised in the driver's thread by `is_running`
            self._error = error

    def events(self) -> Iterator[TuneEvent]:
        """Yield the events since the last call."""
        while not self._events.empty():
            yield self._events.get()

    def is_running(self) -> bool:
        """Whether more trials may begin.

        Raises:
            Exception: the error that ended Ray Tune.
        """
        if self._thread.is_alive():
            return True
        if self._error is not None:
            raise _root_cause(self._error)
        return not self._events.empty()

    def stop(self) -> None:
        """Make Ray Tune end soon, without waiting for it."""
        self._stopping.set()

    def close(self) -> None:
        """Stop Ray Tune and wait for its end."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)


def _root_cause(error: BaseException) -> BaseException:
    """Return the `RaykfoldError` that Ray Tune wrapped in its own error, or else that error."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, RaykfoldError):
        inner = inner.__cause__ or inner.__context__
    return inner or error


def sample_values(space: SearchSpace, seed: int, number: int) -> dict[str, Any]:
    """Return the values of a trial: the next combination of the grids, random values of ranges.

    They depend on the arguments alone, so a search that is resumed or extended has the same trials
    as one that was not. Combinations come in random order: a scheduler compares a trial with the
    earlier ones, and would stop none if each were better than the last.

    Args:
        space: what is searched.
        seed: of the search.
        number: of the trial, from 1.
    """
    words = [seed % 2**32, (seed >> 32) % 2**32]
    order = np.random.RandomState(words).permutation(space.grid_size())
    position = int(order[(number - 1) % len(order)])
    random = np.random.RandomState([*words, number])
    values: dict[str, Any] = {}
    for name, domain in sorted(space.domains.items()):
        if domain.kind == "grid":
            position, index = divmod(position, len(domain.arguments))
            values[name] = domain.arguments[index]
        elif domain.kind == "choice":
            values[name] = domain.arguments[random.randint(len(domain.arguments))]
        else:
            drawn = getattr(tune, domain.kind)(*domain.arguments).sample(random_state=random)
            values[name] = drawn.item() if isinstance(drawn, np.generic) else drawn
    return {name: values[name] for name in space.domains}


class _NotPickled:
    """Base of what Ray Tune would pickle into its checkpoint of an experiment."""

    def __reduce__(self) -> Any:
        return object, ()


@dataclass(frozen=True)
class _SchedulerTrial:
    """A trial as Ray Tune's schedulers know it: with an ID that is the same in every session."""

    trial_id: str


class _JournalScheduler(_NotPickled, FIFOScheduler):
    """Asks a scheduler of Ray Tune about each score once, however often a search is resumed."""

    def __init__(self, config: SearchConfig, journal: Journal) -> None:
        super().__init__()
        self._config = config
        self._journal = journal
        self._scheduler = _scheduler(config)
        self._trials: dict[int, Any] = {}
        self._decided: set[tuple[int, int]] = set()
        self._stopped = {decision.trial for decision in journal.decisions if decision.stops}
        # Tell the scheduler what its predecessors were told. Their decisions stand.
        for number, epoch, _ in journal.decisions:
            self._ask(None, number, epoch, journal[number].history[epoch - 1])

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, epoch = trial.config["trial"], result[_EPOCH]
        if number in self._stopped:  # a scheduler does not expect scores of a stopped trial
            return str(TrialScheduler.STOP)
        if (number, epoch) in self._decided:
            return str(TrialScheduler.CONTINUE)
        decision = self._ask(tune_controller, number, epoch, result[METRIC])
        if epoch >= self._config.epochs_of(self._journal[number].values):
            decision = str(TrialScheduler.CONTINUE)  # it ends by itself
        stops = decision == TrialScheduler.STOP
        if stops:
            self._stopped.add(number)
        self._journal.add_decision(Decision(number, epoch, stops))
        return decision

    def _ask(self, controller: Any, number: int, epoch: int, mean: float) -> str:
        self._decided.add((number, epoch))
        if number not in self._trials:
            self._trials[number] = _SchedulerTrial(str(number))
            self._scheduler.on_trial_add(controller, self._trials[number])
        result = {_EPOCH: epoch, METRIC: mean}
        return str(self._scheduler.on_trial_result(controller, self._trials[number], result))


def _scheduler(config: SearchConfig) -> TrialScheduler:
    common: dict[str, Any] = {
        "time_attr": _EPOCH,
        "metric": METRIC,
        "mode": "max",
        "grace_period": config.grace_epochs,
    }
    if config.trial_scheduler == "asha":
        return ASHAScheduler(
            max_t=config.most_epochs, reduction_factor=config.reduction_factor, **common
        )
    if config.trial_scheduler == "median":
        # With a time slice it would pause trials, whose workers would train on.
        return MedianStoppingRule(min_time_slice=math.inf, **common)  # type: ignore[arg-type]
    return FIFOScheduler()


class _JournalSearcher(_NotPickled, Searcher):
    """Suggests the unfinished trials first, then new ones, each in the journal before it begins."""

    def __init__(self, config: SearchConfig, journal: Journal, unfinished: list[Trial]) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._config = config
        self._journal = journal
        self._unfinished = list(unfinished)
        self._numbers: dict[str, int] = {}
        self._optuna = _optuna(config, journal, unfinished) if config.sampler == "optuna" else None

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self._unfinished:
            trial = self._unfinished.pop(0)
            if self._optuna is not None:
                self._optuna.suggest(trial_id)  # which has the same trials in the same order
        elif len(self._journal) < self._config.num_trials:
            trial = self._journal.add_trial(self._values(trial_id))
        else:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"trial": trial.number}

    def _values(self, trial_id: str) -> Mapping[str, Any]:
        if self._optuna is not None:
            return dict(self._optuna.suggest(trial_id))
        return sample_values(self._config.space, self._config.seed, len(self._journal) + 1)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._optuna is not None:
            self._optuna.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self._optuna is None:
            return
        trial = self._journal[self._numbers[trial_id]]
        failed = error or trial.mean is None
        final = None if failed else {METRIC: trial.mean, _EPOCH: len(trial.history)}
        self._optuna.on_trial_complete(trial_id, final, error=failed)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a search resumes from the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, like `save`."""


def _optuna(config: SearchConfig, journal: Journal, unfinished: list[Trial]) -> Any:
    """Return Optuna's sampler (TPE), which knows the trials that are over."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {}
    for name, domain in config.space.domains.items():
        arguments = [list(domain.arguments)] if domain.kind == "choice" else domain.arguments
        space[name] = getattr(tune, domain.kind)(*arguments)
    # The same seed as in an earlier session would draw the first trials again.
    seed = (config.seed + len(journal)) % 2**32
    sampler = OptunaSearch(
        OptunaSearch.convert_search_space(space),
        points_to_evaluate=[dict(trial.values) for trial in unfinished],
        metric=METRIC,
        mode="max",
        seed=seed,
    )
    for trial in journal:
        if trial.mean is not None and trial.status != "running":
            sampler.add_evaluated_point(dict(trial.values), trial.mean)
    return sampler


class _StopWithDriver(_NotPickled, Stopper):
    """Ends Ray Tune when the driver ends."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._stopping.is_set()

    def stop_all(self) -> bool:
        return self._stopping.is_set()


class _EventCallback(_NotPickled, tune.Callback):
    """Passes Ray Tune's decisions on from its thread."""

    def __init__(self, events: queue.SimpleQueue[TuneEvent]) -> None:
        self._events = events

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._events.put(TuneEvent(trial.config["trial"], begins=True))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._events.put(TuneEvent(trial.config["trial"], begins=False))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = f"Ray Tune's actor for it ended {_MAX_FAILURES + 1} times"
        self._events.put(TuneEvent(trial.config["trial"], begins=False, error=error))


class _SilentProgress(_NotPickled, TrialProgressCallback):
    """Takes the place of Ray Tune's own callback, which prints despite ``verbose=0``."""

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    on_trial_result = on_trial_error = on_trial_complete = _nothing
