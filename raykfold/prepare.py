"""``python -m raykfold.prepare``: audio files to log-mel features, in parallel over Ray."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raykfold.config.command import Parser, add_flag, leave_lost_folder, run_command
from raykfold.config.environment import without_secrets
from raykfold.data.audio import (
    ffmpeg_version,
    needs_ffmpeg,
    reader_versions,
    require_audio,
    require_readable,
    seconds_of_file,
)
from raykfold.data.layouts import LAYOUTS, Listing, list_recordings
from raykfold.data.log_mel import (
    URBANSOUND8K,
    FeatureParameters,
    frame_count,
    windows_of_file,
)
from raykfold.data.losses import describe_loss, require_most
from raykfold.data.made_folds import FoldRequest
from raykfold.data.parquet_audio import AudioSources, ParquetCell
from raykfold.data.parquet_table import NO_GROUPS, ColumnNames, card_features, list_parquet
from raykfold.data.spool import Spool
from raykfold.distributed.extraction import extract_features
from raykfold.distributed.session import ray_session
from raykfold.errors import BadData, BadInput
from raykfold.files.paths import absolute
from raykfold.state.folders import check_folder
from raykfold.text import count_of, one_line, with_name

_MOST_VALUES = 2**26  # in a sample, as in weights that predict
_MOST_LISTED = 20  # recordings that cannot be read
_HUB = (
    "A dataset of the Hugging Face Hub in Parquet, with an Audio column; the columns are found by "
    "their types and names."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the features and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    stopped = "raykfold: interrupted; the same command goes on from what is done"
    return run_command(parser, _prepare, argv, stopped=stopped)


def _prepare(options: argparse.Namespace) -> int:
    # Check all input before starting Ray, which takes seconds.
    parameters = feature_parameters(options)
    if options.local_cpus is not None and options.local_cpus < 1:
        raise BadInput(f"--local_cpus {options.local_cpus}: expected at least 1")
    processed_dir = absolute(options.processed_dir)
    audio_dir = None
    if options.layout == "hub":
        listing = _list_dataset(options, processed_dir)
    else:
        audio_dir = absolute(options.audio_dir)
        listing = _list_folder(options, audio_dir, processed_dir)
    recordings = listing.recordings
    for note in listing.notes:
        print(one_line(note, longest=None))
    if listing.missing:
        missing = {index: f"{recordings[index].path}: no such file" for index in listing.missing}
        if options.strict:
            raise BadData(f"--strict: {missing[min(missing)]}")
        require_most(listing, missing, allow_missing=options.allow_missing)
    versions = reader_versions()
    paths = [recording.path for recording in recordings]
    require_readable([path.name for path in paths])
    _check_window(paths, parameters)
    files = _sizes_and_changes(paths)
    dtype = np.dtype(options.dtype)
    spool = Spool(
        processed_dir,
        {**parameters.as_dict(), **versions},
        [f"{path} {about}" for path, about in zip(paths, files, strict=True)],
        parameters.shape,
        dtype,
    )
    with spool.opened():
        # Make the features, which go to the disk as they come.
        _take_back_problems(spool, paths, parameters)
        _check_room(processed_dir, spool, len(paths), parameters, dtype)
        _print_found(listing, spool)
        if options.strict and spool.problems:  # of a prepare before this one
            raise BadData(f"--strict: {next(iter(spool.problems.values()))}")
        if spool.done < len(paths):
            _extract(options, spool, audio_dir, paths, [size for size, _ in files], parameters)
        _print_problems(spool.problems)
        _require_most(listing, spool, allow_missing=options.allow_missing)

        # Write the rest of the data set, and move everything into place.
        read = [index for index, count in enumerate(spool.windows) if count]
        rows = np.repeat(read, [spool.windows[index] for index in read])
        from raykfold.data.reading import write_feature_set  # imports torch

        write_feature_set(
            processed_dir,
            spool.finish(),
            np.array([recording.label for recording in recordings], dtype=np.int64)[rows],
            np.array([recording.fold for recording in recordings], dtype=np.int64)[rows],
            listing.class_names,
            parameters.as_dict(),
            fold_names=listing.fold_names,
            fold_rule=listing.fold_rule,
            recordings=None if parameters.hop is None else np.searchsorted(read, rows),
        )
        spool.remove()
    _print_summary(listing, spool, parameters, processed_dir)
    return 0


def _list_folder(options: argparse.Namespace, audio_dir: Path, processed_dir: Path) -> Listing:
    if not os.path.isdir(audio_dir):
        raise BadInput(f"--audio_dir {audio_dir}: no such folder")
    check_folder("processed_dir", processed_dir)
    table = absolute(options.csv) if getattr(options, "csv", None) else None
    made_folds = fold_request(options)
    leave_lost_folder()
    return list_recordings(options.layout, audio_dir, table, made_folds)


def _list_dataset(options: argparse.Namespace, processed_dir: Path) -> Listing:
    check_folder("processed_dir", processed_dir)
    made_folds = fold_request(options)
    download_dir = None
    if options.download_dir is not None:
        download_dir = absolute(options.download_dir)
        check_folder("download_dir", download_dir)
    leave_lost_folder()
    require_audio()  # not after a download that may take an hour
    from raykfold.outputs.hub_parquet import fetch_parquet

    with without_secrets(os.environ) as credentials:
        dataset = fetch_parquet(
            options.repo_id,
            credentials.hf_token,
            partial(print, flush=True),
            revision=options.revision,
            config_name=options.config_name,
            split=options.split,
            download_dir=download_dir,
        )
    return list_parquet(
        dataset.splits,
        f"dataset {options.repo_id}",
        ColumnNames(options.audio_column, options.label_column, options.fold_column),
        card_features(dataset.info),
        made_folds,
    )


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
        place = "Folder of the recordings; on a cluster, one that every node can read."
        add_flag(command, "audio_dir", required=True, metavar="DIR", help=place)
        _add_feature_flags(command, layout.defaults)
        add_fold_flags(command, has_table=layout.has_table)
        if name == "csv":
            add_flag(command, "csv", metavar="FILE", help="The table [AUDIO_DIR/metadata.csv].")
    command = commands.add_parser("hub", help=_HUB, description=_HUB)
    _add_hub_flags(command)
    _add_feature_flags(command, URBANSOUND8K)
    found = f" [one called speaker_id, subject, ..., if there is; {NO_GROUPS} for no groups]"
    add_fold_flags(command, has_table=True, found=found)
    return parser


def _add_hub_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="Dataset repository on the Hub.")
    flag = partial(add_flag, parser)
    texts = {
        "revision": "Branch, tag or commit [main].",
        "config_name": "Configuration, of a dataset that has several.",
        "split": "Take one split [all, joined].",
        "audio_column": "Column of the audio [the Audio column].",
        "label_column": "Column of the label [the ClassLabel, or one called label, class, ...].",
        "fold_column": "Column of the fold [fold].",
    }
    for name, text in texts.items():
        flag(name, metavar="NAME", help=text)
    download = (
        "Folder for the files of the Hub, in the layout of its cache; on a cluster, one that every "
        "node can read [the Hub's cache]."
    )
    flag("download_dir", metavar="DIR", help=download)


def _add_feature_flags(parser: argparse.ArgumentParser, defaults: FeatureParameters) -> None:
    flag = partial(add_flag, parser)
    flag("processed_dir", metavar="DIR", help="Folder to write.", default="data/processed")
    about = {
        "sample_rate": "Sample rate in Hz; recordings are resampled to it.",
        "n_mels": "Mel bands.",
        "n_fft": "Samples in a Fourier transform.",
        "hop_length": "Samples from one frame to the next.",
    }
    for name, text in about.items():
        flag(name, type=int, metavar="N", help=text, default=getattr(defaults, name))
    length = parser.add_mutually_exclusive_group()
    seconds = "Length of a sample; recordings are cut, or padded with zeros, to it."
    add_flag(length, "seconds", type=float, metavar="S", help=seconds, default=defaults.seconds)
    window = (
        "Cut recordings into windows of S seconds, a sample each, that stay in the fold of their "
        "recording. What is left at the end is one more window, padded with zeros, if at least "
        "half of it is sound; so is a recording that is shorter than a window."
    )
    add_flag(length, "window", type=float, metavar="S", help=window)
    hop = "Seconds from one window to the next [as long as a window]."
    flag("hop", type=float, metavar="S", help=hop)
    flag("frames", type=int, metavar="N", help="Frames [as many as the seconds give].")
    dtype = "Type of the features; float16 takes half of the disk and of the memory."
    flag("dtype", choices=("float32", "float16"), help=dtype, default="float32")
    address = os.environ.get("RAY_ADDRESS") or None
    cluster = "Ray cluster to use [RAY_ADDRESS, else a local instance of its own]."
    flag("address", metavar="HOST:PORT", help=cluster, default=address)
    flag("local_cpus", type=int, metavar="N", help="CPUs that a local Ray instance offers [all].")
    strict = (
        "Stop at a recording that cannot be read, and write no data set; the same command goes on "
        "from what is done."
    )
    how_many = parser.add_mutually_exclusive_group()
    add_flag(how_many, "strict", action="store_true", help=strict)
    allow = "Go on without recordings that are missing or cannot be read, however many they are."
    add_flag(how_many, "allow_missing", action="store_true", help=allow)
    verbose = "Let Ray and the workers print, and show tracebacks of errors."
    flag("verbose", action="store_true", help=verbose)


def add_fold_flags(parser: argparse.ArgumentParser, *, has_table: bool, found: str = "") -> None:
    """Add the flags of `fold_request`.

    Args:
        parser: to add them to.
        has_table: whether groups can be in a column.
        found: which column is taken by default, for its help.
    """
    flag = partial(add_flag, parser)
    make = (
        "Make K folds, stratified by class, in place of any that the recordings have. The same "
        "recordings and flags give the same folds on every machine."
    )
    flag("make_folds", type=int, metavar="K", help=make)
    flag("seed", type=int, metavar="N", help="Seed of the made folds [0].")
    grouped = parser.add_mutually_exclusive_group()
    if has_table:
        column = "Column of the table; recordings with one value stay in one fold"
        add_flag(grouped, "group_column", metavar="NAME", help=f"{column}{found}.")
    pattern = (
        "Regular expression that is searched in the names of files, or in their paths below "
        "AUDIO_DIR if it has a slash; recordings with one text for its group stay in one fold. "
        "For names like speaker_take.wav: '(?P<group>[^_]+)_'."
    )
    add_flag(grouped, "group_pattern", metavar="REGEX", help=pattern)


def fold_request(options: argparse.Namespace) -> FoldRequest | None:
    """Return the folds to make; None if the data has its own.

    Raises:
        BadInput: a value is out of range, or is of no use without --make_folds.
    """
    column, pattern = getattr(options, "group_column", None), options.group_pattern
    if options.make_folds is None:
        for name in ("seed", "group_column", "group_pattern"):
            value = getattr(options, name, None)
            if value is not None:
                raise BadInput(f"--{name} {value}: expected --make_folds K as well")
        return None
    return FoldRequest(options.make_folds, options.seed or 0, column, pattern)


def feature_parameters(options: argparse.Namespace) -> FeatureParameters:
    """Return the parameters in `options`; the other ones give the number of frames by default.

    Raises:
        BadInput: a value is out of range.
    """
    names = ("sample_rate", "n_mels", "n_fft", "hop_length")
    given = {name: getattr(options, name) for name in names}
    if options.hop is not None and options.window is None:
        raise BadInput(f"--hop {options.hop:g}: expected --window as well, or --hop_length")
    given["seconds"] = options.seconds if options.window is None else options.window
    given["hop"] = options.window if options.hop is None else options.hop
    try:
        parameters = FeatureParameters(
            **given, frames=1 if options.frames is None else options.frames
        )
    except BadInput as error:
        name, _, about = str(error).partition(" ")
        flag = "window" if name == "seconds" and options.window is not None else name
        raise BadInput(f"--{flag} {about}") from None
    if options.frames is None:
        frames = frame_count(parameters.sample_rate, parameters.seconds, parameters.hop_length)
        parameters = dataclasses.replace(parameters, frames=frames)
    n_mels, frames = parameters.shape
    if n_mels * frames > _MOST_VALUES:
        raise BadInput(
            f"--n_mels {n_mels}, {frames} frames: samples of that size do not fit into memory; "
            f"expected at most {_MOST_VALUES} values"
        )
    return parameters


# ---- The work


def _check_window(paths: Sequence[Path | ParquetCell], parameters: FeatureParameters) -> None:
    """Check that a recording fills a window, by the headers of as many files as it takes.

    Raises:
        BadData: none of those that can be read does.
    """
    if parameters.hop is None:
        return
    longest = 0.0
    sources = AudioSources()
    for path in paths:
        try:
            seconds = seconds_of_file(sources.open(path))
        except BadData:  # a worker says which
            continue
        if seconds is None or seconds >= parameters.seconds:  # None: ffmpeg may know it
            return
        longest = max(longest, seconds)
    if longest == 0:  # a worker says why none can be read
        return
    raise BadData(
        f"--window {parameters.seconds:g}: longer than every recording, of which the longest has "
        f"{longest:.6g} s; expected at most that, or --seconds {parameters.seconds:g} to make one "
        "sample of each"
    )


def _sizes_and_changes(paths: Sequence[Path | ParquetCell]) -> list[tuple[int, str]]:
    """Return each recording's size in bytes, about, and a text that changes when its file does."""
    # It is installed or renewed like a file.
    uses_ffmpeg = any(needs_ffmpeg(path.name) for path in paths)
    by_ffmpeg = f" {ffmpeg_version()}" if uses_ffmpeg else ""
    in_file = Counter(path.file for path in paths if isinstance(path, ParquetCell))
    known = {file: _size_and_change(file) for file in in_file}
    found = []
    for path in paths:
        if isinstance(path, ParquetCell):
            size, change = known[path.file]
            size, change = size // in_file[path.file], f"{path.column} {change}"
        else:
            size, change = _size_and_change(path)
        found.append((size, change + by_ffmpeg if needs_ffmpeg(path.name) else change))
    return found


def _size_and_change(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes, and a text that changes when the file does."""
    try:
        stat = path.stat()
    except OSError:  # it is missing, or whoever reads it says why it cannot be read
        return 0, "unknown"
    return stat.st_size, f"{stat.st_size} {stat.st_mtime_ns}"


def _take_back_problems(
    spool: Spool, paths: Sequence[Path | ParquetCell], parameters: FeatureParameters
) -> None:
    """Give up what an earlier prepare has done from a recording on that can be read by now.

    Ffmpeg may have been installed since then, or a permission given, or a drive has come back.
    """
    sources = AudioSources()
    for index in sorted(spool.problems):
        try:
            next(windows_of_file(sources.open(paths[index]), parameters))
        except BadData:
            continue
        spool.take_back(index)
        return


def _check_room(
    processed_dir: Path,
    spool: Spool,
    recordings: int,
    parameters: FeatureParameters,
    dtype: np.dtype[Any],
) -> None:
    """Check that the disk has room for the features that are still to be made, one row each.

    Raises:
        BadInput: it has not.
    """
    n_mels, frames = parameters.shape
    needed = (recordings - spool.done) * n_mels * frames * dtype.itemsize
    existing = next(each for each in (processed_dir, *processed_dir.parents) if each.exists())
    total, _, free = shutil.disk_usage(existing)
    if total and needed > free:  # some file systems say 0 for all
        shape = (recordings, n_mels, frames)
        raise BadInput(
            f"--processed_dir {processed_dir}: features {shape} of {dtype} need "
            f"{needed / 1e6:.0f} MB more, and the disk has {free / 1e6:.0f} MB left; expected "
            "another folder, smaller features, or --dtype float16"
        )


def _extract(
    options: argparse.Namespace,
    spool: Spool,
    audio_dir: Path | None,
    paths: Sequence[Path | ParquetCell],
    sizes: Sequence[int],
    parameters: FeatureParameters,
) -> None:
    with (
        without_secrets(os.environ),  # Ray's processes would inherit the secrets
        ray_session(
            options.address, local_cpus=options.local_cpus, verbose=options.verbose
        ) as own_instance,
        _progress(len(paths), spool.done) as advance,
    ):
        extract_features(
            spool,
            audio_dir,
            paths,
            sizes,
            parameters,
            options.dtype,
            strict=options.strict,
            own_instance=own_instance,
            advance=advance,
        )


def _require_most(listing: Listing, spool: Spool, *, allow_missing: bool) -> None:
    """Check by `require_most` what is lost; keep what was read only for --allow_missing."""
    try:
        require_most(listing, spool.problems, allow_missing=allow_missing)
    except BadData:
        if allow_missing or not spool.rows:
            spool.remove()
        else:
            print("what was read is kept, for the same command with --allow_missing", flush=True)
        raise


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, else a line every 10 %; call what it yields with what is done."""
    if not sys.stdout.isatty():
        yield Tenths(total, done).advance
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
        recordings = bar.add_task("recordings", total=total, completed=done)
        yield lambda count: bar.advance(recordings, count)


class Tenths:
    """Prints a line whenever another tenth of `total` is done."""

    def __init__(self, total: int, done: int = 0) -> None:
        self._total = total
        self._done = done

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


def _print_found(listing: Listing, spool: Spool) -> None:
    total = len(listing.recordings)
    if spool.discarded:
        print(
            f"{count_of(spool.discarded, 'recording')} of an unfinished prepare cannot be used: "
            "the files, the parameters or the libraries have changed"
        )
    more = f"; {spool.done} of them are done" if spool.done else ""
    start = "; starting Ray" if spool.done < total else ""
    print(f"{total} recordings in {listing.source}{more}{start}", flush=True)


def _print_summary(
    listing: Listing, spool: Spool, parameters: FeatureParameters, processed_dir: Path
) -> None:
    sizes: Counter[int] = Counter()
    windows: Counter[int] = Counter()
    for recording, count in zip(listing.recordings, spool.windows, strict=True):
        if count:
            sizes[recording.fold] += 1
            windows[recording.fold] += count
    cut = parameters.hop is not None
    for fold in sorted(sizes):
        more = f", {windows[fold]} windows" if cut else ""
        print(f"fold {with_name(fold, listing.fold_names)}: {sizes[fold]} recordings{more}")
    read = (each for each, count in zip(listing.recordings, spool.windows, strict=True) if count)
    classes = len({recording.label for recording in read})
    print(
        f"{sum(sizes.values())} recordings, {classes} classes, {len(sizes)} folds, features "
        f"({spool.rows}, {parameters.n_mels}, {parameters.frames}) in {processed_dir}"
    )
    if spool.problems:
        print(f"left out: {describe_loss(listing, spool.problems)}")
    command = ["python", "-m", "raykfold.run", "--processed_dir", str(processed_dir)]
    print(f"next: {shlex.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
