"""A search from start to end: over all folds, and with --nested also within each outer fold.

    results = search(parse_search(["--config", "search.toml"], os.environ))

Each trial is a whole cross-validation, the same run as `raykfold.driver.cross_validate` makes. All
trials share one session of Ray, and each node's copy of the data.
"""

from __future__ import annotations

import importlib.util
import math
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raykfold.config.class_spec import DEFAULT_RECIPE, SPECS
from raykfold.data.feature_set import FeatureSet
from raykfold.distributed.ray_private import imports_from_ray
from raykfold.driver import (
    Inputs,
    add_run,
    claim_part,
    claim_run,
    connect_dealer,
    known_identity,
    open_inputs,
    open_ledger,
    set_earlier_aside,
    train,
)
from raykfold.errors import BadInput
from raykfold.files.scratch import scratch_dir
from raykfold.observers import Audience, Voice
from raykfold.state.ledger import Ledger
from raykfold.state.record import EarlierRun, RunRecord, versions
from raykfold.text import count_of
from raykfold.training.check import check_options, check_training
from raykfold.training.results import headline_of, kept_epochs
from raykfold.training.search_results import OuterFold, SearchResults, Trial, best_trial
from raykfold.tuning.findings import ResultsWriter, best_run, write_page, write_results
from raykfold.tuning.journal import Journal
from raykfold.tuning.observer import SearchObserver
from raykfold.tuning.runner import TrialRunner
from raykfold.tuning.space import SearchConfig, search_identity, values_text

if TYPE_CHECKING:
    from raykfold.distributed.dealer import Dealer


def search(
    config: SearchConfig,
    *,
    data: FeatureSet | None = None,
    observer: SearchObserver | None = None,
) -> SearchResults:
    """Search for the best hyper-parameters, or resume an earlier session's search.

    Args:
        config: what to search, and how.
        data: the samples, instead of those in ``config.processed_dir``.
        observer: follows the trials.

    Returns:
        The results; their status is ``partial`` if trials failed.

    Raises:
        BadInput: a value, a file or an earlier search does not fit, and nothing has been written;
            or no slot became free in time, and complete trials are safe.
        StorageError: the disk is full, the store was away for long, or another process has taken
            the search over.
    """
    observer = observer or SearchObserver()
    _check_sampler(config)
    if data is not None:
        config = config.with_data_in_memory()
    with open_inputs(config, data, [Voice(observer.noticed)]) as inputs:
        for line in _check_space(config, inputs.data):
            inputs.audience.noticed(line)
        without = _without_outer_folds(config, inputs)
        with claim_run(config, inputs.audience):
            set_earlier_aside(config, inputs.audience)
            return _search(config, inputs, without, observer)


def _search(
    config: SearchConfig, inputs: Inputs, without: dict[int, Inputs], observer: SearchObserver
) -> SearchResults:
    # Read what earlier sessions did.
    inner = {
        fold: FoldSearch(config.outer(fold), rest, observer.of_outer(fold))
        for fold, rest in without.items()
    }
    whole = FoldSearch(config, inputs, observer, inner)
    searches = [whole, *inner.values()]

    # Train what is left: the trials of each search, then each inner winner on its outer fold.
    measured = all(each.outer_value is not None for each in inner.values())
    if not measured or not all(each.results().is_over for each in searches):
        for line in _remarks(config):
            inputs.audience.noticed(line)
        whole.journal.start_clock()
        trials = [config.trial(1, values) for values in config.space.probes()]
        with connect_dealer(whole.earlier, inputs, trials) as dealer:
            for each in searches:
                each.write_record(dealer)
            for each in searches:
                if not each.results().is_over:
                    each.tune(dealer)
                    each.journal.stop_clock()
            _measure_winners(inputs, inner, dealer)
        whole.journal.stop_clock()

    # Write the results, and send the best trial to the Hub.
    for each in (*inner.values(), whole):
        write_results(each.config, each.results())
        write_page(each.config, each.results(), each.observer.noticed)
    results = whole.results()
    run = best_run(config, results)
    if results.is_over and run is not None and run.hf_model_repo_id is not None:
        audience = Audience([Voice(observer.noticed)])
        try:
            with claim_part(run, audience):
                train(run, replace(inputs, audience=audience))
        except BadInput as error:  # another process works on it, or has trained it further
            observer.noticed(f"the best trial was not sent to the Hub: {error}")
    return results


# --- checks before anything starts ---------------------------------------------------------------


def _check_sampler(config: SearchConfig) -> None:
    if config.sampler != "optuna":
        return
    if importlib.util.find_spec("optuna") is None:
        raise BadInput(
            "--sampler optuna: is not installed; expected pip install 'raykfold[optuna]', or random"
        )
    for name, domain in config.space.domains.items():
        if domain.kind == "grid":
            raise BadInput(f"--sampler optuna: {name} is a grid; expected choice there, or random")
        if domain.is_log and domain.has_step:
            raise BadInput(
                f"--sampler optuna: {name} is a {domain.kind}, and Optuna has no steps in it; "
                f"expected {domain.kind.removeprefix('q')} there, or random"
            )


def _check_space(config: SearchConfig, data: FeatureSet) -> list[str]:
    """Try network and recipe at the ends of each domain, so that errors there come at the start.

    Returns:
        What the user should know about the networks, in lines.
    """
    warnings: dict[tuple[Any, ...], list[str]] = {}
    for values in config.space.probes():
        trial = config.trial(1, values)
        check_options(trial, data)
        differs: tuple[Any, ...] = trial.model, trial.batch_size == 1
        if trial.recipe != DEFAULT_RECIPE:  # it may ask for any option
            differs = tuple(trial.deciding().values())
        if differs in warnings:
            continue
        try:
            warnings[differs] = check_training(trial, data)
        except BadInput as error:
            of_class = {n: value for n, value in values.items() if n.split(".")[0] in SPECS}
            if not of_class:
                raise
            file = "" if config.config_file is None else f"--config {config.config_file}: "
            raise BadInput(f"{file}[search]: with {values_text(of_class)}: {error}") from error
    return list(dict.fromkeys(line for lines in warnings.values() for line in lines))


def _without_outer_folds(config: SearchConfig, inputs: Inputs) -> dict[int, Inputs]:
    """Return what the search within each outer fold starts from; nothing without --nested."""
    if not config.nested:
        return {}
    if len(inputs.data.fold_labels) < 3:
        raise BadInput("--nested true: the data has two folds; expected three or more")
    without = {}
    for fold in inputs.folds:
        rest = inputs.data.without(fold)
        # These raise where a split is impossible.
        rest.warnings(inner=config.select == "inner", seed=config.seed)
        inputs.data.warnings([fold], inner=True, seed=config.seed)
        without[fold] = replace(inputs, data=rest, folds=rest.fold_labels)
    return without


def _remarks(config: SearchConfig) -> Iterator[str]:
    """Yield remarks on the number of trials, if it looks unintended."""
    grid, combinations = config.space.grid_size(), config.space.combinations()
    if config.num_trials < grid:
        yield f"--trials {config.num_trials}: the grid has {grid} combinations; some are left out"
    elif combinations is not None and config.num_trials > combinations:
        yield (
            f"--trials {config.num_trials}: there are only "
            f"{count_of(combinations, 'configuration')}; some are tried again, with the same result"
        )


# --- one search ----------------------------------------------------------------------------------


@dataclass(eq=False)
class FoldSearch:
    """A search over some folds: the whole search, or the one within an outer fold.

    Args:
        config: its own.
        inputs: what its trials start from.
        observer: follows its trials.
        inner: for the whole search with --nested: outer fold → the search within it.

    Attributes:
        outer_error: why the winner has no value on the outer fold.

    Raises:
        BadInput: an earlier search of that name differs, or has more trials.
    """

    config: SearchConfig
    inputs: Inputs
    observer: SearchObserver
    inner: dict[int, FoldSearch] = field(default_factory=dict)
    outer_error: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        config, inputs = self.config, self.inputs
        self.earlier = EarlierRun.read(config)
        self.earlier.check(search_identity(config, inputs.data.fingerprint))
        self.journal = Journal(config.run_dir.journal)
        if config.num_trials < len(self.journal):
            raise BadInput(
                f"--trials {config.num_trials}: the search has already begun {len(self.journal)}; "
                "expected at least that, or --fresh"
            )
        splits = [inputs.data.split(fold, inner=True, seed=config.seed) for fold in self.inner]
        trained = sum(len(split.train) for split in splits)
        held_out = sum(len(split.validation) for split in splits)
        self._test_to_train = held_out / trained if trained else 0.0

    @property
    def outer_value(self) -> float | None:
        """What the winner reaches on the outer fold, by `figure`; None before it is measured."""
        best = best_trial(self.journal)
        return None if best is None else self.journal.outer_value(best.number)

    def results(self) -> SearchResults:
        """Return what the search has found so far."""
        config, inputs = self.config, self.inputs
        outer = tuple(
            OuterFold(
                fold,
                winner=best_trial(each.journal),
                epochs_run=sum(trial.epochs_run for trial in each.journal),
                value=each.outer_value,
                failed=sum(trial.status == "failed" for trial in each.journal),
                error=each.outer_error,
            )
            for fold, each in self.inner.items()
        )
        trials, best_config = tuple(self.journal), str(config.outputs.best_config)
        all_began = len(trials) >= config.num_trials
        return SearchResults(
            run_name=config.run_name,
            score=kept_epochs(config.select),
            figure=headline_of(config.monitor),
            sampler=config.sampler,
            trial_scheduler=config.trial_scheduler,
            seed=config.seed,
            epochs=config.most_epochs,
            folds=inputs.folds,
            space=config.space.to_json(),
            trials=trials,
            is_over=all_began and all(trial.status != "running" for trial in trials),
            epochs_of_all=len(inputs.folds) * sum(config.epochs_of(t.values) for t in trials),
            command=shlex.join(config.command()),
            best_command=shlex.join(["python", "-m", "raykfold.run", "--config", best_config]),
            best_config=best_config,
            trials_dir=config.model_place / "trials",
            wall_seconds=self.journal.wall_seconds,
            sessions=self.journal.sessions,
            identity=search_identity(config, inputs.data.fingerprint),
            versions=versions(),
            leakage=inputs.leakage,
            outer=outer,
            test_to_train=self._test_to_train,
        )

    def write_record(self, dealer: Dealer) -> None:
        """Write beside outputs and checkpoints which search they belong to."""
        config, data = self.config, self.inputs.data
        there = known_identity(self.earlier, data, dealer.size)
        identity = search_identity(config, data.fingerprint, there["device"], there["precision"])
        self.earlier.check(identity)
        record = RunRecord.of(config, identity, self.earlier.created, self.inputs.folds)
        record.write(config)

    def tune(self, dealer: Dealer) -> None:
        """Let Ray Tune try the configurations that are left."""
        with imports_from_ray():
            from raykfold.distributed.nodes import start_actor
            from raykfold.tuning.score_actor import ScoreActor
            from raykfold.tuning.tune import TuneRun

        config, inputs, journal = self.config, self.inputs, self.journal
        # By default as many trials as fill the slots, and one more. It takes the slots that the
        # others leave when they have fewer folds left than slots, and while the next trial begins.
        filling = math.ceil(max(dealer.slots(), 1) / len(inputs.folds))
        concurrent = config.concurrent_trials or filling + 1
        actor = start_actor(ScoreActor)
        writer = ResultsWriter(config, self.results, self.observer)
        with scratch_dir() as folder:
            tune_run = TuneRun(config, journal, actor, concurrent=concurrent, folder=folder)
            runner = TrialRunner(config, inputs, journal, dealer, actor, tune_run, writer)
            with closing(runner):
                journal.start_clock()
                tune_run.start()
                dealer.work(runner.tend)


def _measure_winners(inputs: Inputs, inner: dict[int, FoldSearch], dealer: Dealer) -> None:
    """Train the winner of each inner search on all but its outer fold, and measure it there.

    All winners train at once; each is a run of one fold. An inner split chooses its epoch, so the
    outer fold has no part in what it measures.
    """

    def tend() -> bool:
        inputs.audience.time_passed()
        return False

    with ExitStack() as claims:
        fits: list[tuple[FoldSearch, Trial, Ledger]] = []
        for fold, each in inner.items():
            best = best_trial(each.journal)
            if best is None:
                each.outer_error = "no trial of its search is complete"
            elif each.outer_value is None:
                config = each.config.fit(best.number, best.values, fold)
                audience = Audience([Voice(each.observer.noticed)])
                claims.enter_context(claim_part(config, audience))
                fit = replace(inputs, folds=(fold,), audience=audience)
                ledger = open_ledger(EarlierRun.read(config), fit, audience)
                add_run(ledger, inputs.data, dealer)
                fits.append((each, best, ledger))
        dealer.work(tend)
        for each, best, ledger in fits:
            result = ledger.conclude(inputs.leakage).folds[0]
            if result.status == "complete":
                each.journal.set_outer_value(
                    best.number, result.figure(headline_of(each.config.monitor))
                )
                ledger.remove_rounds()
            else:
                each.journal.set_outer_value(best.number, None)
                each.outer_error = str(result.error)
