"""Open pages in a headless Chromium, driven over its DevTools pipe.

    with Chromium(profile) as browser:
        tab = browser.open(file, width=360)

Debian's package of the browser is enough: no driver has to be installed that fits its version.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = shutil.which("chromium")
_PATIENCE = 60.0  # seconds for one answer
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)


@dataclass
class Tab:
    """An open page.

    Attributes:
        requests: every URL that was requested, the page's own first, without ``data:`` URLs.
        complaints: console messages of level warning or error, and uncaught errors.
    """

    browser: Chromium
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a DevTools command to this page and return its result."""
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, through JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """Return the visible text of each element that a CSS selector finds."""
        found = f"document.querySelectorAll({json.dumps(selector)})"
        texts: list[str] = self.evaluate(f"[...{found}].map(e => e.innerText ?? e.textContent)")
        return texts

    def pdf(self) -> bytes:
        """Return the page as a PDF, with backgrounds."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def screenshot(self) -> bytes:
        """Return a PNG of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])


class Chromium:
    """A browser process whose profile is `profile`, an empty folder."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = [*_FLAGS, f"--user-data-dir={profile}"]
        # Chromium reads from descriptor 3 and writes to 4; the shell maps our pipes to these.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", PROGRAM, *flags, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
        )
        os.close(to_browser)
        os.close(from_browser)
        self._unread = b""
        self._calls = 0
        self._tabs: dict[str, Tab] = {}

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._out)  # Chromium ends when its input does
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def open(self, page: Path, *, width: int = 1200, dark: bool = False) -> Tab:
        """Open a file and wait until it is loaded; `width` is in CSS pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        tab = self._tabs[attached["sessionId"]] = Tab(self, attached["sessionId"])
        for domain in ("Page", "Network", "Log", "Runtime"):
            tab.call(f"{domain}.enable")
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + _PATIENCE
        here = f"document.readyState == 'complete' && location.href == {json.dumps(page.as_uri())}"
        while not tab.evaluate(here):
            assert time.monotonic() < until, f"{page} is not loaded"
        return tab

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Send a DevTools command, record events until its answer comes, and return the result."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._calls:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]
            if answer.get("sessionId") in self._tabs:
                _record_event(self._tabs[answer["sessionId"]], answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], _PATIENCE)
            assert ready, "Chromium does not answer"
            content = os.read(self._in, 2**20)
            assert content, "Chromium has ended"
            self._unread += content
        message, _, self._unread = self._unread.partition(b"\0")
        event: dict[str, Any] = json.loads(message)
        return event


def _record_event(tab: Tab, event: dict[str, Any]) -> None:
    values = event["params"]
    if event["method"] == "Network.requestWillBeSent":
        if not values["request"]["url"].startswith("data:"):
            tab.requests.append(values["request"]["url"])
    elif event["method"] == "Runtime.exceptionThrown":
        tab.complaints.append(str(values["exceptionDetails"]))
    elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in ("warning", "error"):
        tab.complaints.append(str(values["args"]))
    elif event["method"] == "Log.entryAdded" and values["entry"]["level"] in ("warning", "error"):
        tab.complaints.append(values["entry"]["text"])
