"""Repositories on the Hugging Face Hub: what they hold, commits to them, downloads from them.

The only module that speaks to the Hub. Its client raises many kinds of exception, some of them for
what a second try would mend and some not; here these are two:

    Unavailable   the service or the network: try again later
    Refused       the request: trying again changes nothing, somebody has to

The endpoint is that of `HF_ENDPOINT`, as everywhere in the ecosystem.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha1, sha256
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from raykfold.outputs.sync import Unavailable
from raykfold.text import one_line

# The client itself waits for ever for a reply. A second for each step of a large upload is plenty;
# a minute is for a Hub that is busy.
_REPLY_SECONDS = 60.0
# Of these a second try can come out otherwise: time-outs, conflicts of two commits, limits, faults.
_TRANSIENT = {408, 409, 412, 425, 429}
_PART_BYTES = 2**20
# What the local disk can answer.
_LOCAL = {
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT),
}


class Refused(Exception):
    """The Hub said no, and will again. The text says why, and what would help.

    Attributes:
        status: of HTTP; None if the request was never sent.
    """

    def __init__(self, advice: str, status: int | None = None) -> None:
        super().__init__(advice)
        self.status = status


class ModelRepository:
    """A model repository on the Hub.

    Every method can raise `Unavailable` and `Refused`.

    Args:
        repo_id: ``owner/name``, or a name among one's own.
        token: the Hub's; None for what `hf auth login` has left.
        private: whether `create` makes it for its owner's eyes only.
    """

    def __init__(self, repo_id: str, token: str | None, *, private: bool = False) -> None:
        self.repo_id = repo_id
        self._private = private
        self._api = _api(token)

    def create(self) -> str:
        """See to it that the repository is there; its address."""
        with _understood(self.repo_id):
            # None leaves it to the owner's settings.
            private = True if self._private else None
            url = self._api.create_repo(self.repo_id, private=private, exist_ok=True)
        self.repo_id = url.repo_id  # now with its owner
        return str(url)

    def contents(self) -> dict[str, str]:
        """Path → id of the content of every file: one of `content_ids`."""
        with _understood(self.repo_id):
            entries = list(self._api.list_repo_tree(self.repo_id, recursive=True))
        files = (entry for entry in entries if hasattr(entry, "blob_id"))  # not the folders
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    def commit(self, files: Mapping[str, Path], deleted: Sequence[str], message: str) -> None:
        """Add or replace `files` (path in the repository → local file), all of them or nothing."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations = [
            *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
            *(CommitOperationDelete(path) for path in deleted),
        ]
        with _understood(self.repo_id):
            self._api.create_commit(self.repo_id, operations, commit_message=message)

    def fetch(self, names: Sequence[str]) -> Path:
        """A folder of the local cache that holds those of the files `names` that there are."""
        with _understood(self.repo_id):
            return Path(self._api.snapshot_download(self.repo_id, allow_patterns=list(names)))


def content_ids(file: Path) -> tuple[str, str]:
    """By which the Hub names this content: SHA-256 of large and binary files, git's of others."""
    of_content, of_blob = sha256(), sha1(usedforsecurity=False)
    of_blob.update(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as content:
        while part := content.read(_PART_BYTES):
            of_content.update(part)
            of_blob.update(part)
    return of_content.hexdigest(), of_blob.hexdigest()


def fetch_dataset(
    repo_id: str,
    choices: Sequence[Sequence[str]],
    folder: Path,
    token: str | None,
    *,
    progress: bool,
) -> list[Path]:
    """Download files of the dataset `repo_id` below `folder`; a download cut short goes on.

    Args:
        choices: for each file wanted, the names it may have, the best first; of those that the
            dataset has, the best is taken.
        progress: draw progress bars on stderr.

    Returns:
        The files, all of one revision.

    Raises:
        Unavailable, Refused.
    """
    with _understood(repo_id):
        api = _api(token, progress=progress)
        # Not a listing of the tree, which the client itself tries for half a minute.
        info = api.dataset_info(repo_id)
        there = {file.rfilename for file in info.siblings or ()}
        best = (next((name for name in each if name in there), None) for each in choices)
        wanted = [name for name in best if name is not None]
        # Of its own for each revision: what an earlier call left is not mixed with a newer one.
        revision = folder / info.sha
        if wanted:
            api.snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=info.sha,
                local_dir=revision,
                allow_patterns=wanted,
            )
    files = [revision / name for name in wanted]
    missing = [file.name for file in files if not file.is_file()]
    if missing:  # the client takes an outage for success where the folder is not empty
        raise Unavailable(f"{', '.join(missing)} did not arrive")
    return files


def _api(token: str | None, *, progress: bool = False) -> Any:
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if progress else disable_progress_bars)()
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{_REPLY_SECONDS:.0f}s")
    # By itself it goes on for minutes before it says that the storage is not there.
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")
    huggingface_hub.set_client_factory(_client)
    api = huggingface_hub.HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="raykfold"
    )
    # What it says beside its exceptions would stand between the lines of the run. It sets the
    # level itself when it is first used, so after that.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="huggingface_hub")
    return api


def _client() -> Any:
    """The client's own HTTP client, but one that does not wait for ever."""
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.timeout = _REPLY_SECONDS
    return client


@contextmanager
def _understood(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _translated(repo_id, error) from error


def _translated(repo_id: str, error: Exception) -> Unavailable | Refused:
    status, retry_after = _answer(error)
    if status is not None:
        if status in _TRANSIENT or status >= 500:
            return Unavailable(f"HTTP {status}", retry_after)
        return Refused(_advice(repo_id, status, error), status)
    # A header that cannot be sent is quoted in the error, and it can be the token's.
    told = one_line(re.sub(r"Bearer .*", "Bearer ***", str(error), flags=re.DOTALL))
    kind = Unavailable if _is_of_the_network(error) else Refused
    return kind(f"{type(error).__name__}: {told}")


def _answer(error: Exception) -> tuple[int | None, float | None]:
    """The HTTP status that an error is about, and the seconds that the Hub wants left in peace."""
    for each in _chain(error):
        if _has_response(each):
            return int(each.response.status_code), _retry_after(each.response.headers)
        # What fails in an upload by Xet is a ConnectionError whatever it was, and says it in words.
        refused = re.search(r"HTTP status client error \((\d{3})", str(each))
        if refused:
            return int(refused[1]), None
    return None, None


def _chain(error: BaseException) -> Iterator[Any]:
    """The error and what it came from: the client wraps some of its own."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _has_response(error: BaseException) -> bool:
    return getattr(getattr(error, "response", None), "status_code", None) is not None


def _is_of_the_network(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Its own errors are also those of the HTTP library that it uses.
    of_http = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")

    chain = list(_chain(error))
    if any(type(each).__name__ in ("LocalProtocolError", "OfflineModeIsEnabled") for each in chain):
        return False  # what cannot be sent, and HF_HUB_OFFLINE
    if any(isinstance(each, OSError) and each.errno in _LOCAL for each in chain):
        return False
    # RuntimeError and the built-in ConnectionError (an OSError) are how uploads of large files
    # fail; a download that ends too early is an OSError; a gateway in between answers in HTML.
    kinds: tuple[type, ...] = (of_http, OSError, RuntimeError, JSONDecodeError)
    return not isinstance(error, HFValidationError) and any(
        isinstance(each, kinds) for each in chain
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    from huggingface_hub.utils._http import parse_ratelimit_headers

    said = headers.get("Retry-After", "")
    if said.isdigit():
        return float(said)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and not limit.remaining else None


def _advice(repo_id: str, status: int, error: Exception) -> str:
    words = one_line(getattr(error, "server_message", None) or error)
    advice = {
        401: f"{repo_id} wants a valid token: set HF_TOKEN, or run `hf auth login`",
        403: f"the token may not do this with {repo_id}: to upload it needs write permission, to "
        "read what is gated, access",
        404: f"there is no {repo_id}, or the token may not see it; check the name, and HF_TOKEN",
    }
    told = f"{advice[status]} ({words})" if status in advice else words
    return f"HTTP {status}: {told}"
