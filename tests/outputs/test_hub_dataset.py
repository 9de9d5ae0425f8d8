"""Data sets from the Hub, and what is missing of them, whatever comes between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fakes.hub_server import Fault, HubServer
from test_hub_mirror import DATASET, FAULTS, kill_when, seen

from raykfold.errors import BadData
from raykfold.files.atomic import write_file
from raykfold.outputs.hub_dataset import fetch_missing

SOUNDS = {
    "features.npy": b"features" * 500,
    "features.pkl": b"other features",
    "labels.pkl": b"labels",
    "folds.npy": b"folds",
    "class_mapping.json": b'{"0": "dog"}',
    "class_mapping.pkl": b"other mapping",
    "features.json": b'{"n_mels": 64}',
    "README.md": b"# Sounds\n",
    "audio/x.wav": b"RIFF",
    "audio/folds.npy": b"elsewhere",
}
WANTED = ("features.npy", "labels.pkl", "folds.npy", "class_mapping.json", "features.json")

FETCH = """
import sys
from pathlib import Path
from raykfold.outputs.hub_dataset import fetch_missing

fetch_missing(Path(sys.argv[1]), sys.argv[2], None, print)
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def said() -> list[str]:
    """What the user was told."""
    return []


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def picked(names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: SOUNDS[name] for name in names}


def asked_for(hub: HubServer) -> set[str]:
    """The files that were looked at or downloaded."""
    return {
        request.path.partition("/resolve/")[2].partition("/")[2]
        for request in hub.requests
        if request.endpoint == "resolve"
    }


def put(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, each in contents.items():
        write_file(folder / name, each)


@pytest.mark.parametrize("there", [True, False])
def test_a_data_set_is_fetched(
    hub: HubServer, tmp_path: Path, said: list[str], there: bool
) -> None:
    hub.add_repository(DATASET, "dataset", SOUNDS)
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    fetch_missing(folder, DATASET, None, said.append)
    assert content(folder) == picked(WANTED)
    assert asked_for(hub) == set(WANTED)
    (line,) = said
    assert DATASET in line and str(folder) in line and "features, labels, folds" in line
    assert list(tmp_path.rglob(".fetched*")) == []


def test_only_what_is_missing_is_fetched(hub: HubServer, tmp_path: Path, said: list[str]) -> None:
    hub.add_repository(DATASET, "dataset", SOUNDS)
    own = {"features.pkl": b"mine", "labels.npy": b"mine too", "features.json": b"{}"}
    put(tmp_path, own)
    fetch_missing(tmp_path, DATASET, None, said.append)
    assert content(tmp_path) == {**own, **picked(("folds.npy", "class_mapping.json"))}
    assert asked_for(hub) == {"folds.npy", "class_mapping.json"}
    assert "lacks folds:" in said[0]


def test_a_whole_data_set_asks_for_nothing(hub: HubServer, tmp_path: Path, said: list[str]) -> None:
    own = {"features.npy": b"1", "labels.npy": b"2", "folds.pkl": b"3"}
    put(tmp_path, own)
    fetch_missing(tmp_path, DATASET, None, said.append)
    assert content(tmp_path) == own
    assert hub.requests == [] and said == []


@pytest.mark.parametrize("own", [{}, {"features.npy": b"mine"}])
def test_a_file_of_several_arrays_is_fetched_once(
    hub: HubServer, tmp_path: Path, said: list[str], own: dict[str, bytes]
) -> None:
    held = {"data.npz": b"all", "data.pt": b"other", "folds.npz": b"folds", "README.md": b"#"}
    hub.add_repository(DATASET, "dataset", held)
    put(tmp_path, own)
    fetch_missing(tmp_path, DATASET, None, said.append)
    assert content(tmp_path) == {**own, "data.npz": b"all", "folds.npz": b"folds"}
    assert asked_for(hub) == {"data.npz", "folds.npz"}


def test_a_file_as_the_place_of_a_data_set_is_refused(
    hub: HubServer, tmp_path: Path, said: list[str]
) -> None:
    with pytest.raises(BadData, match=r"--processed_dir .*a\.npz: with --hf_repo_id, expected a f"):
        fetch_missing(tmp_path / "a.npz", DATASET, None, said.append)
    assert hub.requests == [] and said == [] and list(tmp_path.iterdir()) == []


def test_a_data_set_without_folds_is_refused(
    hub: HubServer, tmp_path: Path, said: list[str]
) -> None:
    rest = {name: each for name, each in SOUNDS.items() if name != "folds.npy"}
    hub.add_repository(DATASET, "dataset", rest)
    with pytest.raises(
        BadData, match=r"team/sounds.*has no folds\.npy \(or \.npz, \.pt, \.pkl\)"
    ) as refused:
        fetch_missing(tmp_path, DATASET, None, said.append)
    assert "labels" not in str(refused.value)
    assert "folds.npy" not in content(tmp_path) and list(tmp_path.glob(".*")) == []


def test_a_repository_that_holds_no_data_is_refused(
    hub: HubServer, tmp_path: Path, said: list[str]
) -> None:
    hub.add_repository(DATASET, "dataset", {"README.md": b"# Sounds\n", "audio/folds.npy": b"1"})
    with pytest.raises(BadData, match=r"has no features\.npy.*labels\.npy.*folds\.npy"):
        fetch_missing(tmp_path, DATASET, None, said.append)
    assert content(tmp_path) == {}


def test_a_repository_that_holds_arrays_of_another_kind_is_refused(
    hub: HubServer, tmp_path: Path, said: list[str]
) -> None:
    others = {"features.pth": b"1", "data/labels.pt": b"1", ".gitattributes": b"1"}
    hub.add_repository(DATASET, "dataset", {**SOUNDS, **others, "README.md": b"# Sounds\n"})
    fetch_missing(tmp_path / "whole", DATASET, None, said.append)
    hub.add_repository(DATASET, "dataset", {**others, "README.md": b"# Sounds\n"})
    expected = r"folds\.npy.*; data/labels\.pt, features\.pth are not read: save each array"
    with pytest.raises(BadData, match=expected):
        fetch_missing(tmp_path / "none", DATASET, None, said.append)


def test_a_repository_that_does_not_exist_is_refused(
    hub: HubServer, tmp_path: Path, said: list[str]
) -> None:
    hub.add_repository(DATASET, "model", SOUNDS)  # of another type
    with pytest.raises(BadData, match=r"--hf_repo_id team/sounds: HTTP 404.*check the name"):
        fetch_missing(tmp_path / "data", DATASET, None, said.append)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(("status", "advice"), [(401, "HF_TOKEN"), (403, "permission")])
@pytest.mark.parametrize("endpoint", ["info", "tree", "resolve", "download"])
def test_a_data_set_that_one_may_not_have_is_refused(
    hub: HubServer, tmp_path: Path, said: list[str], endpoint: str, status: int, advice: str
) -> None:
    hub.add_repository(DATASET, "dataset", SOUNDS)
    hub.fault(endpoint, Fault("status", status))
    refusal = ""
    try:
        fetch_missing(tmp_path, DATASET, None, said.append)
    except BadData as refused:
        refusal = str(refused)
    if endpoint == "tree" and endpoint not in seen(hub):
        pytest.skip("this client has the names of the files from `info`")
    assert refusal.startswith(f"--hf_repo_id {DATASET}") and f"HTTP {status}" in refusal
    assert advice in refusal and "\n" not in refusal
    assert "features.npy" not in content(tmp_path)


@pytest.mark.parametrize("kind", ["500", "reset"])
@pytest.mark.parametrize("endpoint", ["resolve", "download"])
def test_a_fault_that_passes_does_not_end_a_fetch(
    hub: HubServer, tmp_path: Path, said: list[str], endpoint: str, kind: str
) -> None:
    hub.add_repository(DATASET, "dataset", SOUNDS)
    hub.fault(endpoint, Fault(**{**vars(FAULTS[kind]), "times": 1}))
    fetch_missing(tmp_path, DATASET, None, said.append)
    assert content(tmp_path) == picked(WANTED)


def cut_short(hub: HubServer, folder: Path) -> None:
    """Have a fetch killed that has the small files, and waits for the large ones."""
    hub.fault("download", Fault("slow", seconds=600))
    aside = folder / f".fetched-{DATASET.replace('/', '--')}"
    small = ("class_mapping.json", "features.json")
    kill_when(
        lambda: "download" in seen(hub) and all(list(aside.glob(f"*/{name}")) for name in small),
        *(FETCH, str(folder), DATASET),
    )
    hub.clear_faults()
    names = {path.name for path in folder.glob("*")}
    assert names == {aside.name}, "a part of the data set is in place"


def test_a_fetch_that_is_killed_goes_on(hub: HubServer, tmp_path: Path, said: list[str]) -> None:
    hub.add_repository(DATASET, "dataset", SOUNDS)
    cut_short(hub, tmp_path)
    fetch_missing(tmp_path, DATASET, None, said.append)
    assert content(tmp_path) == picked(WANTED)
    assert list(tmp_path.glob(".*")) == []


def test_what_a_killed_fetch_left_is_not_mixed_with_other_data(
    hub: HubServer, tmp_path: Path, said: list[str]
) -> None:
    hub.add_repository(DATASET, "dataset", SOUNDS)
    cut_short(hub, tmp_path)
    other = {"features.npy": b"F", "labels.npy": b"L", "folds.npy": b"D"}
    hub.add_repository("team/other", "dataset", other)
    put(tmp_path, {"class_mapping.json": b"mine"})
    fetch_missing(tmp_path, "team/other", None, said.append)
    assert content(tmp_path) == {**other, "class_mapping.json": b"mine"}
