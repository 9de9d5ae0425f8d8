"""``python -m raykfold.prepare``: audio files to log-mel features, in parallel over Ray."""

from __future__ import annotations

import argparse
import csv
import os
import re
import shlex
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raykfold.config.command import Parser, add_flag, exit_code
from raykfold.config.environment import without_secrets, worker_runtime_env
from raykfold.data.log_mel import (
    DIGITS,
    ESC50,
    URBANSOUND8K,
    FeatureParameters,
    frame_count,
    log_mel_of_file,
    require_audio,
)
from raykfold.distributed.session import ray_session
from raykfold.errors import BadData, BadInput, RaykfoldError
from raykfold.files.paths import absolute

CHUNK = 50  # files in a task: a worker's first one waits seconds for librosa to load
_FSDD_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")


@dataclass(frozen=True)
class Recording:
    """One audio file, its class and its fold."""

    path: Path
    label: int
    fold: int


@dataclass(frozen=True)
class Listing:
    """What an audio folder holds, in the order that the features will have.

    Attributes:
        recordings: one for each sample.
        class_names: label → name.
        fold_names: fold → what it stands for, where that has a name.
        source: what was looked at, for messages.
    """

    recordings: Sequence[Recording]
    class_names: Mapping[int, str]
    source: str
    fold_names: Mapping[int, str] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> int:
    """Prepare, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code(
        lambda: _prepare(_parser().parse_args(arguments)),
        stopped="raykfold: interrupted; nothing was written",
        verbose="--verbose" in arguments,
    )


def _prepare(options: argparse.Namespace) -> int:
    """Everything that can be refused is refused before Ray starts, which takes seconds."""
    parameters = _parameters(options)
    audio_dir, processed_dir = absolute(options.audio_dir), absolute(options.processed_dir)
    _check_folders(audio_dir, processed_dir)
    listing = _LAYOUTS[options.layout].listing(audio_dir, options)
    _check_listing(listing, audio_dir)
    require_audio()

    recordings = listing.recordings
    paths = [recording.path for recording in recordings]
    features = _room(len(paths), parameters)
    print(f"{len(paths)} recordings in {listing.source}; starting Ray", flush=True)
    with (
        without_secrets(
            os.environ
        ),  # they are of no use here, and Ray's processes would inherit them
        ray_session(
            options.address, local_cpus=options.local_cpus, verbose=options.verbose
        ) as own_instance,
    ):
        problems = _fill_over_ray(
            features, audio_dir, paths, parameters, options.strict, own_instance=own_instance
        )
    for problem in problems.values():
        print(f"raykfold: left out: {problem}", file=sys.stderr)
    read = [recordings[index] for index in range(len(recordings)) if index not in problems]
    if not read:
        raise BadData(f"none of the {len(recordings)} recordings could be read")
    _check_several(read, listing.source)

    from raykfold.data.reading import write_feature_set  # imports torch

    write_feature_set(
        processed_dir,
        _without(features, problems),
        np.array([recording.label for recording in read], dtype=np.int64),
        np.array([recording.fold for recording in read], dtype=np.int64),
        listing.class_names,
        parameters.as_dict(),
    )
    _report(listing, read, len(problems), parameters, processed_dir)
    return 0


# ---- The command line


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m raykfold.prepare",
        description="Turn audio files into log-mel features, in parallel over Ray.",
        epilog="Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.",
    )
    commands = parser.add_subparsers(dest="layout", metavar="LAYOUT", required=True)
    for name, layout in _LAYOUTS.items():
        command = commands.add_parser(name, help=layout.help, description=layout.help)
        _add_flags(command, layout.defaults)
        if name == "csv":
            add_flag(command, "csv", metavar="FILE", help="The table [AUDIO_DIR/metadata.csv].")
    return parser


def _add_flags(parser: argparse.ArgumentParser, defaults: FeatureParameters) -> None:
    add_flag(
        parser,
        "audio_dir",
        required=True,
        metavar="DIR",
        help="Folder of the recordings; on a cluster, one that every node can read.",
    )
    add_flag(
        parser, "processed_dir", metavar="DIR", help="Folder to write.", default="data/processed"
    )
    about = {
        "sample_rate": "Hz that recordings are resampled to.",
        "n_mels": "Mel bands.",
        "n_fft": "Samples in a window.",
        "hop_length": "Samples from one frame to the next.",
    }
    for name, text in about.items():
        add_flag(parser, name, type=int, metavar="N", help=text, default=getattr(defaults, name))
    add_flag(
        parser,
        "seconds",
        type=float,
        metavar="S",
        help="Length that recordings are cut, or padded with zeros, to.",
        default=defaults.seconds,
    )
    add_flag(parser, "frames", type=int, metavar="N", help="Frames [as many as the seconds give].")
    add_flag(
        parser,
        "address",
        metavar="HOST:PORT",
        help="Ray cluster to use [RAY_ADDRESS, else a local instance of its own].",
        default=os.environ.get("RAY_ADDRESS") or None,
    )
    add_flag(
        parser,
        "local_cpus",
        type=int,
        metavar="N",
        help="CPUs that a local Ray instance offers [all].",
    )
    add_flag(
        parser,
        "strict",
        action="store_true",
        help="Stop at a recording that cannot be read, and write nothing.",
    )
    add_flag(
        parser,
        "verbose",
        action="store_true",
        help="Let Ray and the workers print, and errors show their traceback.",
    )


def _parameters(options: argparse.Namespace) -> FeatureParameters:
    if options.local_cpus is not None and options.local_cpus < 1:
        raise BadInput(f"--local_cpus {options.local_cpus}: want more than 0")
    given = {
        name: getattr(options, name)
        for name in ("sample_rate", "seconds", "n_mels", "n_fft", "hop_length")
    }
    try:
        if options.frames is not None:
            return FeatureParameters(**given, frames=options.frames)
        unchecked_frames = FeatureParameters(**given, frames=1)
        frames = frame_count(options.sample_rate, unchecked_frames.seconds, options.hop_length)
        return FeatureParameters(**given, frames=frames)
    except BadInput as error:
        raise BadInput(f"--{error}") from None


def _check_folders(audio_dir: Path, processed_dir: Path) -> None:
    if not os.path.isdir(audio_dir):
        raise BadInput(f"--audio_dir {audio_dir}: no such folder")
    standing = next(
        path for path in (processed_dir, *processed_dir.parents) if os.path.exists(path)
    )
    try:
        with tempfile.TemporaryDirectory(prefix=".raykfold-", dir=standing):
            pass  # os.access would say yes to root, even on a disk mounted read-only
    except OSError as error:
        raise BadInput(
            f"--processed_dir {processed_dir}: cannot be written ({standing}: {error.strerror})"
        ) from None


# ---- What the audio folder holds


@dataclass(frozen=True)
class _Layout:
    help: str
    defaults: FeatureParameters
    listing: Callable[[Path, argparse.Namespace], Listing]


def _csv_listing(audio_dir: Path, options: argparse.Namespace) -> Listing:
    table = absolute(options.csv) if options.csv else audio_dir / "metadata.csv"
    rows = _read_table(table, ("path", "label", "fold"), "give it with --csv FILE")
    texts = [row["label"] for row in rows]
    if all(_WHOLE_NUMBER.fullmatch(text) for text in texts):
        labels = [int(text) for text in texts]
        class_names = {label: str(label) for label in sorted(set(labels))}
    else:
        names = sorted(set(texts))
        labels = [names.index(text) for text in texts]
        class_names = dict(enumerate(names))
    recordings = [
        Recording(audio_dir / row["path"], label, row.integer("fold"))
        for row, label in zip(rows, labels, strict=True)
    ]
    return Listing(recordings, class_names, str(table))


def _fsdd_listing(audio_dir: Path, options: argparse.Namespace) -> Listing:
    folders = [audio_dir, audio_dir / "recordings"]
    found = next((names for names in map(_fsdd_names, folders) if names), {})
    if not found:
        raise BadInput(
            f"--audio_dir {audio_dir}: no recordings found; looked for "
            "<digit>_<speaker>_<take>.wav there and in recordings/"
        )
    speakers = sorted({speaker for _, speaker in found.values()})
    recordings = [
        Recording(path, digit, 1 + speakers.index(speaker))
        for path, (digit, speaker) in sorted(found.items())
    ]
    return Listing(
        recordings,
        {digit: str(digit) for digit in sorted({each.label for each in recordings})},
        str(recordings[0].path.parent),
        dict(enumerate(speakers, start=1)),
    )


def _fsdd_names(folder: Path) -> dict[Path, tuple[int, str]]:
    """Recordings directly in `folder` → digit, speaker."""
    if not folder.is_dir():
        return {}
    matches = {path: _FSDD_NAME.fullmatch(path.name) for path in folder.iterdir()}
    return {path: (int(match[1]), match[2]) for path, match in matches.items() if match}


def _esc50_listing(audio_dir: Path, options: argparse.Namespace) -> Listing:
    table = audio_dir / "meta" / "esc50.csv"
    columns = ("filename", "fold", "target", "category")
    rows = _read_table(table, columns, "--audio_dir should hold meta/esc50.csv and audio/")
    recordings = [
        Recording(audio_dir / "audio" / row["filename"], row.integer("target"), row.integer("fold"))
        for row in rows
    ]
    return Listing(recordings, _class_names(rows, "target", "category"), str(table))


def _urbansound8k_listing(audio_dir: Path, options: argparse.Namespace) -> Listing:
    table = audio_dir / "metadata" / "UrbanSound8K.csv"
    columns = ("slice_file_name", "fold", "classID", "class")
    rows = _read_table(
        table, columns, "--audio_dir should hold metadata/UrbanSound8K.csv and audio/fold<k>/"
    )
    recordings = [
        Recording(
            audio_dir / "audio" / f"fold{row.integer('fold')}" / row["slice_file_name"],
            row.integer("classID"),
            row.integer("fold"),
        )
        for row in rows
    ]
    return Listing(recordings, _class_names(rows, "classID", "class"), str(table))


_LAYOUTS = {
    "csv": _Layout(
        "A table with columns path (below AUDIO_DIR), label (a number or a name) and fold.",
        URBANSOUND8K,
        _csv_listing,
    ),
    "fsdd": _Layout(
        "Free Spoken Digit Dataset: <digit>_<speaker>_<take>.wav; each speaker is a fold.",
        DIGITS,
        _fsdd_listing,
    ),
    "esc50": _Layout("ESC-50: meta/esc50.csv and audio/.", ESC50, _esc50_listing),
    "urbansound8k": _Layout(
        "UrbanSound8K: metadata/UrbanSound8K.csv and audio/fold<k>/.",
        URBANSOUND8K,
        _urbansound8k_listing,
    ),
}


class _Row(dict[str, str]):
    """Cells of a table's row by column, and where it stands."""

    def __init__(self, cells: Mapping[str, str], where: str) -> None:
        super().__init__(cells)
        self.where = where

    def integer(self, column: str) -> int:
        if not _WHOLE_NUMBER.fullmatch(self[column]):
            raise BadData(f"{self.where}: {column} {self[column]!r}, want a whole number")
        return int(self[column])


def _read_table(path: Path, columns: Sequence[str], hint: str) -> list[_Row]:
    """The rows of a CSV file with a header, in order; other columns do not matter.

    Raises:
        BadInput: it is missing (the text ends with `hint`), lacks a column or a cell, or has no
            rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            present = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = present
            lacking = [column for column in columns if column not in present]
            if lacking:
                raise BadData(
                    f"{path}: lacks the column {', '.join(lacking)}; it should have "
                    f"{', '.join(columns)}"
                )
            rows = [_row(cells, columns, f"{path}, line {reader.line_num}") for cells in reader]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); {hint}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path}: is no CSV file in UTF-8 ({error})") from None
    if not rows:
        raise BadData(f"{path}: lists no recordings; each should be a row below the header")
    return rows


def _row(cells: Mapping[str, str | None], columns: Iterable[str], where: str) -> _Row:
    kept = {column: (cells[column] or "").strip() for column in columns}
    for column, text in kept.items():
        if not text:
            raise BadData(f"{where}: no {column}")
    return _Row(kept, where)


def _class_names(rows: Sequence[_Row], label_column: str, name_column: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for row in rows:
        label, name = row.integer(label_column), row[name_column]
        if names.setdefault(label, name) != name:
            raise BadData(f"{row.where}: {label_column} {label} is {name}, above {names[label]}")
    return dict(sorted(names.items()))


def _check_listing(listing: Listing, audio_dir: Path) -> None:
    recordings = listing.recordings
    _check_several(recordings, listing.source)
    if not any(os.path.isfile(recording.path) for recording in recordings):
        raise BadInput(
            f"--audio_dir {audio_dir}: holds none of the {len(recordings)} recordings that "
            f"{listing.source} lists; looked for {recordings[0].path} and so on"
        )


def _check_several(recordings: Sequence[Recording], source: str) -> None:
    for noun, values in (
        ("fold", {recording.fold for recording in recordings}),
        ("class", {recording.label for recording in recordings}),
    ):
        if len(values) == 1:
            raise BadData(
                f"{source}: all recordings are of {noun} {values.pop()}; "
                "a cross-validation needs two at least"
            )


# ---- The work


def _fill_over_ray(
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
        BadInput: a node has no `audio_dir` or no librosa.
        RaykfoldError: Ray lost a task more often than it tries.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    problems: dict[int, str] = {}
    task = ray.remote(num_cpus=1, runtime_env=worker_runtime_env(own_instance))(_chunk_features)
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
        raise RaykfoldError(f"a task failed: {error.cause!r}") from error
    except RayError as error:
        raise RaykfoldError(f"Ray lost a task: {error}") from error
    return dict(sorted(problems.items()))


def _chunk_features(
    audio_dir: Path, paths: Sequence[Path], parameters: FeatureParameters
) -> tuple[np.ndarray, dict[int, str]]:
    """Features (files, n_mels, frames) of some files, and place → why it could not be read."""
    if not audio_dir.is_dir():
        raise BadInput(
            f"--audio_dir {audio_dir}: is not there on node {socket.gethostname()}; "
            "every node of the cluster should see it"
        )
    features = np.zeros((len(paths), parameters.n_mels, parameters.frames), dtype=np.float32)
    problems = {}
    for place, path in enumerate(paths):
        try:
            features[place] = log_mel_of_file(path, parameters)
        except BadData as error:
            problems[place] = str(error)
    return features, problems


def _room(count: int, parameters: FeatureParameters) -> np.ndarray:
    shape = (count, parameters.n_mels, parameters.frames)
    try:
        return np.empty(shape, dtype=np.float32)
    except (MemoryError, ValueError):  # ValueError: more than can be addressed
        raise BadInput(f"features of shape {shape} do not fit into memory") from None


def _without(features: np.ndarray, left_out: Iterable[int]) -> np.ndarray:
    """`features` less some rows, moved up in place: a copy might not fit into memory."""
    kept = np.setdiff1d(np.arange(len(features)), list(left_out))
    for place, index in enumerate(kept):
        features[place] = features[index]
    return features[: len(kept)]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, elsewhere a plain line every 10 %; call it with what has been done."""
    if not sys.stdout.isatty():
        yield _Tenths(total).advance
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


class _Tenths:
    """Prints a line whenever another tenth is done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def advance(self, count: int) -> None:
        before = self._done * 10 // self._total
        self._done += count
        tenths = self._done * 10 // self._total
        if tenths > before:
            print(f"{tenths * 10:3d}%  {self._done} of {self._total} recordings", flush=True)


# ---- What is said at the end


def _report(
    listing: Listing,
    read: Sequence[Recording],
    left_out: int,
    parameters: FeatureParameters,
    processed_dir: Path,
) -> None:
    sizes = Counter(recording.fold for recording in read)
    for fold in sorted(sizes):
        name = f" ({listing.fold_names[fold]})" if fold in listing.fold_names else ""
        print(f"fold {fold}{name}: {sizes[fold]} recordings")
    classes = len({recording.label for recording in read})
    print(
        f"{len(read)} recordings, {classes} classes, {len(sizes)} folds, features "
        f"({len(read)}, {parameters.n_mels}, {parameters.frames}) in {processed_dir}"
    )
    if left_out:
        print(
            f"{left_out} of {len(read) + left_out} recordings could not be read, and are left out"
        )
    command = ["python", "-m", "raykfold.run", "--processed_dir", str(processed_dir)]
    print(f"next: {shlex.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
