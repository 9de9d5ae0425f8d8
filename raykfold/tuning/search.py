"""A search from its start to its end: over all folds, and with --nested within each outer fold.

    findings = search(parse_search(["--config", "search.toml"], os.environ))

Each trial is a whole cross-validation, the same run as `raykfold.driver.cross_validate` makes, in
one session of Ray with the others, whose object store holds the data once.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raykfold.data.feature_set import FeatureSet
from raykfold.driver import (
    Given,
    claimed,
    claimed_part,
    dealing,
    identity_there,
    open_ledger,
    reading,
    set_earlier_aside,
    set_to_work,
    train_given,
)
from raykfold.errors import BadInput, RaykfoldError
from raykfold.files.scratch import scratch_dir
from raykfold.observers import Audience, Voice
from raykfold.state.ledger import Ledger
from raykfold.state.record import check_identity, created, write_record
from raykfold.text import counted, one_line
from raykfold.training.network import check_model
from raykfold.tuning.findings import Findings, OuterFold
from raykfold.tuning.journal import (
    Journal,
    Score,
    SearchObserver,
    Trial,
    best_of_trials,
    values_text,
)
from raykfold.tuning.runner import Bridge, concurrent_trials
from raykfold.tuning.space import SearchConfig, search_identity

if TYPE_CHECKING:
    from raykfold.distributed.dealer import Dealer

_WRITE_SECONDS = 5.0  # from one writing of search.json to the next, while trials go on
_DRAW_SECONDS = 60.0  # from one page to the next, which takes a second of a core


def search(
    config: SearchConfig,
    *,
    data: FeatureSet | None = None,
    observer: SearchObserver | None = None,
) -> Findings:
    """Try configurations, or go on with those that an earlier session has begun.

    Args:
        config: what to search, and how.
        data: the samples, instead of those in ``config.processed_dir``.
        observer: told of trials.

    Returns:
        What was found; its status is ``partial`` if trials failed.

    Raises:
        BadInput: a value, a file or an earlier search does not fit, and nothing has been written;
            or no slot came in time, and what was complete is safe.
        StorageError: the disk is full, or the store was away for long; or another process has
            taken the search over.
    """
    observer = observer or SearchObserver()
    _check_sampler(config)
    with reading(config, data, [Voice(observer.noticed)]) as given:
        _check_space(config, given.data)
        outer = _outer(config, given)
        with claimed(config, given.audience):
            set_earlier_aside(config, given.audience)
            return _Campaign(config, given, outer, observer).run()


# --- before anything starts ----------------------------------------------------------------------


def _check_sampler(config: SearchConfig) -> None:
    if config.sampler != "optuna":
        return
    if importlib.util.find_spec("optuna") is None:
        raise BadInput(
            "--sampler optuna: is not installed; want pip install 'raykfold[optuna]', or random"
        )
    for name, domain in config.space.domains.items():
        if domain.kind == "grid":
            raise BadInput(f"--sampler optuna: {name} is a grid; want choice there, or random")
        if domain.kind.startswith("qlog"):
            raise BadInput(
                f"--sampler optuna: {name} is a {domain.kind}, whose steps it does not have; want "
                f"{domain.kind.removeprefix('q')} there, or random"
            )


def _check_space(config: SearchConfig, data: FeatureSet) -> None:
    """Build the network at the ends of what is searched: what is wrong there is known now."""
    seen: set[str] = set()
    for values in config.space.probes():
        network = config.trial(1, values).model
        if network in seen:
            continue
        seen.add(network)
        try:
            check_model(network, data.n_mels, data.num_classes, data.time)
        except BadInput as error:
            of_network = {n: value for n, value in values.items() if n.split(".")[0] == "model"}
            if not of_network:
                raise
            raise BadInput(
                f"--config {config.config_file}: [search]: with {values_text(of_network)}: {error}"
            ) from error


def _doubts(config: SearchConfig) -> Iterator[str]:
    """What a user may not have meant."""
    grid, combinations = config.space.grid_size(), config.space.combinations()
    if config.num_trials < grid:
        yield f"--trials {config.num_trials}: the grid has {grid} combinations; some are left out"
    elif combinations is not None and config.num_trials > combinations:
        yield (
            f"--trials {config.num_trials}: there are no more than "
            f"{counted(combinations, 'configuration')}; some are tried again, which gives the same"
        )


def _outer(config: SearchConfig, given: Given) -> dict[int, Given]:
    """What the search within each outer fold has to start from; nothing without --nested."""
    if not config.nested:
        return {}
    if len(given.data.fold_labels) < 3:
        raise BadInput("--nested true: the data has two folds; want three or more")
    within = {}
    for fold in given.folds:
        rest = given.data.without(fold)
        inner = config.select == "inner"
        rest.warnings(inner=inner, seed=config.seed)  # raises where a split cannot be made
        given.data.warnings([fold], inner=True, seed=config.seed)
        within[fold] = replace(given, data=rest, folds=rest.fold_labels)
    return within


# --- a search over some folds --------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A search over some folds: the whole one, or that within an outer fold.

    Attributes:
        config: its own.
        given: what its trials start from.
        journal: its trials.
        observer: told of them.
        outer: the fold that is left out; None of the whole one.
    """

    config: SearchConfig
    given: Given
    journal: Journal
    observer: SearchObserver
    outer: int | None

    @property
    def is_over(self) -> bool:
        trials = list(self.journal)
        begun = len(trials) >= self.config.num_trials
        return begun and all(trial.status != "running" for trial in trials)

    @property
    def measured(self) -> float | None:
        """Accuracy of the winner on the outer fold, if it is known."""
        best = best_of_trials(list(self.journal))
        return None if best is None else self.journal.measured(best.number)

    def findings(self, outer: Sequence[OuterFold] = (), test_to_train: float = 0.0) -> Findings:
        return Findings(
            config=self.config,
            folds=self.given.folds,
            trials=tuple(self.journal),
            is_over=self.is_over,
            wall_seconds=self.journal.wall_seconds,
            sessions=self.journal.sessions,
            identity=search_identity(self.config, self.given.data.fingerprint),
            warnings=self.given.leakage.warnings(),
            outer=tuple(outer),
            test_to_train=test_to_train,
        )


class _Campaign:
    """The whole search, the searches within outer folds, and what comes of them."""

    def __init__(
        self,
        config: SearchConfig,
        given: Given,
        outer: dict[int, Given],
        observer: SearchObserver,
    ) -> None:
        self._config = config
        self._given = given
        self._observer = observer
        self._errors: dict[int, str] = {}  # of outer folds
        self._whole = self._part(config, given, observer)
        self._outer = {
            fold: self._part(config.outer(fold), within, observer.of_outer(fold), fold)
            for fold, within in outer.items()
        }

    def _part(
        self,
        config: SearchConfig,
        given: Given,
        observer: SearchObserver,
        outer: int | None = None,
    ) -> _Part:
        check_identity(config, search_identity(config, given.data.fingerprint))
        journal = Journal(config.run_dir.journal)
        if config.num_trials < len(journal):
            raise BadInput(
                f"--trials {config.num_trials}: the search has begun {len(journal)} already; want "
                "at least that, or --fresh"
            )
        return _Part(config, given, journal, observer, outer)

    def run(self) -> Findings:
        parts = [self._whole, *self._outer.values()]
        measured = all(part.measured is not None for part in self._outer.values())
        if not (measured and all(part.is_over for part in parts)):
            for line in _doubts(self._config):
                self._observer.noticed(line)
            self._whole.journal.start()
            with dealing(self._config, self._given.data, self._given.audience) as dealer:
                for part in parts:
                    self._record(part, dealer)
                for part in parts:
                    if not part.is_over:
                        self._tune(part, dealer)
                self._measure(dealer)
            self._whole.journal.stop()
        for part in self._outer.values():
            part.findings().write()
            _draw(part.findings(), part.observer.noticed)
        findings = self._findings()
        findings.write()
        _draw(findings, self._observer.noticed)
        self._publish(findings)
        return findings

    def _record(self, part: _Part, dealer: Dealer) -> None:
        """Say beside outputs and checkpoints what lies there."""
        config, data = part.config, part.given.data
        there = identity_there(config, data, dealer.size)
        current = search_identity(config, data.fingerprint, there["device"], there["precision"])
        check_identity(config, current)
        write_record(config, current, created(config), part.given.folds)

    def _findings(self) -> Findings:
        outer = [
            OuterFold(
                fold,
                winner=best_of_trials(list(part.journal)),
                epochs_run=sum(trial.epochs_run for trial in part.journal),
                failed=sum(trial.status == "failed" for trial in part.journal),
                accuracy=part.measured,
                error=self._errors.get(fold),
            )
            for fold, part in self._outer.items()
        ]
        config, data = self._config, self._given.data
        splits = [data.split(fold, inner=True, seed=config.seed) for fold in self._outer]
        trained = sum(len(split.train) for split in splits)
        held_out = sum(len(split.validation) for split in splits)
        return self._whole.findings(outer, test_to_train=held_out / trained if trained else 0.0)

    def _tune(self, part: _Part, dealer: Dealer) -> None:
        if part is self._whole:
            _tune(part, dealer, self._findings)
        else:
            _tune(part, dealer, part.findings)
            part.journal.stop()

    # --- outer folds -------------------------------------------------------------------------

    def _measure(self, dealer: Dealer) -> None:
        """Train each winner on all but the outer fold that it has not seen, and measure it there.

        All at once: each is a run of one fold. An inner split chooses its epoch, so the outer fold
        has no part in what it measures.
        """
        with ExitStack() as taken:
            fits: list[tuple[_Part, Trial, Ledger]] = []
            for part in self._outer.values():
                best = best_of_trials(list(part.journal))
                if best is None:
                    assert part.outer is not None
                    self._errors[part.outer] = "no trial of its search is complete"
                elif part.measured is None:
                    fits.append((part, best, self._fit(part, best, dealer, taken)))
            dealer.work(self._tend)
            for part, best, ledger in fits:
                result = ledger.conclude(self._given.leakage).folds[0]
                if result.status == "failed":
                    self._errors[result.fold] = str(result.error)
                is_whole = result.status == "complete"
                accuracy = result.chosen_val_accuracy if is_whole else None
                part.journal.measure(best.number, accuracy)
                if is_whole:
                    ledger.remove_rounds()

    def _fit(self, part: _Part, best: Trial, dealer: Dealer, taken: ExitStack) -> Ledger:
        assert part.outer is not None
        config = part.config.fit(best.number, best.values, part.outer)
        audience = Audience([Voice(part.observer.noticed)])
        taken.enter_context(claimed_part(config, audience))
        given = replace(self._given, folds=(part.outer,), audience=audience)
        ledger = open_ledger(config, given, audience)
        set_to_work(ledger, given.data, dealer)
        return ledger

    def _tend(self) -> bool:
        self._given.audience.time_passed()
        return False

    # --- the end -----------------------------------------------------------------------------

    def _publish(self, findings: Findings) -> None:
        """To the Hub goes the winner, and nothing else."""
        run = findings.best_run
        if run is None or run.hf_model_repo_id is None or not findings.is_over:
            return
        audience = Audience([Voice(self._observer.noticed)])
        try:
            with claimed_part(run, audience):
                train_given(run, replace(self._given, audience=audience))
        except BadInput as error:  # somebody is at work on it, or has trained it further
            self._observer.noticed(f"the best trial was not sent to the Hub: {error}")


def _tune(part: _Part, dealer: Dealer, findings: Callable[[], Findings]) -> None:
    """Have Ray Tune try what is left to be tried.

    Args:
        findings: what to write into ``search.json`` as it goes on.
    """
    from raykfold.tuning.score_actor import open_score_board
    from raykfold.tuning.tune import Tuning

    config, folds = part.config, len(part.given.folds)
    concurrent = config.concurrent_trials or concurrent_trials(dealer.slots(), folds)
    board = open_score_board()
    with scratch_dir() as folder:
        tuning = Tuning(config, part.journal, board, concurrent=concurrent, folder=folder)
        recorder = _Recorder(part.observer, findings)
        bridge = Bridge(config, part.given, part.journal, dealer, board, tuning, recorder)
        with closing(bridge):
            part.journal.start()
            tuning.start()
            dealer.work(bridge.tend)


class _Recorder(SearchObserver):
    """Keeps ``search.json`` up to date, and passes everything on."""

    def __init__(self, observer: SearchObserver, findings: Callable[[], Findings]) -> None:
        self._observer: SearchObserver | None = observer
        self._findings = findings
        self._wrote = 0.0
        self._drew = 0.0
        self._lock = threading.Lock()  # trials end in a thread of their own

    def trial_began(self, trial: Trial) -> None:
        self._write()
        self._tell("trial_began", trial)

    def trial_scored(self, trial: Trial, score: Score) -> None:
        if time.monotonic() - self._wrote >= _WRITE_SECONDS:
            self._write()
        self._tell("trial_scored", trial, score)

    def trial_ended(self, trial: Trial) -> None:
        self._write()
        # In the thread in which complete trials end, and nobody waits for it.
        if trial.status == "complete" and time.monotonic() - self._drew >= _DRAW_SECONDS:
            self._drew = time.monotonic()
            _draw(self._findings(), self.noticed)
        self._tell("trial_ended", trial)

    def noticed(self, text: str) -> None:
        self._tell("noticed", text)

    def _tell(self, what: str, *args: Any) -> None:
        """An observer that raises is not told any more, as of a run, and the search goes on."""
        try:
            if self._observer is not None:
                getattr(self._observer, what)(*args)
        except RaykfoldError:
            raise
        except Exception:
            self._observer = None

    def _write(self) -> None:
        with self._lock:
            self._wrote = time.monotonic()
            self._findings().write()


def _draw(findings: Findings, say: Callable[[str], None]) -> None:
    """A page that cannot be made ends no search."""
    try:
        findings.write_page()
    except Exception as error:
        say(f"{findings.config.outputs.report}: could not be made ({one_line(error)})")
