"""The driver: finds the data and what an earlier session left, connects to Ray, has folds dealt."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykfold.config.command import without_gc
from raykfold.config.environment import Credentials, without_secrets
from raykfold.config.run_config import RunConfig
from raykfold.data.demo import demo_feature_set
from raykfold.data.feature_set import FeatureSet
from raykfold.data.leakage import Leakage, find_leakage
from raykfold.data.reading import files_to_read, read_feature_set
from raykfold.distributed.deal import WorkerSize
from raykfold.distributed.session import ray_session
from raykfold.errors import BadInput
from raykfold.files.remote import RemotePath, fetched
from raykfold.files.scratch import scratch_dir
from raykfold.observers import Audience, Observer
from raykfold.outputs.hub_dataset import fetch_missing
from raykfold.outputs.hub_mirror import hub_mirror
from raykfold.outputs.model_dir import Artifacts
from raykfold.outputs.store_mirror import StoreMirror
from raykfold.outputs.tensorboard import TensorBoard
from raykfold.outputs.wandb_runs import Tracker
from raykfold.pages.run_page import Reporter
from raykfold.state.heartbeat import Pulse
from raykfold.state.ledger import Ledger
from raykfold.state.record import (
    check_identity,
    check_writable,
    created,
    identity,
    locked,
    set_aside,
)
from raykfold.training.network import check_model
from raykfold.training.results import Summary

if TYPE_CHECKING:
    from raykfold.distributed.dealer import Dealer

_log = logging.getLogger(__name__)


def cross_validate(
    config: RunConfig,
    *,
    data: FeatureSet | None = None,
    observers: Sequence[Observer] = (),
) -> Summary:
    """Train every fold that `config` names, or go on with those that are not complete.

    Args:
        config: what to do.
        data: the samples, instead of those in ``config.processed_dir``.
        observers: told of everything that is committed.

    Returns:
        The summary; its status is ``partial`` if folds failed.

    Raises:
        BadInput: a value, a file or an earlier run does not fit, and nothing has been written;
            or no slot came in time, and what was complete is safe.
        StorageError: the disk is full, or the store was away for long; or another process has
            taken the run over.
    """
    with reading(config, data, observers) as given:
        data = given.data
        check_model(config.model, data.n_mels, data.num_classes, data.time)
        with claimed(config, given.audience):
            set_earlier_aside(config, given.audience)
            return train_given(config, given)


@dataclass(frozen=True)
class Given:
    """What a run has to start from.

    Attributes:
        data: the samples.
        folds: those that are held out.
        leakage: between them.
        credentials: for services outside; they are in no process's environment.
        audience: told of everything.
    """

    data: FeatureSet
    folds: tuple[int, ...]
    leakage: Leakage
    credentials: Credentials
    audience: Audience


@contextmanager
def reading(
    config: RunConfig, data: FeatureSet | None, observers: Sequence[Observer]
) -> Iterator[Given]:
    """The data, checked, and what is to say of them said; nothing is written.

    Raises:
        BadInput: the data cannot be used.
    """
    audience = Audience(observers)
    with (
        closing(audience),
        ExitStack() as scratch,
        without_secrets(os.environ) as credentials,
    ):
        data = data or _read_data(config, credentials.hf_token, audience, scratch)
        folds = _chosen_folds(config, data)
        leakage = find_leakage(data)
        about_splits = data.warnings(folds, inner=config.select == "inner", seed=config.seed)
        for line in (*data.notes, *about_splits, *leakage.warnings()):
            audience.noticed(line)
        yield Given(data, folds, leakage, credentials, audience)


@contextmanager
def claimed(config: RunConfig, audience: Audience) -> Iterator[None]:
    """Have the folder of a run for this process alone; the audience is closed at the end.

    Raises:
        BadInput: it cannot be written, or another process is at work there; or the body raised it,
            and what was made to claim the folder is undone.
        StorageError: another process has taken it over.
    """
    check_writable(config)
    missing = _missing_folders(config)
    # Observers are closed while the run is locked: a mirror may be at work until then.
    with (
        locked(config, audience.noticed) as check,
        _undone_if_refused(config, missing),
        closing(audience),
    ):
        audience.add(_LockWatch(check))
        yield
        check()


class _LockWatch(Observer):
    """Ends the run when another process has taken it over."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def time_passed(self) -> None:
        self._check()


def train_given(config: RunConfig, given: Given) -> Summary:
    """Train what is left of a run whose folder is claimed; or only put it together again.

    Raises:
        BadInput, StorageError: as `cross_validate`.
    """
    repeats = [config.repeat(number) for number in range(1, config.repeats)]
    for each in (config, *repeats):
        check_identity(each, identity(each, given.data.fingerprint))
    with ExitStack() as taken:
        ledgers = [open_ledger(config, given, given.audience)]
        for repeat in repeats:
            told = given.audience.of_repeat(repeat.seed)
            taken.enter_context(claimed_part(repeat, told))
            ledgers.append(open_ledger(repeat, given, told, repeat_of=config))
        if any(ledger.waiting for ledger in ledgers):
            _train(config, given.data, ledgers, given.audience)
        else:
            for ledger in ledgers:
                ledger.announce_again()
        run, *others = ledgers
        leakage = given.leakage
        return run.conclude(leakage, [ledger.conclude(leakage) for ledger in others])


def set_earlier_aside(config: RunConfig, observer: Observer) -> None:
    """With --fresh, move what lies there out of the way."""
    if config.fresh:
        with _parts_locked(config):
            places = set_aside(config)
        for place in places:
            observer.noticed(f"the earlier run was set aside in {place}")


@contextmanager
def claimed_part(config: RunConfig, audience: Audience) -> Iterator[None]:
    """Have a run that is part of another, like a repeat, for this process alone."""
    with locked(config, audience.noticed) as check, closing(audience):
        audience.add(_LockWatch(check))
        yield


@contextmanager
def _parts_locked(config: RunConfig) -> Iterator[None]:
    """Nobody works on a repeat, or a trial, that is there: each can also be run by itself.

    On a store a lock is an object that is set aside like others: who holds it is told soon.

    Raises:
        BadInput: somebody does.
    """
    run_dir = config.run_dir
    with ExitStack() as taken:
        for folder in (run_dir.repeats, run_dir.trials, run_dir.fits):
            for place in folder.glob("*") if isinstance(folder, Path) else ():
                part = dataclasses.replace(config, run_name=place.name, storage_path=folder)
                taken.enter_context(locked(part))
        yield


def open_ledger(
    config: RunConfig,
    given: Given,
    audience: Audience,
    *,
    repeat_of: RunConfig | None = None,
    name: str = "",
) -> Ledger:
    """Of a run, or of one of its repeats, with what storage knows; its audience gets its observers.

    Args:
        config: the run's, or the repeat's.
        given: what it starts from.
        audience: its own.
        repeat_of: the run that it is a repeat of.
        name: what to call it among several.
    """
    run, data = repeat_of or config, given.data
    first_started = created(config)
    audience.add(Artifacts(config))
    audience.add(Reporter(config, data))
    # Before those who send files, so that it is closed after them: it says what they wait for.
    audience.add(Pulse(config.run_dir, run.command(), audience.pending))
    if config.tensorboard:  # before the mirror: what an earlier session has left is gone then
        audience.add(TensorBoard(config.outputs, config.to_json()))
    if isinstance(config.model_place, RemotePath):
        others = (run.hf_model_repo_id, run.wandb_project)
        keep = any(each is not None for each in others)
        audience.add(StoreMirror(config.outputs, config.model_place, audience.noticed, keep=keep))
    for service in _services(config, given.credentials, first_started, audience):
        audience.add(service)
    name = f"seed {config.seed}" if repeat_of else name
    ledger = Ledger(config, data, given.folds, audience, first_started, name)
    ledger.find_states()
    return ledger


def _read_data(
    config: RunConfig, hf_token: str | None, observer: Observer, scratch: ExitStack
) -> FeatureSet:
    if config.demo:
        return demo_feature_set()
    if isinstance(config.processed_dir, RemotePath):
        folder = scratch.enter_context(scratch_dir())  # features are read from there all along
        with fetched(config.processed_dir, files_to_read, folder):
            return read_feature_set(folder)
    if config.hf_repo_id is not None:
        fetch_missing(config.processed_dir, config.hf_repo_id, hf_token, observer.noticed)
    return read_feature_set(config.processed_dir)


def _services(
    config: RunConfig, credentials: Credentials, first_started: str, observer: Observer
) -> Iterator[Observer]:
    """The observers that speak to services outside."""
    if config.hf_model_repo_id is not None:
        yield hub_mirror(config, credentials.hf_token, observer.noticed)
    if config.wandb_project is not None:
        yield Tracker(
            project=config.wandb_project,
            entity=config.wandb_entity,
            mode=config.wandb_mode,
            # A run that was started anew has the name of the earlier one, and is another.
            run_id=f"{config.run_name}-{first_started}",
            folder=config.model_path,
            config=config.to_json(),
            api_key=credentials.wandb_api_key,
            say=observer.noticed,
        )


def _chosen_folds(config: RunConfig, data: FeatureSet) -> tuple[int, ...]:
    if config.folds is None:
        return data.fold_labels
    unknown = [fold for fold in config.folds if fold not in data.fold_labels]
    if unknown:
        there = ", ".join(map(str, data.fold_labels))
        raise BadInput(f"--folds {','.join(map(str, unknown))}: not in the data, which has {there}")
    return config.folds


def _missing_folders(config: RunConfig) -> list[Path]:
    """Of the run's folder and those above it, innermost first; an object store has none."""
    if isinstance(config.run_dir.root, RemotePath):
        return []
    wanted = [config.run_dir.root, *config.run_dir.root.parents]
    return [folder for folder in wanted if not folder.exists()]


@contextmanager
def _undone_if_refused(config: RunConfig, missing: Sequence[Path]) -> Iterator[None]:
    """Take away the folders that were made to hold the lock, when the input turns out bad."""
    try:
        yield
    except BadInput:
        if missing:
            config.run_dir.lock.unlink(missing_ok=True)
        for folder in missing:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _train(
    config: RunConfig, data: FeatureSet, ledgers: Sequence[Ledger], observer: Observer
) -> None:
    """Connect to Ray and work until every fold is over.

    Raises:
        BadInput: Ray has not what the flags ask for; the run is another one on this device.
        StorageError: results cannot be written.
    """
    with dealing(config, data, observer) as dealer:
        run = ledgers[0]
        identities = [identity_there(ledger.config, data, dealer.size) for ledger in ledgers]
        for ledger, current in zip(ledgers, identities, strict=True):
            check_identity(ledger.config, current)
        for ledger, current in zip(ledgers, identities, strict=True):
            # The run's own summary speaks for its repeats, and is not true while one trains.
            if ledger.waiting or ledger is run:
                ledger.begin(current)
            else:
                ledger.announce_again()
            dealer.add(ledger, part_of=run)
        dealer.work()


@contextmanager
def dealing(config: RunConfig, data: FeatureSet, observer: Observer) -> Iterator[Dealer]:
    """Connect to Ray; a dealer for it, which has no ledger yet.

    Raises:
        BadInput: Ray has not what the flags ask for.
    """
    with ray_session(
        config.address,
        local_cpus=config.local_cpus,
        verbose=config.verbose,
        meanwhile=_import_dealer,
    ) as own_instance:
        # These import Ray, which the session has set up.
        from raykfold.distributed.dealer import Dealer
        from raykfold.distributed.preflight import check_slots, storage_marker, worker_size

        _log.info("connected to Ray")
        size = worker_size(config, own_instance)
        marker = None  # nodes need not be asked where there is one machine only
        with ExitStack() as stack:
            if own_instance:
                check_slots(config, size)
            else:
                marker = stack.enter_context(storage_marker(config, size))
            dealer = Dealer(
                config, data, observer, size=size, marker=marker, own_instance=own_instance
            )
            yield stack.enter_context(closing(dealer))


def set_to_work(ledger: Ledger, data: FeatureSet, dealer: Dealer, *, rank: int = 0) -> None:
    """Have a dealer that is at work train what is left of one more run; it may be nothing.

    Args:
        ledger: of the run.
        data: of the ledger.
        dealer: has the slots.
        rank: as of `Dealer.add`.

    Raises:
        BadInput: the run is another one on this device.
        StorageError: its record cannot be written.
    """
    current = identity_there(ledger.config, data, dealer.size)
    check_identity(ledger.config, current)
    if ledger.waiting:
        ledger.begin(current)
    else:
        ledger.announce_again()
    dealer.add(ledger, rank=rank)


def identity_there(config: RunConfig, data: FeatureSet, size: WorkerSize) -> dict[str, Any]:
    """A run's identity, with what only Ray's nodes could tell.

    Args:
        size: of its workers.
    """
    from raykfold.distributed.preflight import precision

    device = "gpu" if size.gpus else f"cpu x{size.cpus}"
    return identity(config, data.fingerprint, device, precision(config, size))


def _import_dealer() -> None:
    """Three quarters of a second, for Ray Train; Ray itself must have been set up and imported."""
    with without_gc():
        import raykfold.distributed.dealer
        import raykfold.distributed.preflight  # noqa: F401
