"""The data of ``--demo``: synthesised sounds of ten classes, made on the spot from a seed.

A *recording* is one sound source in one room before one background; the *clips* of a recording
differ in little, and stay in one fold, as the slices of a field recording should. What varies
between recordings (pitch, rate, room, background, level) is drawn alike for every class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from raykfold.data.log_mel import DIGITS, log_mel_numpy

if TYPE_CHECKING:
    from raykfold.data.feature_set import FeatureSet

PARAMETERS = DIGITS
FOLDS = 5
RECORDINGS_PER_FOLD = 4  # of each class
CLIPS_PER_RECORDING = 4
NOISE_RATIO = (0.3, 1.5)  # of the background's amplitude to the sound's

_RATE = PARAMETERS.sample_rate
_LENGTH = PARAMETERS.length
_TIME = np.arange(_LENGTH) / _RATE
_FREQUENCIES = np.fft.rfftfreq(_LENGTH, 1 / _RATE)


def demo_feature_set(seed: int = 0) -> FeatureSet:
    """The demo's data as a run reads it.

    Args:
        seed: other seeds give other recordings of the same classes.
    """
    from raykfold.data.reading import feature_set_from_arrays

    features, labels, folds, names = demo_arrays(seed)
    return feature_set_from_arrays(
        features,
        labels,
        folds,
        class_mapping=dict(enumerate(names)),
        feature_parameters=PARAMETERS.as_dict(),
    )


def demo_arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Features, labels, folds and class names, in an order that says nothing.

    Returns:
        features (N, n_mels, frames) float32, dB; labels (N,) int64, indices into the names;
        folds (N,) int64, 1 to 5; names of the classes.
    """
    features, labels, folds = [], [], []
    for label, make_sound in enumerate(SOUNDS.values()):
        for number in range(FOLDS * RECORDINGS_PER_FOLD):
            rng = np.random.default_rng((seed, label, number))
            for samples in _recording(make_sound, rng):
                features.append(log_mel_numpy(samples, PARAMETERS))
                labels.append(label)
                folds.append(1 + number % FOLDS)
    order = np.random.default_rng(seed).permutation(len(labels))
    # The last bits follow the type of processor. Without them the data, and so its fingerprint,
    # is the same wherever a run is resumed.
    rounded = np.round(np.stack(features)[order], 2)
    return rounded, np.array(labels)[order], np.array(folds)[order], tuple(SOUNDS)


@dataclass(frozen=True)
class Source:
    """What the clips of a recording have in common.

    Attributes:
        pitch: Hz, 150 to 1200, whatever the class makes of it.
        rate: repetitions in a second, 2 to 6.
        colour: 0 to 1, how much of the sound is in its overtones.
    """

    pitch: float
    rate: float
    colour: float

    def varied(self, rng: Generator) -> Source:
        """The same source a moment later."""
        return Source(
            self.pitch * rng.uniform(0.94, 1.06), self.rate * rng.uniform(0.92, 1.08), self.colour
        )


def _recording(
    make_sound: Callable[[Source, Generator], np.ndarray], rng: Generator
) -> list[np.ndarray]:
    """The clips (samples,) of one recording."""
    source = Source(
        pitch=float(np.exp(rng.uniform(np.log(150), np.log(1200)))),
        rate=rng.uniform(2.0, 6.0),
        colour=rng.uniform(0.2, 1.0),
    )
    room = _room(rng)
    slope = _FREQUENCIES.clip(50) ** rng.uniform(-1.2, 0.3)
    noise_ratio = rng.uniform(*NOISE_RATIO)
    clips = []
    for _ in range(CLIPS_PER_RECORDING):
        sound = np.fft.rfft(make_sound(source.varied(rng), rng)) * room
        background = _noise_spectrum(rng) * slope
        level = rng.uniform(0.01, 1.0)
        clips.append(np.fft.irfft(level * (_even(sound) + noise_ratio * _even(background))))
    return clips


# Convolutions wrap around, as if each sound had been going on before its clip.


def _room(rng: Generator) -> np.ndarray:
    """Spectrum of a room's answer to an impulse: the impulse, and noise that dies away."""
    decay = rng.uniform(0.02, 0.25)
    echoes = rng.normal(size=_LENGTH) * np.exp(-_TIME / decay)
    answer = rng.uniform(0.2, 1.0) * echoes / np.linalg.norm(echoes)
    answer[0] += 1.0
    return np.fft.rfft(answer)


def _even(spectrum: np.ndarray) -> np.ndarray:
    """`spectrum` at an energy of 1."""
    return spectrum / np.sqrt(np.sum(np.abs(spectrum) ** 2))


def _noise_spectrum(rng: Generator) -> np.ndarray:
    """Spectrum of white noise."""
    real, imaginary = rng.normal(size=(2, len(_FREQUENCIES)))
    return real + 1j * imaginary


def _band(centre: float, width: float) -> np.ndarray:
    """Amplitudes of a band around `centre` Hz, `width` octaves to each side."""
    octaves = np.log2(_FREQUENCIES.clip(1) / centre)
    return np.exp(-0.5 * (octaves / width) ** 2)


def _noise(band: np.ndarray, rng: Generator) -> np.ndarray:
    """Noise with the amplitudes `band`."""
    return np.fft.irfft(_noise_spectrum(rng) * band)


def _tone(pitch: np.ndarray | float, colour: float, overtones: int = 5) -> np.ndarray:
    """A harmonic tone whose pitch, Hz, may move; overtones beyond half the rate are left out."""
    pitch = np.broadcast_to(pitch, _LENGTH)
    turning = np.exp(2j * np.pi / _RATE * np.cumsum(pitch))
    sound, harmonic = turning.imag.copy(), turning
    for multiple in range(2, overtones + 1):
        harmonic = harmonic * turning
        audible = multiple * pitch < 0.48 * _RATE
        sound += colour ** (multiple - 1) * audible * harmonic.imag
    return sound


def _cycle(rate: float, rng: Generator) -> np.ndarray:
    """Position, 0 to 1, within a repetition."""
    return (_TIME * rate + rng.uniform()) % 1.0


def _strokes(rate: float, unevenness: float, rng: Generator) -> np.ndarray:
    """(samples,) impulses, `rate` in a second, of varying strength."""
    period = 1 / rate
    times = np.arange(rng.uniform(0, min(period, 0.5)), 1.0, period)  # one at least
    times += rng.normal(size=len(times)) * unevenness * period
    strokes = np.zeros(_LENGTH)
    strokes[(times * _RATE).astype(int).clip(0, _LENGTH - 1)] = rng.uniform(0.5, 1.0, len(times))
    return strokes


def _struck(strokes: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Each stroke sounds as `answer`."""
    return np.fft.irfft(np.fft.rfft(strokes) * np.fft.rfft(answer))


def siren(source: Source, rng: Generator) -> np.ndarray:
    """A tone that rises and falls without a break."""
    swing = np.sin(2 * np.pi * _cycle(source.rate / 3, rng))
    return _tone(source.pitch * 2 ** (0.5 * swing), source.colour)


def alarm(source: Source, rng: Generator) -> np.ndarray:
    """A steady tone, on and off."""
    on = _cycle(source.rate, rng) < 0.5
    return _tone(source.pitch, source.colour) * on


def glissando(source: Source, rng: Generator) -> np.ndarray:
    """A tone that glides one way through the whole clip."""
    octaves = rng.choice([-1.0, 1.0]) * rng.uniform(0.7, 1.4)
    return _tone(source.pitch * 2 ** (octaves * (_TIME - 0.5)), source.colour)


def chirps(source: Source, rng: Generator) -> np.ndarray:
    """Short rising tones, one after another."""
    cycle = _cycle(source.rate, rng)
    pitch = source.pitch * 2 ** (2.0 * cycle)
    return _tone(pitch, source.colour) * (cycle < 0.5) * np.sin(np.pi * cycle / 0.5).clip(0)


def bell(source: Source, rng: Generator) -> np.ndarray:
    """A stroke of frequency modulation, inharmonic, that rings on."""
    envelope = np.exp(-3 * _TIME)
    modulator = np.sin(2 * np.pi * 1.41 * source.pitch * _TIME)
    ring = envelope * np.sin(2 * np.pi * source.pitch * _TIME + 4 * envelope * modulator)
    return _struck(_strokes(source.rate / 2, 0.0, rng), ring)


def knocks(source: Source, rng: Generator) -> np.ndarray:
    """Regular strokes on something that resonates briefly."""
    answer = np.sin(2 * np.pi * source.pitch * _TIME) * np.exp(-60 * _TIME)
    return _struck(_strokes(source.rate, 0.03, rng), answer)


def footsteps(source: Source, rng: Generator) -> np.ndarray:
    """Uneven strokes of dull noise."""
    burst = _noise(_band(source.pitch, 0.8), rng) * np.exp(-40 * _TIME)
    return _struck(_strokes(source.rate, 0.12, rng), burst)


def engine(source: Source, rng: Generator) -> np.ndarray:
    """A rough low tone whose speed wanders."""
    wander = 1 + 0.06 * np.sin(2 * np.pi * _cycle(source.rate / 4, rng))
    tone = _tone(source.pitch / 4 * wander, 0.9, overtones=8)
    firing = 1 + 0.7 * np.sin(2 * np.pi * np.cumsum(source.pitch / 16 * wander) / _RATE)
    return tone * firing


def drone(source: Source, rng: Generator) -> np.ndarray:
    """Two steady tones, nearly in tune."""
    beat = 2 ** rng.uniform(0.005, 0.03)
    low = source.pitch / 2
    return _tone(low, source.colour) + _tone(low * beat, source.colour)


def wind(source: Source, rng: Generator) -> np.ndarray:
    """A band of noise that swells."""
    swell = 1.0 + 0.8 * np.sin(2 * np.pi * _cycle(source.rate / 4, rng))
    return _noise(_band(source.pitch, 0.35), rng) * swell


SOUNDS: dict[str, Callable[[Source, Generator], np.ndarray]] = {
    sound.__name__: sound
    for sound in (siren, alarm, glissando, chirps, bell, knocks, footsteps, engine, drone, wind)
}
