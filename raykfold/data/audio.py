"""Reads recordings, from files and from bytes: mono, at a given sample rate.

libsndfile reads WAV, FLAC, OGG, MP3 and more. What it cannot read, such as M4A, AAC, WebM and the
sound of a video, ffmpeg decodes where it is installed.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import numpy as np

from raykfold.errors import BadData, BadInput
from raykfold.text import one_line

FFMPEG_SUFFIXES = (
    *(".3gp", ".aac", ".ac3", ".amr", ".asf", ".avi", ".flv", ".m4a", ".m4b", ".m4v", ".mka"),
    *(".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wma", ".wmv"),
)
# How such files begin. The name may lack a suffix, or have the one of another format.
_FFMPEG_HEAD = re.compile(
    rb"....ftyp|\x1a\x45\xdf\xa3|\xff[\xf0\xf1\xf8\xf9]|\x30\x26\xb2\x75\x8e\x66\xcf\x11|"
    rb"FLV\x01|#!AMR|\x0bw|RIFF....AVI ",
    re.DOTALL,
)
_HEAD_BYTES = 12
# Without those of playlists: a file of one could have ffmpeg read other files of this machine.
_FFMPEG_FORMATS = "aac,ac3,amr,asf,avi,flv,matroska,mov,mp4,mpeg,mpegts,webm"
_FFMPEG_TIMEOUT = 600.0  # seconds
_MOST_BYTES = 2**31  # of decoded sound: an hour and a half of stereo at 48 kHz
_SLACK_BYTES = 2**20  # by which ffmpeg may stop before that
_READ_BEYOND = 0.1  # seconds, because resampling depends on what follows a cut
_FFMPEG_BEYOND = 1.0  # seconds; ffmpeg may count from before the first sample, and in whole frames


class NoSuchFile(BadData):
    """This machine lacks the recording."""


class NoFfmpeg(BadData):
    """This machine lacks ffmpeg, which the recording needs."""


@dataclass(frozen=True)
class AudioBytes:
    """The content of an audio file that is a cell of a table.

    Attributes:
        content: the file's bytes.
        where: names the cell, for messages.
        file_name: the name that the file had; its suffix may be missing.
    """

    content: bytes = field(repr=False)
    where: str
    file_name: str = ""

    def __str__(self) -> str:
        return self.where


def read_audio(
    source: Path | AudioBytes, sample_rate: int, seconds: float | None = None
) -> np.ndarray:
    """Return the mean of a recording's channels, (samples,) float32, nominally from -1 to 1.

    Args:
        source: a WAV, FLAC, OGG or MP3 file, or another that libsndfile or ffmpeg reads.
        sample_rate: in Hz; the audio is resampled to it.
        seconds: read little more than this much of the file; all of it by default.

    Raises:
        BadData: the recording cannot be read, or holds no sound.
        NoSuchFile: there is none.
        NoFfmpeg: it needs ffmpeg, which is not installed.
        BadInput: librosa or soundfile is not installed.
    """
    librosa, _ = require_audio()
    most = None if seconds is None else seconds + _READ_BEYOND
    with _as_bad_data(source):
        channels, rate = _read(source, most)
    if channels.shape[0] == 0:
        raise BadData(f"{source}: holds no sound")
    if not np.isfinite(channels).all():
        raise BadData(f"{source}: has samples that are NaN or infinite")
    mono = channels.mean(axis=1)
    if len(mono) * sample_rate / rate * mono.itemsize > _MOST_BYTES:
        raise BadData(
            f"{source}: {len(mono)} samples at {rate} Hz, of which resampling to {sample_rate} Hz "
            f"makes more than {_MOST_BYTES >> 30} GiB; cut it up"
        )
    resampled = librosa.resample(mono, orig_sr=rate, target_sr=sample_rate)
    return np.asarray(resampled, dtype=np.float32)


def seconds_of_file(source: Path | AudioBytes) -> float | None:
    """Return the length of a recording by its header; None where only ffmpeg may know it.

    Raises:
        BadData: the recording cannot be read.
        BadInput: librosa or soundfile is not installed.
    """
    with _as_bad_data(source):
        by_ffmpeg = needs_ffmpeg(_file_name(source)) or _FFMPEG_HEAD.match(_head(source))
        _, soundfile = require_audio()
        try:
            with _opened(source) as file:
                return float(file.frames / file.samplerate)
        except soundfile.SoundFileError:
            if by_ffmpeg:
                return None
            raise


def needs_ffmpeg(file_name: str) -> bool:
    """Return whether a file has, by its name, a format that libsndfile cannot read."""
    return PurePath(file_name).suffix.lower() in FFMPEG_SUFFIXES


def require_readable(file_names: Sequence[str]) -> None:
    """Check that librosa and soundfile are installed, and ffmpeg where all files need it.

    Raises:
        BadInput: one of them is not.
    """
    require_audio()
    if file_names and all(map(needs_ffmpeg, file_names)) and shutil.which("ffmpeg") is None:
        suffixes = ", ".join(sorted({PurePath(name).suffix.lower() for name in file_names}))
        raise BadInput(
            f"all {len(file_names)} recordings ({suffixes}) need ffmpeg, which is not installed; "
            "expected the program ffmpeg on the PATH"
        )


def require_audio() -> tuple[ModuleType, ModuleType]:
    """Return the modules librosa and soundfile.

    Raises:
        BadInput: one of them is not installed, or cannot be loaded.
    """
    try:
        import librosa
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile is missing
        raise BadInput(
            f"reading audio needs librosa and soundfile ({error}): pip install 'raykfold[audio]'"
        ) from None
    return librosa, soundfile


def reader_versions() -> dict[str, str]:
    """Return the versions of what reads and resamples audio.

    Raises:
        BadInput: librosa or soundfile is not installed.
    """
    librosa, soundfile = require_audio()
    import soxr  # librosa resamples by it

    return {
        "librosa": librosa.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__version__,
    }


def ffmpeg_version() -> str | None:
    """Return the line in which ffmpeg tells its version; None if it is not installed."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        return None
    done = subprocess.run([ffmpeg, "-version"], stdin=subprocess.DEVNULL, capture_output=True)
    return done.stdout.decode(errors="replace").partition("\n")[0]


def _read(source: Path | AudioBytes, seconds: float | None) -> tuple[np.ndarray, int]:
    """Return the first `seconds` of the sound, (samples, channels) float32, and its rate in Hz."""
    _, soundfile = require_audio()
    if _FFMPEG_HEAD.match(_head(source)):
        return _read_by_ffmpeg(source, seconds)
    try:
        return _read_by_soundfile(source, seconds)
    except soundfile.SoundFileError:
        if not needs_ffmpeg(_file_name(source)):
            raise
        return _read_by_ffmpeg(source, seconds)


def _read_by_soundfile(source: Path | AudioBytes, seconds: float | None) -> tuple[np.ndarray, int]:
    with _opened(source) as file:
        count = file.frames
        if seconds is not None:
            count = min(count, math.ceil(seconds * file.samplerate))
        # The header may claim too much, or not know, as that of a FLAC file from a pipe.
        if count * file.channels * 4 > _MOST_BYTES:
            raise BadData(
                f"{source}: by its header it has {count} samples, more than "
                f"{_MOST_BYTES >> 30} GiB; cut it up, or write it anew"
            )
        return file.read(count, dtype="float32", always_2d=True), file.samplerate


@contextmanager
def _opened(source: Path | AudioBytes) -> Iterator[Any]:
    """Yield a `soundfile.SoundFile`."""
    _, soundfile = require_audio()
    if isinstance(source, AudioBytes):
        with soundfile.SoundFile(io.BytesIO(source.content)) as file:
            yield file
        return
    # By descriptor: with a name, libsndfile takes `._name` beside it, which macOS's archives have,
    # for a resource fork with the audio, and refuses an MP3 file. Of a file object, soundfile
    # passes over the errors of reading, and the rest would be taken for silence; bytes have none.
    with source.open("rb") as opened, soundfile.SoundFile(opened.fileno(), closefd=False) as file:
        yield file


def _read_by_ffmpeg(source: Path | AudioBytes, seconds: float | None) -> tuple[np.ndarray, int]:
    """Return what `_read` does, decoded by ffmpeg.

    Raises:
        BadData: ffmpeg cannot decode the file.
        NoFfmpeg: it is not installed.
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise NoFfmpeg(f"{source}: needs ffmpeg, which is not installed")
    with tempfile.TemporaryDirectory(prefix="raykfold-") as folder:
        if isinstance(source, AudioBytes):
            # Not by a pipe: ffmpeg has to go back and forth in the file.
            path = Path(folder, "sound")
            path.write_bytes(source.content)
        else:
            path = source
        url = f"file:{os.path.abspath(path)}"
        decoded = Path(folder, "decoded.wav")
        length = [] if seconds is None else ["-t", str(seconds + _FFMPEG_BEYOND)]
        # The file may be anybody's: no network, no playlists, no more than a time and a size.
        command = [
            *(ffmpeg, "-nostdin", "-hide_banner", "-v", "error", "-xerror", "-threads", "1"),
            *("-protocol_whitelist", "file", "-format_whitelist", _FFMPEG_FORMATS),
            *("-i", url, "-map", "0:a:0", "-threads", "1", *length),
            *("-c:a", "pcm_f32le", "-fs", str(_MOST_BYTES), "-f", "wav", f"file:{decoded}"),
        ]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_FFMPEG_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise BadData(
                f"{source}: cannot be read as audio (ffmpeg took over {_FFMPEG_TIMEOUT:.0f} s)"
            ) from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace")
            if "matches no streams" in said:
                raise BadData(f"{source}: holds no sound")
            reason = one_line(re.sub(r"\[[^]]* @ 0x\w+] ?", "", said).replace(f"{url}: ", ""))
            raise BadData(f"{source}: cannot be read as audio (ffmpeg: {reason})")
        if decoded.stat().st_size > _MOST_BYTES - _SLACK_BYTES:
            raise BadData(f"{source}: more than {_MOST_BYTES >> 30} GiB when decoded; cut it up")
        return _read_by_soundfile(decoded, seconds)


@contextmanager
def _as_bad_data(source: Path | AudioBytes) -> Iterator[None]:
    _, soundfile = require_audio()
    try:
        yield
    except (OSError, soundfile.SoundFileError) as error:
        if _is_missing(source):
            raise NoSuchFile(f"{source}: cannot be read as audio (no such file)") from None
        raise BadData(f"{source}: cannot be read as audio ({_reason(error)})") from None


def _head(source: Path | AudioBytes) -> bytes:
    if isinstance(source, AudioBytes):
        return source.content[:_HEAD_BYTES]
    with source.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _file_name(source: Path | AudioBytes) -> str:
    return source.file_name if isinstance(source, AudioBytes) else source.name


def _is_missing(source: Path | AudioBytes) -> bool:
    """Return whether there is no such file, as far as may be known."""
    try:
        return isinstance(source, Path) and not source.exists()
    except OSError:  # as of a folder above it that may not be entered
        return False


def _reason(error: Exception) -> str:
    """Return what went wrong, without the path."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
