"""Which Parquet files of a dataset on the Hub are taken, and their download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.hub_server import Fault, HubServer
from test_hub_mirror import kill_when, seen

from raykfold.errors import BadData
from raykfold.outputs import hub_client
from raykfold.outputs.hub_parquet import (
    ParquetDataset,
    choose_converted,
    choose_files,
    fetch_parquet,
)

DATASET = "team/sounds"
TRAIN = [f"data/train-0000{shard}-of-00002-0123456789abcdef.parquet" for shard in range(2)]
TEST = "data/test-00000-of-00001.parquet"
FILES = {
    **{name: b"PAR1" + name.encode() * 2000 for name in (*TRAIN, TEST)},
    "README.md": b"# Sounds\n",
    "load.py": b"raise SystemExit('code of a repository was run')",
    "extra/notes.csv": b"a,b\n",
}
CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: train
    path: data/train-*
- config_name: all
  default: true
  data_files:
  - split: fold1
    path: [data/train-00000-*]
  - split: fold2
    path: data/**
dataset_info:
- config_name: small
  features: []
- config_name: all
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': dog
---
# Sounds
"""
FETCH = """
import sys
from pathlib import Path
from raykfold.outputs.hub_parquet import fetch_parquet

fetch_parquet(sys.argv[1], None, print, download_dir=Path(sys.argv[2]))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(hub_client, "_PAUSES", (0.0, 0.0))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


# ---- Which files


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ([*TRAIN, TEST], {"train": TRAIN, "test": [TEST]}),
        (["b.parquet", "a.parquet"], {"train": ["a.parquet", "b.parquet"]}),
        (["10.parquet", "9.parquet"], {"train": ["9.parquet", "10.parquet"]}),
        (
            ["x-test.parquet", "dev/0.parquet", "training.parquet", "my-valid-1.parquet"],
            {
                "train": ["training.parquet"],
                "validation": ["dev/0.parquet", "my-valid-1.parquet"],
                "test": ["x-test.parquet"],
            },
        ),
        (
            ["data/fold2-00000-of-00001.parquet", "data/fold10-00000-of-00001.parquet"],
            {
                "fold2": ["data/fold2-00000-of-00001.parquet"],
                "fold10": ["data/fold10-00000-of-00001.parquet"],
            },
        ),
        (["a.csv", "README.md"], {}),
    ],
)
def test_splits_by_the_names_of_files(names: list[str], splits: dict[str, list[str]]) -> None:
    choice = choose_files(names, {}, "it", None)
    assert choice.splits == splits and list(choice.splits) == list(splits)


@pytest.mark.parametrize(
    ("data_files", "splits"),
    [
        ("data/test-*", {"test": [TEST]}),
        (["data/train-00000*", "data/train-00001*"], {"train": TRAIN}),
        ([{"split": "a", "path": ["**/test*", "data/train-0000?-*"]}], {"a": [TEST, *TRAIN]}),
        ([{"split": "a", "path": "*.parquet"}], {}),
        ("data/train-0000[1-9]-of-*", {"train": TRAIN[1:]}),
        ("data/[!t]*", {}),
        ("data/t[er]*[!0-9]-0*.parquet", {"train": TRAIN, "test": [TEST]}),
        ("./**/data/**/*.parquet", {"train": TRAIN, "test": [TEST]}),
        ("data/{train,test}-*", {}),  # fsspec takes braces as they are
        ("**a" * 20 + "b", {}),
        ("**/" * 2000 + "x", {}),
        ([["data/**"], {"split": ["a"], "path": ["data/test-*", ["**"]]}], {"test": [TEST]}),
        ([{"split": "a", "path": "**"}], {"a": [TEST, *TRAIN]}),
        (3, {}),
        ([{"split": "a"}], {}),
    ],
)
def test_splits_by_the_readme(data_files: Any, splits: dict[str, list[str]]) -> None:
    card = {"configs": [{"config_name": "x", "data_files": data_files}]}
    assert choose_files(FILES, card, "it", None).splits == splits


def test_a_configuration_is_a_folder_of_data() -> None:
    names = ["en/test-00000-of-00001.parquet", "en/a.parquet", "fr/a.parquet"]
    card = {"configs": [{"config_name": each, "data_dir": each} for each in ("en", "fr")]}
    expected = {"train": ["en/a.parquet"], "test": ["en/test-00000-of-00001.parquet"]}
    assert choose_files(names, card, "it", "en").splits == expected
    assert choose_files(names, {}, "it", "en").splits == expected  # without a README, too
    with pytest.raises(BadData, match=r"^it: has the configurations en, fr; .* by --config_name$"):
        choose_files(names, card, "it", None)
    for described in (card, {}):
        with pytest.raises(BadData, match="--config_name de: it has"):
            choose_files(names, described, "it", "de")


@pytest.mark.parametrize("card", [{"configs": None}, {"configs": "x"}, {"configs": [3, {}]}])
def test_a_readme_that_says_nothing_of_files(card: dict[str, Any]) -> None:
    assert choose_files(FILES, card, "it", None).splits == {"train": TRAIN, "test": [TEST]}


def test_what_yaml_nests_is_no_name(tmp_path: Path) -> None:
    """Of ten aliases each, which would be texts of gigabytes."""
    nest = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 10))
    readme = tmp_path / "README.md"
    readme.write_text(
        f"---\nx0: &x0 [lol]\n{nest}configs:\n- config_name: *x9\n  data_files: x\n"
        "- data_files: [{split: *x9, path: [*x9, data/test-*]}, *x9]\n  data_dir: *x9\n---\n"
    )
    assert choose_files(FILES, hub_client.card_data(readme), "it", None).splits == {"test": [TEST]}
    many = [{"split": "a", "path": ["x"] * 30_000}] * 30_000
    with pytest.raises(BadData, match=r"^it: its README\.md has more than 10000 patterns of files"):
        choose_files(FILES, {"configs": [{"data_files": many}]}, "it", None)


def test_files_that_the_hub_has_converted() -> None:
    names = ["default/test/0000.parquet", *(f"default/partial-train/{k}.parquet" for k in "01")]
    assert choose_converted([*names, ".gitattributes"], {}, "it", None).splits == {
        "partial-train": names[1:],
        "test": names[:1],
    }
    assert choose_converted([".gitattributes"], {}, "it", None).splits == {}
    with pytest.raises(BadData, match="configurations a, b; expected one, by --config_name"):
        choose_converted(["a/train/0.parquet", "b/train/0.parquet"], {}, "it", None)


# ---- The download


def content(dataset: ParquetDataset) -> dict[str, list[bytes]]:
    return {split: [file.read_bytes() for file in each] for split, each in dataset.splits.items()}


def expected(**splits: list[str]) -> dict[str, list[bytes]]:
    return {split: [FILES[name] for name in names] for split, names in splits.items()}


def downloads(hub: HubServer) -> int:
    return sum(each.endpoint == "download" and each.method == "GET" for each in hub.requests)


def test_a_dataset_is_fetched_once(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add_repository(DATASET, "dataset", FILES).head
    said: list[str] = []
    dataset = fetch_parquet(DATASET, None, said.append, download_dir=tmp_path)
    assert content(dataset) == expected(train=TRAIN, test=[TEST])
    assert said == [
        f"dataset {DATASET} at {commit[:7]}: fetching 3 Parquet files of the splits train, test "
        "(--split takes one)"
    ]
    assert downloads(hub) == 3
    again = fetch_parquet(DATASET, None, said.append, download_dir=tmp_path, split="test")
    assert content(again) == expected(test=[TEST])
    assert said[1].endswith("fetching 1 Parquet file") and downloads(hub) == 3
    assert not any("load.py" in each.path or "notes" in each.path for each in hub.requests)


def test_the_readme_says_what_is_what(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repository(DATASET, "dataset", {**FILES, "README.md": CARD})
    dataset = fetch_parquet(DATASET, None, print, download_dir=tmp_path)
    assert content(dataset) == expected(fold1=TRAIN[:1], fold2=[TEST, *TRAIN])
    assert isinstance(dataset.info, dict) and dataset.info["features"][0]["name"] == "label"
    small = fetch_parquet(DATASET, None, print, download_dir=tmp_path, config_name="small")
    assert content(small) == expected(train=TRAIN)


def test_a_readme_that_is_not_valid_is_passed_over(hub: HubServer, tmp_path: Path) -> None:
    said: list[str] = []
    for card in (b"---\na: [\n---\n", b"---\n- 1\n---\n", b"\xff\xfe---\n"):
        hub.add_repository(DATASET, "dataset", {**FILES, "README.md": card})
        dataset = fetch_parquet(DATASET, None, said.append, download_dir=tmp_path)
        assert content(dataset) == expected(train=TRAIN, test=[TEST])
    notes = [line for line in said if "README.md is passed over (" in line]
    assert len(notes) == 3 and "\n" not in "".join(notes)


def test_a_revision_is_named(hub: HubServer, tmp_path: Path) -> None:
    repository = hub.add_repository(DATASET, "dataset", {TEST: FILES[TEST]})
    hub.add_reference(repository, "v1", {TRAIN[0]: FILES[TRAIN[0]]})
    for revision, files in (("v1", expected(train=TRAIN[:1])), (None, expected(test=[TEST]))):
        dataset = fetch_parquet(DATASET, None, print, revision=revision, download_dir=tmp_path)
        assert content(dataset) == files


def test_what_the_hub_has_converted_is_read_for_lack_of_parquet(
    hub: HubServer, tmp_path: Path
) -> None:
    repository = hub.add_repository(DATASET, "dataset", {"load.py": b"", "README.md": CARD})
    with pytest.raises(BadData, match=r"has no Parquet files; it has README\.md, load\.py; expec"):
        fetch_parquet(DATASET, None, print, download_dir=tmp_path)
    converted = {"all/partial-train/0000.parquet": FILES[TEST]}
    hub.add_reference(repository, "refs/convert/parquet", converted)
    said: list[str] = []
    dataset = fetch_parquet(DATASET, None, said.append, download_dir=tmp_path)
    assert content(dataset) == {"partial-train": [FILES[TEST]]}
    assert "refs/convert/parquet" in said[0] and "partial-train is the beginning only" in said[1]
    assert isinstance(dataset.info, dict) and dataset.info["config_name"] == "all"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "--split validation: dataset .* has the splits train, test$"),
        ({"revision": "v9"}, "dataset team/sounds: HTTP 404: "),
        ({"config_name": "x"}, "--config_name x: dataset team/sounds has no such configuration"),
    ],
)
def test_what_is_not_there_is_refused(
    hub: HubServer, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    hub.add_repository(DATASET, "dataset", FILES)
    with pytest.raises(BadData, match=message):
        fetch_parquet(DATASET, None, print, download_dir=tmp_path, **options)
    assert downloads(hub) == 0


@pytest.mark.parametrize("repo_id", ["team/none", "a/b/c", "", "https://huggingface.co/datasets/a"])
def test_a_repository_that_is_none_is_refused(hub: HubServer, tmp_path: Path, repo_id: str) -> None:
    with pytest.raises(BadData, match=f"^dataset {repo_id}: ") as caught:
        fetch_parquet(repo_id, None, print, download_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("endpoint", ["info", "resolve"])
def test_a_dataset_that_one_may_not_have_is_refused(
    hub: HubServer, tmp_path: Path, endpoint: str, status: int
) -> None:
    hub.add_repository(DATASET, "dataset", FILES)
    hub.fault(endpoint, Fault("status", status))
    with pytest.raises(BadData, match=rf"^dataset team/sounds: HTTP {status}: .*token"):
        fetch_parquet(DATASET, None, print, download_dir=tmp_path)


def test_the_token_is_sent(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repository(DATASET, "dataset", FILES)
    fetch_parquet(DATASET, hub.token, print, download_dir=tmp_path)
    assert all(each.authorized for each in hub.requests if each.endpoint == "info")


def test_an_outage_is_one_line(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repository(DATASET, "dataset", FILES)
    hub.fault("info", Fault("status", 503))
    said: list[str] = []
    with pytest.raises(BadData, match=r"cannot be fetched now \(HTTP 503\); the same command"):
        fetch_parquet(DATASET, None, said.append, download_dir=tmp_path)
    assert said == ["Hub: cannot be reached now (HTTP 503); trying again"] * 2


@pytest.mark.slow
def test_a_download_that_is_killed_goes_on(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repository(DATASET, "dataset", FILES)
    hub.fault("download", Fault("slow", seconds=0.0, times=2))
    hub.fault("download", Fault("slow", seconds=600))

    def is_half_way() -> bool:
        return len(list(tmp_path.glob("*/snapshots/*/data/*"))) == 2 and len(seen(hub)) > 5

    kill_when(is_half_way, FETCH, DATASET, str(tmp_path))
    hub.clear_faults()
    before = downloads(hub)
    dataset = fetch_parquet(DATASET, None, print, download_dir=tmp_path)
    assert content(dataset) == expected(train=TRAIN, test=[TEST])
    assert downloads(hub) == before + 1  # the two that were there are not fetched again
