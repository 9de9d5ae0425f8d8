from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import ray
from fakes.hub_server import HubServer
from support.parquet_data import audio, class_label, parquet, wav

from raykfold import prepare
from raykfold.data.log_mel import (
    DIGITS,
    ESC50,
    URBANSOUND8K,
    FeatureParameters,
    features_of_file,
    frame_count,
)
from raykfold.data.reading import read_feature_set
from raykfold.data.spool import FOLDER, Spool
from raykfold.distributed import extraction
from raykfold.distributed.session import ray_session
from raykfold.errors import BadData, BadInput

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
            patch.setattr(extraction, "MOST_FILES", 1)
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
    expected = [features_of_file(mixed.audio_dir / mixed.names[place], SMALL)[0] for place in left]
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
    assert "what was read is kept, for the same command with --allow_missing\n" in refused.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FOLDER]
    write_sound(tmp_path / "1_ben_0.wav")
    outcome = run("fsdd", *flags)
    assert outcome.code == 0
    # Those before the one that was mended are not read again.
    assert "3 recordings of an unfinished prepare cannot be used: the files," in outcome.out
    assert f"12 recordings in {tmp_path}; 9 of them are done; starting Ray" in outcome.out
    assert " 80%  10 of 12 recordings\n" in outcome.out
    assert outcome.err.startswith("raykfold: left out: ")
    assert not (tmp_path / "out" / FOLDER).exists()
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
    assert run("fsdd", *flags, "--strict").error.startswith(f"raykfold: --strict: {tmp_path}/0_ben")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FOLDER]
    outcome = run("fsdd", *flags, "--allow_missing")
    assert outcome.code == 2
    assert "all recordings that can be read are in fold 1 (ann)" in outcome.error
    assert list((tmp_path / "out").iterdir()) == []


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


TAKES = [f"{digit}_{speaker}_{take}.wav" for digit in "01" for speaker in "abc" for take in (0, 1)]
DIGIT_FLAGS = ["--sample_rate=8000", "--seconds=1", "--n_mels=64", "--n_fft=512"]
DIGIT_FLAGS += ["--hop_length=256"]


def test_a_folder_for_each_class_is_the_same_data(shared_ray, tmp_path):
    """Folds made by group from the names of files are those that fsdd has."""
    for name in TAKES:
        write_sound(tmp_path / "fsdd" / name)
        write_sound(tmp_path / "folder" / name[0] / name)
    run("fsdd", "--audio_dir", tmp_path / "fsdd", "--processed_dir", tmp_path / "one")
    flags = ["--audio_dir", tmp_path / "folder", "--make_folds", 3, *DIGIT_FLAGS]
    flags += ["--group_pattern", "_(?P<group>[^_]+)_"]
    outcome = run("folder", *flags, "--processed_dir", tmp_path / "other")
    assert outcome.code == 0 and outcome.err == ""
    one, other = (read_feature_set(tmp_path / name) for name in ("one", "other"))
    assert one.fingerprint == other.fingerprint
    assert (one.fold_names, one.classes) == (other.fold_names, other.classes)
    assert one.feature_parameters == other.feature_parameters
    rule = "LeaveOneGroupOut, folds 3, groups pattern _(?P<group>[^_]+)_"
    assert f"folds made: {rule}\n" in outcome.out
    assert f"folds made by {rule}" in other.notes
    halves = run("folder", *flags, "--dtype=float16", "--processed_dir", tmp_path / "half")
    assert halves.code == 0
    half = np.load(tmp_path / "half" / "features.npy")
    np.testing.assert_array_equal(half, np.asarray(one.features).astype(np.float16))


def test_windows_of_long_recordings(shared_ray, tmp_path):
    seconds = {"0_a": 2.0, "0_b": 0.3, "1_a": 1.3, "1_b": 1.0, "2_a": 0.5}
    for name, length in seconds.items():
        write_sound(tmp_path / "audio" / name[0] / f"{name}.wav", seconds=length)
    (tmp_path / "audio" / "2" / "2_b.wav").write_text("no sound")
    table = tmp_path / "audio" / "metadata.csv"
    rows = [f"{name[0]}/{name}.wav,{name[0]},{name[-1]}" for name in (*seconds, "2_b")]
    write_table(table, "path,label,fold", *rows)
    cut = ["--window=0.5", "--hop=0.25", *(each for each in SMALL_FLAGS if "seconds" not in each)]
    flags = ["--audio_dir", table.parent, "--processed_dir", tmp_path / "out", "--allow_missing"]
    outcome = run("csv", *flags, *cut)
    assert outcome.code == 0, outcome.err
    data = read_feature_set(tmp_path / "out")
    parameters = FeatureParameters.from_dict(data.feature_parameters)
    assert parameters == dataclasses.replace(SMALL, hop=0.25)
    paths = [table.parent / name[0] / f"{name}.wav" for name in seconds]
    pieces = [features_of_file(path, parameters) for path in paths]
    assert [len(each) for each in pieces] == [7, 1, 5, 3, 1]
    np.testing.assert_allclose(data.features, np.concatenate(pieces), atol=1e-4, rtol=0)
    recordings = np.load(tmp_path / "out" / "recordings.npy")
    assert recordings.tolist() == np.repeat(np.arange(5), [7, 1, 5, 3, 1]).tolist()
    assert recordings.dtype == np.int64
    assert data.labels.tolist() == np.repeat([0, 0, 1, 1, 2], [7, 1, 5, 3, 1]).tolist()
    assert data.folds.tolist() == np.repeat([1, 2, 1, 2, 1], [7, 1, 5, 3, 1]).tolist()
    assert "fold 1 (a): 3 recordings, 13 windows\n" in outcome.out
    assert "5 recordings, 3 classes, 2 folds, features (17, 16, 32)" in outcome.out


def test_a_kill_in_between_resumes(shared_ray, monkeypatch, tmp_path):
    """The bytes are those of a preparation that was never stopped."""
    for name in TAKES:
        write_sound(tmp_path / "audio" / name)
    flags = ["fsdd", "--audio_dir", tmp_path / "audio", "--processed_dir"]
    assert run(*flags, tmp_path / "whole").code == 0
    append = Spool.append

    def interrupted(spool, *rows):
        if spool.done == 5:
            raise KeyboardInterrupt
        append(spool, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", interrupted)
        outcome = run(*flags, tmp_path / "halved")
    assert outcome.code == 130 and "the same command goes on from what is done" in outcome.err
    outcome = run(*flags, tmp_path / "halved")
    assert f"12 recordings in {tmp_path / 'audio'}; 5 of them are done; starting" in outcome.out
    assert " 50%  6 of 12 recordings\n" in outcome.out
    whole, halved = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "halved")
    )
    assert whole == halved


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_a_dataset_of_the_hub_gives_the_bits_of_its_files(shared_ray, hub, tmp_path):
    names = ["0_ann_0.wav", "0_jo_0.wav", "1_ann_0.wav", "1_jo_0.wav", "1_jo_1.flac"]
    for name in names:
        write_sound(tmp_path / "audio" / name.replace(".flac", ".wav"), rate=44100, channels=2)
    contents = [(tmp_path / "audio" / name.replace("flac", "wav")).read_bytes() for name in names]
    files = {}
    for shard, rows in enumerate((slice(0, 3), slice(3, 5))):
        columns = {
            "clip": audio(contents[rows], names[rows]),
            "digit": [int(name[0]) for name in names[rows]],
            "speaker": [name.split("_")[1] for name in names[rows]],
        }
        features = {"clip": {"_type": "Audio"}, "digit": class_label("zero", "one")}
        files[f"data/train-0000{shard}-of-00002.parquet"] = parquet(columns, features)
    hub.add_repository("team/digits", "dataset", files)
    by_hub, by_files = tmp_path / "by hub", tmp_path / "by files"
    flags = ["--fold_column", "speaker", *SMALL_FLAGS, "--download_dir", tmp_path / "cache"]
    outcome = run("hub", "team/digits", "--processed_dir", by_hub, *flags)
    assert outcome.code == 0 and outcome.err == ""
    assert "columns: audio clip, label digit, fold speaker" in outcome.out.splitlines()
    assert "5 recordings in dataset team/digits; starting Ray" in outcome.out.splitlines()
    argv = ["--audio_dir", tmp_path / "audio", "--processed_dir", by_files, *SMALL_FLAGS]
    assert run("fsdd", *argv).code == 0
    for name in ("features.npy", "labels.npy", "folds.npy", "features.json"):
        assert (by_hub / name).read_bytes() == (by_files / name).read_bytes(), name
    data = read_feature_set(by_hub)
    assert data.class_names == ("zero", "one") and data.fold_names == {1: "ann", 2: "jo"}


def test_cells_of_the_hub_that_cannot_be_read_are_named(shared_ray, hub, tmp_path):
    sound = wav(0)
    columns = {
        "audio": audio([sound] * 20 + [None, b"no sound"], [f"{row}.wav" for row in range(22)]),
        "label": [0, 1] * 11,
        "speaker_id": [row // 2 for row in range(22)],
    }
    hub.add_repository("team/sounds", "dataset", {"x.parquet": parquet(columns)})
    flags = ["--processed_dir", tmp_path / "out", *SMALL_FLAGS, "--download_dir", tmp_path]
    outcome = run("hub", "team/sounds", *flags, "--make_folds", "2")
    assert outcome.code == 0
    without_bytes, damaged = outcome.left_out
    assert "x.parquet, row 20 (20.wav): the column audio holds no bytes there" in without_bytes
    assert "x.parquet, row 21 (21.wav): cannot be read as audio" in damaged
    data = read_feature_set(tmp_path / "out")
    assert data.labels.tolist() == [0, 1] * 10
    assert [data.folds[row] for row in range(0, 20, 2)] == data.folds[1::2].tolist()
    rule = json.loads((tmp_path / "out" / "features.json").read_text())["fold_rule"]
    assert rule["groups"] == "column speaker_id" and rule["folds"] == 2


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
    spool = Spool(tmp_path / "out", {}, ["a"], SMALL.shape, np.float32)
    with pytest.raises(BadInput, match="does not exist on node"):
        extraction.extract_features(
            spool,
            absent,
            [absent / "a.wav"],
            [0],
            SMALL,
            np.float32,
            strict=False,
            own_instance=False,
            advance=lambda count: None,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sigkill_resumes(tmp_path):
    for n in range(400):
        write_sound(tmp_path / "audio" / f"{n % 10}_{'abcd'[n % 4]}_{n}.wav", seconds=0.1)
    command = [sys.executable, "-m", "raykfold.prepare", "fsdd", "--local_cpus", "2"]
    command += ["--audio_dir", str(tmp_path / "audio"), "--processed_dir"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    killed = [*command, str(tmp_path / "killed")]
    with subprocess.Popen(killed, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "%" in line:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [FOLDER]
    again = subprocess.run(killed, check=True, capture_output=True, text=True).stdout
    assert "of them are done; starting Ray" in again and "cannot be used" not in again
    whole, resumed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "killed")
    )
    assert whole == resumed


# ---- Without Ray


def test_workers_on_a_cluster_see_no_secrets(shared_ray, monkeypatch, digits, tmp_path):
    def tell(audio_dir, paths, parameters, dtype):
        secret = os.environ.get("HF_TOKEN")
        problem = BadData(f"HF_TOKEN={secret!r}")
        return extraction.Chunk(np.zeros((0, *SMALL.shape), np.float32), [0], {0: problem}, "here")

    unguarded = ray.get(ray.remote(tell).remote(None, [], None, None))
    assert str(unguarded.problems[0]) == "HF_TOKEN='hf_of_the_cluster'"
    monkeypatch.setattr(extraction, "chunk_features", tell)
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
        (["--window", "0"], "--window 0.0: expected a number above 0"),
        (["--window", "1e-9"], "--window 1e-09: expected at least one sample at 8000 Hz"),
        (["--window", "2", "--hop", "-1"], "--hop -1.0: expected a number above 0"),
        (["--window", "2", "--hop", "1e-9"], "--hop 1e-09: expected seconds, at least one"),
        (["--make_folds", "1"], "--make_folds 1: expected at least 2"),
        (["--make_folds", "2"], "--make_folds 2: class 0 has 1 recording (2 of 2 classes are"),
        (["--make_folds", "2", "--seed", "-1"], "--seed -1: expected a whole number from 0"),
        (["--make_folds", "2", "--group_pattern", "("], "--group_pattern '(': missing )"),
        (["--make_folds", "2", "--group_pattern", "(z)"], "finds no group in 2 of 2 files, such"),
        (["--make_folds", "3", "--group_pattern", "_(n?)"], "finds no group in 2 of 2 files"),
        (["--make_folds", "3", "--group_pattern", "(wav)"], "one group only by pattern (wav) (wav"),
        (["--group_pattern", "(.)"], "--group_pattern (.): expected --make_folds K as well"),
        (["--seed", "0"], "--seed 0: expected --make_folds K as well"),
        (["--group_column", "x", "--make_folds", "2"], "unrecognized arguments: --group_column"),
        (["--hop", "1"], "--hop 1: expected --window as well"),
        (["--window", "2", "--seconds", "1.0"], "not allowed with argument --"),
        (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
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


def test_a_window_longer_than_every_recording(no_ray, tmp_path):
    for name, seconds in (("0_ann_0.wav", 0.25), ("1_ben_0.wav", 0.75)):
        write_sound(tmp_path / name, seconds=seconds)
    flags = ["--audio_dir", tmp_path, "--processed_dir", tmp_path / "out"]
    outcome = run("fsdd", *flags, "--window", 2)
    assert outcome.code == 2
    assert outcome.error == (
        "raykfold: --window 2: longer than every recording, of which the longest has 0.75 s; "
        "expected at most that, or --seconds 2 to make one sample of each"
    )
    for name in ("0_ben_0.wav", "0_a_0.wav"):  # one that cannot be read decides nothing
        (tmp_path / name).write_text("no sound")
    assert "the longest has 0.75 s" in run("fsdd", *flags, "--window", 2).error
    (tmp_path / "1_ben_0.wav").write_bytes(b"\0\0\0\x1cftypM4A whose length ffmpeg may know")
    with pytest.raises(AssertionError, match="Ray was started"):
        run("fsdd", *flags, "--window", 2)


def test_features_that_the_disk_has_no_room_for(no_ray, digits, tmp_path):
    flags = ["--frames", 2**19, "--processed_dir", tmp_path / "out"]
    with (digits / "metadata.csv").open("w") as table:
        table.write("path,label,fold\n")
        table.writelines(
            f"{n % 2}_{('ann', 'ben')[n % 2]}_0.wav,{n % 2},{n % 2}\n" for n in range(20000)
        )
    outcome = run("csv", "--audio_dir", digits, *flags, "--allow_missing")
    assert outcome.code == 2
    assert "features (20000, 128, 524288) of float32 need 5368709 MB more" in outcome.error
    assert "expected another folder, smaller features, or --dtype float16" in outcome.error


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


def test_a_wrong_dataset_of_the_hub(no_ray, hub, tmp_path):
    columns = {"audio": audio([wav(0)] * 4, list("abcd")), "label": [0, 1] * 2}
    hub.add_repository("team/sounds", "dataset", {"x.parquet": parquet(columns)})
    flags = ["--processed_dir", tmp_path / "out", "--download_dir", tmp_path / "cache"]
    for argv, message in (
        (["team/none"], "dataset team/none: HTTP 404: there is no team/none"),
        (
            ["team/sounds"],
            "has no column of folds; its columns are audio, label; expected --fold_c",
        ),
        (["team/sounds", "--make_folds", "3"], "class 0 has 2 recordings (2 of 2 classes"),
        (["team/sounds", "--make_folds", "2", "--group_column", "x"], "--group_column x: "),
        (["team/sounds", "--make_folds", "2", "--window", "9"], "the longest has 0.1 s"),
        (["team/sounds", "--seed", "1"], "--seed 1: expected --make_folds K as well"),
        (["team/sounds", "--audio_dir", "x"], "unrecognized arguments: --audio_dir x"),
    ):
        outcome = run("hub", *argv, *flags)
        assert outcome.code == 2 and message in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def all_unreadable(monkeypatch) -> None:
    """In place of Ray and its workers: no recording can be read."""

    @contextlib.contextmanager
    def session(address, *, local_cpus, verbose):
        yield True

    def extract(spool, audio_dir, paths, sizes, parameters, dtype, **options):
        problems = {index: f"{path}: cannot be read" for index, path in enumerate(paths)}
        spool.append(np.empty((0, *parameters.shape), dtype), [0] * len(paths), problems)

    monkeypatch.setattr(prepare, "ray_session", session)
    monkeypatch.setattr(prepare, "extract_features", extract)


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """In place of Ray: this process makes the features, two recordings at a time."""

    def extract(spool, audio_dir, paths, sizes, parameters, dtype, *, strict, **options):
        while spool.done < len(paths):
            these = paths[spool.done : spool.done + 2]
            chunk = extraction.chunk_features(audio_dir, these, parameters, dtype)
            if strict and chunk.problems:
                raise BadData(f"--strict: {next(iter(chunk.problems.values()))}")
            problems = {index: str(error) for index, error in chunk.problems.items()}
            spool.append(chunk.features, chunk.windows, problems)

    session = contextlib.nullcontext
    monkeypatch.setattr(prepare, "ray_session", lambda address, **options: session(True))
    monkeypatch.setattr(prepare, "extract_features", extract)


def test_a_recording_that_can_be_read_by_now_is_not_lost(in_this_process, tmp_path):
    """As after a drive that failed for a while, which changes neither size nor time of a file."""
    paths = [tmp_path / "audio" / f"{n % 2}_{'ab'[n % 2]}_{n // 2}.wav" for n in range(8)]
    for path in paths:
        write_sound(path)
    broken = [sorted(paths)[2], sorted(paths)[5]]
    whole, stat = broken[0].read_bytes(), broken[0].stat()
    for path in broken:
        path.write_bytes(b"?" * len(whole))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    flags = ["--audio_dir", tmp_path / "audio", "--processed_dir", tmp_path / "out", *SMALL_FLAGS]
    assert "2 of 8 (25 %)" in run("fsdd", *flags).error
    assert "2 of 8 (25 %)" in (again := run("fsdd", *flags)).error
    assert "; 8 of them are done\n" in again.out
    for path, done in zip(broken, (2, 4), strict=True):
        path.write_bytes(whole)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        outcome = run("fsdd", *flags)
        assert f"; {done} of them are done; starting Ray" in outcome.out
    assert outcome.code == 0 and len(read_feature_set(tmp_path / "out")) == 8


def test_what_was_read_stays_when_strict_stops(in_this_process, tmp_path):
    for n in range(8):
        write_sound(tmp_path / "audio" / f"{n % 2}_{'ab'[n % 2]}_{n // 2}.wav")
    (tmp_path / "audio" / "1_b_2.wav").write_text("no sound")
    flags = ["--audio_dir", tmp_path / "audio", "--processed_dir", tmp_path / "out", *SMALL_FLAGS]
    assert "1_b_2.wav: cannot be read" in run("fsdd", *flags, "--strict").error
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FOLDER]
    write_sound(tmp_path / "audio" / "1_b_2.wav")
    outcome = run("fsdd", *flags, "--strict")
    assert outcome.code == 0 and "; 6 of them are done; starting" in outcome.out


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
    """Ctrl-C while the session is open closes it."""
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
    assert outcome.code == 130
    assert outcome.err == "\nraykfold: interrupted; the same command goes on from what is done\n"
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
    [
        ("csv", URBANSOUND8K),
        ("folder", URBANSOUND8K),
        ("esc50", ESC50),
        ("urbansound8k", URBANSOUND8K),
        ("fsdd", DIGITS),
    ],
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
