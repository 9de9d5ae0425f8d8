"""``python -m raykfold.predict``, on recordings that the test makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raykfold.data.feature_set import FeatureSet
from raykfold.data.log_mel import FeatureParameters, log_mel
from raykfold.predict import main
from raykfold.state.checkpoint import WeightsContext, weights_bytes
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import TrainingSettings

PARAMETERS = FeatureParameters(8000, 0.5, 16, 256, 128, 32)
CLASSES = {0: "low", 1: "h\x1b[31migh"}  # a name that would colour the terminal
LOW, HIGH = 300.0, 2500.0  # Hz


def tone(hertz: float, rate: int = 8000, seconds: float = 0.5, seed: int = 0) -> np.ndarray:
    times = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(seed).normal(scale=0.02, size=len(times))
    return (0.5 * np.sin(2 * np.pi * hertz * times) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> FeatureSet:
    clips = [tone((LOW, HIGH)[n % 2] * (1 + n / 400), seed=n) for n in range(40)]
    features = np.stack([log_mel(clip, PARAMETERS) for clip in clips])
    return FeatureSet.from_arrays(
        features, np.arange(40) % 2, np.arange(40) // 2 % 2 + 1, class_mapping=CLASSES
    )


@pytest.fixture(scope="module")
def model_dir(data: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds that tell low tones from high ones."""
    folder = tmp_path_factory.mktemp("run")
    context = WeightsContext("raykfold.models:AudioCNN", CLASSES, (16, 32), PARAMETERS.as_dict())
    for fold in (1, 2):
        trainer = FoldTrainer(
            fold,
            torch.from_numpy(np.asarray(data.features)),
            torch.from_numpy(data.class_indices),
            data.split(fold),
            2,
            TrainingSettings("raykfold.models:AudioCNN", 4, 0.003, 9, 0),
        )
        while not trainer.history or trainer.history[-1].val_accuracy < 1.0:
            trainer.run_epoch()
            assert trainer.epochs_run < 30
        (folder / f"model_fold_{fold}_best.safetensors").write_bytes(
            weights_bytes(trainer.snapshot(), context)
        )
    return folder


def write(path: Path, samples: np.ndarray, rate: int = 8000) -> str:
    soundfile.write(path, samples, rate)
    return str(path)


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_recordings_of_any_rate_length_and_channels_are_classified(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stereo = np.stack([tone(HIGH, 44100, 0.5), tone(HIGH, 44100, 0.5, seed=1)], axis=1)
    files = [
        write(tmp_path / "low.wav", tone(LOW)),
        write(tmp_path / "stereo.wav", stereo, 44100),
        write(tmp_path / "long.wav", np.concatenate([tone(LOW), tone(HIGH, seconds=3.0)])),
        write(tmp_path / "short.flac", tone(HIGH, seconds=0.45)),
    ]
    rows = predicted(capsys, *files, "--model_dir", str(model_dir))
    assert [row["label"] for row in rows] == [0, 1, 0, 1]
    assert [row["file"] for row in rows] == files


def test_all_folds_are_averaged_and_one_can_be_named(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "between.wav", tone(900.0))
    where = ("--model_dir", str(model_dir))
    (both,) = predicted(capsys, file, *where)
    (first,) = predicted(capsys, file, *where, "--fold", "1")
    (second,) = predicted(capsys, file, *where, "--fold", "2")
    shares = [row["probabilities"] for row in (first, second, both)]
    low = [float(share["0"]) for share in shares if isinstance(share, dict)]
    assert low[0] != low[1]
    assert low[2] == pytest.approx((low[0] + low[1]) / 2, abs=2e-6)
    assert (both["folds"], first["folds"]) == ([1, 2], [1])


def test_a_long_file_has_the_mean_of_its_windows(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for weights in model_dir.glob("*.safetensors"):
        with safe_open(weights, framework="pt") as opened:
            metadata = dict(opened.metadata())
        features = {**json.loads(metadata["features"]), "hop": 0.5}
        metadata["features"] = json.dumps(features)
        save_file(load_file(weights), cut / weights.name, metadata)
    # Two windows are low, 130 are high, and the rest does not fill half of one.
    pieces = [tone((HIGH, LOW)[n < 2] * (1 + n / 4000), seed=n) for n in range(132)]
    file = write(tmp_path / "long.wav", np.concatenate([*pieces, tone(HIGH, seconds=0.2)]))
    singles = [write(tmp_path / f"{n}.wav", each) for n, each in enumerate(pieces)]
    (row,) = predicted(capsys, file, "--model_dir", str(cut))
    assert (row["label"], row["windows"]) == (1, 132)
    each = predicted(capsys, *singles, "--model_dir", str(model_dir))
    assert "windows" not in each[0]
    low = [dict(other["probabilities"])["0"] for other in each]  # type: ignore[call-overload]
    assert low[0] > 0.5 and dict(row["probabilities"])["0"] == pytest.approx(  # type: ignore[call-overload]
        np.mean(low), abs=1e-4
    )
    assert main([file, "--model_dir", str(cut)]) == 0
    assert ", the mean of 132 windows)" in capsys.readouterr().out.splitlines()[0]


def test_the_whole_distribution_is_printed_and_names_are_harmless(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "high.wav", tone(HIGH))
    assert main([file, "--model_dir", str(model_dir)]) == 0
    printed = capsys.readouterr().out
    head, *rows = printed.splitlines()
    assert head.startswith(f"{file}: h?[31migh (0.") or head.endswith("(1.0000)")
    assert [row.split()[0] for row in rows] == ["h?[31migh", "low"]
    assert sum(float(row.split()[1]) for row in rows) == pytest.approx(1.0, abs=2e-4)
    assert "\x1b" not in printed


def test_an_unreadable_file_is_named_and_the_others_are_done(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("not a sound")
    files = [str(tmp_path / "text.wav"), write(tmp_path / "low.wav", tone(LOW))]
    assert main([*files, "--model_dir", str(model_dir)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{files[1]}: low")
    assert (
        said.err.startswith(f"raykfold: {files[0]}: cannot be read") and said.err.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_dir", "{run}", "--fold", "7"], "no weights of fold 7"),
        (["--model_dir", "{run}", "--fold", "one"], "expected the label of a fold, or all"),
        (["--model_dir", "{run}/nowhere"], "no such folder"),
        (["--model_dir", "{run}", "--repo", "a/b"], "not allowed with"),
        ([], "one of the arguments"),
        (["--model_dir", "{run}", "--modle", "x"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    file = write(tmp_path / "low.wav", tone(LOW))
    assert main([file, *(each.format(run=model_dir) for each in arguments)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and said.err.count("\n") == 1
