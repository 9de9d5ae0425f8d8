"""Reads recordings: mono, at a given sample rate."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np

from raykfold.errors import BadData, BadInput

_READ_BEYOND = 0.1  # seconds, because resampling depends on what follows a cut


def read_audio(path: Path, sample_rate: int, seconds: float | None = None) -> np.ndarray:
    """Return the mean of a file's channels, (samples,) float32, nominally from -1 to 1.

    Args:
        path: a WAV, FLAC, OGG or MP3 file, or another that libsndfile reads.
        sample_rate: in Hz; the audio is resampled to it.
        seconds: read little more than this much of the file; all of it by default.

    Raises:
        BadData: the file cannot be read, or holds no sound.
        BadInput: librosa or soundfile is not installed.
    """
    librosa, soundfile = require_audio()
    try:
        # By descriptor: with a name, libsndfile takes `._name` beside it, which macOS's archives
        # have, for a resource fork with the audio, and refuses an MP3 file. Of a file object,
        # soundfile passes over the errors of reading, and the rest would be taken for silence.
        with (
            path.open("rb") as opened,
            soundfile.SoundFile(opened.fileno(), closefd=False) as file,
        ):
            rate = file.samplerate
            count = -1 if seconds is None else math.ceil((seconds + _READ_BEYOND) * rate)
            channels = file.read(count, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise BadData(f"{path}: cannot be read as audio ({_reason(error, path)})") from None
    if channels.shape[0] == 0:
        raise BadData(f"{path}: holds no sound")
    if not np.isfinite(channels).all():
        raise BadData(f"{path}: has samples that are NaN or infinite")
    mono = channels.mean(axis=1)
    resampled = librosa.resample(mono, orig_sr=rate, target_sr=sample_rate)
    return np.asarray(resampled, dtype=np.float32)


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


def _reason(error: Exception, path: Path) -> str:
    """Return what went wrong, without the path."""
    if not path.exists():
        return "no such file"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
