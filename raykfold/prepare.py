"""``python -m raykfold.prepare``: audio files to log-mel features, in parallel over Ray."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from raykfold.config.command import Parser, add_flag, leave_lost_folder, run_command
from raykfold.config.environment import without_secrets, worker_runtime_env
from raykfold.data.audio import require_audio
from raykfold.data.layouts import LAYOUTS, Listing, list_recordings
from raykfold.data.log_mel import FeatureParameters, frame_count, log_mel_of_file
from raykfold.data.losses import describe_loss, require_most
from raykfold.distributed.session import ray_session
from raykfold.errors import BadData, BadInput, RaykfoldError
from raykfold.files.paths import absolute
from raykfold.state.folders import check_folder
from raykfold.text import one_line, with_name

CHUNK = 50  # files in a task: a worker's first one waits seconds for librosa to load
_MOST_LISTED = 20  # recordings that cannot be read


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the features and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    return run_command(parser, _prepare, argv, stopped="raykfold: interrupted; nothing was written")


def _prepare(options: argparse.Namespace) -> int:
    # Check all input before starting Ray, which takes seconds.
    parameters = feature_parameters(options)
    if options.local_cpus is not None and options.local_cpus < 1:
        raise BadInput(f"--local_cpus {options.local_cpus}: expected at least 1")
    audio_dir, processed_dir = absolute(options.audio_dir), absolute(options.processed_dir)
    if not os.path.isdir(audio_dir):
        raise BadInput(f"--audio_dir {audio_dir}: no such folder")
    check_folder("processed_dir", processed_dir)
    table = absolute(options.csv) if getattr(options, "csv", None) else None
    leave_lost_folder()
    listing = list_recordings(options.layout, audio_dir, table)
    recordings = listing.recordings
    for note in listing.notes:
        print(one_line(note, longest=None))
    if listing.missing:
        missing = {index: f"{recordings[index].path}: no such file" for index in listing.missing}
        if options.strict:
            raise BadData(f"--strict: {missing[min(missing)]}")
        require_most(listing, missing, allow_missing=options.allow_missing)
    require_audio()
    shape = (len(recordings), parameters.n_mels, parameters.frames)
    try:
        features = np.empty(shape, dtype=np.float32)
    except (MemoryError, ValueError):  # ValueError: more than can be addressed
        raise BadInput(f"features of shape {shape} do not fit into memory") from None

    print(f"{len(recordings)} recordings in {listing.source}; starting Ray", flush=True)
    with (
        without_secrets(os.environ),  # Ray's processes would inherit the secrets
        ray_session(
            options.address, local_cpus=options.local_cpus, verbose=options.verbose
        ) as own_instance,
    ):
        problems = fill_over_ray(
            features,
            audio_dir,
            [recording.path for recording in recordings],
            parameters,
            options.strict,
            own_instance=own_instance,
        )
    _print_problems(problems)
    require_most(listing, problems, allow_missing=options.allow_missing)
    readable = [index for index in range(len(recordings)) if index not in problems]
    read = [recordings[index] for index in readable]

    # Move the rows up in place: a copy of the features might not fit into memory.
    for row, index in enumerate(readable):
        features[row] = features[index]
    from raykfold.data.reading import write_feature_set  # imports torch

    write_feature_set(
        processed_dir,
        features[: len(readable)],
        np.array([recording.label for recording in read], dtype=np.int64),
        np.array([recording.fold for recording in read], dtype=np.int64),
        listing.class_names,
        parameters.as_dict(),
        fold_names=listing.fold_names,
    )
    _print_summary(listing, problems, parameters, processed_dir)
    return 0


# ---- The command line


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command: one subcommand for each layout of audio folders."""
    parser = Parser(
        prog="python -m raykfold.prepare",
        description="Turn audio files into log-mel features, in parallel over Ray.",
        epilog="Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.",
    )
    commands = parser.add_subparsers(dest="layout", metavar="LAYOUT", required=True)
    for name, layout in LAYOUTS.items():
        command = commands.add_parser(name, help=layout.help, description=layout.help)
        _add_flags(command, layout.defaults)
        if name == "csv":
            add_flag(command, "csv", metavar="FILE", help="The table [AUDIO_DIR/metadata.csv].")
    return parser


def _add_flags(parser: argparse.ArgumentParser, defaults: FeatureParameters) -> None:
    flag = partial(add_flag, parser)
    place = "Folder of the recordings; on a cluster, one that every node can read."
    flag("audio_dir", required=True, metavar="DIR", help=place)
    flag("processed_dir", metavar="DIR", help="Folder to write.", default="data/processed")
    about = {
        "sample_rate": "Sample rate in Hz; recordings are resampled to it.",
        "n_mels": "Mel bands.",
        "n_fft": "Samples in a window.",
        "hop_length": "Samples from one frame to the next.",
    }
    for name, text in about.items():
        flag(name, type=int, metavar="N", help=text, default=getattr(defaults, name))
    seconds = "Length of a sample; recordings are cut, or padded with zeros, to it."
    flag("seconds", type=float, metavar="S", help=seconds, default=defaults.seconds)
    flag("frames", type=int, metavar="N", help="Frames [as many as the seconds give].")
    address = os.environ.get("RAY_ADDRESS") or None
    cluster = "Ray cluster to use [RAY_ADDRESS, else a local instance of its own]."
    flag("address", metavar="HOST:PORT", help=cluster, default=address)
    flag("local_cpus", type=int, metavar="N", help="CPUs that a local Ray instance offers [all].")
    strict = "Stop at a recording that cannot be read, and write nothing."
    how_many = parser.add_mutually_exclusive_group()
    add_flag(how_many, "strict", action="store_true", help=strict)
    allow = "Go on without recordings that are missing or cannot be read, however many they are."
    add_flag(how_many, "allow_missing", action="store_true", help=allow)
    verbose = "Let Ray and the workers print, and show tracebacks of errors."
    flag("verbose", action="store_true", help=verbose)


def feature_parameters(options: argparse.Namespace) -> FeatureParameters:
    """Return the parameters in `options`; the other ones give the number of frames by default.

    Raises:
        BadInput: a value is out of range.
    """
    names = ("sample_rate", "seconds", "n_mels", "n_fft", "hop_length")
    given = {name: getattr(options, name) for name in names}
    try:
        if options.frames is not None:
            return FeatureParameters(**given, frames=options.frames)
        checked = FeatureParameters(**given, frames=1)
    except BadInput as error:
        raise BadInput(f"--{error}") from None
    frames = frame_count(checked.sample_rate, checked.seconds, checked.hop_length)
    return dataclasses.replace(checked, frames=frames)


# ---- The work


def fill_over_ray(
    features: np.ndarray,
    audio_dir: Path,
    paths: Sequence[Path],
    parameters: FeatureParameters,
    strict: bool,
    *,
    own_instance: bool,
) -> dict[int, str]:
    """Fill `features` (N, n_mels, frames) in the order of `paths`.

    Returns:
        index → why that file could not be read, ascending.

    Raises:
        BadData: a file could not be read, and `strict`.
        BadInput: a node lacks `audio_dir` or librosa.
        RaykfoldError: Ray lost a task more often than it retries.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    problems: dict[int, str] = {}
    task = ray.remote(num_cpus=1, runtime_env=worker_runtime_env(own_instance))(chunk_features)
    waiting = {
        task.remote(audio_dir, paths[start : start + CHUNK], parameters): start
        for start in range(0, len(paths), CHUNK)
    }
    try:
        with _progress(len(paths)) as advance:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                start = waiting.pop(done)
                chunk, unread = ray.get(done)
                features[start : start + len(chunk)] = chunk
                problems |= {start + place: text for place, text in unread.items()}
                if problems and strict:
                    raise BadData(f"--strict: {next(iter(problems.values()))}")
                advance(len(chunk))
    except RayTaskError as error:
        if isinstance(error.cause, RaykfoldError):
            raise error.cause from None
        if isinstance(error.cause, ImportError):
            raise BadInput(
                f"a node cannot import what is needed there ({error.cause}); expected raykfold "
                "installed on it, or prepare submitted by ray job submit --working-dir"
            ) from error
        raise RaykfoldError(f"a task failed: {error.cause!r}") from error
    except RayError as error:
        raise RaykfoldError(f"Ray lost a task: {error}") from error
    return dict(sorted(problems.items()))


def chunk_features(
    audio_dir: Path, paths: Sequence[Path], parameters: FeatureParameters
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the features (files, n_mels, frames), and index → why that file could not be read."""
    if not audio_dir.is_dir():
        raise BadInput(
            f"--audio_dir {audio_dir}: does not exist on node {socket.gethostname()}; "
            "every node of the cluster should be able to read it"
        )
    features = np.zeros((len(paths), parameters.n_mels, parameters.frames), dtype=np.float32)
    problems = {}
    for index, path in enumerate(paths):
        try:
            features[index] = log_mel_of_file(path, parameters)
        except BadData as error:
            problems[index] = str(error)
    return features, problems


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, else a line every 10 %; call what it yields with what is done."""
    if not sys.stdout.isatty():
        yield Tenths(total).advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        redirect_stderr=False,  # it would go to stdout
    )
    with bar:
        recordings = bar.add_task("recordings", total=total)
        yield lambda count: bar.advance(recordings, count)


class Tenths:
    """Prints a line whenever another tenth of `total` is done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def advance(self, count: int) -> None:
        before = self._done * 10 // self._total
        self._done += count
        tenths = self._done * 10 // self._total
        if tenths > before:
            print(f"{tenths * 10:3d}%  {self._done} of {self._total} recordings", flush=True)


def _print_problems(problems: Mapping[int, str]) -> None:
    for problem in list(problems.values())[:_MOST_LISTED]:
        print(f"raykfold: left out: {one_line(problem, longest=None)}", file=sys.stderr)
    more = len(problems) - _MOST_LISTED
    if more > 0:
        print(f"raykfold: left out: {more} more", file=sys.stderr)


def _print_summary(
    listing: Listing,
    lost: Collection[int],
    parameters: FeatureParameters,
    processed_dir: Path,
) -> None:
    read = [each for index, each in enumerate(listing.recordings) if index not in lost]
    sizes = Counter(recording.fold for recording in read)
    for fold in sorted(sizes):
        print(f"fold {with_name(fold, listing.fold_names)}: {sizes[fold]} recordings")
    classes = len({recording.label for recording in read})
    print(
        f"{len(read)} recordings, {classes} classes, {len(sizes)} folds, features "
        f"({len(read)}, {parameters.n_mels}, {parameters.frames}) in {processed_dir}"
    )
    if lost:
        print(f"left out: {describe_loss(listing, lost)}")
    command = ["python", "-m", "raykfold.run", "--processed_dir", str(processed_dir)]
    print(f"next: {shlex.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
