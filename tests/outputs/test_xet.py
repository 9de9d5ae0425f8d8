"""Uploads by Xet, the way that the real client takes in production.

The client reads on import whether to, so uploaders run in processes of their own; elsewhere in
the tests it is told not to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.hub_server import Fault
from fakes.xet_server import SETTINGS, TRIES, XetHubServer
from test_hub_mirror import (
    OPEN,
    OUTAGE,
    REACHED,
    REPO,
    check_all_up_once,
    commits,
    complete,
    count,
    seen,
    train,
    until,
)

from raykfold.files.atomic import write_file
from raykfold.files.paths import ModelDir

UPLOAD = """
import sys
from pathlib import Path
from raykfold.files.paths import ModelDir
from raykfold.outputs.hub_client import ModelRepository
from raykfold.outputs.hub_mirror import HubMirror

def say(line):
    if "waiting for" not in line:  # that depends on the machine
        print(line)

repository = ModelRepository(sys.argv[2], sys.argv[3])
outputs = ModelDir(Path(sys.argv[1]))
mirror = HubMirror(outputs, repository, say, interval=0.05, first_pause=0.05)
mirror.finish()
mirror.start()
mirror.wait(60)
"""


@pytest.fixture
def hub() -> Iterator[XetHubServer]:
    with XetHubServer() as server:
        yield server


@pytest.fixture
def outputs(tmp_path: Path) -> ModelDir:
    """Those of a complete run, with weights of several chunks each."""
    config = train(tmp_path / "out")
    for fold in (1, 2):
        write_file(config.outputs.best_weights(fold), os.urandom(300_000))
    complete(config)
    return config.outputs


def uploader(hub: XetHubServer, outputs: ModelDir) -> subprocess.Popen[str]:
    """One that ends when all is up, in a hurry; its notices are what it prints."""
    home = outputs.root.parent / "home"
    return subprocess.Popen(
        [sys.executable, "-c", UPLOAD, str(outputs.root), REPO, hub.token],
        env={**os.environ, **SETTINGS, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )


def upload_all(hub: XetHubServer, outputs: ModelDir) -> list[str]:
    """The notices of an uploader, after it has come to its end."""
    with uploader(hub, outputs) as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return said.splitlines()


@pytest.mark.parametrize("way", ["xorb_put", "xorb"])
def test_everything_goes_up_by_xet(hub: XetHubServer, outputs: ModelDir, way: str) -> None:
    """Each xorb by a grant, or directly where the storage knows none."""
    if way == "xorb":
        hub.fault("grant", Fault("status", 404))
    notices = upload_all(hub, outputs)
    check_all_up_once(hub, outputs)
    assert {"xorb_put", "xorb", "lfs_put"} & set(seen(hub)) == {way}
    assert len(notices) == 1 and OPEN in notices[0]


FAULTS = {
    "500": Fault("status", 500, times=1),
    "reset": Fault("reset", times=1),
    "lost_reply": Fault("lost_reply", times=1),
}


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("xorb_put", "500"),
        pytest.param("xorb_put", "reset", marks=pytest.mark.slow),
        ("xorb_commit", "lost_reply"),
        pytest.param("shard", "lost_reply", marks=pytest.mark.slow),
    ],
)
def test_a_fault_that_passes_is_the_clients_own_affair(
    hub: XetHubServer, outputs: ModelDir, endpoint: str, kind: str
) -> None:
    hub.fault(endpoint, FAULTS[kind])
    notices = upload_all(hub, outputs)
    check_all_up_once(hub, outputs)
    assert seen(hub).count(endpoint) == 2
    assert len(notices) == 1 and OPEN in notices[0]


# Of 503 as the answer to `xet_token` some clients make six tries; of 425 none makes a second.
@pytest.mark.parametrize(
    ("endpoints", "status"),
    [
        (("xet_token",), 425),
        *(
            pytest.param(each, 503, marks=pytest.mark.slow)
            for each in [("xorb_put", "xorb"), ("shard",)]
        ),
    ],
)
def test_what_the_client_gives_up_the_uploader_tries_again(
    hub: XetHubServer, outputs: ModelDir, endpoints: tuple[str, ...], status: int
) -> None:
    for endpoint in endpoints:
        hub.fault(endpoint, Fault("status", status, times=TRIES))
    notices = upload_all(hub, outputs)
    check_all_up_once(hub, outputs)
    assert len(commits(hub)) == 1
    assert count(notices, OUTAGE) == count(notices, REACHED) == 1, notices


def test_a_refusal_of_the_storage_is_told_once_and_ends_the_uploads(
    hub: XetHubServer, outputs: ModelDir
) -> None:
    hub.fault("xet_token", Fault("status", 403))
    notices = upload_all(hub, outputs)
    assert count(notices, "HTTP 403") == 1 and count(notices, OUTAGE) == 0, notices
    assert commits(hub) == []


@pytest.mark.parametrize("endpoint", ["xorb_put", pytest.param("shard", marks=pytest.mark.slow)])
def test_a_kill_in_the_middle_loses_nothing(
    hub: XetHubServer, outputs: ModelDir, endpoint: str
) -> None:
    """What the client has noted on disk of an upload does not mislead the next one."""
    hub.fault(endpoint, Fault("slow", seconds=600))
    with uploader(hub, outputs) as process:
        until(lambda: endpoint in seen(hub) or process.poll() is not None, 60)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    hub.clear_faults()
    upload_all(hub, outputs)
    check_all_up_once(hub, outputs)
