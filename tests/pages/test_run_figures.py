"""The pictures of a run: what is in them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread
from support.pictures import curves, matrix, size_of, texts, trained

from raykfold.pages import run_figures


def test_the_mean_is_over_the_folds_that_have_the_epoch() -> None:
    epochs, mean, std = run_figures.means([[0.2, 0.4, 0.6], [0.4, 0.8], [float("nan"), 0.6]])
    assert epochs.tolist() == [1, 2]  # one fold has no mean
    assert mean == pytest.approx([0.3, 0.6])
    assert std == pytest.approx([0.1, np.std([0.4, 0.8, 0.6])])
    assert [part.size for part in run_figures.means([])] == [0, 0, 0]


def test_up_to_ten_folds_are_told_apart() -> None:
    svg = run_figures.curve(curves(10), "accuracy").svg("")
    for position in range(10):
        assert f"var(--fold{position})" in svg
    assert texts(run_figures.curve(curves(10), "accuracy")).count("fold 10") == 1
    many = texts(run_figures.curve(curves(100), "accuracy"))
    assert "a fold" in many and "fold 1" not in many


def test_a_loss_that_is_no_number_is_a_gap() -> None:
    values = [1.0, float("nan"), float("inf"), 0.5]
    svg = run_figures.curve([trained(1, [0.5] * 4, values)], "loss").svg("")
    assert "nan" not in svg.lower() and "inf" not in svg.lower()


@pytest.mark.parametrize("size", [2, 10, 26, 50])
def test_a_confusion_matrix_has_its_counts(size: int) -> None:
    counts = matrix(size)
    picture = run_figures.confusion(counts, [f"class {number}" for number in range(size)])
    shown = [text for text in texts(picture) if text.isdecimal()]
    assert shown == [str(count) for count in counts.flatten() if count]
    assert picture.needs_scrolling == (size == 50)


def test_a_count_that_does_not_fit_is_left_to_the_colour() -> None:
    counts = np.full((50, 50), 123456)
    assert "123456" not in texts(run_figures.confusion(counts, ["x"] * 50))
    assert "123456" in texts(run_figures.confusion(counts[:2, :2], ["x"] * 2))


def test_a_class_that_was_never_seen_leaves_no_row_of_shares() -> None:
    counts = np.array([[3, 1], [0, 0]])
    assert "3" in texts(run_figures.confusion(counts, ["seen", "unseen"]))


def test_low_frequencies_are_at_the_bottom_of_a_spectrogram() -> None:
    feature = np.zeros((8, 4), np.float16)
    feature[0] = 1.0  # the lowest band
    pixels = imread(io.BytesIO(run_figures.spectrogram(feature)))[..., :3].sum(axis=2)
    assert pixels.shape == (8, 4)
    assert (pixels[-1] > pixels[0]).all()


def pixels_of(sample: np.ndarray) -> np.ndarray:
    """The picture of a sample, (rows, columns, 3) uint8."""
    picture = run_figures.sample_picture(sample)
    assert picture is not None
    return np.rint(imread(io.BytesIO(picture))[..., :3] * 255).astype(np.uint8)


def test_an_image_is_shown_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 30)).astype(np.uint8)
    assert (pixels_of(image) == image.transpose(1, 2, 0)).all()
    assert (pixels_of(image.transpose(1, 2, 0)) == image.transpose(1, 2, 0)).all()
    for grey in (image[0], image[:1]):
        assert (pixels_of(grey) == image[0, ..., None]).all()
    large = np.zeros((3, 400, 400), np.uint8)
    assert pixels_of(large).shape == (80, 80, 3)  # pixels stay square


def test_a_waveform_is_a_line_over_time() -> None:
    t = np.linspace(0, 1, 8000)
    light = pixels_of(np.sin(2 * np.pi * t).astype(np.float16))[..., 0] > 100
    assert light.shape == (96, 192) and light.any(axis=0).all()
    rows = light.argmax(axis=0)
    assert rows[48] == rows.min() < 10  # a quarter of a turn is on top
    assert rows[144] > 80
    assert light.sum() < 2 * (96 + 192) * 2  # it is a line, and no area
    assert pixels_of(np.zeros(8000)).shape == (96, 192, 3)  # silence
    assert pixels_of(np.arange(257)).any()


def test_of_several_channels_the_first_is_drawn() -> None:
    channels = np.random.default_rng(0).normal(size=(2, 16, 32))
    assert run_figures.sample_picture(channels) == run_figures.spectrogram(channels[0])
    assert run_figures.sample_kind((2, 16, 32), channels.dtype) == "spectrogram"


@pytest.mark.parametrize("shape", [(64,), (256,), (2, 3, 4, 5)])
def test_of_other_samples_there_is_no_picture(shape: tuple[int, ...]) -> None:
    assert run_figures.sample_picture(np.zeros(shape)) is None
    assert run_figures.sample_kind(shape, np.dtype(float)) is None


def test_a_spectrogram_is_scaled_by_itself_and_kept_small() -> None:
    feature = np.linspace(0, 1, 128 * 431, dtype=np.float32).reshape(128, 431)
    small = run_figures.spectrogram(feature)
    assert small == run_figures.spectrogram(feature * 60 - 80)
    assert size_of(small) == (144, 64)
    assert size_of(run_figures.spectrogram(np.ones((4, 5)))) == (5, 4)  # silence, all alike
