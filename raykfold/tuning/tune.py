"""Ray Tune at work: which trials begin, and which of them are stopped. It trains none itself.

    Tuner ── trial begins ──▶ news ──▶ driver ── trains ──▶ ScoreBoard ──▶ Tune's actor of the trial
      ▲                                                                        │
      └────────────────── scheduler: stop it, or go on ◀── tune.report ────────┘

What Ray Tune knows is made anew in each session, from the journal: its own record of an experiment
is written now and then, and names neither what came after that nor the schedulers' state.
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
from raykfold.tuning.journal import Journal, Trial
from raykfold.tuning.score_actor import follow
from raykfold.tuning.space import SearchConfig, SearchSpace

METRIC = "mean_accuracy"
_EPOCH = "epoch"
_STOP_SECONDS = 10.0
_DEATHS = 3  # of the actor that stands for a trial
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the driver's observers log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial can fail before its first score
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a frame around the name of the run
}


@dataclass(frozen=True)
class News:
    """What Ray Tune has decided of a trial: that it begins, or that it ends.

    Attributes:
        trial: its number.
        begins: or begins anew, when its actor had died.
        error: of its actor, too often.
    """

    trial: int
    begins: bool
    error: str | None = None


class Tuning:
    """A run of Ray Tune in a thread of its own.

    Args:
        config: the search's.
        journal: its trials; those that are not over begin first.
        board: the handle of a `ScoreBoard`, which the driver fills.
        concurrent: most trials at a time.
        folder: for what Ray Tune writes; nobody reads it.
    """

    def __init__(
        self, config: SearchConfig, journal: Journal, board: Any, *, concurrent: int, folder: Path
    ) -> None:
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        unfinished = [trial for trial in journal if trial.status == "running"]
        to_come = max(0, config.num_trials - len(journal))
        self._tuner = tune.Tuner(
            _standing_in(board),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=len(unfinished) + to_come,
                max_concurrent_trials=concurrent,
                search_alg=_Suggestions(config, journal, unfinished),
                scheduler=_Judge(config, journal),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(folder),
                callbacks=[_Reporter(self._news), _Silent()],
                failure_config=tune.FailureConfig(max_failures=_DEATHS),
                stop=_Stop(self._stopping),
                verbose=0,
            ),
        )
        self._thread = threading.Thread(target=self._run, name="raykfold-tune", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._tuner.fit()
        except BaseException as error:  # whatever it is, the driver is to hear of it
            self._error = error

    def news(self) -> Iterator[News]:
        """What has been decided since the last time."""
        while not self._news.empty():
            yield self._news.get()

    def is_at_work(self) -> bool:
        """Whether more trials may begin.

        Raises:
            Exception: what has ended Ray Tune before its time.
        """
        if self._thread.is_alive():
            return True
        if self._error is not None:
            raise _own(self._error)
        return not self._news.empty()

    def stop(self) -> None:
        """Have it end soon; nothing of it is needed any more."""
        self._stopping.set()

    def close(self) -> None:
        """Wait until it has ended."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)


def _own(error: BaseException) -> BaseException:
    """What ended Ray Tune, if it was an error of ours: Ray Tune wraps it in its own."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, RaykfoldError):
        inner = inner.__cause__ or inner.__context__
    return inner or error


def sampled(space: SearchSpace, seed: int, number: int) -> dict[str, Any]:
    """The values of a trial: of grids the next combination, of ranges random ones.

    They follow from these arguments alone, so a search that is resumed or extended goes on with
    the trials that it would have had. Combinations come in random order: a scheduler that compares
    with what came before stops nothing as long as each is better than the last.

    Args:
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


def _standing_in(board: Any) -> Any:
    """What Ray Tune runs for a trial: an actor on this node that takes no CPU."""
    here = f"node:{ray.util.get_node_ip_address()}"
    return tune.with_resources(tune.with_parameters(follow, board=board), {"cpu": 0, here: 0.001})


def _rule(config: SearchConfig) -> TrialScheduler:
    if config.scheduler == "asha":
        return ASHAScheduler(
            time_attr=_EPOCH,
            metric=METRIC,
            mode="max",
            max_t=config.most_epochs,
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor,
        )
    if config.scheduler == "median":
        return MedianStoppingRule(
            time_attr=_EPOCH,
            metric=METRIC,
            mode="max",
            grace_period=config.grace_epochs,
            # Else it pauses trials, whose workers would go on.
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
    return FIFOScheduler()


class _Unkept:
    """Ray Tune pickles what it is given into its record of an experiment, which nobody reads."""

    def __reduce__(self) -> Any:
        return object, ()


@dataclass(frozen=True)
class _Entry:
    """A trial as a scheduler knows it: the same in every session."""

    trial_id: str


class _Judge(_Unkept, FIFOScheduler):
    """Asks a scheduler of Ray Tune's about each score once, however often a search is resumed."""

    def __init__(self, config: SearchConfig, journal: Journal) -> None:
        super().__init__()
        self._config = config
        self._rule = _rule(config)
        self._journal = journal
        self._entries: dict[int, Any] = {}
        self._judged: set[tuple[int, int]] = set()
        self._stopped: set[int] = set()
        for number, epoch, stops in journal.judged:
            self._ask(None, number, epoch, journal[number].history[epoch - 1])
            if stops:
                self._stopped.add(number)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, epoch = trial.config["trial"], result[_EPOCH]
        if number in self._stopped:  # no rule is asked of a trial that it has stopped
            return str(TrialScheduler.STOP)
        if (number, epoch) in self._judged:
            return str(TrialScheduler.CONTINUE)
        decision = self._ask(tune_controller, number, epoch, result[METRIC])
        if epoch >= self._config.epochs_of(self._journal[number].values):
            decision = str(TrialScheduler.CONTINUE)  # it ends by itself
        stops = decision == TrialScheduler.STOP
        if stops:
            self._stopped.add(number)
        self._journal.judge(number, epoch, stops=stops)
        return decision

    def _ask(self, controller: Any, number: int, epoch: int, mean: float) -> str:
        self._judged.add((number, epoch))
        if number not in self._entries:
            self._entries[number] = _Entry(str(number))
            self._rule.on_trial_add(controller, self._entries[number])
        row = {_EPOCH: epoch, METRIC: mean}
        return str(self._rule.on_trial_result(controller, self._entries[number], row))


class _Suggestions(_Unkept, Searcher):
    """First the trials that are not over, then new ones, each put down before it begins."""

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
                self._optuna.suggest(trial_id)  # the same, which it was given in that order
        elif len(self._journal) < self._config.num_trials:
            trial = self._journal.begin(self._values(trial_id))
        else:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"trial": trial.number}

    def _values(self, trial_id: str) -> Mapping[str, Any]:
        if self._optuna is None:
            number = len(self._journal) + 1
            return sampled(self._config.space, self._config.seed, number)
        return dict(self._optuna.suggest(trial_id))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._optuna is not None:
            self._optuna.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self._optuna is None:
            return
        trial = self._journal[self._numbers[trial_id]]
        failed = error or trial.status == "failed" or not trial.history
        told = None if failed else {METRIC: trial.history[-1], _EPOCH: len(trial.history)}
        self._optuna.on_trial_complete(trial_id, told, error=failed)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, either."""


def _optuna(config: SearchConfig, journal: Journal, unfinished: list[Trial]) -> Any:
    """Optuna's sampler (TPE), told of the trials that are over."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        name: getattr(tune, domain.kind)(list(domain.arguments))
        if domain.kind == "choice"
        else getattr(tune, domain.kind)(*domain.arguments)
        for name, domain in config.space.domains.items()
    }
    waiting = [dict(trial.values) for trial in unfinished]
    # Another seed for what comes after a kill: the same one would draw the first trials again.
    seed = (config.seed + len(journal)) % 2**32
    sampler = OptunaSearch(
        OptunaSearch.convert_search_space(space),
        points_to_evaluate=waiting,
        metric=METRIC,
        mode="max",
        seed=seed,
    )
    for trial in journal:
        if trial.mean is not None and trial.status != "running":
            sampler.add_evaluated_point(dict(trial.values), trial.mean)
    return sampler


class _Stop(_Unkept, Stopper):
    """Ends Ray Tune when the driver ends."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._stopping.is_set()

    def stop_all(self) -> bool:
        return self._stopping.is_set()


class _Reporter(_Unkept, tune.Callback):
    """Passes on, from Ray Tune's thread, what it has decided."""

    def __init__(self, news: queue.SimpleQueue[News]) -> None:
        self._news = news

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._news.put(News(trial.config["trial"], begins=True))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._news.put(News(trial.config["trial"], begins=False))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = f"Ray Tune's actor for it ended {_DEATHS + 1} times"
        self._news.put(News(trial.config["trial"], begins=False, error=error))


class _Silent(_Unkept, TrialProgressCallback):
    """Stands where Ray Tune's own would, which prints of trials that end early whatever `verbose`
    says.
    """

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        pass

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        pass

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        pass
