"""Audio to log-mel spectrograms, and the parameters that make them repeatable.

Two ways to one definition: `log_mel` goes through librosa and serves recordings;
`log_mel_numpy` needs NumPy only and serves the built-in data. They agree to 1e-4 dB. What
``version`` 1 of the definition is, beyond `FeatureParameters`: a periodic Hann window, frames
centred and zeros beyond the ends, power spectrum, triangular bands on Slaney's mel scale from
0 Hz to half the sample rate with unit area, decibels relative to the clip's maximum, cut off
80 dB below it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from raykfold.errors import BadData, BadInput

KIND = "log_mel"
VERSION = 1
_LOWEST_POWER = 1e-10  # what silence counts as, so that its logarithm is finite
_DYNAMIC_RANGE = 80.0  # dB
_READ_BEYOND = 0.1  # seconds, so that resampling sees what follows a cut


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class FeatureParameters:
    """How audio becomes features; the content of ``features.json``.

    Attributes:
        sample_rate: Hz.
        seconds: length that every clip is padded with zeros, or cut, to.
        n_mels: mel bands.
        n_fft: samples in a window.
        hop_length: samples from one frame to the next.
        frames: frames of a feature, `frame_count` as a rule; padded with silence, or cut.

    Raises:
        BadInput: a value is out of range; the text begins with the attribute's name.
    """

    sample_rate: int
    seconds: float
    n_mels: int
    n_fft: int
    hop_length: int
    frames: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (_is_number(value) and value > 0 and math.isfinite(value)):
                raise BadInput(f"{field.name} {value!r}: expected a number above 0")
            if field.name != "seconds" and not isinstance(value, int):
                raise BadInput(f"{field.name} {value!r}: expected a whole number")
        if self.length < 1:
            raise BadInput(f"seconds {self.seconds}: not one sample at {self.sample_rate} Hz")
        if self.n_mels > self.n_fft // 2 + 1:
            raise BadInput(
                f"n_mels {self.n_mels}: more bands than the {self.n_fft // 2 + 1} frequencies "
                f"that n_fft {self.n_fft} tells apart"
            )

    @property
    def length(self) -> int:
        """Samples in a clip."""
        return round(self.sample_rate * self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the kind and the version of the definition."""
        return {"kind": KIND, "version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureParameters:
        """The parameters that `as_dict` wrote down; keys that it does not know are left alone.

        Raises:
            BadData: they are of another kind or version, or one is missing or out of range.
        """
        if values.get("kind") != KIND or values.get("version") != VERSION:
            raise BadData(
                f"features of kind {values.get('kind')!r}, version {values.get('version')!r}: "
                f"expected kind {KIND!r}, version {VERSION}"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise BadData(f"feature parameters lack {', '.join(missing)}")
        try:
            return cls(**{name: values[name] for name in names})
        except BadInput as error:
            raise BadData(f"feature parameter {error}") from None


def frame_count(sample_rate: int, seconds: float, hop_length: int) -> int:
    """Frames of a clip: one at its first sample and one after every `hop_length` samples."""
    return 1 + round(sample_rate * seconds) // hop_length


URBANSOUND8K = FeatureParameters(
    sample_rate=22050, seconds=4.0, n_mels=128, n_fft=2048, hop_length=512, frames=173
)
ESC50 = FeatureParameters(
    sample_rate=22050, seconds=5.0, n_mels=128, n_fft=2048, hop_length=512, frames=216
)
DIGITS = FeatureParameters(
    sample_rate=8000, seconds=1.0, n_mels=64, n_fft=512, hop_length=256, frames=32
)


def log_mel_of_file(path: Path, parameters: FeatureParameters) -> np.ndarray:
    """(n_mels, frames) float32 of a recording: `read_audio`, then `log_mel`.

    Raises:
        BadData: the file cannot be read, or holds no sound.
        BadInput: librosa or soundfile is not installed.
    """
    samples = read_audio(path, parameters.sample_rate, parameters.seconds)
    return log_mel(samples, parameters)


def read_audio(path: Path, sample_rate: int, seconds: float | None = None) -> np.ndarray:
    """(samples,) float32, nominally from -1 to 1: the mean of the channels at `sample_rate`.

    Args:
        path: WAV, FLAC, OGG, MP3, or whatever else libsndfile reads.
        sample_rate: Hz.
        seconds: read little more than this much of a long file (all of it by default).

    Raises:
        BadData: the file cannot be read, or holds no sound.
        BadInput: librosa or soundfile is not installed.
    """
    librosa, soundfile = require_audio()
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            wanted = -1 if seconds is None else math.ceil((seconds + _READ_BEYOND) * rate)
            channels = file.read(wanted, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise BadData(f"{path}: cannot be read as audio ({_reason(error, path)})") from None
    if channels.shape[0] == 0:
        raise BadData(f"{path}: holds no sound")
    if not np.isfinite(channels).all():
        raise BadData(f"{path}: has samples that are NaN or infinite")
    mono = channels.mean(axis=1)
    resampled = librosa.resample(mono, orig_sr=rate, target_sr=sample_rate)
    return np.asarray(resampled, dtype=np.float32)


def log_mel(samples: np.ndarray, parameters: FeatureParameters) -> np.ndarray:
    """(n_mels, frames) float32, dB relative to the clip's maximum, by librosa.

    Args:
        samples: (samples,) at `parameters.sample_rate`; its level does not matter. A silent clip
            is 0 dB throughout.

    Raises:
        BadInput: librosa is not installed.
    """
    librosa, _ = require_audio()
    # In float64, because the rounding of float32 shows in bands 80 dB below the maximum.
    power = librosa.feature.melspectrogram(
        y=_fitted(samples.astype(np.float64), parameters.length),
        sr=parameters.sample_rate,
        n_fft=parameters.n_fft,
        hop_length=parameters.hop_length,
        n_mels=parameters.n_mels,
    )
    decibels = librosa.power_to_db(
        _fitted(power, parameters.frames), ref=np.max, amin=_LOWEST_POWER, top_db=_DYNAMIC_RANGE
    )
    return np.asarray(decibels, dtype=np.float32)


def log_mel_numpy(samples: np.ndarray, parameters: FeatureParameters) -> np.ndarray:
    """(n_mels, frames) float32, dB relative to the clip's maximum, by NumPy alone.

    Args:
        samples: (samples,) at `parameters.sample_rate`.
    """
    n_fft = parameters.n_fft
    clip = np.pad(_fitted(samples.astype(np.float64), parameters.length), n_fft // 2)
    clip = _fitted(clip, max(len(clip), n_fft))
    windows = np.lib.stride_tricks.sliding_window_view(clip, n_fft)[:: parameters.hop_length]
    spectrum = np.abs(np.fft.rfft(windows * _hann(n_fft), axis=1)) ** 2
    bands = mel_filters(parameters.sample_rate, n_fft, parameters.n_mels)
    # Not `@`: the threads of BLAS wait for each other, ten times as long on a busy machine.
    power = _fitted(np.einsum("mf,tf->mt", bands, spectrum), parameters.frames)
    decibels = 10 * np.log10(np.maximum(power, _LOWEST_POWER))
    decibels -= decibels.max()
    return np.maximum(decibels, -_DYNAMIC_RANGE).astype(np.float32)


@lru_cache
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """(n_mels, n_fft // 2 + 1) float64: triangles on the mel scale, each of unit area over Hz.

    The scale is that of M. Slaney, Auditory Toolbox Version 2, Technical Report 1998-010,
    Interval Research Corporation, 1998 (`mfcc.m`): linear below 1 kHz, logarithmic above.
    """
    frequencies = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2), n_mels + 2))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2 / (upper - lower))
    filters.flags.writeable = False  # it is shared by all who ask
    return filters


_HZ_PER_MEL = 200 / 3  # below the corner
_CORNER_HZ = 1000.0
_CORNER_MEL = _CORNER_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27  # a mel above the corner


def _hz_to_mel(hertz: float) -> float:
    if hertz < _CORNER_HZ:
        return hertz / _HZ_PER_MEL
    return _CORNER_MEL + math.log(hertz / _CORNER_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _CORNER_HZ * np.exp(_LOG_STEP * (mel - _CORNER_MEL))
    return np.where(mel < _CORNER_MEL, mel * _HZ_PER_MEL, above)


@lru_cache
def _hann(length: int) -> np.ndarray:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    window.flags.writeable = False
    return window


def _fitted(values: np.ndarray, size: int) -> np.ndarray:
    """`values` with its last axis cut, or padded with zeros, to `size`."""
    missing = max(size - values.shape[-1], 0)
    padding = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    return np.pad(values[..., :size], padding)


def require_audio() -> tuple[ModuleType, ModuleType]:
    """librosa and soundfile.

    Raises:
        BadInput: one of them is not installed, or cannot be loaded.
    """
    try:
        import librosa
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile itself is missing
        raise BadInput(
            f"reading audio needs librosa and soundfile ({error}): pip install 'raykfold[audio]'"
        ) from None
    return librosa, soundfile


def _reason(error: Exception, path: Path) -> str:
    """What went wrong, without the path again."""
    if not path.exists():
        return "no such file"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
