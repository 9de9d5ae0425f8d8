"""``python -m raykfold.report``: where the page of a run goes, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from support.page_run import (
    NAMES,
    finish,
    go_on,
    page_of,
)
from support.small_data import small_arrays

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.data.reading import write_feature_set
from raykfold.report import main


@pytest.fixture(scope="module")
def data() -> FeatureSet:
    return FeatureSet.from_arrays(*small_arrays(), class_mapping=NAMES)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_feature_set(folder, *small_arrays(), NAMES, {})
    return folder


@pytest.fixture
def config(tmp_path: Path, data: FeatureSet) -> RunConfig:
    return finish(tmp_path / "out", data)


def made(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, without the last line break."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out.rstrip("\n"), printed.err.rstrip("\n")


def test_a_link_is_followed_and_what_is_no_file_is_left_alone(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    real.touch()
    link.symlink_to(real)
    code, where, _ = made(capsys, config.model_dir, "--output", link)
    assert (code, where) == (0, str(real)) and link.is_symlink()
    assert "raykfold" in real.read_text(encoding="utf-8")
    code, _, said = made(capsys, config.model_dir, "--output", os.devnull)
    assert (code, said) == (2, f"raykfold: --output {os.devnull}: is not a file")


def test_the_command_says_where_the_page_is(
    tmp_path: Path, data: FeatureSet, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finish(tmp_path / "out", data, processed_dir=data_folder)
    assert made(capsys, config.model_dir) == (0, str(config.outputs.report), "")
    assert config.outputs.report.read_text(encoding="utf-8") == page_of(config, data)
    assert len(config.outputs.all_plots()) == 4


def test_data_that_has_moved_can_be_named(
    config: RunConfig, data: FeatureSet, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = made(capsys, config.model_dir)
    assert code == 0 and said.startswith("without pictures of samples: ") and said.count("\n") == 0
    assert "data:image/png" not in config.outputs.report.read_text(encoding="utf-8")
    assert made(capsys, config.model_dir, "--processed-dir", data_folder)[0] == 0
    assert "data:image/png" in config.outputs.report.read_text(encoding="utf-8")


def test_arrays_from_python_are_not_looked_for(
    tmp_path: Path, data: FeatureSet, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finish(tmp_path / "out", data, in_memory=True)
    code, _, said = made(capsys, config.model_dir)
    assert code == 0
    assert said.startswith("without pictures of samples: the data was given as arrays in Python")
    assert "arrays, given in Python" in config.outputs.report.read_text(encoding="utf-8")


def test_other_data_is_refused(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_feature_set(tmp_path / "other", *small_arrays(seed=1), NAMES, {})
    code, _, said = made(capsys, config.model_dir, "--processed_dir", tmp_path / "other")
    assert code == 2
    assert said == f"raykfold: --processed_dir {tmp_path / 'other'}: is not the data of this run"


def test_data_that_has_changed_is_passed_over(
    tmp_path: Path, data: FeatureSet, capsys: pytest.CaptureFixture[str]
) -> None:
    write_feature_set(tmp_path / "other", *small_arrays(seed=1), NAMES, {})
    config = finish(tmp_path / "out", data, processed_dir=tmp_path / "other")
    code, _, said = made(capsys, config.model_dir)
    assert code == 0
    assert said == "without pictures of samples: the data is not what the run was trained on"


def test_the_page_can_go_elsewhere(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "elsewhere" / "page.html"
    assert made(capsys, config.model_dir, "--output", target)[:2] == (0, str(target))
    assert target.read_text(encoding="utf-8") == page_of(config)
    assert not config.outputs.report.exists() and not config.outputs.plots.exists()


def test_the_folder_on_storage_stands_for_the_run(
    tmp_path: Path, data: FeatureSet, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finish(tmp_path / "out", data)
    assert made(capsys, config.run_dir.root)[:2] == (0, str(config.outputs.report))
    assert config.outputs.report.read_text(encoding="utf-8") == page_of(config)
    lonely = tmp_path / "lonely"
    gone = go_on(tmp_path / "gone", data).run_dir.root
    assert isinstance(gone, Path)
    gone.rename(lonely)
    shutil.rmtree(tmp_path / "gone")
    code, _, said = made(capsys, lonely)
    assert code == 2 and said == (
        f"raykfold: {lonely}: holds no outputs, so no page fits there; expected --output FILE"
    )
    assert made(capsys, lonely, "--output", tmp_path / "page.html")[0] == 0
    assert "In training" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_folder_that_takes_no_page_is_named(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config.outputs.report.mkdir()
    code, _, said = made(capsys, config.model_dir)
    assert code == 2 and said.count("\n") == 1
    assert f"raykfold: {config.model_dir}: cannot be written" in said
    assert said.endswith("expected another --output")


@pytest.mark.parametrize("name", ["summary.json", "oof_predictions.npz", "fold_results.json"])
def test_a_damaged_file_is_one_line(
    config: RunConfig, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.model_path / name).write_bytes(b"PK\x03\x04 damaged")
    code, _, said = made(capsys, config.model_dir)
    assert code == 2 and said.count("\n") == 0
    assert re.match(
        rf"raykfold: {config.model_dir}.*: .*(cannot be read|is not valid JSON) \(", said
    )


def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = made(capsys, tmp_path)
    assert code == 2
    assert said == f"raykfold: {tmp_path}: there is no run; expected the --model_dir of one"
