from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import ray

from raykfold import prepare
from raykfold.data.log_mel import (
    DIGITS,
    ESC50,
    URBANSOUND8K,
    FeatureParameters,
    frame_count,
    log_mel_of_file,
)
from raykfold.data.reading import read_feature_set
from raykfold.distributed.session import ray_session
from raykfold.errors import BadInput

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("librosa")

SMALL = FeatureParameters(
    sample_rate=8000, seconds=0.5, n_mels=16, n_fft=256, hop_length=128, frames=32
)
SMALL_FLAGS = ["--sample_rate=8000", "--seconds=0.5", "--n-mels=16", "--n_fft=256"]
SMALL_FLAGS += ["--hop-length", "128"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def left_out(self) -> list[str]:
        """The lines on stderr about recordings that could not be read."""
        return [line for line in self.err.splitlines() if line.startswith("raykfold: left out: ")]

    @property
    def error(self) -> str:
        """The one line on stderr beside those of `left_out`, the last."""
        lines = self.err.splitlines()[len(self.left_out) :]
        assert len(lines) == 1 and lines[0].startswith("raykfold: "), self.err
        return lines[0]


def run(*argv: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = prepare.main([str(argument) for argument in argv])
    return Outcome(code, out.getvalue(), err.getvalue())


def write_sound(path: Path, rate: int = 8000, seconds: float = 0.5, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    samples = rng.uniform(-0.5, 0.5, (round(rate * seconds), channels))
    soundfile.write(path, samples, rate)


def write_table(path: Path, columns: str, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((columns, *rows)) + "\n")


# ---- With Ray, started once


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One session for all commands of this module, two workers, a task for every file.

    To the commands it is somebody's cluster, started with a secret.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_of_the_cluster")
        with ray_session(None, local_cpus=2):
            patch.delenv("HF_TOKEN")
            patch.setattr(prepare, "CHUNK", 1)
            yield


@dataclass
class Mixed:
    """An audio folder with files of all sorts, and what a table says about them."""

    audio_dir: Path
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    folds: list[int] = field(default_factory=list)

    def add(self, name: str, label: str, fold: int) -> Path:
        self.names.append(name)
        self.labels.append(label)
        self.folds.append(fold)
        return self.audio_dir / name


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Mixed:
    mixed = Mixed(tmp_path_factory.mktemp("mixed audio"))
    write_sound(mixed.add("plain.wav", "dog", 1))
    write_sound(mixed.add("sub folder/high rate.wav", "cat", 2), rate=44100)
    write_sound(mixed.add("stereo.flac", "dog", 2), rate=22050, channels=2)
    mixed.add("corrupt.wav", "cat", 1).write_bytes(b"RIFF and then nothing")
    write_sound(mixed.add("too short.wav", "ant", 1), seconds=0.1)
    write_sound(mixed.add("too long.wav", "ant", 2), seconds=2.0)
    mixed.add("absent.wav", "dog", 1)
    rows = zip(mixed.names, mixed.labels, mixed.folds, strict=True)
    with (mixed.audio_dir / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "fold"), *rows])
    return mixed


@pytest.fixture(scope="module")
def prepared(shared_ray, mixed, tmp_path_factory) -> tuple[Outcome, Path]:
    processed_dir = tmp_path_factory.mktemp("out") / "new" / "processed"
    flags = ["--audio_dir", mixed.audio_dir, "--processed-dir", processed_dir]
    return run("csv", *flags, *SMALL_FLAGS, "--allow-missing"), processed_dir


def test_features_are_in_the_order_of_the_table(prepared, mixed):
    outcome, processed_dir = prepared
    assert outcome.code == 0, outcome.err
    data = read_feature_set(processed_dir)
    left = [
        place for place, name in enumerate(mixed.names) if name[:7] not in ("corrupt", "absent.")
    ]
    expected = [log_mel_of_file(mixed.audio_dir / mixed.names[place], SMALL) for place in left]
    np.testing.assert_allclose(data.features, np.stack(expected), atol=1e-4, rtol=0)
    assert data.folds.tolist() == [mixed.folds[place] for place in left]
    names = dict(zip(data.class_labels, data.class_names, strict=True))
    assert [names[label] for label in data.labels.tolist()] == [mixed.labels[p] for p in left]


def test_files_written(prepared):
    """processed/
    ├── class_mapping.json   names in alphabetical order
    ├── features.json        how to make the features again
    ├── features.npy
    ├── folds.npy
    └── labels.npy
    """
    _, processed_dir = prepared
    assert sorted(path.name for path in processed_dir.iterdir()) == [
        "class_mapping.json",
        "features.json",
        "features.npy",
        "folds.npy",
        "labels.npy",
    ]
    mapping = json.loads((processed_dir / "class_mapping.json").read_text())
    assert mapping == {"0": "ant", "1": "cat", "2": "dog"}
    written = json.loads((processed_dir / "features.json").read_text())
    assert FeatureParameters.from_dict(written) == SMALL
    assert np.load(processed_dir / "features.npy").dtype == np.float32
    assert np.load(processed_dir / "labels.npy").dtype == np.int64


def test_unreadable_files_are_named_and_counted(prepared, mixed):
    outcome, _ = prepared
    corrupt, absent = outcome.err.splitlines()
    assert str(mixed.audio_dir / "corrupt.wav") in corrupt and "left out" in corrupt
    assert str(mixed.audio_dir / "absent.wav") in absent and "no such file" in absent
    assert (
        "left out: recordings lost: 2 of 7 (29 %); fold 1: 2 of 4 (50 %); class 1 (cat): 1 of 2 "
        "(50 %), class 2 (dog): 1 of 3 (33 %)\n"
    ) in outcome.out


def test_what_is_said(prepared):
    outcome, processed_dir = prepared
    assert "100%  7 of 7 recordings" in outcome.out
    assert "5 recordings, 3 classes, 2 folds, features (5, 16, 32)" in outcome.out
    assert "fold 1: 2 recordings\nfold 2: 3 recordings\n" in outcome.out
    last = outcome.out.splitlines()[-1]
    assert last == f"next: python -m raykfold.run --processed_dir {processed_dir}"
    assert all(character.isprintable() or character == "\n" for character in outcome.out)


def test_strict_writes_nothing(shared_ray, mixed, tmp_path):
    flags = ["--audio_dir", mixed.audio_dir, "--processed_dir", tmp_path / "out", "--strict"]
    outcome = run("csv", *flags, *SMALL_FLAGS)
    assert outcome.code == 2
    assert "--strict" in outcome.error and str(mixed.audio_dir) in outcome.error
    assert not (tmp_path / "out").exists()


def test_too_many_missing_are_refused_before_ray_starts(no_ray, mixed, tmp_path):
    flags = ["--audio_dir", mixed.audio_dir, "--processed_dir", tmp_path / "out", *SMALL_FLAGS]
    outcome = run("csv", *flags)
    assert outcome.code == 2
    assert "1 of 7 (14 %); fold 1: 1 of 4 (25 %); class 2 (dog): 1 of 3 (33 %)" in outcome.error
    assert f"{mixed.audio_dir / 'absent.wav'}: no such file" in outcome.error
    assert "--allow_missing" in outcome.error
    assert run("csv", *flags, "--strict").error == (
        f"raykfold: --strict: {mixed.audio_dir / 'absent.wav'}: no such file"
    )
    assert "not allowed with" in run("csv", *flags, "--strict", "--allow-missing").error
    assert not (tmp_path / "out").exists()


def test_too_many_that_cannot_be_read_are_refused(shared_ray, tmp_path):
    for digit in "01":
        for speaker in ("ann", "ben"):
            for take in range(3):
                write_sound(tmp_path / f"{digit}_{speaker}_{take}.wav")
    flags = ["--audio_dir", tmp_path, "--processed_dir", tmp_path / "out"]
    for take in (0, 1):
        (tmp_path / f"1_ben_{take}.wav").write_text("no sound")
    refused = run("fsdd", *flags)
    assert refused.code == 2
    assert "2 of 12 (17 %); fold 2 (ben): 2 of 6 (33 %); class 1: 2 of 6 (33 %)" in refused.error
    assert "the first: " in refused.error and "1_ben_0.wav: cannot be read" in refused.error
    assert [line.split("/")[-1][:11] for line in refused.left_out] == ["1_ben_0.wav", "1_ben_1.wav"]
    assert not (tmp_path / "out").exists()
    write_sound(tmp_path / "1_ben_0.wav")
    outcome = run("fsdd", *flags)
    assert outcome.code == 0
    assert outcome.err.startswith("raykfold: left out: ")
    assert "left out: recordings lost: 1 of 12 (8 %); fold 2 (ben): 1 of 6" in outcome.out


def test_when_nothing_can_be_read_nothing_is_written(shared_ray, tmp_path):
    for name in ("0_ann_0.wav", "1_ben_0.wav"):
        (tmp_path / name).write_text("no sound")
    before = sorted(tmp_path.iterdir())
    outcome = run("fsdd", "--audio_dir", tmp_path, "--processed_dir", tmp_path / "out")
    assert outcome.code == 2
    expected = (
        f"raykfold: none of the 2 recordings could be read; the first: {tmp_path}/0_ann_0.wav"
    )
    assert outcome.error.startswith(f"{expected}: cannot be read as audio (")
    assert sorted(tmp_path.iterdir()) == before


def test_when_one_fold_is_left_nothing_is_written(shared_ray, tmp_path):
    for name in ("0_ann_0.wav", "1_ann_0.wav"):
        write_sound(tmp_path / name)
    (tmp_path / "0_ben_0.wav").write_text("no sound")
    flags = ["--audio_dir", tmp_path, "--processed_dir", tmp_path / "out"]
    outcome = run("fsdd", *flags)
    assert outcome.code == 2 and "nothing is left of fold 2 (ben)" in outcome.error
    outcome = run("fsdd", *flags, "--allow_missing")
    assert outcome.code == 2
    assert "all recordings that can be read are in fold 1 (ann)" in outcome.error
    assert not (tmp_path / "out").exists()


def test_fsdd(shared_ray, tmp_path):
    audio_dir = tmp_path / "audio"
    for name in ("7_theo_10.wav", "7_theo_9.wav", "0_theo_0.wav", "0_ann_0.wav", "3_jo_b_1.wav"):
        write_sound(audio_dir / "recordings" / name)
    outcome = run("fsdd", "--audio_dir", audio_dir, "--processed_dir", tmp_path / "out")
    assert outcome.code == 0 and outcome.err == ""
    data = read_feature_set(tmp_path / "out")
    assert data.labels.tolist() == [0, 0, 3, 7, 7] and data.folds.tolist() == [1, 3, 2, 3, 3]
    assert data.class_names == ("0", "3", "7")
    assert data.features.shape[1:] == (DIGITS.n_mels, DIGITS.frames)
    assert "fold 2 (jo_b): 1 recordings" in outcome.out
    written = json.loads((tmp_path / "out" / "features.json").read_text())
    assert written["fold_names"] == {"1": "ann", "2": "jo_b", "3": "theo"}
    assert data.fold_names == {1: "ann", 2: "jo_b", 3: "theo"}
    assert data.feature_parameters == DIGITS.as_dict()  # without the names


def test_urbansound8k(shared_ray, tmp_path):
    table = tmp_path / "metadata" / "UrbanSound8K.csv"
    rows = ["100.wav,100,1.5,10,3,dog_bark", "101.wav,101,0.0,2,8,siren"]
    write_table(table, "slice_file_name,fsID,start,fold,classID,class", *rows)
    write_sound(tmp_path / "audio" / "fold10" / "100.wav", rate=44100)
    write_sound(tmp_path / "audio" / "fold2" / "101.wav", rate=96000)
    outcome = run("urbansound8k", "--audio_dir", tmp_path, "--processed_dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    data = read_feature_set(tmp_path / "out")
    assert data.labels.tolist() == [3, 8] and data.folds.tolist() == [10, 2]
    assert data.class_names == ("dog_bark", "siren")
    assert data.features.shape == (2, URBANSOUND8K.n_mels, URBANSOUND8K.frames)


def test_a_table_elsewhere_and_frames(shared_ray, tmp_path):
    write_sound(tmp_path / "audio" / "a.wav")
    write_sound(tmp_path / "audio" / "b.wav")
    table = tmp_path / "elsewhere.csv"
    write_table(table, "fold,note,label,path", "4,x,30,a.wav", "5,y,-2,b.wav")
    flags = ["--audio_dir", tmp_path / "audio", "--processed_dir", tmp_path / "out", "--csv", table]
    outcome = run("csv", *flags, *SMALL_FLAGS, "--frames=40")
    assert outcome.code == 0, outcome.err
    data = read_feature_set(tmp_path / "out")
    assert data.labels.tolist() == [30, -2] and data.folds.tolist() == [4, 5]
    assert data.class_names == ("-2", "30")
    assert data.sample_shape[1] == 40


def test_a_node_that_lacks_the_audio_folder_is_an_error(shared_ray, tmp_path):
    absent = tmp_path / "absent"
    room = np.empty((1, SMALL.n_mels, SMALL.frames), dtype=np.float32)
    with pytest.raises(BadInput, match="does not exist on node"):
        prepare.fill_over_ray(
            room, absent, [absent / "a.wav"], SMALL, strict=False, own_instance=False
        )


# ---- Without Ray


def test_workers_on_a_cluster_see_no_secrets(shared_ray, monkeypatch, digits, tmp_path):
    def tell(audio_dir, paths, parameters):
        secret = os.environ.get("HF_TOKEN")
        return np.zeros((1, SMALL.n_mels, SMALL.frames), np.float32), {0: f"HF_TOKEN={secret!r}"}

    unguarded = ray.get(ray.remote(tell).remote(None, [], None))
    assert unguarded[1] == {0: "HF_TOKEN='hf_of_the_cluster'"}
    monkeypatch.setattr(prepare, "chunk_features", tell)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_driver")
    outcome = run(
        "fsdd", "--audio_dir", digits, "--processed_dir", tmp_path / "out", *SMALL_FLAGS, "--strict"
    )
    assert outcome.error == "raykfold: --strict: HF_TOKEN=''"


@pytest.fixture
def no_ray(monkeypatch) -> None:
    def refused(*args, **options):
        raise AssertionError("Ray was started before the input was checked")

    monkeypatch.setattr(prepare, "ray_session", refused)


@pytest.fixture
def digits(tmp_path) -> Path:
    audio_dir = tmp_path / "audio"
    audio_dir.mkdir()
    for name in ("0_ann_0.wav", "1_ben_0.wav"):
        (audio_dir / name).write_text("not looked into")
    return audio_dir


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n_mels", "0"], "--n_mels 0: expected a number above 0"),
        (["--n-mels", "-3"], "--n_mels -3: expected a number above 0"),
        (["--n_mels", "300"], "--n_mels 300: expected at most 257"),
        (["--n_mels", "many"], "invalid int value: 'many'"),
        (["--hop_length", "0"], "--hop_length 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--seconds", "inf"], "--seconds inf"),
        (["--frames", "0"], "--frames 0"),
        (["--sample-rate", "0"], "--sample_rate 0"),
        (["--local_cpus", "0"], "--local_cpus 0"),
        (["--frames", "999999999999"], "do not fit into memory"),
        (["--n_melz", "3"], "--n_melz"),
        (["--n_me", "3"], "--n_me"),
        (["--csv", "x.csv"], "--csv"),
    ],
)
def test_wrong_flags(no_ray, digits, tmp_path, flags, message):
    outcome = run("fsdd", "--audio_dir", digits, "--processed_dir", tmp_path / "out", *flags)
    assert outcome.code == 2 and message in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "LAYOUT"),
        (["mp3"], "invalid choice: 'mp3'"),
        (["fsdd"], "--audio_dir"),
        (["fsdd", "--audio_dir", "/absent"], "--audio_dir /absent: no such folder"),
        (["fsdd", "--audio_dir", "~nobody-of-that-name/x"], "~nobody-of-that-name"),
    ],
)
def test_wrong_commands(no_ray, argv, message):
    outcome = run(*argv)
    assert outcome.code == 2 and message in outcome.error


def test_a_processed_dir_that_cannot_be_written(no_ray, digits, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for processed_dir in (blocked, blocked / "below", Path("/proc/nothing/here")):
        outcome = run("fsdd", "--audio_dir", digits, "--processed_dir", processed_dir)
        assert outcome.code == 2
        assert f"--processed_dir {processed_dir}: cannot be written" in outcome.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "file"]


def test_a_wrong_table(no_ray, tmp_path):
    table = tmp_path / "metadata.csv"
    write_table(table, "path,label,fold", "a.wav,dog,1.5")
    outcome = run("csv", "--audio_dir", tmp_path, "--processed_dir", tmp_path / "out")
    assert outcome.code == 2
    assert (
        outcome.error == f"raykfold: {table}, line 2: fold '1.5'; expected a whole number or a name"
    )
    assert sorted(tmp_path.iterdir()) == [table]


def test_without_the_audio_extra(no_ray, monkeypatch, digits, tmp_path):
    monkeypatch.setitem(sys.modules, "librosa", None)
    outcome = run("fsdd", "--audio_dir", digits, "--processed_dir", tmp_path / "out")
    assert outcome.code == 2 and "pip install 'raykfold[audio]'" in outcome.error


@pytest.fixture
def all_unreadable(monkeypatch) -> None:
    """In place of Ray and its workers: no recording can be read."""

    @contextlib.contextmanager
    def session(address, *, local_cpus, verbose):
        yield True

    def fill(features, audio_dir, paths, parameters, strict, *, own_instance):
        return {index: f"{path}: cannot be read" for index, path in enumerate(paths)}

    monkeypatch.setattr(prepare, "ray_session", session)
    monkeypatch.setattr(prepare, "fill_over_ray", fill)


def test_why_recordings_cannot_be_read_is_said_before_they_are_refused(all_unreadable, tmp_path):
    names = [f"{digit}_ann_{take}.wav" for digit in range(5) for take in range(4)]
    for name in [*names, "5_ben_0.wav", "5_ben_1.wav"]:
        (tmp_path / name).touch()
    flags = ["--audio_dir", tmp_path, "--processed_dir", tmp_path / "out", *SMALL_FLAGS]
    for outcome in (run("fsdd", *flags), run("fsdd", *flags, "--allow_missing")):
        assert outcome.code == 2 and outcome.error.startswith("raykfold: none of the 22 recordings")
        assert outcome.left_out == [
            *(f"raykfold: left out: {tmp_path / name}: cannot be read" for name in names),
            "raykfold: left out: 2 more",
        ]


def test_a_note_on_a_name_that_is_no_text(all_unreadable, tmp_path):
    odd = b"odd \xff\nname.wav"
    for name in (b"0_ann_0.wav", b"1_ben_0.wav", odd):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    outcome = run("fsdd", "--audio_dir", tmp_path, "--processed_dir", tmp_path / "out")
    assert "left out, such as odd ? name.wav; expected" in outcome.out.splitlines()[0]


def test_interrupted(monkeypatch, digits, tmp_path):
    """Ctrl-C while the session is open closes it, and nothing is written."""
    seen: list[object] = []

    @contextlib.contextmanager
    def session(address, *, local_cpus, verbose):
        seen.append((address, local_cpus, verbose))
        try:
            signal.raise_signal(signal.SIGINT)
            yield
        finally:
            seen.append("left")

    monkeypatch.setattr(prepare, "ray_session", session)
    flags = ["--address", "head:6379", "--local-cpus", 3]
    outcome = run("fsdd", "--audio_dir", digits, "--processed_dir", tmp_path / "out", *flags)
    assert outcome.code == 130 and "nothing was written" in outcome.err
    assert seen == [("head:6379", 3, False), "left"]
    assert not (tmp_path / "out").exists()


def test_verbose_shows_the_traceback(no_ray):
    outcome = run("fsdd", "--audio_dir", "/absent", "--verbose")
    assert outcome.code == 2 and "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1] == "raykfold: --audio_dir /absent: no such folder"


def test_the_cluster_of_the_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert prepare.parser().parse_args(["fsdd", "--audio_dir", "x"]).address == "head:6379"


@pytest.mark.parametrize(
    ("layout", "defaults"),
    [("csv", URBANSOUND8K), ("esc50", ESC50), ("urbansound8k", URBANSOUND8K), ("fsdd", DIGITS)],
)
def test_default_parameters(layout, defaults):
    options = prepare.parser().parse_args([layout, "--audio_dir", "x"])
    assert prepare.feature_parameters(options) == defaults


def test_frames_follow_the_other_parameters():
    argv = ["fsdd", "--audio_dir", "x", "--seconds", "2", "--hop-length", "100"]
    options = prepare.parser().parse_args(argv)
    assert prepare.feature_parameters(options).frames == frame_count(8000, 2.0, 100) == 161


def test_progress_prints_a_line_for_each_tenth(capsys):
    tenths = prepare.Tenths(total=95)
    for _ in range(95):
        tenths.advance(1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == " 10%  10 of 95 recordings" and lines[-1] == "100%  95 of 95 recordings"


def test_progress_of_few_large_steps(capsys):
    tenths = prepare.Tenths(total=3)
    for _ in range(3):
        tenths.advance(1)
    percentages = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert percentages == ["30%", "60%", "100%"]
