"""Trains the trials that Ray Tune begins, and tells it how they score.

    TuneRun ── begins ──▶ TrialRunner ── a ledger, as of any run ──▶ Dealer ── shares ──▶ workers
       ▲                       │                                       │
       └── mean over folds ────┘◀────────── epochs of each fold ───────┘

Trials of Ray Tune hold no slots. All slots are the dealer's, and it gives them to the folds of the
trial that began first, so no trial waits for what another holds.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raykfold.driver import Inputs, add_run, claim_part, open_ledger
from raykfold.errors import BadInput
from raykfold.observers import Audience, Voice
from raykfold.state.ledger import Ledger
from raykfold.state.record import EarlierRun
from raykfold.text import one_line
from raykfold.training.check import check_training
from raykfold.training.results import headline_of
from raykfold.training.search_results import TrialStatus
from raykfold.tuning.journal import Journal
from raykfold.tuning.observer import SearchObserver
from raykfold.tuning.scores import Score, ScoreKeeper
from raykfold.tuning.space import SearchConfig

if TYPE_CHECKING:
    from raykfold.distributed.dealer import Dealer
    from raykfold.tuning.tune import TuneRun


@dataclass
class _ActiveTrial:
    """A trial whose cross-validation is under way."""

    ledger: Ledger
    scores: ScoreKeeper
    resources: ExitStack
    has_ended: bool = False  # and Ray Tune knows


@dataclass(eq=False)
class TrialRunner:
    """Trains what Ray Tune begins, passes each score to it, and gives up what it stops.

    Args:
        config: the search's.
        inputs: what its trials start from.
        journal: its trials.
        dealer: has the slots.
        score_actor: the handle of a `ScoreActor`.
        tune_run: Ray Tune, which fills the same journal.
        observer: follows the trials.
    """

    config: SearchConfig
    inputs: Inputs
    journal: Journal
    dealer: Dealer
    score_actor: Any
    tune_run: TuneRun
    observer: SearchObserver

    def __post_init__(self) -> None:
        self._active: dict[int, _ActiveTrial] = {}
        self._error: Exception | None = None
        self._closer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raykfold-close")
        self._closing: deque[Future[None]] = deque()

    def tend(self) -> bool:
        """Do what is due, and return whether there is, or may come, something to train.

        Raises:
            StorageError: results cannot be written.
        """
        if self._error is not None:
            raise self._error
        self.inputs.audience.time_passed()
        for number, trial in list(self._active.items()):
            failure = trial.scores.failure
            if failure is not None:  # without that fold the trial cannot have a mean
                self._close(number, "failed", f"fold {failure.fold}: {failure.error}")
            elif trial.ledger.unfinished() == 0:
                if not trial.has_ended:  # Ray Tune need not wait until its workers have ended
                    trial.has_ended = True
                    self.score_actor.end.remote(number)
                if not self.dealer.has_shares(trial.ledger):
                    self._close(number, "complete")
        for event in self.tune_run.events():
            if event.begins:
                self._begin(event.trial)
            elif event.trial in self._active:
                self._stop(event.trial, event.error)
            elif event.error is not None and self.journal[event.trial].status == "running":
                self._end(event.trial, "failed", 0, event.error)
        while self._closing and self._closing[0].done():
            self._closing.popleft().result()
        return self.tune_run.is_running() or bool(self._active) or bool(self._closing)

    def close(self) -> None:
        """Leave the active trials so that they can be resumed."""
        self.tune_run.stop()
        for number, trial in self._active.items():
            self.score_actor.end.remote(number)  # so that nobody waits for more scores
            self._closer.submit(trial.resources.close)
        self.tune_run.close()
        self._active.clear()
        self._closer.shutdown()

    def _begin(self, number: int) -> None:
        """Train a trial as the run that it is."""
        trial = self.journal[number]
        if number in self._active or trial.status != "running":
            return  # Ray Tune's actor began again, and reads the scores again
        self.observer.trial_began(trial)
        data = self.inputs.data
        try:
            config = self.config.trial(number, trial.values)
            check_training(config, data)
            scores = ScoreKeeper(partial(self._add_score, number), headline_of(config.monitor))
            voice = Voice(self.observer.noticed, f"trial {number}: ")
            audience = Audience([voice, scores])
            with ExitStack() as resources:
                resources.enter_context(claim_part(config, audience))
                ledger = open_ledger(
                    EarlierRun.read(config), self.inputs, audience, name=f"trial {number}"
                )
                # Active before its first score, which an earlier session may have trained.
                self._active[number] = active = _ActiveTrial(ledger, scores, resources)
                add_run(ledger, data, self.dealer, rank=number)
                active.resources = resources.pop_all()
        except BadInput as error:
            self._active.pop(number, None)
            self._end(number, "failed", 0, one_line(error, longest=None))

    def _add_score(self, number: int, score: Score) -> None:
        try:
            is_new = self.journal.add_score(number, score, self._active[number].scores.epochs_run)
            row = {"epoch": score.epoch, "mean": score.mean}
            self.score_actor.add.remote(number, row)
            if is_new:
                self.observer.trial_scored(self.journal[number])
        except Exception as error:  # an observer that raises is dropped: `tend` raises it instead
            self._error = self._error or error

    def _stop(self, number: int, error: str | None) -> None:
        """End a trial that Ray Tune has ended."""
        was_stopped = self.journal[number].status == "stopped"
        if self._active[number].ledger.unfinished() == 0:
            if was_stopped:  # too late: the trial has reached its end
                self.journal.revoke_stop(number)
        elif error is not None:
            self._close(number, "failed", error)
        elif was_stopped:
            self._close(number, "stopped")

    def _close(self, number: int, status: TrialStatus, error: str | None = None) -> None:
        """Free the trial's slots now; write its page and finish its uploads in a thread."""
        trial = self._active[number]
        self.dealer.drop(trial.ledger)  # which may still add scores
        del self._active[number]
        if status != "complete":
            self._end(number, status, trial.scores.epochs_run, error)
        self._closing.append(self._closer.submit(self._close_run, number, trial, status))

    def _close_run(self, number: int, trial: _ActiveTrial, status: TrialStatus) -> None:
        with trial.resources:
            if status == "complete":
                trial.ledger.conclude(self.inputs.leakage)
        if status == "complete":  # only now: a complete trial is never opened again
            self._end(number, status, trial.scores.epochs_run, None)

    def _end(self, number: int, status: TrialStatus, epochs_run: int, error: str | None) -> None:
        self.journal.end_trial(number, status, epochs_run, error)
        self.score_actor.end.remote(number)
        self.observer.trial_ended(self.journal[number])
