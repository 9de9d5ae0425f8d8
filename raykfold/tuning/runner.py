"""Between Ray Tune, which begins and stops trials, and the dealer, which trains their folds.

    Tuning ── begins ──▶ Bridge ── a ledger, a run like any other ──▶ Dealer ── shares ──▶ workers
      ▲                    │                                            │
      └── mean over folds ─┘◀───────── epochs of each fold ─────────────┘

No trial of Ray Tune's holds a slot: all slots are the dealer's, which gives them to the folds of
the trial that began first. So no trial waits for what another one holds.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raykfold.config.run_config import RunConfig
from raykfold.driver import Given, claimed_part, open_ledger, set_to_work
from raykfold.errors import BadInput
from raykfold.observers import Audience, Voice
from raykfold.state.ledger import Ledger
from raykfold.text import one_line
from raykfold.training.network import check_model
from raykfold.tuning.journal import Journal, Score, ScoreKeeper, SearchObserver, TrialStatus
from raykfold.tuning.space import SearchConfig

if TYPE_CHECKING:
    from raykfold.distributed.dealer import Dealer
    from raykfold.tuning.tune import Tuning


@dataclass
class _Open:
    """A trial whose cross-validation is under way."""

    ledger: Ledger
    scores: ScoreKeeper
    resources: ExitStack
    is_told_over: bool = False


class Bridge:
    """Trains what Ray Tune begins, tells it of each score, and gives up what it stops.

    Args:
        config: the search's.
        given: what its trials start from.
        journal: its trials.
        dealer: which has the slots.
        board: the handle of a `ScoreBoard`.
        tuning: Ray Tune, which fills the same journal.
        observer: told of trials.
    """

    def __init__(
        self,
        config: SearchConfig,
        given: Given,
        journal: Journal,
        dealer: Dealer,
        board: Any,
        tuning: Tuning,
        observer: SearchObserver,
    ) -> None:
        self._config = config
        self._given = given
        self._journal = journal
        self._dealer = dealer
        self._board = board
        self._tuning = tuning
        self._observer = observer
        self._open: dict[int, _Open] = {}
        self._error: Exception | None = None
        self._closer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raykfold-close")
        self._closing: deque[Future[None]] = deque()

    def tend(self) -> bool:
        """Do what has to be done now; whether there is, or may come, something to train.

        Raises:
            StorageError: results cannot be written.
        """
        if self._error is not None:
            raise self._error
        self._given.audience.time_passed()
        for number, trial in list(self._open.items()):
            failure = trial.scores.failure
            if failure is not None:  # without that fold it can have no mean
                self._close(number, "failed", f"fold {failure.fold}: {failure.error}")
            elif trial.ledger.unfinished() == 0:
                self._conclude(number, trial)
        for news in self._tuning.news():
            if news.begins:
                self._begin(news.trial)
            elif news.trial in self._open:
                self._give_up(news.trial, news.error)
            elif news.error is not None and self._journal[news.trial].status == "running":
                self._end(news.trial, "failed", 0, news.error)
        while self._closing and self._closing[0].done():
            self._closing.popleft().result()
        return self._tuning.is_at_work() or bool(self._open) or bool(self._closing)

    def close(self) -> None:
        """Leave what is under way so that it can go on."""
        self._tuning.stop()
        for number, trial in self._open.items():
            self._board.end.remote(number)  # so that nobody waits for more
            self._closer.submit(trial.resources.close)
        self._tuning.close()
        self._open.clear()
        self._closer.shutdown()

    def _begin(self, number: int) -> None:
        """Nothing, for a trial that is open or over: its rows are on the board, to be read anew."""
        trial = self._journal[number]
        if number in self._open or trial.status != "running":
            return
        self._observer.trial_began(trial)
        resources = ExitStack()
        try:
            config = self._config.trial(number, trial.values)
            with resources:
                self._open[number] = self._opened(number, config, resources)
                ledger = self._open[number].ledger
                set_to_work(ledger, self._given.data, self._dealer, rank=number)
                self._open[number].resources = resources.pop_all()
        except BadInput as error:
            self._open.pop(number, None)
            self._end(number, "failed", 0, one_line(error, longest=None))

    def _opened(self, number: int, config: RunConfig, resources: ExitStack) -> _Open:
        data = self._given.data
        check_model(config.model, data.n_mels, data.num_classes, data.time)
        scores = ScoreKeeper(partial(self._score, number))
        voice = Voice(self._observer.noticed, f"trial {number}: ")
        audience = Audience([voice, scores])
        resources.enter_context(claimed_part(config, audience))
        ledger = open_ledger(config, self._given, audience, name=f"trial {number}")
        return _Open(ledger, scores, resources)

    def _score(self, number: int, score: Score) -> None:
        try:
            is_new = self._journal.score(number, score, self._open[number].scores.epochs_run)
            self._board.post.remote(number, {"epoch": score.epoch, "mean_accuracy": score.mean})
            if is_new:
                self._observer.trial_scored(self._journal[number], score)
        except Exception as error:  # raised here, the trial would go on without being scored
            self._error = self._error or error

    def _conclude(self, number: int, trial: _Open) -> None:
        """Once its workers have ended; Ray Tune need not wait for that."""
        if not trial.is_told_over:
            trial.is_told_over = True
            self._board.end.remote(number)
        if not self._dealer.has_shares(trial.ledger):
            self._close(number, "complete")

    def _give_up(self, number: int, error: str | None) -> None:
        if self._open[number].ledger.unfinished() == 0:
            if self._journal[number].status == "stopped":
                self._journal.go_on(number)
            return
        if error is not None:
            self._close(number, "failed", error)
        elif self._journal[number].status == "stopped":
            self._close(number, "stopped")

    def _close(self, number: int, status: TrialStatus, error: str | None = None) -> None:
        """At once what frees slots; a page, and services that are slow, in a thread."""
        trial = self._open[number]
        self._dealer.drop(trial.ledger)  # which takes in what it has committed until now
        del self._open[number]
        if status != "complete":
            self._end(number, status, trial.scores.epochs_run, error)
        self._closing.append(self._closer.submit(self._leave, number, trial, status))

    def _leave(self, number: int, trial: _Open, status: TrialStatus) -> None:
        """A trial is complete once its outputs are where they belong: it is not opened again."""
        with trial.resources:
            if status == "complete":
                trial.ledger.conclude(self._given.leakage)
        if status == "complete":
            self._end(number, status, trial.scores.epochs_run, None)

    def _end(self, number: int, status: TrialStatus, epochs_run: int, error: str | None) -> None:
        self._journal.end(number, status, epochs_run, error)
        self._board.end.remote(number)
        self._observer.trial_ended(self._journal[number])


def concurrent_trials(slots: int, folds: int) -> int:
    """How many trials to have at a time: those that the slots can hold, and one more.

    That one takes what the others leave: when a trial has fewer folds left than slots, and while
    the next one begins.

    Args:
        slots: that there are.
        folds: of a trial.
    """
    return math.ceil(max(slots, 1) / folds) + 1
