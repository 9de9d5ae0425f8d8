"""The Hub that other tests upload to, seen by the real client."""

from __future__ import annotations

import hashlib
import importlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    get_session,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fakes.hub_server import COMMITS_PAGE, TREE_PAGE, Fault, HubServer, Repository

# The client's HTTP library: httpx2, or httpx before 2.0.
httpx: Any = importlib.import_module(type(get_session()).__module__.partition(".")[0])
REPO = "team/run-1"
MODEL = bytes(range(256)) * 700
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# Run 1\n",
    "fold_1/history.csv": b"epoch,loss\n1,0.5\n",
    "fold_1/model.safetensors": MODEL,
    "fold_1/empty.bin": b"",
    "logs/a name, é.txt": b"text\n",
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token="hf_test")


@pytest.fixture
def repository(hub: HubServer) -> Repository:
    return hub.add_repository(REPO)


def upload(
    api: HfApi, files: dict[str, bytes], title: str = "upload", **options: Any
) -> CommitInfo:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, commit_message=title, **options)


def read_folder(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def seen(hub: HubServer) -> list[str]:
    return [request.endpoint for request in hub.requests]


def raw_commit(hub: HubServer, *operations: tuple[str, dict[str, Any]]) -> Any:
    lines = [("header", {"summary": "raw", "description": ""}), *operations]
    return get_session().post(
        f"{hub.endpoint}/api/models/{REPO}/commit/main",
        headers={"Authorization": f"Bearer {hub.token}"},
        content="".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in lines),
    )


# --- repositories --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_is_made_once(hub: HubServer, api: HfApi, kind: str) -> None:
    first = api.create_repo(REPO, repo_type=kind, private=True)
    again = api.create_repo(REPO, repo_type=kind, exist_ok=True)
    assert first == again and first.repo_id == REPO and first.repo_type == kind
    assert list(hub.repository(REPO, kind).files) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="You already created this") as refused:
        api.create_repo(REPO, repo_type=kind)
    assert refused.value.response.status_code == 409
    assert len(hub.repository(REPO, kind).commits) == 1


def test_a_name_alone_is_put_under_the_user(hub: HubServer, api: HfApi) -> None:
    assert api.create_repo("run-2").repo_id == f"{api.whoami()['name']}/run-2"


def test_models_and_datasets_have_names_of_their_own(hub: HubServer, api: HfApi) -> None:
    hub.add_repository(REPO, "dataset", {"a.txt": b"a"})
    assert api.repo_exists(REPO, repo_type="dataset") and not api.repo_exists(REPO)
    with pytest.raises(KeyError):
        hub.repository(REPO)


# --- uploads and downloads -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_committed_comes_back(
    hub: HubServer, api: HfApi, tmp_path: Path, kind: str
) -> None:
    repository = hub.add_repository(REPO, kind)
    commit = upload(api, FILES, "all of it", commit_description="five files", repo_type=kind)
    assert repository.files == FILES
    newest = repository.commits[-1]
    assert (newest.oid, newest.title, newest.message) == (commit.oid, "all of it", "five files")
    assert set(newest.paths) == set(FILES) and newest.deleted == ()
    assert time.time() - 60 < newest.time <= time.time()

    folder = api.snapshot_download(REPO, repo_type=kind, cache_dir=tmp_path / "all")
    assert read_folder(folder) == FILES
    for name in ("fold_1/model.safetensors", "logs/a name, é.txt"):
        path = api.hf_hub_download(REPO, name, repo_type=kind, cache_dir=tmp_path / "one")
        assert Path(path).read_bytes() == FILES[name]


def test_only_lfs_content_goes_by_the_second_port_and_without_the_token(
    hub: HubServer, api: HfApi, repository: Repository, tmp_path: Path
) -> None:
    upload(api, FILES)
    steps = ["validate_yaml", "preupload", "lfs_batch", "lfs_put", "lfs_verify", "commit"]
    assert seen(hub) == steps
    assert [request.endpoint for request in hub.requests if not request.authorized] == ["lfs_put"]
    hub.requests.clear()
    api.snapshot_download(REPO, cache_dir=tmp_path, max_workers=1)
    assert seen(hub).count("download") == 1
    assert not any(request.authorized for request in hub.requests if request.endpoint == "download")


def test_a_large_file_goes_to_lfs_whatever_its_name(
    hub: HubServer, api: HfApi, repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_bytes(b"line\n" * 300_000)
    api.upload_folder(repo_id=REPO, folder_path=tmp_path, path_in_repo="logs")
    assert repository.files == {"logs/log.txt": b"line\n" * 300_000}
    assert seen(hub).count("lfs_put") == 1


def test_lfs_content_that_is_there_is_not_sent_again(
    hub: HubServer, api: HfApi, repository: Repository
) -> None:
    upload(api, {"a.bin": MODEL})
    upload(api, {"b.bin": MODEL})
    assert repository.files == {"a.bin": MODEL, "b.bin": MODEL}
    assert seen(hub).count("lfs_put") == 1


def test_the_client_commits_only_what_changed(
    hub: HubServer, api: HfApi, repository: Repository
) -> None:
    first = upload(api, FILES)
    assert upload(api, FILES).oid == first.oid
    assert seen(hub).count("commit") == 1
    upload(api, {**FILES, "fold_1/history.csv": b"epoch,loss\n1,0.5\n2,0.4\n"})
    assert repository.commits[-1].paths == ("fold_1/history.csv",)


def test_a_commit_of_nothing_new_is_empty(hub: HubServer, repository: Repository) -> None:
    for _ in range(2):
        added = {"path": "a.txt", "content": "YQ==", "encoding": "base64"}
        assert raw_commit(hub, ("file", added)).status_code == 200
    assert [commit.paths for commit in repository.commits] == [(), ("a.txt",), ()]


def test_files_and_folders_are_deleted(hub: HubServer, api: HfApi, repository: Repository) -> None:
    upload(api, FILES)
    api.delete_file("README.md", REPO)
    api.delete_folder("fold_1", REPO)
    assert set(repository.files) == {"logs/a name, é.txt"}
    assert set(repository.commits[-1].deleted) == {name for name in FILES if "fold_1/" in name}


def test_a_commit_is_whole_or_not_at_all(
    hub: HubServer, api: HfApi, repository: Repository
) -> None:
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]
    operations = [CommitOperationAdd("a.txt", b"a"), CommitOperationDelete("missing.txt")]
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.create_commit(REPO, operations, commit_message="half")
    assert repository.files == {} and len(repository.commits) == 1


def test_part_of_a_file_can_be_asked_for(
    hub: HubServer, api: HfApi, repository: Repository
) -> None:
    upload(api, FILES)
    for name, end in (("fold_1/model.safetensors", len(MODEL)), ("fold_1/history.csv", 17)):
        url = f"{hub.endpoint}/{REPO}/resolve/main/{name}"
        rest = get_session().get(url, headers={"Range": "bytes=10-"})
        assert (rest.status_code, rest.content) == (206, FILES[name][10:])
        assert rest.headers["Content-Range"] == f"bytes 10-{end - 1}/{end}"
        middle = get_session().get(url, headers={"Range": "bytes=3-6"})
        assert (middle.status_code, middle.content) == (206, FILES[name][3:7])
        beyond = get_session().get(url, headers={"Range": f"bytes={end}-"})
        assert beyond.status_code == 416


# --- listings and revisions ----------------------------------------------------------------------


def test_the_tree_is_listed(hub: HubServer, api: HfApi, repository: Repository) -> None:
    upload(api, FILES)
    assert set(api.list_repo_files(REPO)) == set(FILES)
    assert {entry.path for entry in api.list_repo_tree(REPO)} == {"README.md", "fold_1", "logs"}
    inside = {entry.path: entry for entry in api.list_repo_tree(REPO, "fold_1")}
    assert set(inside) == {name for name in FILES if name.startswith("fold_1/")}
    model, history = inside["fold_1/model.safetensors"], inside["fold_1/history.csv"]
    assert isinstance(model, RepoFile) and isinstance(history, RepoFile)
    assert model.size == len(MODEL) and model.lfs is not None
    assert model.lfs.sha256 == hashlib.sha256(MODEL).hexdigest()
    assert history.size == 17 and history.lfs is None
    # As `git hash-object` has it.
    assert history.blob_id == "b49a32b2426214c5fed546b2f127e2bb14b64f53"
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "fold_2"))


def test_commits_are_listed_newest_first(api: HfApi, repository: Repository) -> None:
    oids = [upload(api, {"a.txt": title.encode()}, title).oid for title in ("one", "two")]
    commits = api.list_repo_commits(REPO)
    assert [commit.title for commit in commits] == ["two", "one", "initial commit"]
    assert [commit.commit_id for commit in commits[1::-1]] == oids
    assert commits[0].created_at.timestamp() == pytest.approx(repository.commits[-1].time, abs=0.01)
    assert api.list_repo_commits(REPO, revision=oids[0])[0].title == "one"


def test_an_earlier_commit_can_be_downloaded(
    api: HfApi, repository: Repository, tmp_path: Path
) -> None:
    old = upload(api, {"a.bin": b"old", "b.txt": b"old"})
    upload(api, {"a.bin": b"new", "b.txt": b"new"})
    folder = api.snapshot_download(REPO, revision=old.oid, cache_dir=tmp_path)
    assert read_folder(folder) == {"a.bin": b"old", "b.txt": b"old"}


def test_long_listings_come_in_pages(hub: HubServer, api: HfApi) -> None:
    names = {f"{number:05}.txt": b"" for number in range(TREE_PAGE + 1)}
    hub.add_repository(REPO, files=names)
    assert set(api.list_repo_files(REPO)) == set(names)
    for number in range(COMMITS_PAGE):
        raw_commit(hub, ("deletedFile", {"path": f"{number:05}.txt"}))
    assert len(api.list_repo_commits(REPO)) == COMMITS_PAGE + 1
    assert seen(hub).count("tree") == seen(hub).count("commits") == 2


def test_what_is_not_there_is_named(api: HfApi, repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("team/other")
    with pytest.raises(RepositoryNotFoundError):
        api.create_commit("team/other", [CommitOperationAdd("a", b"a")], commit_message="a")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="v2")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "missing.txt", cache_dir=tmp_path)


# --- refusals ------------------------------------------------------------------------------------


def test_a_commit_on_an_old_parent_is_a_conflict(api: HfApi, repository: Repository) -> None:
    parent = repository.head
    upload(api, {"a.txt": b"1"}, parent_commit=parent[:7])
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
        upload(api, {"a.txt": b"2"}, parent_commit=parent)
    assert refused.value.response.status_code == 412
    assert repository.files == {"a.txt": b"1"}
    upload(api, {"a.txt": b"2"}, parent_commit=repository.head)
    assert repository.files == {"a.txt": b"2"}


def test_writing_needs_the_token(hub: HubServer, repository: Repository) -> None:
    for token in ("hf_other", False):
        api = HfApi(endpoint=hub.endpoint, token=token)
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_repo("team/run-2")
        assert refused.value.response.status_code == 401
        with pytest.raises(HfHubHTTPError) as refused:
            upload(api, {"a.txt": b"a"})
        assert refused.value.response.status_code == 401
    assert [known.id for known in hub.repositories] == [REPO] and repository.files == {}


def test_reading_needs_none_but_takes_no_wrong_one(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repository(REPO, files=FILES)
    anyone = HfApi(endpoint=hub.endpoint, token=False)
    assert read_folder(anyone.snapshot_download(REPO, cache_dir=tmp_path)) == FILES
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=hub.endpoint, token="hf_other").repo_info(REPO)


def test_lfs_content_must_be_what_was_announced(
    hub: HubServer, api: HfApi, repository: Repository
) -> None:
    oid = hashlib.sha256(MODEL).hexdigest()
    assert get_session().put(f"{hub.storage}/objects/{oid}", content=MODEL).status_code == 403
    headers = {"Authorization": f"Bearer {hub.token}"}
    batch = f"{hub.endpoint}/{REPO}.git/info/lfs/objects/batch"

    def announce(facts: dict[str, Any]) -> list[str]:
        asked = {"operation": "upload", "objects": [facts]}
        (answer,) = get_session().post(batch, json=asked, headers=headers).json()["objects"]
        return [answer["actions"][name]["href"] for name in ("upload", "verify")]

    put, _ = announce({"oid": oid, "size": 1})
    assert get_session().put(put, content=MODEL).status_code == 400
    facts = {"oid": oid, "size": len(MODEL)}
    put, verify = announce(facts)
    for content in (MODEL[:-1], MODEL[::-1]):
        assert get_session().put(put, content=content).status_code == 400
        assert get_session().post(verify, json=facts, headers=headers).status_code == 400
        pointer = {"path": "model.bin", "algo": "sha256", **facts}
        assert raw_commit(hub, ("lfsFile", pointer)).status_code == 400
    assert get_session().put(put, content=iter([MODEL[:9], MODEL[9:]])).status_code == 200
    assert get_session().post(verify, json=facts, headers=headers).status_code == 200
    wrong = {**facts, "size": 1}
    assert get_session().post(verify, json=wrong, headers=headers).status_code == 400
    assert raw_commit(hub, ("lfsFile", {"path": "model.bin", **wrong})).status_code == 400
    assert repository.files == {}
    assert raw_commit(hub, ("lfsFile", {"path": "model.bin", **facts})).status_code == 200
    assert repository.files == {"model.bin": MODEL}


def test_a_file_for_lfs_is_not_taken_as_a_regular_one(
    hub: HubServer, repository: Repository
) -> None:
    added = {"path": "a.bin", "content": "YQ==", "encoding": "base64"}
    assert raw_commit(hub, ("file", added)).status_code == 400
    assert repository.files == {}


def test_an_address_that_is_none_is_recorded(hub: HubServer) -> None:
    reply = get_session().get(f"{hub.endpoint}/api/nothing?a=b")
    assert reply.status_code == 404 and "error" in reply.json()
    assert [(r.endpoint, r.method, r.path) for r in hub.requests] == [
        ("unknown", "GET", "/api/nothing")
    ]


# --- faults --------------------------------------------------------------------------------------

STATUSES = [401, 403, 404, 409, 412, 429, 500]


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_at_create(hub: HubServer, api: HfApi, status: int) -> None:
    hub.fault("create", Fault("status", status, times=1))
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(REPO)
    assert refused.value.response.status_code == status
    assert hub.repositories == [] and seen(hub) == ["create"]
    assert api.create_repo(REPO).repo_id == REPO


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_at_commit(
    hub: HubServer, api: HfApi, repository: Repository, status: int
) -> None:
    hub.fault("commit", Fault("status", status, retry_after=7, times=1))
    with pytest.raises(HfHubHTTPError) as refused:
        upload(api, FILES)
    assert refused.value.response.status_code == status
    assert refused.value.response.headers["Retry-After"] == "7"
    assert isinstance(refused.value, RepositoryNotFoundError) == (status == 404)
    assert repository.files == {} and seen(hub).count("commit") == 1
    upload(api, FILES)
    assert repository.files == FILES


def test_a_bad_request_at_commit(hub: HubServer, api: HfApi, repository: Repository) -> None:
    hub.fault("commit", Fault("status", 400))
    with pytest.raises(BadRequestError):
        upload(api, FILES)


def test_a_conflict_at_create_counts_as_there_with_exist_ok(hub: HubServer, api: HfApi) -> None:
    hub.fault("create", Fault("status", 409))
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert hub.repositories == []


def test_a_refused_lfs_upload_is_a_runtime_error(
    hub: HubServer, api: HfApi, repository: Repository
) -> None:
    for endpoint in ("lfs_put", "lfs_verify"):
        hub.fault(endpoint, Fault("status", 403))
        with pytest.raises(RuntimeError, match=r"Error while uploading 'a\.bin'"):
            upload(api, {"a.bin": endpoint.encode()})
    assert repository.files == {}


def test_a_reset_leaves_nothing_done(hub: HubServer, api: HfApi) -> None:
    hub.fault("*", Fault("reset", times=1))
    with pytest.raises(httpx.ReadError):
        api.create_repo(REPO)
    assert hub.repositories == []
    repository = hub.add_repository(REPO)
    hub.fault("commit", Fault("reset", times=1))
    with pytest.raises(httpx.ReadError):
        upload(api, FILES)
    assert repository.files == {} and len(repository.commits) == 1


def test_a_lost_reply_leaves_it_done(hub: HubServer, api: HfApi) -> None:
    hub.fault("create", Fault("lost_reply"))
    with pytest.raises(httpx.ReadError):
        api.create_repo(REPO)
    repository = hub.repository(REPO)
    hub.fault("commit", Fault("lost_reply"))
    with pytest.raises(httpx.ReadError):
        upload(api, FILES)
    assert repository.files == {**FILES, ".gitattributes": repository.files[".gitattributes"]}
    assert upload(api, FILES).oid == repository.head and len(repository.commits) == 2


def test_a_slow_reply_comes(hub: HubServer, api: HfApi, repository: Repository) -> None:
    hub.fault("commit", Fault("slow", seconds=0.4, times=1))
    began = time.monotonic()
    upload(api, FILES)
    assert time.monotonic() - began >= 0.4
    assert repository.files == FILES


def test_the_client_tries_again_where_it_does(
    hub: HubServer, api: HfApi, repository: Repository
) -> None:
    """Each of its pauses takes a second."""
    hub.fault("preupload", Fault("status", 503, times=1))
    hub.fault("lfs_put", Fault("reset", times=1))
    upload(api, FILES)
    assert repository.files == FILES
    assert seen(hub).count("preupload") == seen(hub).count("lfs_put") == 2


def test_faults_strike_in_the_order_of_their_orders(hub: HubServer, api: HfApi) -> None:
    hub.fault("whoami", Fault("status", 403, times=2))
    hub.fault("*", Fault("status", 404, times=1))
    hub.fault("whoami", Fault("status", 412))
    statuses = []
    for _ in range(5):
        with pytest.raises(HfHubHTTPError) as refused:
            api.whoami()
        statuses.append(refused.value.response.status_code)
    assert statuses == [403, 403, 404, 412, 412]
    hub.clear_faults()
    assert api.whoami()["name"]


def test_a_fault_for_no_endpoint_is_refused(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="not one of whoami, create"):
        hub.fault("comit", Fault("reset"))


# --- the server itself ---------------------------------------------------------------------------


def test_many_clients_at_once(hub: HubServer, api: HfApi, repository: Repository) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: upload(api, {f"{n}.bin": b"%d" % n}), range(24)))
    assert repository.files == {f"{number}.bin": b"%d" % number for number in range(24)}
    assert len(repository.commits) == 25


def test_nothing_is_left_of_it() -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(1) as thread:
        with HubServer() as hub:
            api = HfApi(endpoint=hub.endpoint, token="hf_test")
            api.create_repo(REPO)
            hub.fault("whoami", Fault("slow", seconds=600))
            waiting = thread.submit(api.whoami)
            while "whoami" not in seen(hub):
                time.sleep(0.01)
        assert isinstance(waiting.exception(timeout=10), httpx.TransportError)
    assert threading.active_count() == before
    with pytest.raises(httpx.ConnectError):
        api.create_repo("team/run-2")


def test_a_request_that_is_cut_short_does_nothing() -> None:
    body = json.dumps({"key": "header", "value": {"summary": "cut"}}).encode() + b"\n"
    with HubServer() as hub:
        repository = hub.add_repository(REPO)
        address = ("127.0.0.1", int(hub.endpoint.rpartition(":")[2]))
        for missing in (1, 0):
            with socket.create_connection(address) as connection:
                head = f"POST /api/models/{REPO}/commit/main HTTP/1.1\r\nHost: hub\r\n"
                head += f"Authorization: Bearer {hub.token}\r\n"
                head += f"Content-Length: {len(body) + missing}\r\n\r\n"
                connection.sendall(head.encode() + body)
                connection.shutdown(socket.SHUT_WR)
                assert bool(connection.recv(1)) == (missing == 0)
            assert len(repository.commits) == (1 if missing else 2)


def test_it_serves_the_shell(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.npy").write_bytes(b"array")
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py")), "--slow", "0.1"]
    with subprocess.Popen(
        [*command, "--dataset", f"team/sounds={tmp_path / 'data'}"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            name, _, endpoint = process.stdout.readline().strip().partition("=")
            assert name == "HF_ENDPOINT"
            api = HfApi(endpoint=endpoint, token="hf_test")
            began = time.monotonic()
            folder = api.snapshot_download(
                "team/sounds", repo_type="dataset", cache_dir=tmp_path / "cache"
            )
            assert time.monotonic() - began >= 0.3  # info, resolve, download
            assert read_folder(folder) == {"sub/a.npy": b"array"}
        finally:  # leaving the block waits for it
            process.terminate()
        assert process.stdout.read() == "dataset team/sounds: 1 files, 1 commits\n"
    assert process.returncode == 0
