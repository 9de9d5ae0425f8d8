"""Flag, then environment variable, then TOML file, then default; one clear line for the rest."""

from __future__ import annotations

import dataclasses
import json
import pwd
import re
import sys
from collections import deque
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from raykfold.config.options import options
from raykfold.config.run_config import RunConfig, parse_config
from raykfold.errors import BadInput


def toml(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text)
    return str(path)


def test_defaults_are_those_of_the_contract() -> None:
    config = parse_config([], {})
    assert config.processed_dir == Path.cwd() / "data" / "processed"
    assert (config.epochs, config.batch_size, config.learning_rate) == (50, 32, 0.001)
    assert (config.early_stopping_patience, config.seed) == (10, 0)
    assert config.model == "raykfold.models:AudioCNN"
    assert config.folds is None
    assert config.run_name == "processed"
    assert config.model_dir == Path.home() / "raykfold" / "processed"
    assert config.storage_path == Path.home() / "raykfold" / "processed" / "ray"
    assert (config.num_workers, config.local_cpus, config.use_gpu) == (None, None, None)
    assert (config.cpus_per_worker, config.max_failures, config.checkpoint_every) == (1, 3, 1)


def test_the_demo_is_named_so() -> None:
    assert parse_config(["--demo"], {}).run_name == "demo"


def test_flag_over_variable_over_file_over_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "epochs = 3\nbatch-size = 8\nseed = 5")
    environ = {"RAYKFOLD_EPOCHS": "4", "RAYKFOLD_SEED": "6", "RAYKFOLD_CONFIG": file}
    config = parse_config(["--epochs", "7"], environ)
    assert (config.epochs, config.seed, config.batch_size) == (7, 6, 8)


@pytest.mark.parametrize("spelling", ["--batch_size", "--batch-size"])
@pytest.mark.parametrize("equals", [True, False])
def test_every_flag_has_two_spellings(spelling: str, equals: bool) -> None:
    argv = [f"{spelling}=16"] if equals else [spelling, "16"]
    assert parse_config(argv, {}).batch_size == 16


@pytest.mark.parametrize("field", options(RunConfig))
def test_every_field_is_a_flag_with_a_line_of_help(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_config(["--help"], {})
    assert exit_.value.code == 0
    rows = re.split(rf"\n  --{field}\b(?!-)", capsys.readouterr().out.partition("options:")[2])
    assert len(rows) == 2
    assert rows[1].partition("\n\n")[0].partition("\n  -")[0].strip().endswith((".", "]"))


def test_folds_are_a_list_in_any_order(tmp_path: Path) -> None:
    assert parse_config(["--folds", "3,1,3"], {}).folds == (1, 3)
    assert parse_config(["--folds", "all"], {}).folds is None
    assert parse_config(["--config", toml(tmp_path, "folds = [2, 1]")], {}).folds == (1, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("FALSE", False), ("auto", None), ("1", True), ("no", False)],
)
def test_switches_and_auto(text: str, value: bool | None) -> None:
    assert parse_config(["--use_gpu", text], {}).use_gpu is value


def test_a_cluster_named_by_ray_is_used_unless_another_is_named() -> None:
    environ = {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert parse_config([], environ).address == "10.0.0.1:6379"
    assert parse_config(["--address", "10.0.0.2:6379"], environ).address == "10.0.0.2:6379"


@pytest.mark.parametrize(
    ("argv", "environ", "parts"),
    [
        (["--epoch", "3"], {}, ["--epoch:", "unknown flag", "--epochs"]),
        (["--frobnicate"], {}, ["--frobnicate", "unknown flag"]),
        (["--epochs"], {}, ["--epochs"]),
        (["--epochs", "many"], {}, ["--epochs 'many'", "whole number"]),
        (["--epochs", "1.5"], {}, ["--epochs '1.5'", "whole number"]),
        (["--epochs", "0"], {}, ["--epochs '0'", "more than 0"]),
        (["--epochs", "-3"], {}, ["--epochs '-3'", "more than 0"]),
        (["--batch_size", "0"], {}, ["--batch_size '0'", "more than 0"]),
        (["--batch_size", str(2**63)], {}, [f"--batch_size '{2**63}'", "less than 64 bits"]),
        (["--early_stopping_patience", "0"], {}, ["--early_stopping_patience '0'"]),
        (["--learning_rate", "0"], {}, ["--learning_rate '0'", "more than 0"]),
        (["--learning_rate", "-0.1"], {}, ["--learning_rate '-0.1'", "more than 0"]),
        (["--learning_rate", "nan"], {}, ["--learning_rate 'nan'", "more than 0"]),
        (["--learning_rate", "inf"], {}, ["--learning_rate 'inf'", "expected a finite number"]),
        (["--learning_rate", "fast"], {}, ["--learning_rate 'fast'", "number"]),
        (["--seed", "-1"], {}, ["--seed '-1'", "0 or more"]),
        (["--folds", "1,x"], {}, ["--folds '1,x'", "1,3"]),
        (["--folds", ""], {}, ["--folds ''"]),
        (["--use_gpu", "maybe"], {}, ["--use_gpu 'maybe'", "true or false"]),
        (["--num_workers", "0"], {}, ["--num_workers '0'", "more than 0"]),
        (["--run_name", "a/b"], {}, ["--run_name 'a/b'", "slashes"]),
        (["--run_name", ".."], {}, ["--run_name '..'", "slashes"]),
        (["--run_name", ""], {}, ["--run_name ''", "not empty"]),
        (["--model_dir", "~nobody-has-this-name/x"], {}, ["~nobody-has-this-name"]),
        (["--config", "~nobody-has-this-name/x"], {}, ["--config ~nobody-has-this-name/x: no"]),
        (
            ["--storage_path", "ftp://host/x"],
            {},
            ["--storage_path 'ftp://host/x'", "expected a path"],
        ),
        (["--model_dir", "a\udcff"], {}, ["--model_dir", "UTF-8"]),
        (["--model_dir", "hf://owner/name"], {}, ["--model_dir 'hf://owner/name'", "s3://"]),
        (["--scratch_dir", "s3://b/x"], {}, ["--scratch_dir 's3://b/x'", "a local disk"]),
        (["--processed_dir", "s3:///x"], {}, ["--processed_dir 's3:///x'", "s3://bucket/path"]),
        (["--model_dir", "s3://b/x?ports=1"], {}, ["--model_dir", "'ports'", "endpoint_override"]),
        (
            ["--processed_dir", "s3://b/x", "--hf_repo_id", "owner/name"],
            {},
            ["--processed_dir s3://b/x", "--hf_repo_id", "local path"],
        ),
        (["stray"], {}, ["stray"]),
        ([], {"RAYKFOLD_EPOCHS": "many"}, ["RAYKFOLD_EPOCHS 'many'", "whole number"]),
        ([], {"RAYKFOLD_EPOCH": "3"}, ["RAYKFOLD_EPOCH:", "RAYKFOLD_EPOCHS?"]),
        (["--config", "/nowhere/run.toml"], {}, ["/nowhere/run.toml", "No such file"]),
    ],
)
def test_bad_input_names_where_it_stood_and_what_would_be_right(
    argv: list[str], environ: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(BadInput) as error:
        parse_config(argv, environ)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epoch = 3", ["'epoch'", "did you mean epochs?"]),
        ("epochs = 'many'", ["epochs 'many'", "whole number"]),
        ("batch-size = 8\nbatch_size = 9", ["batch_size: appears twice"]),
        ("[model]\nhead-dropout = 0.1\nhead_dropout = 0.2", ["model.head_dropout: appears"]),
        ('model.x = 1\n"model.x" = 2', ["model.x: appears twice"]),
        ("epochs = ", ["TOML"]),
        ("[training]\nepochs = 3", ["'training'"]),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(BadInput) as error:
        parse_config(["--config", file], {})
    for part in (file, *parts):
        assert part in str(error.value)


class Choice(str, Enum):
    FULL = "fp32"


class Network(torch.nn.Module):
    """A network that has a name, and one within it that has another."""

    class Inner(torch.nn.Module):
        pass


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("epochs", np.int64(3), 3),
        ("epochs", np.array(3), 3),
        ("epochs", torch.tensor(3), 3),
        ("epochs", "5", 5),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", 1, 1.0),
        ("learning_rate", "1e-4", 1e-4),
        ("folds", [2, 1, 2], (1, 2)),
        ("folds", np.array([2, 1]), (1, 2)),
        ("folds", torch.tensor([2, 1]), (1, 2)),
        ("folds", [np.int32(1), torch.tensor(2)], (1, 2)),
        ("folds", range(1, 3), (1, 2)),
        ("folds", {1: "a", 2: "b"}.keys(), (1, 2)),
        ("folds", iter([1, 2]), (1, 2)),
        ("folds", deque([1, 2]), (1, 2)),
        ("folds", {"a": 1, "b": 2}.values(), (1, 2)),
        ("folds", np.array([1.0, 2.0]), (1, 2)),
        ("folds", "1,2", (1, 2)),
        ("folds", "all", None),
        ("folds", 2, (2,)),
        ("num_workers", "auto", None),
        ("wait_timeout", "never", None),
        ("use_gpu", "auto", None),
        ("use_gpu", np.bool_(False), False),
        ("demo", np.bool_(True), True),
        ("demo", "yes", True),
        ("precision", torch.bfloat16, "bf16"),
        ("precision", np.dtype("float32"), "fp32"),
        ("precision", Choice.FULL, "fp32"),
        ("run_name", np.str_("name"), "name"),
        ("run_name", Choice.FULL, "fp32"),
        ("run_name", None, "processed"),
        ("address", "", None),
        ("wandb_project", "", None),
        ("wandb_mode", "", None),
        ("model_dir", "/out", Path("/out")),
        ("model_dir", PurePosixPath("/out"), Path("/out")),
        ("model", Network, f"{__name__}:Network"),
        ("model", Network.Inner, f"{__name__}:Network.Inner"),
        ("model", partial(Network, width=3, kind="a"), f"{__name__}:Network(kind='a', width=3)"),
        ("model", partial(Network, width=np.int64(3)), f"{__name__}:Network(width=3)"),
        ("model", partial(Network, dropout=np.float64(0.3)), f"{__name__}:Network(dropout=0.3)"),
        ("model", partial(Network, kind=Choice.FULL), f"{__name__}:Network(kind='fp32')"),
    ],
)
def test_python_values_are_what_a_flag_would_have_given(name: str, given: Any, value: Any) -> None:
    config = RunConfig(**{name: given})
    assert (getattr(config, name), type(getattr(config, name))) == (value, type(value))
    json.dumps(config.to_json())
    assert parse_config(config.flags(), {}) == config == dataclasses.replace(config)


def within_a_function() -> type:
    class Hidden(torch.nn.Module):
        pass

    return Hidden


@pytest.mark.parametrize(
    ("name", "given", "wrong"),
    [
        ("epochs", 0, "0: expected more than 0"),
        ("epochs", None, "None: expected a whole number"),
        ("epochs", True, "True: expected a whole number"),
        ("epochs", [3], "[3]: expected a whole number"),
        ("batch_size", 32.0, "32.0: expected a whole number"),
        ("batch_size", "many", "'many': expected a whole number"),
        ("batch_size", np.arange(9).reshape(3, 3), "array([[0, 1, 2], [3, 4, 5], [6, 7, 8]]): exp"),
        ("seed", 2**70, "1180591620717411303424: expected a whole number of less than 64 bits"),
        ("learning_rate", None, "None: expected a number"),
        ("learning_rate", True, "True: expected a number"),
        ("learning_rate", np.nan, "nan: expected more than 0"),
        ("num_workers", 2.0, "2.0: expected a whole number, or auto"),
        ("folds", (), "(): expected fold labels, as in [1, 3], or all"),
        ("folds", "1;3", "'1;3': expected fold labels separated by commas, as in 1,3, or all"),
        ("folds", np.array([1, np.nan]), "array([ 1., nan]): expected fold labels"),
        ("folds", [1.5], "[1.5]: expected fold labels"),
        ("folds", [True], "[True]: expected fold labels"),
        ("folds", [[1, 2]], "[[1, 2]]: expected fold labels"),
        ("folds", b"12", "b'12': expected fold labels"),
        ("folds", {1: 2}, "{1: 2}: expected fold labels"),
        ("demo", None, "None: expected true or false"),
        ("demo", "maybe", "'maybe': expected true or false"),
        ("use_gpu", 2, "2: expected true or false, or auto"),
        ("precision", torch.float16, "torch.float16: expected auto or fp32 or bf16"),
        ("precision", "float32", "'float32': expected auto or fp32 or bf16"),
        ("select", None, "None: expected best or inner"),
        ("select", "", "'': expected best or inner"),
        ("run_name", b"name", "b'name': expected a text"),
        ("hf_repo_id", 5, "5: expected a text"),
        ("processed_dir", None, "None: expected a path"),
        ("model_dir", 5, "5: expected a path"),
        ("model", None, "None: expected module:Class"),
        ("model", Network(), "Network(): expected module:Class"),
        ("model", within_a_function(), "no such class by the name within_a_function.<locals>"),
    ],
)
def test_wrong_python_values_get_the_line_that_a_flag_gets(
    name: str, given: Any, wrong: str
) -> None:
    with pytest.raises(BadInput) as error:
        RunConfig(**{name: given})
    assert str(error.value).startswith(f"--{name} ") and wrong in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--model_dir", "--storage_path", "--scratch_dir"])
def test_in_a_submitted_job_folders_need_an_absolute_path(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(BadInput, match=f"{flag} out: .*absolute"):
        parse_config([flag, "out"], {})
    assert parse_config([flag, "/out"], {})
    with pytest.raises(BadInput, match="~nobody-has-this-name/x: no such home directory is known"):
        parse_config([flag, "~nobody-has-this-name/x"], {})


def test_uris_are_whole_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    uri = "s3://bucket/runs/a b?endpoint_override=127.0.0.1:5055&scheme=http"
    config = parse_config(["--processed_dir", "gs://data/sounds/", "--model_dir", uri], {})
    assert str(config.processed_dir) == "gs://data/sounds" and config.run_name == "sounds"
    assert str(config.model_dir) == uri
    assert str(config.storage_path) == uri.replace("a b", "a b/ray")
    assert str(config.run_dir.index) == uri.replace("a b", "a b/ray/sounds/index.json")
    assert tmp_path in config.model_path.parents  # the working copy
    assert config.to_json()["model_dir"] == uri
    assert parse_config(config.command()[3:], {}) == config
    assert RunConfig(processed_dir="gs://data/sounds", model_dir=config.model_dir) == config  # type: ignore[arg-type]


def test_a_file_uri_is_its_path() -> None:
    assert parse_config(["--model_dir", "file:///out/x"], {}) == RunConfig(model_dir=Path("/out/x"))


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    uri = "s3://key:secret@bucket/x"
    for refused in (lambda: parse_config(["--model_dir", uri], {}), lambda: from_python(uri)):
        with pytest.raises(BadInput, match=r"--model_dir .*environment") as error:
            refused()
        assert "secret" not in str(error.value)


def from_python(uri: str) -> RunConfig:
    return RunConfig(model_dir=uri)  # type: ignore[arg-type]


def test_a_path_made_of_a_uri_is_noticed() -> None:
    with pytest.raises(BadInput, match="expected a string"):
        RunConfig(model_dir=Path("s3://bucket/x"))


def test_the_command_that_resumes_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    argv = ["--demo", "--folds", "1,3", "--learning_rate", "1e-05", "--use_gpu", "false"]
    config = parse_config([*argv, "--model_dir", str(tmp_path / "a b"), "--fresh"], {})
    again = parse_config(config.command()[3:], {})
    assert again == dataclasses.replace(config, fresh=False)


def test_data_in_memory_names_the_run_and_its_script_resumes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = RunConfig(epochs=3).with_data_in_memory()
    assert (config.run_name, config.epochs) == ("arrays", 3)
    assert config.model_dir == Path("~/raykfold/arrays").expanduser()
    assert config.storage_path == config.model_place / "ray"
    script = tmp_path / "train.py"
    script.touch()
    main = ModuleType("__main__")
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert config.command() == []  # as in a notebook
    main.__file__ = str(script)
    assert config.command() == config.repeat(1).command() == ["python", str(script)]
    assert RunConfig(**config.to_json()).in_memory
    named = RunConfig(run_name="mine", model_dir=tmp_path).with_data_in_memory()
    assert (named.run_name, named.model_dir) == ("mine", tmp_path)
    for source in ({"processed_dir": tmp_path}, {"demo": True}, {"hf_repo_id": "me/mine"}):
        of_files = RunConfig(**source)
        assert of_files.with_data_in_memory() is of_files and not of_files.in_memory


def test_a_file_of_arrays_names_the_run_without_its_suffix() -> None:
    assert RunConfig(processed_dir="data/sounds.npz").run_name == "sounds"  # type: ignore[arg-type]
    assert RunConfig(processed_dir="s3://b/v1.pt").run_name == "v1"  # type: ignore[arg-type]
    assert RunConfig(processed_dir="data/v1.0").run_name == "v1.0"  # type: ignore[arg-type]


def test_the_command_that_resumes_says_what_the_environment_would_not() -> None:
    environ = {
        "RAYKFOLD_EPOCHS": "15",
        "RAYKFOLD_NUM_WORKERS": "2",
        "RAYKFOLD_FOLDS": "1",
        "RAYKFOLD_WAIT_TIMEOUT": "9",
        "RAYKFOLD_TENSORBOARD": "true",
        "RAYKFOLD_FRESH": "true",
    }
    flags = "--epochs 50 --num_workers auto --folds all --wait_timeout never --tensorboard false"
    config = parse_config(["--demo", *flags.split()], environ)
    assert config.fresh and config.epochs == 50
    again = parse_config(config.command()[3:], environ)
    assert again == dataclasses.replace(config, fresh=False)


def lost(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take away the home, also that of the user database, and the working directory."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    patch.delenv("HOME", raising=False)
    patch.setattr(pwd, "getpwuid", unknown)
    gone = tmp_path / "gone"
    gone.mkdir()
    patch.chdir(gone)
    gone.rmdir()


def test_a_named_model_dir_needs_no_home_and_no_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    lost(monkeypatch, tmp_path)
    demo = RunConfig(demo=True, model_dir=out)
    assert demo.command()[3:] == ["--demo", "--model_dir", str(out)]
    data = RunConfig(processed_dir=tmp_path / "data", model_dir=out)
    assert (data.model_path, data.processed_dir) == (out, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"demo": True}, "~/raykfold/demo: no such home directory is known; expected an absolute"),
        ({"model_dir": "out"}, "data/processed: the working directory no longer exists; expected"),
        ({"demo": True, "model_dir": "out"}, "out: the working directory no longer exists; "),
    ],
)
def test_what_needs_a_home_or_a_working_directory_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    lost(monkeypatch, tmp_path)
    with pytest.raises(BadInput, match=re.escape(text)):
        RunConfig(**options)
