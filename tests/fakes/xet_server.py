"""The Hub of hub_server.py, for uploads by Xet too: what the real client does in production.

The client cuts files into chunks and packs these into xorbs. It asks for a grant to upload each
xorb, sends it, and commits it; where there are no grants (404) it sends it directly. A shard then
tells of which chunks each file consists, and the file is there as if it had come by LFS. Downloads
go the ordinary way.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from fakes.hub_server import LFS, Call, HubServer, Refused, Reply, Route, json_reply

TRIES = 3  # that the client makes of a request; by itself it would go on for minutes
# For its environment, which it reads when it is imported. Chunks have to come as they are: there
# is no LZ4 in the standard library.
SETTINGS = {
    "HF_HUB_DISABLE_XET": "0",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": str(TRIES - 1),
    "HF_XET_DATA_XORB_COMPRESSION_POLICY": "none",
}
_HASH = r"(?P<hash>[0-9a-f]{64})"
_ENTRY = 48  # bytes
_LAST_FILE = b"\xff" * 32
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30


class XetHubServer(HubServer):
    """A Hub whose storage understands Xet."""

    xet_token = "xet_test"  # what the Hub gives out for the storage

    def __init__(self) -> None:
        super().__init__()
        self.xorbs: dict[str, list[bytes]] = {}  # the chunks of each, by its hash
        self._sizes: dict[str, int] = {}  # of the xorbs that may be uploaded
        self._uncommitted: dict[str, bytes] = {}

    @property
    def routes(self) -> tuple[Route, ...]:
        commit = rf"/v1/xorb-commits/default/{_HASH}/grant/(?P=hash)"
        return (
            # Some clients ask by LFS how to upload; others use Xet unasked.
            Route("lfs_batch", "hub", "POST", rf"{LFS}/batch", self._choose_xet, True),
            *super().routes,
            Route(
                "xet_token", "hub", "GET", "/api/models/.+/xet-write-token/main", self._token, True
            ),
            Route("chunk", "storage", "GET", f"/v1/chunks/default/{_HASH}", self._find_chunk),
            Route("grant", "storage", "POST", f"/v1/xorb-grants/default/{_HASH}", self._grant),
            Route("xorb_put", "storage", "PUT", f"/xorbs/{_HASH}", self._put_xorb),
            Route("xorb_commit", "storage", "POST", commit, self._commit_xorb),
            Route("xorb", "storage", "POST", f"/v1/xorbs/default/{_HASH}", self._add_xorb),
            Route("shard", "storage", "POST", "/v2/shards", self._add_files),
        )

    def _choose_xet(self, call: Call) -> Reply:
        if "xet" not in call.fields["transfers"]:
            raise Refused(400, "This storage takes uploads by Xet alone")
        objects = [{"oid": each["oid"], "size": each["size"]} for each in call.fields["objects"]]
        return json_reply({"transfer": "xet", "objects": objects})

    def _token(self, call: Call) -> Reply:
        expires = int(time.time()) + 900
        answer = {"casUrl": self.storage, "accessToken": self.xet_token, "exp": expires}
        headers = {  # the same, for clients that do not read the body
            "X-Xet-Cas-Url": self.storage,
            "X-Xet-Access-Token": self.xet_token,
            "X-Xet-Token-Expiration": str(expires),
        }
        return json_reply(answer, headers)

    def _check(self, call: Call) -> None:
        if call.headers["Authorization"] != f"Bearer {self.xet_token}":
            raise Refused(401, "Not a token of this storage")

    def _find_chunk(self, call: Call) -> Reply:
        self._check(call)
        raise Refused(404, "No file of another's has this chunk")

    def _grant(self, call: Call) -> Reply:
        self._check(call)
        name = call.named["hash"]
        if name in self.xorbs:
            return json_reply({})
        self._sizes[name] = call.fields["length"]
        grant = {"id": name, "method": "PUT", "url": f"{self.storage}/xorbs/{name}", "headers": {}}
        return json_reply(grant, status=201)

    def _put_xorb(self, call: Call) -> Reply:
        name = call.named["hash"]
        if name not in self._sizes or "Authorization" in call.headers:
            raise Refused(403, "Not by a grant")
        if len(call.body) != self._sizes[name]:
            raise Refused(400, f"{len(call.body)} bytes are not the size that was announced")
        self._uncommitted[name] = call.body
        return Reply(b"")

    def _commit_xorb(self, call: Call) -> Reply:
        self._check(call)
        name = call.named["hash"]
        if name not in self._uncommitted:
            raise Refused(404, "Nothing was uploaded by this grant")
        self.xorbs[name] = list(_chunks(self._uncommitted[name]))
        return json_reply({"was_inserted": True})

    def _add_xorb(self, call: Call) -> Reply:
        self._check(call)
        self.xorbs[call.named["hash"]] = list(_chunks(call.body))
        return json_reply({"was_inserted": True})

    def _add_files(self, call: Call) -> Reply:
        self._check(call)
        for file in _files(call.body):
            if not {term.xorb for term in file.terms} <= self.xorbs.keys():
                raise Refused(400, "A file is of chunks that were not uploaded")
            content = b"".join(
                chunk
                for term in file.terms
                for chunk in self.xorbs[term.xorb][term.start : term.end]
            )
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise Refused(400, "A file's chunks have another SHA-256")
            self.objects[file.sha256] = content
        return json_reply({"type": "result"})


class _Term(NamedTuple):
    xorb: str
    start: int  # among its chunks
    end: int


class _ShardFile(NamedTuple):
    sha256: str
    terms: list[_Term]


def _chunks(xorb: bytes) -> Iterator[bytes]:
    """Each comes after 8 bytes: version, its size here (3), compression, its size at last (3)."""
    start = 0
    while start < len(xorb):
        if xorb[start + 4]:
            raise Refused(400, "This server takes chunks only as they are: see SETTINGS")
        end = start + 8 + int.from_bytes(xorb[start + 1 : start + 4], "little")
        yield xorb[start + 8 : end]
        start = end


def _files(shard: bytes) -> Iterator[_ShardFile]:
    """After the header of the shard each is a header, its terms, their hashes and its SHA-256."""
    entries = (shard[start : start + _ENTRY] for start in range(_ENTRY, len(shard), _ENTRY))
    for header in entries:
        if header.startswith(_LAST_FILE):
            return  # the rest is about xorbs, which came themselves
        flags, count = struct.unpack_from("<2I", header, 32)
        if flags != _VERIFIED | _WITH_SHA256:
            raise Refused(400, f"A file with the flags {flags:x}")
        terms = [next(entries) for _ in range(count)]
        for _ in terms:
            next(entries)
        yield _ShardFile(
            _hash(next(entries)),
            [_Term(_hash(term), *struct.unpack_from("<2I", term, 40)) for term in terms],
        )


def _hash(entry: bytes) -> str:
    """The first field of an entry as it is written elsewhere: four numbers, not 32 bytes."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", entry))
