"""S3 as a process of its own on loopback (moto's server), with a proxy before it that makes faults.

with S3Server() as s3:
    s3.uri("bucket/ray")       # straight to the server
    s3.uri("bucket/ray", through_faults=True)
    s3.fault("slow_down", requests=3)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_XML = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>ordered</Message></Error>'
_STATUS = {"internal": (500, "InternalError"), "slow_down": (503, "SlowDown")}


@dataclass
class Fault:
    """What becomes of requests: ``internal``, ``slow_down``, ``reset``, ``lost_reply``, ``delay``.

    Attributes:
        kind: one of these.
        requests: how many it takes; without an end if None.
        ends: time.monotonic() at which it is over.
        seconds: of a delay.
        method: of the requests that it is for; of all if None.
    """

    kind: str
    requests: int | None = None
    ends: float = float("inf")
    seconds: float = 0.0
    method: str | None = None

    def takes(self, method: str) -> bool:
        if self.method not in (None, method) or time.monotonic() >= self.ends:
            return False
        if self.requests is not None:
            self.requests -= 1
            return self.requests >= 0
        return True


@dataclass
class S3Server:
    """Starts on entry, with one bucket that is empty; ends on exit."""

    faults: list[Fault] = field(default_factory=list)
    disturbed: int = 0
    requests: list[str] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> S3Server:
        self.port = _free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **CREDENTIALS},
        )
        self._proxy: ThreadingHTTPServer | None = None
        try:
            self._wait_until_up()
            self._proxy = _proxy(self)
            threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._proxy is not None:
            self._proxy.shutdown()
            self._proxy.server_close()
        self._process.kill()
        self._process.wait()

    def uri(self, key: str, *, through_faults: bool = False) -> str:
        port = self._proxy.server_port if through_faults and self._proxy else self.port
        return f"s3://{key}?endpoint_override=127.0.0.1:{port}&scheme=http"

    def fault(self, kind: str, *, for_seconds: float = float("inf"), **order: Any) -> Fault:
        """Order a fault; what was ordered first is served first."""
        fault = Fault(kind, ends=time.monotonic() + for_seconds, **order)
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all faults, forget the requests, and empty the bucket."""
        self.faults.clear()
        self.requests.clear()
        self.disturbed = 0
        self._order("POST", "/moto-api/reset")
        self._order("PUT", f"/{BUCKET}")

    def _order(self, method: str, path: str) -> None:
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method), timeout=5
        ).read()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, "moto's server has ended"
            try:
                self._order("PUT", f"/{BUCKET}")
                return
            except OSError:
                assert time.monotonic() < deadline, "moto's server does not answer"
                time.sleep(0.1)


def _proxy(server: S3Server) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            server.requests.append(f"{self.command} {self.path}")
            fault = next((each for each in list(server.faults) if each.takes(self.command)), None)
            body = self._body()
            if fault is None:
                self._reply(*self._ask(body))
                return
            server.disturbed += 1
            if fault.kind == "delay":
                time.sleep(fault.seconds)
                self._reply(*self._ask(body))
            elif fault.kind in _STATUS:
                status, code = _STATUS[fault.kind]
                content = _XML.format(code=code).encode()
                self._reply(status, {"Content-Length": str(len(content))}, content)
            else:
                if fault.kind == "lost_reply":
                    self._ask(body)
                self.close_connection = True
                # Closed with a reset, and not in an orderly way.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.shutdown(socket.SHUT_RD)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                """What follows the last part."""
            return b"".join(parts)

        def _ask(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
            connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
            try:
                as_whole = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in ("transfer-encoding", "content-length", "expect")
                }
                connection.request(self.command, self.path, body, as_whole)
                reply = connection.getresponse()
                return reply.status, dict(reply.headers), reply.read()
            finally:
                connection.close()

        def _reply(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            if "content-length" not in map(str.lower, headers):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nothing."""

        def handle(self) -> None:
            with suppress(OSError):  # the other side has gone
                super().handle()

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
