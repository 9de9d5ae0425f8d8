"""The driver: `cross_validate`, which wires the layers in the order in which a run happens.

Words:

    run     one cross-validation; with ``repeats``, each further seed is a run within it
    fold    named by its label in the data, never by its index
    slot    room for one worker: a GPU, or ``cpus_per_worker`` CPUs of one node
    share   the folds that one slot works through, and the Ray Train run that does it
    round   one epoch of every active fold of a share; then a checkpoint is committed
    ledger  what a run knows of its folds: which wait, are being trained, are over
    dealer  gives the waiting folds of ledgers to free slots, until none is left
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from raykfold.config.command import leave_lost_folder, without_gc
from raykfold.config.environment import Credentials, without_secrets
from raykfold.config.run_config import RunConfig
from raykfold.data.demo import demo_feature_set
from raykfold.data.feature_file import temporary_feature_file
from raykfold.data.feature_set import FeatureSet
from raykfold.data.leakage import Leakage, find_leakage
from raykfold.data.reading import files_to_read, names_a_file, read_feature_set
from raykfold.data.splitters import FoldRule
from raykfold.distributed.deal import WorkerSize
from raykfold.distributed.ray_private import imports_from_ray, untested_version
from raykfold.distributed.session import ray_session
from raykfold.errors import BadInput
from raykfold.files.remote import RemotePath, local_copy
from raykfold.files.scratch import scratch_dir, temporary_folder
from raykfold.observers import Audience, Observer
from raykfold.outputs.console import console
from raykfold.outputs.hub_dataset import fetch_missing
from raykfold.outputs.hub_mirror import hub_mirror
from raykfold.outputs.model_dir import ModelDirWriter
from raykfold.outputs.notebook import in_notebook, notebook
from raykfold.outputs.store_mirror import StoreMirror
from raykfold.outputs.tensorboard import TensorBoard
from raykfold.outputs.wandb_runs import WandbRuns
from raykfold.pages.run_page import Reporter
from raykfold.state.claim import claim
from raykfold.state.folders import check_writable, set_aside
from raykfold.state.heartbeat import Heartbeat
from raykfold.state.ledger import Ledger
from raykfold.state.record import EarlierRun, identity
from raykfold.text import comma_list
from raykfold.training.check import check_training
from raykfold.training.results import Summary

if TYPE_CHECKING:
    from raykfold.distributed.dealer import Dealer

_log = logging.getLogger(__name__)


def cross_validate(
    config: RunConfig,
    *,
    X: npt.ArrayLike | None = None,  # noqa: N803, as scikit-learn calls it
    y: npt.ArrayLike | None = None,
    folds: npt.ArrayLike | FoldRule | None = None,
    groups: npt.ArrayLike | None = None,
    recordings: npt.ArrayLike | None = None,
    class_names: Mapping[Any, Any] | Iterable[str] | None = None,
    data: FeatureSet | None = None,
    observers: Sequence[Observer] = (),
    progress: bool | None = None,
) -> Summary:
    """Train every fold that `config` names, or resume those that are not complete.

        cross_validate(config)  # the data is in files, in config.processed_dir
        cross_validate(config, X=features, y=labels, folds=StratifiedGroupKFold(5), groups=speakers)

    To resume a run of arrays, call it again with the same ones. Its name is ``arrays`` by default:
    runs of other arrays need a ``run_name`` or a ``model_dir`` of their own.

    Args:
        config: what to do.
        X: the samples, `features` of `FeatureSet.from_arrays`, which says what each argument may
            be; with `y` and `folds`, instead of the files.
        y: their labels: integers, text, bool or one-hot.
        folds: their folds: labels of any kind, one of scikit-learn's splitters, a list of (train,
            test) indices, or how many folds to make. A run can only be resumed with the same folds.
        groups: for a splitter, what belongs together.
        recordings: the recording that each sample is a window of; results are then also reported
            by recording.
        class_names: label → name, or the names of labels 0, 1, and so on.
        data: the samples as a feature set, instead of `X`, `y` and `folds`.
        observers: told of everything that is committed.
        progress: show progress, and what the user should know: in a notebook below the cell,
            elsewhere on stdout. By default, in notebooks only.

    Returns:
        The summary; its status is ``partial`` if folds failed.

    Raises:
        BadInput: a value, a file or an earlier run does not fit, and nothing has been written;
            or no slot came in time, and what was complete is safe.
        StorageError: the disk is full, or the store was away for long; or another process has
            taken the run over.
    """
    arrays = {"X": X, "y": y, "folds": folds}
    about = {"groups": groups, "recordings": recordings, "class_names": class_names}
    given = [name for name, values in {**arrays, **about}.items() if values is not None]
    if given:
        _check_arrays_are_the_data(config, arrays, given, data)
        # A set has no order to number its names in.
        named = isinstance(class_names, Mapping | Set | str | bytes)
        if isinstance(class_names, Iterable) and not named:
            class_names = dict(enumerate(class_names))
        data = FeatureSet.from_arrays(
            *arrays.values(),  # type: ignore[arg-type]  # none of them is None
            groups=groups,
            recordings=recordings,
            class_mapping=class_names,  # type: ignore[arg-type]  # anything else is refused
            names={"features": "X", "labels": "y", "class_mapping": "class_names"},
        )
    if data is not None:
        config = config.with_data_in_memory()
    if in_notebook() if progress is None else progress:
        observers = [notebook() if in_notebook() else console(), *observers]
    with open_inputs(config, data, observers) as inputs:
        data = inputs.data
        for line in check_training(config, data):
            inputs.audience.noticed(line)
        with claim_run(config, inputs.audience):
            set_earlier_aside(config, inputs.audience)
            return train(config, inputs)


def _check_arrays_are_the_data(
    config: RunConfig,
    arrays: Mapping[str, Any],
    given: Sequence[str],
    data: FeatureSet | None,
) -> None:
    """Refuse some of X, y and folds without the others, and arrays beside another source of data.

    Raises:
        BadInput: one of these.
    """
    if data is not None:
        raise BadInput(
            f"cross_validate: both data and {comma_list(given)}; expected data alone, which has "
            "its own (FeatureSet.from_arrays), or X, y and folds"
        )
    lacking = [name for name, values in arrays.items() if values is None]
    if lacking:
        raise BadInput(
            f"cross_validate: without {comma_list(lacking)}; expected X, y and folds together"
        )
    changed = config.changed()
    others = [f"--{name}" for name in ("processed_dir", "hf_repo_id", "demo") if name in changed]
    if others:
        raise BadInput(
            f"cross_validate: both X and {comma_list(others)} name the data; expected one of them"
        )


# --- before anything is written ------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """What a run starts from.

    Attributes:
        data: the samples.
        folds: labels of the folds that are held out.
        leakage: what the folds have in common and should not.
        credentials: for outside services; no process has them in its environment.
        audience: told of everything.
    """

    data: FeatureSet
    folds: tuple[int, ...]
    leakage: Leakage
    credentials: Credentials
    audience: Audience


@contextmanager
def open_inputs(
    config: RunConfig, data: FeatureSet | None, observers: Sequence[Observer]
) -> Iterator[Inputs]:
    """Read and check the data, and report what the user should know about it. Writes nothing.

    Raises:
        BadInput: the data cannot be used.
    """
    leave_lost_folder()
    audience = Audience(observers)
    with (
        closing(audience),
        ExitStack() as scratch,
        without_secrets(os.environ) as credentials,
    ):
        if data is None:
            data = _read_data(config, credentials.hf_token, audience, scratch)
        folds = config.folds or data.fold_labels
        unknown = [fold for fold in folds if fold not in data.fold_labels]
        if unknown:
            raise BadInput(
                f"--folds {','.join(map(str, unknown))}: not in the data, which has "
                f"{comma_list(data.folds_shown)}"
            )
        leakage = find_leakage(data)
        about_splits = data.warnings(folds, inner=config.select == "inner", seed=config.seed)
        for line in (*data.notes, *about_splits, *leakage.warnings()):
            audience.noticed(line)
        yield Inputs(data, folds, leakage, credentials, audience)


def _read_data(
    config: RunConfig, hf_token: str | None, observer: Observer, scratch: ExitStack
) -> FeatureSet:
    if config.demo:
        return demo_feature_set()
    if isinstance(data_dir := config.processed_dir, RemotePath):
        # Features stay there, memory-mapped.
        parent = config.scratch_dir or temporary_folder()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = scratch.enter_context(scratch_dir(parent))
        except OSError as error:
            raise BadInput(
                f"--scratch_dir {parent}: cannot be written ({error.strerror or error}); expected "
                f"a folder for what is fetched from {data_dir}"
            ) from error
        hint = f"--scratch_dir {parent}"
        if names_a_file(data_dir.name):
            with local_copy(data_dir.parent, {data_dir.name}.intersection, folder, hint):
                return read_feature_set(folder / data_dir.name)
        with local_copy(data_dir, files_to_read, folder, hint):
            return read_feature_set(folder)
    if config.hf_repo_id is not None:
        fetch_missing(data_dir, config.hf_repo_id, hf_token, observer.noticed)
    return read_feature_set(data_dir)


# --- the folder of a run -------------------------------------------------------------------------


@contextmanager
def claim_run(config: RunConfig, audience: Audience) -> Iterator[None]:
    """Keep other drivers out of the run's folder; close the audience at the end.

    Raises:
        BadInput: the folder cannot be written, or another process works there; or the body raised
            it, and then the folders made for the claim are removed.
        StorageError: another process has taken the run over.
    """
    check_writable(config)
    root = config.run_dir.root
    wanted = [] if isinstance(root, RemotePath) else [root, *root.parents]
    missing = [folder for folder in wanted if not folder.exists()]
    # The audience is closed while the claim holds: a mirror may be at work until then.
    try:
        with claim(config, audience.noticed) as check:
            try:
                with closing(audience):
                    audience.add(_ClaimWatch(check))
                    yield
                    check()
            except BadInput:
                if missing:
                    config.run_dir.lock.unlink(missing_ok=True)
                raise
    except BadInput:
        for folder in missing:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def claim_part(config: RunConfig, audience: Audience) -> Iterator[None]:
    """Keep other drivers out of a run that is part of another one, like a repeat or a trial.

    Raises:
        BadInput, StorageError: as `raykfold.state.claim.claim`.
    """
    with claim(config, audience.noticed) as check, closing(audience):
        audience.add(_ClaimWatch(check))
        yield


class _ClaimWatch(Observer):
    """Ends the run when another process has taken it over."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def time_passed(self) -> None:
        self._check()


def set_earlier_aside(config: RunConfig, observer: Observer) -> None:
    """Move what an earlier run left out of the way, with --fresh.

    Raises:
        BadInput: another process works on a part of it, which is a run that can also be run by
            itself. On a store, whoever holds such a part notices soon that its lease has gone.
    """
    if not config.fresh:
        return
    run_dir = config.run_dir
    with ExitStack() as claims:
        for folder in (run_dir.repeats, run_dir.trials, run_dir.fits):
            for path in folder.glob("*") if isinstance(folder, Path) else ():
                part = dataclasses.replace(config, run_name=path.name, storage_path=folder)
                claims.enter_context(claim(part))
        places = set_aside(config)
    for place in places:
        observer.noticed(f"the earlier run was set aside in {place}")


# --- training ------------------------------------------------------------------------------------


def train(config: RunConfig, inputs: Inputs) -> Summary:
    """Train what is left of a run whose folder is claimed, and put its results together.

    Raises:
        BadInput, StorageError: as `cross_validate`.
    """

    # Nothing is written before every seed's earlier run is known to fit.
    def read(seed: RunConfig) -> EarlierRun:
        earlier = EarlierRun.read(seed)
        earlier.check(identity(seed, inputs.data.fingerprint))
        return earlier

    seeds = [config.repeat(number) for number in range(config.repeats)]
    earlier = [read(seed) for seed in seeds]

    with ExitStack() as claims:
        # Each seed has a ledger, which learns from storage what is left to do. A repeat is a run
        # that another process may have worked on until it is claimed.
        ledgers = [open_ledger(earlier[0], inputs, inputs.audience)]
        for seed in seeds[1:]:
            audience = inputs.audience.of_repeat(seed.seed)
            claims.enter_context(claim_part(seed, audience))
            ledgers.append(open_ledger(read(seed), inputs, audience, repeat_of=config))
        run, *repeats = ledgers

        # Ray starts only if a fold is left.
        if any(ledger.waiting for ledger in ledgers):
            with connect_dealer(run.earlier, inputs, [config]) as dealer:
                add_run(run, inputs.data, dealer, repeats=repeats)
                dealer.work()
        else:
            for ledger in ledgers:
                ledger.announce_again()

        leakage = inputs.leakage
        return run.conclude(leakage, [ledger.conclude(leakage) for ledger in repeats])


def open_ledger(
    earlier: EarlierRun,
    inputs: Inputs,
    audience: Audience,
    *,
    repeat_of: RunConfig | None = None,
    name: str = "",
) -> Ledger:
    """Return the ledger of a run, with what storage knows; add the run's observers to `audience`.

    Args:
        earlier: what lies in the run's folders, with its configuration.
        inputs: what the run starts from.
        audience: the run's own.
        repeat_of: the run that this one repeats with another seed.
        name: how messages call this run among several.
    """
    config = earlier.config
    run = repeat_of or config
    audience.add(ModelDirWriter(config))
    audience.add(Reporter(config, inputs.data))
    # Observers are closed last to first: the heartbeat tells what those after it still send.
    audience.add(Heartbeat(config.run_dir, run.command(), audience.pending))
    if config.tensorboard:  # clears what an earlier session left before a mirror sees it
        audience.add(TensorBoard(config))
    if isinstance(config.model_place, RemotePath):
        # The local copies stay where another service needs them.
        keep = run.hf_model_repo_id is not None or run.wandb_project is not None
        audience.add(StoreMirror(config.outputs, config.model_place, audience.noticed, keep=keep))
    if config.hf_model_repo_id is not None:
        audience.add(hub_mirror(config, inputs.credentials.hf_token, audience.noticed))
    if config.wandb_project is not None:
        # With --fresh a run has the name of the earlier one, and is another.
        run_id = f"{config.run_name}-{earlier.created}"
        key = inputs.credentials.wandb_api_key
        audience.add(WandbRuns(config, run_id, key, audience.noticed))
    name = f"seed {config.seed}" if repeat_of else name
    ledger = Ledger(earlier, inputs.data, inputs.folds, audience, name)
    ledger.find_states()
    return ledger


@contextmanager
def connect_dealer(
    earlier: EarlierRun, inputs: Inputs, configs: Sequence[RunConfig]
) -> Iterator[Dealer]:
    """Connect to Ray and yield a dealer without ledgers.

    Args:
        earlier: what lies in the run's folders, with its configuration.
        inputs: what the run starts from.
        configs: name the networks and recipes that workers will build.

    Raises:
        BadInput: Ray lacks what raykfold or the flags ask for, or workers cannot have these.
    """
    config, data = earlier.config, inputs.data
    with ExitStack() as stack:
        # Workers map a file. If Ray is to start at all, whatever lies in none goes into one.
        file = data.file or stack.enter_context(
            temporary_feature_file(data.features, config.scratch_dir)
        )
        own_instance = stack.enter_context(
            ray_session(
                config.address,
                local_cpus=config.local_cpus,
                verbose=config.verbose,
                meanwhile=_import_dealer,
            )
        )
        # These import Ray, which the session has set up.
        with imports_from_ray():
            from raykfold.distributed.code import DriverCode
            from raykfold.distributed.dealer import Dealer
            from raykfold.distributed.feature_copy import FeatureServer, FeatureSource
            from raykfold.distributed.nodes import start_actor
            from raykfold.distributed.preflight import (
                check_code,
                check_features,
                check_slots,
                storage_marker,
                worker_size,
            )

        untested = untested_version()
        if untested is not None:
            inputs.audience.noticed(untested)
        _log.info("connected to Ray")
        size = worker_size(config, own_instance, earlier.identity_value("device"))
        code = DriverCode.of((each.model for each in configs), (each.recipe for each in configs))
        # On one machine, every worker sees the storage and the file of features.
        marker = server = None
        if not own_instance:
            server = start_actor(FeatureServer, file, restarts=True)
        features = FeatureSource(file, config.scratch_dir, os.urandom(8).hex(), server)
        if own_instance:
            check_slots(config, size)
        else:
            check_code(code, size)
            check_features(features, size)
            marker = stack.enter_context(storage_marker(config, size))
        dealer = Dealer(config, data, features, inputs.audience, size, code, marker, own_instance)
        yield stack.enter_context(closing(dealer))


def _import_dealer() -> None:
    """Import Ray Train while Ray starts: it takes three quarters of a second."""
    with without_gc():
        import raykfold.distributed.dealer
        import raykfold.distributed.preflight  # noqa: F401


def known_identity(earlier: EarlierRun, data: FeatureSet, size: WorkerSize) -> dict[str, Any]:
    """Return a run's whole identity, with the device and the precision that Ray's nodes decide.

    Args:
        earlier: what lies in the run's folders, with its configuration.
        data: the run's data.
        size: of its workers.
    """
    from raykfold.distributed.preflight import precision

    device = "gpu" if size.gpus else f"cpu x{size.cpus}"
    chosen = precision(earlier.config, size, earlier.identity_value("precision"))
    return identity(earlier.config, data.fingerprint, device, chosen)


def add_run(
    run: Ledger, data: FeatureSet, dealer: Dealer, *, repeats: Sequence[Ledger] = (), rank: int = 0
) -> None:
    """Give one more run to a dealer, which may be at work; it may have nothing left to train.

    Args:
        run: its ledger.
        data: its data.
        dealer: has the slots.
        repeats: the ledgers of its repeats.
        rank: as of `Dealer.add`.

    Raises:
        BadInput: an earlier run in its folders is another one on this device.
        StorageError: its record cannot be written.
    """
    ledgers = [run, *repeats]
    whole = [known_identity(ledger.earlier, data, dealer.size) for ledger in ledgers]
    for ledger, there in zip(ledgers, whole, strict=True):
        ledger.earlier.check(there)
    # The run's own summary speaks for all seeds: it is stale while one trains.
    is_training = any(ledger.waiting for ledger in ledgers)
    for ledger, there in zip(ledgers, whole, strict=True):
        if ledger.waiting or (ledger is run and is_training):
            ledger.begin(there)
        else:
            ledger.announce_again()
        dealer.add(ledger, part_of=run, rank=rank)
