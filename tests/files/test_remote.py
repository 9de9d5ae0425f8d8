"""Paths on an object store, against a real S3 server process."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes.s3_server import S3Server

from raykfold.errors import BadInput, StorageError
from raykfold.files.atomic import (
    Damaged,
    is_linked,
    link_file,
    read_folder,
    write_folder,
    write_json,
)
from raykfold.files.remote import RemotePath, local_copy, place
from raykfold.state.claim import Held, Lease, hold_lease


def remote(text: str) -> RemotePath:
    found = place(text)
    assert isinstance(found, RemotePath)
    return found


@pytest.fixture
def root(s3: S3Server) -> RemotePath:
    return remote(s3.uri("bucket/ray"))


@pytest.fixture
def faulty(s3: S3Server) -> RemotePath:
    return remote(s3.uri("bucket/ray", through_faults=True))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket",
        "s3://bucket/a/b",
        "s3://bucket/a b/ü",
        "s3://bucket/100%25/what%3F?scheme=http&endpoint_override=127.0.0.1:5055",
        "gs://bucket/a",
        "gs://anonymous@bucket/a?scheme=http",
    ],
)
def test_a_uri_is_read_and_written_alike(uri: str) -> None:
    path = remote(uri)
    assert str(path) == uri
    assert pickle.loads(pickle.dumps(path)) == path
    assert place(str(path / "x y" / "z%?#")) == path / "x y" / "z%?#"


def test_a_path_costs_no_import_of_pyarrow() -> None:
    code = "import sys, raykfold.state.record; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parts_of_a_path() -> None:
    path = remote("s3://bucket//a/b/?region=eu-west-1")
    assert str(path / "c") == "s3://bucket/a/b/c?region=eu-west-1"
    assert (path.name, str(path.parent)) == ("b", "s3://bucket/a?region=eu-west-1")
    assert path.with_name("d") == path.parent / "d"
    assert (path / "c" / "d").path_below(path) == "c/d"
    assert len({path, path.parent / "b"}) == 1


@pytest.mark.parametrize(
    ("text", "path"),
    [("a/b", "a/b"), ("file:///tmp/a%20b", "/tmp/a b"), ("file://localhost/x", "/x")],
)
def test_what_is_local_is_a_path(text: str, path: str) -> None:
    assert place(text) == Path(path)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("ftp://host/x", "expected a path, or an s3://"),
        ("hf://owner/name", "expected a path, or an s3://"),
        ("s3:///a", "s3://bucket/path"),
        ("gs://", "gs://bucket/path"),
        ("s3://key:secret@bucket/a", "has credentials"),
        ("gs://me@bucket/a", "has credentials"),
        ("s3://bucket?endpoint=1", "expected one of endpoint_override, region, scheme"),
        ("s3://bucket?scheme=ftp", "http or https"),
        ("s3://bucket/a#b", "%23"),
        ("s3://bucket/../b", ". or .."),
        ("file://host/x", "three slashes"),
        ("s3://[/x", "expected a path"),
    ],
)
def test_other_uris_are_refused(text: str, right: str) -> None:
    with pytest.raises(ValueError, match=r"expected|has") as error:
        place(text)
    assert right in str(error.value)
    assert "secret" not in str(error.value)


def test_objects_are_put_read_listed_and_deleted(root: RemotePath, tmp_path: Path) -> None:
    assert not root.exists() and list(root.iterdir()) == [] and root.files() == {}
    for name in ("a/1.bin", "a/2.bin", "b/1.bin", "c"):
        (root / name).write_bytes(name.encode())
    assert (root / "a/1.bin").read_bytes() == b"a/1.bin"
    assert root.is_dir() and not (root / "c").is_dir() and (root / "c").exists()
    assert [path.name for path in root.iterdir()] == ["a", "b", "c"]
    assert list(root.glob("*/1.*")) == [root / "a/1.bin", root / "b/1.bin"]
    assert list(root.glob("a/*")) == [root / "a/1.bin", root / "a/2.bin"]
    assert list(root.glob("*/3")) == []
    assert root.files() == {root / "a/1.bin": 7, root / "a/2.bin": 7, root / "b/1.bin": 7,
                            root / "c": 1}  # fmt: skip
    (root / "c").write_bytes(b"another")
    (root / "c").copy_to(root / "d")
    (root / "d").fetch(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == b"another"
    (tmp_path / "large").write_bytes(bytes(20 * 2**20))
    (root / "large").send(tmp_path / "large")
    assert (root / "large").version()[0] == 20 * 2**20
    (root / "c").unlink()
    (root / "c").unlink(missing_ok=True)
    (root / "a").remove_tree()
    (root / "a").remove_tree()
    assert sorted(path.name for path in root.files()) == ["1.bin", "d", "large"]
    for ask in (RemotePath.read_bytes, RemotePath.version, RemotePath.unlink):
        with pytest.raises(FileNotFoundError):
            ask(root / "c")


def test_its_filesystem_is_as_patient_after_a_pickle(s3: S3Server, faulty: RemotePath) -> None:
    """Ray sends it to its workers; pyarrow's own would give up after the third try."""
    (faulty / "x").write_bytes(b"x")
    files = pickle.loads(pickle.dumps(faulty.filesystem))
    s3.fault("internal", requests=3)
    assert files.get_file_info(f"{faulty.key}/x").size == 1
    assert s3.disturbed >= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["internal", "slow_down", "reset", "lost_reply"])
def test_an_outage_is_bridged(s3: S3Server, faulty: RemotePath, kind: str) -> None:
    s3.fault(kind, for_seconds=3.0)
    began = time.monotonic()
    (faulty / "x").write_bytes(b"x")
    assert time.monotonic() - began > 2.5
    assert (faulty / "x").read_bytes() == b"x"


def test_an_outage_is_bridged_in_the_middle_of_a_read(s3: S3Server, faulty: RemotePath) -> None:
    """Whose reply, an error, is longer than the object that was asked for."""
    (faulty / "x").write_bytes(b"x")
    s3.fault("internal", method="GET", for_seconds=3)
    assert (faulty / "x").read_bytes() == b"x"


def test_a_look_without_patience_ends_soon(s3: S3Server, faulty: RemotePath) -> None:
    s3.fault("slow_down")
    with pytest.raises(StorageError, match="SLOW_DOWN"):
        (faulty / "x").impatient().write_bytes(b"x")
    assert s3.disturbed <= 3


def test_a_process_ends_also_in_an_outage(s3: S3Server, faulty: RemotePath) -> None:
    s3.fault("internal")
    code = (
        "import sys, threading, time\n"
        "from raykfold.files.remote import leave, place\n"
        "threading.Thread(target=place(sys.argv[1]).exists, daemon=True).start()\n"
        "time.sleep(2)\n"
        "print('said')\n"
        "leave(130)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(faulty)], capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (130, "said\n"), ended.stderr


def test_an_outage_is_no_missing_file(s3: S3Server, faulty: RemotePath) -> None:
    """Else a run would start anew in a bad hour."""
    write_folder(faulty / "folder", {"a": b"1"}, {"fold": 1})
    s3.fault("internal")
    with pytest.raises(StorageError):
        read_folder(faulty.impatient() / "folder")


def test_a_folder_is_there_when_its_manifest_is(root: RemotePath) -> None:
    folder = root / "folder"
    write_folder(folder, {"a": b"1", "b": b"2"}, {"fold": 1})
    write_folder(folder, {"a": b"3"}, {"fold": 1})
    assert read_folder(folder) == {"a": b"3"}
    assert read_folder(folder, only=()) == {}
    stored = next(file for file in folder.files() if file.name.endswith("-a"))
    stored.write_bytes(b"x")
    with pytest.raises(Damaged, match="not what was written"):
        read_folder(folder)
    stored.unlink()
    with pytest.raises(Damaged, match="missing"):
        read_folder(folder)


def test_a_folder_that_is_replaced_is_whole_all_along(s3: S3Server, faulty: RemotePath) -> None:
    folder = faulty / "folder"
    write_folder(folder, {"a": b"1", "b": b"2"}, {})
    s3.fault("delay", method="PUT", seconds=0.3)
    writing = threading.Thread(target=write_folder, args=(folder, {"a": b"3", "b": b"4"}, {}))
    writing.start()
    seen = []
    while writing.is_alive():
        seen.append(read_folder(folder))
        time.sleep(0.05)
    writing.join()
    assert seen[0] == {"a": b"1", "b": b"2"}
    assert {tuple(sorted(each.items())) for each in seen} <= {
        (("a", b"1"), ("b", b"2")),
        (("a", b"3"), ("b", b"4")),
    }
    assert read_folder(folder) == {"a": b"3", "b": b"4"}
    assert len(folder.files()) == 3  # of what it was, nothing is left


def test_a_local_copy_is_made_again_when_the_object_is_another(
    root: RemotePath, tmp_path: Path
) -> None:
    write_json(root / "x", 1)
    with pytest.raises(FileNotFoundError):
        is_linked(root / "y", tmp_path / "x")
    assert not is_linked(root / "x", tmp_path / "x")
    link_file(root / "x", tmp_path / "x")
    assert is_linked(root / "x", tmp_path / "x")
    time.sleep(1.1)
    write_json(root / "x", 2)
    assert not is_linked(root / "x", tmp_path / "x")
    link_file(root / "x", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "2\n"


def test_what_a_disk_has_no_room_for_is_not_fetched(
    root: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "large").write_bytes(b"x" * 3_000_000)
    (root / "unwanted").write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr("raykfold.files.remote.free_bytes", lambda folder: 2_999_999)
    with (
        pytest.raises(BadInput, match=r"^--disk: has 3 MB free, and s3://.* takes 3 MB; expected"),
        local_copy(root, {"large"}.intersection, tmp_path, "--disk"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("raykfold.files.remote.free_bytes", lambda folder: 3_000_000)
    with local_copy(root, {"large"}.intersection, tmp_path, "--disk") as folder:
        assert (folder / "large").stat().st_size == 3_000_000


# --- the lease -----------------------------------------------------------------------------------


def test_a_lease_that_is_renewed_is_not_to_be_had(root: RemotePath) -> None:
    said: list[str] = []
    mine, other = (hold_lease(root / ".lock", said.append, period=0.3) for _ in range(2))
    with mine, pytest.raises(Held, match="pid "), other:
        raise AssertionError
    assert len(said) == 1 and "waiting 1 s" in said[0]
    assert not (root / ".lock").exists()
    with hold_lease(root / ".lock", said.append, period=0.3):
        assert len(said) == 1


def test_a_lease_that_stands_still_is_taken_over(root: RemotePath) -> None:
    write_json(root / ".lock", {"owner": "pid 7 on moon", "pid": 7, "machine": "moon"})
    said: list[str] = []
    began = time.monotonic()
    with hold_lease(root / ".lock", said.append, period=0.5):
        assert time.monotonic() - began > 1.4
    assert "pid 7 on moon" in said[0]


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(root: RemotePath) -> None:
    with hold_lease(root / ".lock", print) as lease:
        lease.check()
        content = (root / ".lock").read_bytes()
    write_json(root / ".lock", {**json.loads(content), "pid": 2**22 + 1})
    said: list[str] = []
    with hold_lease(root / ".lock", said.append):
        pass
    assert said == []  # not that it waits


def is_held(lease: Lease) -> bool:
    try:
        lease.check()
    except StorageError:
        return False
    return True


def test_who_has_lost_the_lease_is_told(root: RemotePath) -> None:
    with hold_lease(root / ".lock", print, period=0.2) as lease:
        write_json(root / ".lock", {"owner": "pid 7 on moon", "token": "other"})
        deadline = time.monotonic() + 5
        while is_held(lease):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(StorageError, match="pid 7 on moon"):
            lease.check()
    assert (root / ".lock").exists()  # it is the other's
