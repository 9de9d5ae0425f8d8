"""A Hugging Face Hub on loopback, for the real client, with faults to order.

It speaks the part of the Hub's protocol that huggingface_hub uses to create, commit to, list and
download models and datasets, with LFS and without Xet (`HF_HUB_DISABLE_XET=1`), which
`xet_server.py` adds. Repositories are in memory, and commits go to one branch, `main`. LFS content
lies at another port and under another name of this machine, as at the Hub it lies at another host.
To try commands against it: `python tests/fakes/hub_server.py --help`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.message import Message
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

USER = "tester"
REGULAR_LIMIT = 1_000_000  # bytes; a larger file goes to LFS whatever its name
LFS_SUFFIXES = (".bin", ".npy", ".npz", ".parquet", ".pkl", ".pt", ".safetensors")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
TREE_PAGE = 1000  # entries
COMMITS_PAGE = 50


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request.

    `status` refuses it and `reset` cuts the connection, both before anything is done; `slow`
    waits first; `lost_reply` does what was asked, then cuts the connection instead of a reply.
    """

    kind: Literal["status", "reset", "slow", "lost_reply"]
    status: int = 500
    retry_after: int | None = None  # seconds
    headers: Mapping[str, str] = field(default_factory=dict)  # of a refusal
    seconds: float = 1.0
    times: int | None = None  # how many requests it strikes; None: until it is cleared


@dataclass
class _Order:
    endpoint: str
    fault: Fault
    strikes: int = 0


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    paths: tuple[str, ...]  # added or changed
    deleted: tuple[str, ...]
    time: float


@dataclass(frozen=True)
class Request:
    time: float
    endpoint: str
    method: str
    path: str  # without the query
    authorized: bool  # an Authorization header came with it


@dataclass(frozen=True)
class _File:
    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git keeps in place of an LFS file."""
        version = "https://git-lfs.github.com/spec/v1"
        lines = f"version {version}\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return lines.encode()

    @cached_property
    def blob_id(self) -> str:
        kept = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def oid(self) -> str:
        """By which the client tells whether its own file is the same."""
        return self.sha256 if self.lfs else self.blob_id


_Tree = dict[str, _File]


class Refused(Exception):
    """A reply other than success, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str = "", **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.fields = {"error": message, **fields}
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code


@dataclass
class Repository:
    """A model or dataset: the whole tree at every commit, the oldest commit first."""

    id: str
    type: str
    commits: list[Commit] = field(default_factory=list)
    trees: dict[str, _Tree] = field(default_factory=dict, repr=False)
    references: dict[str, str] = field(default_factory=dict)  # name → commit, beside `main`

    @property
    def files(self) -> dict[str, bytes]:
        """The content of every file as of now."""
        return {path: file.content for path, file in self.trees[self.head].items()}

    @property
    def head(self) -> str:
        return self.commits[-1].oid

    @property
    def url_path(self) -> str:
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def add_commit(self, tree: _Tree, title: str, message: str = "") -> Commit:
        """Make `tree` what the repository holds from now on."""
        before = self.trees[self.head] if self.commits else {}
        seed = f"{self.type} {self.id} {len(self.commits)} {time.time_ns()}"
        commit = Commit(
            oid=hashlib.sha1(seed.encode()).hexdigest(),
            title=title,
            message=message,
            paths=tuple(path for path, file in tree.items() if before.get(path) != file),
            deleted=tuple(path for path in before if path not in tree),
            time=time.time(),
        )
        self.trees[commit.oid] = tree
        self.commits.append(commit)  # last: `files` may be looked at meanwhile
        return commit

    def resolve(self, revision: str) -> str:
        """The commit that `main`, another reference or a commit's own id names."""
        if revision == "main":
            return self.head
        revision = self.references.get(revision, revision)
        if revision not in self.trees:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return revision


class HubServer:
    """The Hub, served while its `with` block lasts; leaving it closes every connection."""

    token = "hf_test"  # the only one that it takes

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.objects: dict[str, bytes] = {}  # LFS content by its sha256
        self.announced: dict[str, int] = {}  # LFS objects that may be uploaded, and their sizes
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._faults: list[_Order] = []

    def __enter__(self) -> Self:
        self._origins = [_Origin(self, "hub"), _Origin(self, "storage")]
        self.endpoint, storage = (origin.url for origin in self._origins)
        # Some clients take two ports of a host for one place, where the token may go.
        self.storage = storage.replace("127.0.0.1", "localhost")
        self._threads = [
            threading.Thread(target=origin.serve_forever, args=(0.05,), daemon=True)
            for origin in self._origins
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for origin, thread in zip(self._origins, self._threads, strict=True):
            origin.shutdown()
            thread.join()
            origin.hang_up()
            origin.server_close()

    @property
    def routes(self) -> tuple[Route, ...]:
        """Which requests it answers, and how."""
        return _ROUTES

    @property
    def repositories(self) -> list[Repository]:
        return list(self._repositories.values())

    def repository(self, id: str, type: str = "model") -> Repository:  # noqa: A002
        """
        Raises:
            KeyError: there is none.
        """
        return self._repositories[type, id]

    def add_repository(
        self,
        id: str,  # noqa: A002
        type: str = "model",  # noqa: A002
        files: Mapping[str, bytes] | None = None,
    ) -> Repository:
        """A repository whose first commit has just these files."""
        with self.lock:
            repository = Repository(id, type)
            repository.add_commit(self._tree(files or {}), "initial commit")
            self._repositories[type, id] = repository
        return repository

    def add_reference(self, repository: Repository, name: str, files: Mapping[str, bytes]) -> None:
        """Let `refs/convert/parquet`, for one, name a commit of its own with just these files."""
        oid = hashlib.sha1(f"{repository.id} {name}".encode()).hexdigest()
        with self.lock:
            repository.trees[oid] = self._tree(files)
            repository.references[name] = oid

    def _tree(self, files: Mapping[str, bytes]) -> _Tree:
        tree = {
            path: _File(content, _upload_mode(path, len(content)) == "lfs")
            for path, content in files.items()
        }
        self.objects.update({file.sha256: file.content for file in tree.values() if file.lfs})
        return tree

    def fault(self, endpoint: str, fault: Fault) -> None:
        """Order a fault for one of the endpoints in `routes`, or for every one: "*".

        A request is struck by the oldest fault for its endpoint that is not used up.

        Raises:
            ValueError: no such endpoint.
        """
        known = [route.endpoint for route in self.routes]
        if endpoint not in (*known, "*"):
            raise ValueError(f"{endpoint}: not one of {', '.join(known)}")
        with self.lock:
            self._faults.append(_Order(endpoint, fault))

    def clear_faults(self) -> None:
        with self.lock:
            self._faults.clear()

    def note(self, request: Request) -> Fault | None:
        """Record a request; the fault that strikes it."""
        with self.lock:
            self.requests.append(request)
            for order in self._faults:
                used_up = order.strikes == order.fault.times
                if order.endpoint in (request.endpoint, "*") and not used_up:
                    order.strikes += 1
                    return order.fault
        return None


# --- what the endpoints do -----------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    hub: HubServer
    named: dict[str, str]  # the named parts of the path
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes

    @property
    def fields(self) -> Any:
        return json.loads(self.body)

    @property
    def repository(self) -> Repository:
        try:
            return self.hub.repository(self.named["id"], self.named.get("type", "model"))
        except KeyError:
            raise Refused(404, "Repository not found", "RepoNotFound") from None


class Reply(NamedTuple):
    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    status: int = 200


def json_reply(value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Reply:
    described = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Reply(json.dumps(value).encode(), described, status)


def _whoami(call: Call) -> Reply:
    return json_reply({"type": "user", "id": "0", "name": USER, "fullname": USER, "orgs": []})


def _create(call: Call) -> Reply:
    repository = _wanted(call)
    url = f"{call.hub.endpoint}/{repository.url_path}"
    if repository.commits:
        raise Refused(409, f"You already created this {repository.type} repo", url=url)
    hub_made = {".gitattributes": _File(ATTRIBUTES.encode(), lfs=False)}
    repository.add_commit(hub_made, "initial commit")
    call.hub._repositories[repository.type, repository.id] = repository
    return json_reply({"url": url, "name": repository.id})


def _wanted(call: Call) -> Repository:
    """The repository that a create request names: the one there, or else a new one."""
    organization, kind = call.fields.get("organization"), call.fields.get("type") or "model"
    name = f"{organization or USER}/{call.fields['name']}"
    return call.hub._repositories.get((kind, name)) or Repository(name, kind)


def _validate_yaml(call: Call) -> Reply:
    bare = not call.fields["content"].startswith("---\n")
    warnings = [{"message": "empty or missing yaml metadata in repo card"}] if bare else []
    return json_reply({"errors": [], "warnings": warnings})


def _info(call: Call) -> Reply:
    repository = call.repository
    oid = repository.resolve(call.named.get("revision", "main"))
    return json_reply(
        {
            "id": repository.id,
            "sha": oid,
            "private": False,
            "createdAt": _date(repository.commits[0].time),
            "lastModified": _date(repository.commits[-1].time),
            "siblings": [{"rfilename": path} for path in sorted(repository.trees[oid])],
        }
    )


def _preupload(call: Call) -> Reply:
    tree = call.repository.trees[call.repository.resolve(call.named["revision"])]
    answers = []
    for wanted in call.fields["files"]:
        path, mode = wanted["path"], _upload_mode(wanted["path"], wanted["size"])
        known = {"oid": tree[path].oid} if path in tree else {}
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
    return json_reply({"files": answers})


def _upload_mode(path: str, size: int) -> Literal["lfs", "regular"]:
    # Empty files never go to LFS: the client commits them as regular ones whatever it is told.
    return "lfs" if size > REGULAR_LIMIT or (size and path.endswith(LFS_SUFFIXES)) else "regular"


def _lfs_batch(call: Call) -> Reply:
    url_path, hub = call.repository.url_path, call.hub
    verify = {"href": f"{hub.endpoint}/{url_path}.git/info/lfs/objects/verify"}
    answers = []
    for wanted in call.fields["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.objects:  # without actions: it is there already
            hub.announced[wanted["oid"]] = wanted["size"]
            upload = {"href": f"{hub.storage}/objects/{wanted['oid']}"}
            answer["actions"] = {"upload": upload, "verify": verify}
        answers.append(answer)
    return json_reply({"transfer": "basic", "objects": answers})


def _lfs_put(call: Call) -> Reply:
    oid, content = call.named["oid"], call.body
    if oid not in call.hub.announced:
        raise Refused(403, "Request has no valid signature")
    if len(content) != call.hub.announced[oid]:
        raise Refused(400, f"{len(content)} bytes are not the size that was announced")
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refused(400, "The content has another SHA-256")
    call.hub.objects[oid] = content
    return Reply(b"", {"ETag": f'"{oid}"'})


def _lfs_verify(call: Call) -> Reply:
    content = call.hub.objects.get(call.fields["oid"])
    if content is None or len(content) != call.fields["size"]:
        raise Refused(400, "No such object, or it has another size")
    return json_reply({"message": "verified"})


def _commit(call: Call) -> Reply:
    repository, lines = call.repository, call.body.splitlines()
    operations = [(line["key"], line["value"]) for line in map(json.loads, lines)]
    header = dict(operations)["header"]
    if call.query.get("create_pr") or call.named["revision"] != "main":
        raise Refused(400, "This server commits to main only")
    if not repository.head.startswith(header.get("parentCommit", "").lower()):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(repository.trees[repository.head])  # a copy: all of the commit is there or nothing
    for key, value in operations:
        if key != "header":
            _CHANGES[key](call.hub, tree, value)
    commit = repository.add_commit(tree, header["summary"], header.get("description", ""))
    url = f"{call.hub.endpoint}/{repository.url_path}/commit/{commit.oid}"
    return json_reply(
        {"success": True, "commitUrl": url, "commitOid": commit.oid, "hookOutput": ""}
    )


def _put_file(hub: HubServer, tree: _Tree, value: dict[str, Any]) -> None:
    content = base64.b64decode(value["content"], validate=True)
    if _upload_mode(value["path"], len(content)) == "lfs":
        raise Refused(400, f"{value['path']}: must be uploaded to LFS")
    tree[value["path"]] = _File(content, lfs=False)


def _put_lfs_file(hub: HubServer, tree: _Tree, value: dict[str, Any]) -> None:
    content = hub.objects.get(value["oid"])
    if content is None or len(content) != value.get("size", len(content)):
        raise Refused(400, f"{value['path']}: its LFS pointer names no uploaded file")
    tree[value["path"]] = _File(content, lfs=True)


def _delete_file(hub: HubServer, tree: _Tree, value: dict[str, Any]) -> None:
    if tree.pop(value["path"], None) is None:
        message = f"A file with this name doesn't exist: {value['path']}"
        raise Refused(404, message, "EntryNotFound")


def _delete_folder(hub: HubServer, tree: _Tree, value: dict[str, Any]) -> None:
    inside = [path for path in tree if path.startswith(value["path"].rstrip("/") + "/")]
    for path in inside or [value["path"]]:
        _delete_file(hub, tree, {"path": path})


_CHANGES: dict[str, Callable[[HubServer, _Tree, dict[str, Any]], None]] = {
    "file": _put_file,
    "lfsFile": _put_lfs_file,
    "deletedFile": _delete_file,
    "deletedFolder": _delete_folder,
}


def _tree(call: Call) -> Reply:
    repository = call.repository
    tree = repository.trees[repository.resolve(call.named["revision"])]
    folder = f"{call.named['path']}/" if "path" in call.named else ""
    entries: dict[str, dict[str, Any]] = {}
    for path in tree:
        if path.startswith(folder):
            entries |= {above: _folder_entry(above) for above in _folders_between(folder, path)}
            entries[path] = _file_entry(path, tree[path])
    if folder and not entries:
        raise Refused(404, f"{folder} does not exist on this revision", "EntryNotFound")
    recursive = call.query.get("recursive") == "true"
    names = sorted(name for name in entries if recursive or "/" not in name.removeprefix(folder))
    return _page(call, [entries[name] for name in names], TREE_PAGE)


def _folders_between(folder: str, path: str) -> list[str]:
    return [path[:end] for end, sign in enumerate(path) if sign == "/" and end >= len(folder)]


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": _File(path.encode(), False).oid}


def _file_entry(path: str, file: _File) -> dict[str, Any]:
    size = len(file.content)
    entry = {"type": "file", "path": path, "size": size, "oid": file.blob_id}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}
    return entry


def _page(call: Call, entries: Sequence[Any], size: int) -> Reply:
    start = int(call.query.get("cursor", 0))
    end = start + size
    if end >= len(entries):
        return json_reply(entries[start:])
    following = urlencode({**call.query, "cursor": end})
    link = f'<{call.hub.endpoint}{call.path}?{following}>; rel="next"'
    return json_reply(entries[start:end], {"Link": link})


def _resolve(call: Call) -> Reply:
    repository, path = call.repository, call.named["path"]
    oid = repository.resolve(call.named["revision"])
    file = repository.trees[oid].get(path)
    if file is None:
        refused = Refused(404, f"Entry not found: {path}", "EntryNotFound")
        refused.headers["X-Repo-Commit"] = oid
        raise refused
    if not file.lfs:
        return _ranged(call, file.content, {"X-Repo-Commit": oid, "ETag": f'"{file.oid}"'})
    headers = {
        "X-Repo-Commit": oid,
        "X-Linked-Etag": f'"{file.oid}"',
        "X-Linked-Size": str(len(file.content)),
        "Location": f"{call.hub.storage}/objects/{file.oid}",
    }
    return Reply(b"", headers, 302)


def _download(call: Call) -> Reply:
    oid = call.named["oid"]
    if oid not in call.hub.objects:
        raise Refused(404, "No such object")
    return _ranged(call, call.hub.objects[oid], {"ETag": f'"{oid}"'})


def _ranged(call: Call, content: bytes, headers: dict[str, str]) -> Reply:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if wanted is None:
        return Reply(content, headers)
    start = int(wanted[1])
    end = min(int(wanted[2] or len(content) - 1), len(content) - 1) + 1
    if start >= end:
        return Reply(b"", {**headers, "Content-Range": f"bytes */{len(content)}"}, 416)
    part = f"bytes {start}-{end - 1}/{len(content)}"
    return Reply(content[start:end], {**headers, "Content-Range": part}, 206)


def _commits(call: Call) -> Reply:
    repository = call.repository
    names = [commit.oid for commit in repository.commits]
    last = names.index(repository.resolve(call.named["revision"]))
    entries = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": USER}],
            "date": _date(commit.time),
        }
        for commit in repository.commits[last::-1]
    ]
    return _page(call, entries, COMMITS_PAGE)


def _unknown(call: Call) -> Reply:
    raise Refused(404, "Sorry, we can't find the page you are looking for.")


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- which endpoint a request is for -------------------------------------------------------------


class Route(NamedTuple):
    endpoint: str
    origin: Literal["hub", "storage"]
    methods: str
    path: str
    handle: Callable[[Call], Reply]
    token_needed: bool = False


_API = r"/api/(?P<type>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"
_WEB = r"/(?:(?P<type>dataset|space)s/)?(?P<id>[^/]+/[^/]+)"
LFS = rf"{_WEB}\.git/info/lfs/objects"
_REV = r"(?P<revision>[^/]+)"
_OBJECT = r"/objects/(?P<oid>[0-9a-f]{64})"

_ROUTES = (
    Route("whoami", "hub", "GET", "/api/whoami-v2", _whoami, True),
    Route("create", "hub", "POST", "/api/repos/create", _create, True),
    Route("validate_yaml", "hub", "POST", "/api/validate-yaml", _validate_yaml),
    Route("info", "hub", "GET", f"{_API}(?:/revision/{_REV})?", _info),
    Route("preupload", "hub", "POST", f"{_API}/preupload/{_REV}", _preupload, True),
    Route("lfs_batch", "hub", "POST", f"{LFS}/batch", _lfs_batch, True),
    Route("lfs_put", "storage", "PUT", _OBJECT, _lfs_put),
    Route("lfs_verify", "hub", "POST", f"{LFS}/verify", _lfs_verify, True),
    Route("commit", "hub", "POST", f"{_API}/commit/{_REV}", _commit, True),
    Route("tree", "hub", "GET", f"{_API}/tree/{_REV}(?:/(?P<path>.+))?", _tree),
    Route("resolve", "hub", "GET HEAD", f"{_WEB}/resolve/{_REV}/(?P<path>.+)", _resolve),
    Route("download", "storage", "GET HEAD", _OBJECT, _download),
    Route("commits", "hub", "GET", f"{_API}/commits/{_REV}", _commits),
)
_NO_ROUTE = Route("unknown", "hub", "", "", _unknown)

_OF_A_REPOSITORY = tuple(route.endpoint for route in _ROUTES if "P<id>" in route.path)


def _find_route(
    hub: HubServer, origin: str, method: str, path: str
) -> tuple[Route, dict[str, str]]:
    for route in hub.routes:
        match = re.fullmatch(route.path, path)
        if match and route.origin == origin and method in route.methods.split():
            named = match.groupdict()
            return route, {name: unquote(part) for name, part in named.items() if part is not None}
    return _NO_ROUTE, {}


def _check_token(route: Route, call: Call) -> None:
    authorization = call.headers["Authorization"]
    if authorization is None and route.token_needed:
        raise Refused(401, "Invalid username or password.")
    if route.origin == "hub" and authorization not in (None, f"Bearer {call.hub.token}"):
        raise Refused(401, "Invalid credentials in Authorization header")


def _ordered(route: Route, call: Call, fault: Fault) -> Refused:
    """The refusal that a fault of kind `status` asks for."""
    message, code = HTTPStatus(fault.status).phrase, ""
    fields = {}
    if fault.status == 404 and route.endpoint in _OF_A_REPOSITORY:
        message, code = "Repository not found", "RepoNotFound"
    if fault.status == 409 and route.endpoint == "create":
        fields["url"] = f"{call.hub.endpoint}/{_wanted(call).url_path}"
    refused = Refused(fault.status, message, code, **fields)
    refused.headers.update(fault.headers)
    if fault.retry_after is not None:
        refused.headers["Retry-After"] = str(fault.retry_after)
    return refused


# --- HTTP ----------------------------------------------------------------------------------------


class _Exchange(BaseHTTPRequestHandler):
    """One connection of a client, with the requests that come by it."""

    server: _Origin
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def answer(self) -> None:
        url = urlsplit(self.path)
        hub, origin = self.server.hub, self.server.origin
        route, named = _find_route(hub, origin, self.command, url.path)
        authorized = "Authorization" in self.headers
        request = Request(time.time(), route.endpoint, self.command, url.path, authorized)
        fault = self.server.hub.note(request)
        query = dict(parse_qsl(url.query))
        call = Call(self.server.hub, named, url.path, query, self.headers, self._read_body())
        kind = fault.kind if fault else None
        stopped = fault and kind == "slow" and self.server.hub.stopping.wait(fault.seconds)
        if kind == "reset" or stopped:
            self._cut()
            return
        reply = self._reply(route, call, fault)
        if kind == "lost_reply":
            self._cut()
        else:
            self._send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815

    def _reply(self, route: Route, call: Call, fault: Fault | None) -> Reply:
        try:
            if fault and fault.kind == "status":
                raise _ordered(route, call, fault)
            _check_token(route, call)
            with self.server.hub.lock:
                return route.handle(call)
        except Refused as refused:
            return json_reply(refused.fields, refused.headers, refused.status)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            chunks.append(self._read(size + 2)[:-2])  # each ends with \r\n
        self._read(2)
        return b"".join(chunks)

    def _read(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionResetError("the client went away in the middle of a request")
        return content

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        self.wfile.flush()

    def _cut(self) -> None:
        """Close the connection so that the client gets a reset, not an orderly end."""
        self.close_connection = True
        connection = socket.socket(fileno=self.connection.detach())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def log_message(self, *_: object) -> None:
        """`HubServer.requests` is the log."""


class _Origin(ThreadingHTTPServer):
    """One of the two ports, with the connections that are open to it."""

    daemon_threads = False  # `server_close` waits for them
    request_queue_size = 64

    def __init__(self, hub: HubServer, origin: Literal["hub", "storage"]) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.hub = hub
        self.origin = origin
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep open."""
        for connection in list(self._open):
            with suppress(OSError):  # the client, or a fault, may have ended it first
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave at any time
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hugging Face Hub on loopback, in memory.")
    parser.add_argument("--slow", type=float, metavar="SECONDS", help="wait before every reply")
    parser.add_argument("--dataset", action="append", default=[], metavar="ID=FOLDER")
    options = parser.parse_args()
    endings = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)  # before threads start: they inherit it
    with HubServer() as hub:
        for id_, _, folder in (dataset.partition("=") for dataset in options.dataset):
            paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
            hub.add_repository(id_, "dataset", files)
        if options.slow:
            hub.fault("*", Fault("slow", seconds=options.slow))
        print(f"HF_ENDPOINT={hub.endpoint}", flush=True)
        signal.sigwait(endings)
    for repository in hub.repositories:
        counts = f"{len(repository.files)} files, {len(repository.commits)} commits"
        print(f"{repository.type} {repository.id}: {counts}")


if __name__ == "__main__":
    main()
