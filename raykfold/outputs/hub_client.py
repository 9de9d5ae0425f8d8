"""Repositories on the Hugging Face Hub: list them, commit to them, download from them.

Only this module calls the Hub's client, which raises many kinds of exceptions. Here there are two:

    Unavailable   the service or the network failed: try again later
    Refused       the request was refused: trying again changes nothing, the user has to act

The endpoint is `HF_ENDPOINT`, as everywhere in the ecosystem.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha1, sha256
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from raykfold.errors import BadData
from raykfold.outputs.sync import Unavailable, some_of
from raykfold.text import one_line

_log = logging.getLogger(__name__)

# The client itself waits for ever. Each step of a large upload takes a second; a busy Hub, longer.
_REPLY_SECONDS = 60.0
# A second try can succeed after these: time-outs, conflicting commits, rate limits.
_TRANSIENT = {408, 409, 412, 425, 429}
_PART_BYTES = 2**20
_PAUSES = (1.0, 4.0, 16.0)  # seconds between tries of `patiently`
_Fetched = TypeVar("_Fetched")
# Errors of the local disk, not of the network.
_LOCAL = {
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT),
}


class Refused(Exception):
    """The Hub refused a request, and will again. The text says why, and what would help.

    Attributes:
        status: HTTP status; None if the request was never sent.
    """

    def __init__(self, advice: str, status: int | None = None) -> None:
        super().__init__(advice)
        self.status = status


class ModelRepository:
    """A model repository on the Hub. Every method can raise `Unavailable` and `Refused`.

    Args:
        repo_id: ``owner/name``, or a name among the user's own.
        token: of the Hub; None for the one that `hf auth login` stored.
        private: whether `create` makes a repository that only its owner sees.
    """

    def __init__(self, repo_id: str, token: str | None, *, private: bool = False) -> None:
        self.repo_id = repo_id
        self._private = private
        self._api = _api(token)

    def create(self) -> str:
        """Create the repository if it does not exist; return its address."""
        with _translated_errors(self.repo_id):
            private = True if self._private else None  # None: as the owner's settings have it
            url = self._api.create_repo(self.repo_id, private=private, exist_ok=True)
        self.repo_id = url.repo_id  # now with its owner
        return str(url)

    def contents(self) -> dict[str, str]:
        """Return path → id of the content, one of `content_ids`, for every file."""
        with _translated_errors(self.repo_id):
            entries = list(self._api.list_repo_tree(self.repo_id, recursive=True))
        files = (entry for entry in entries if hasattr(entry, "blob_id"))  # not the folders
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    def commit(self, files: Mapping[str, Path], deleted: Sequence[str], message: str) -> None:
        """Add or replace `files` (path in the repository → local file): all of them, or none."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations = [
            *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
            *(CommitOperationDelete(path) for path in deleted),
        ]
        with _translated_errors(self.repo_id):
            self._api.create_commit(self.repo_id, operations, commit_message=message)

    def fetch(self, patterns: Sequence[str]) -> Path:
        """Download the files that match; return the folder of the local cache with them."""
        with _translated_errors(self.repo_id):
            return Path(self._api.snapshot_download(self.repo_id, allow_patterns=list(patterns)))


def content_ids(file: Path) -> tuple[str, str]:
    """Return what the Hub calls this content: SHA-256 in LFS, and git's blob id elsewhere."""
    content_hash, blob_hash = sha256(), sha1(usedforsecurity=False)
    blob_hash.update(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as content:
        while part := content.read(_PART_BYTES):
            content_hash.update(part)
            blob_hash.update(part)
    return content_hash.hexdigest(), blob_hash.hexdigest()


class DatasetRepository:
    """A dataset repository on the Hub. Every method can raise `Unavailable` and `Refused`.

    Args:
        repo_id: ``owner/name``.
        token: of the Hub; None for the one that `hf auth login` stored.
        progress: whether to draw progress bars on stderr.
    """

    def __init__(self, repo_id: str, token: str | None, *, progress: bool) -> None:
        self.repo_id = repo_id
        with _translated_errors(repo_id):
            self._api = _api(token, progress=progress)

    def contents(self, revision: str | None = None) -> tuple[str, set[str]]:
        """Return the commit that a revision (`main` by default) is, and the names of its files."""
        with _translated_errors(self.repo_id):
            # Not a listing of the tree, which the client tries for half a minute.
            info = self._api.dataset_info(self.repo_id, revision=revision)
        return info.sha, {file.rfilename for file in info.siblings or ()}

    def download(
        self,
        names: Sequence[str],
        commit: str,
        *,
        local_dir: Path | None = None,
        cache_dir: Path | None = None,
    ) -> list[Path]:
        """Download files, and return where they are. An interrupted download continues.

        Args:
            names: of the files, in the repository.
            commit: from `contents`.
            local_dir: folder to put the files below, as they lie in the repository.
            cache_dir: without a `local_dir`: a folder in place of the client's cache, which keeps
                the files of several repositories and commits apart.
        """
        if not names:
            return []
        with _translated_errors(self.repo_id):
            folder = self._api.snapshot_download(
                self.repo_id,
                repo_type="dataset",
                revision=commit,
                local_dir=local_dir,
                cache_dir=cache_dir,
                allow_patterns=list(map(glob.escape, names)),
            )
        files = [Path(folder, name) for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:  # during an outage the client returns normally if the folder is not empty
            raise Unavailable(f"{some_of(missing)} did not arrive")
        return files


def patiently(fetch: Callable[[], _Fetched], about: str, say: Callable[[str], None]) -> _Fetched:
    """Call `fetch` until the Hub can be reached, a few times; return what it returns.

    Args:
        fetch: can raise `Refused` and `Unavailable`.
        about: what is fetched, for messages.
        say: takes lines for the user.

    Raises:
        BadData: the Hub refuses, or cannot be reached for half a minute.
    """
    pauses = iter(_PAUSES)
    while True:
        try:
            return fetch()
        except Refused as refused:
            raise BadData(f"{about}: {refused}") from refused
        except Unavailable as unavailable:
            pause = next(pauses, None)
            if pause is None:
                raise BadData(
                    f"{about}: cannot be fetched now ({unavailable}); the same command continues "
                    "the download"
                ) from unavailable
            say(f"Hub: cannot be reached now ({unavailable}); trying again")
            time.sleep(max(pause, unavailable.retry_after or 0.0))


def card_data(readme: Path) -> dict[str, Any]:
    """Return the data above the text of a README, nothing if there is none.

    Raises:
        ValueError: it is not what the Hub takes.
    """
    from huggingface_hub import metadata_load

    try:
        return metadata_load(readme) or {}
    except Exception as error:  # those of its YAML library, which is not ours to know
        raise ValueError(one_line(error)) from None


def _api(token: str | None, *, progress: bool = False) -> Any:
    import huggingface_hub
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        disable_progress_bars,
        enable_progress_bars,
    )

    (enable_progress_bars if progress else disable_progress_bars)()
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{_REPLY_SECONDS:.0f}s")
    # By default it retries for minutes before it reports that the storage is down.
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")
    _limit_replies()
    api = huggingface_hub.HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="raykfold"
    )
    # Its log would appear between the lines of the run. The client sets the level itself when it is
    # first used, so this comes after that.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="huggingface_hub")
    return api


def _limit_replies() -> None:
    """Give the HTTP client a time limit for replies, unless this version hides its default one."""
    import huggingface_hub

    try:
        from huggingface_hub.utils._http import default_client_factory
    except ImportError as error:
        _log.info("the Hub's client waits for replies without a time limit: %s", error)
        return

    def http_client() -> Any:
        client = default_client_factory()
        client.timeout = _REPLY_SECONDS
        return client

    huggingface_hub.set_client_factory(http_client)


# --- errors --------------------------------------------------------------------------------------


@contextmanager
def _translated_errors(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _translate(repo_id, error) from error


def _translate(repo_id: str, error: Exception) -> Unavailable | Refused:
    # The client wraps some errors in others: look at all of them, the outermost first.
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None:
        chain.append(each)
        each = each.__cause__ or each.__context__

    # With an HTTP status, the status decides.
    for each in chain:
        response: Any = getattr(each, "response", None)
        # A failed Xet upload is a ConnectionError whose text has the status.
        in_text = re.search(r"HTTP status client error \((\d{3})", str(each))
        if getattr(response, "status_code", None) is not None:
            status, retry_after = int(response.status_code), _retry_after(response.headers)
        elif in_text:
            status, retry_after = int(in_text[1]), None
        else:
            continue
        if status in _TRANSIENT or status >= 500:
            return Unavailable(f"HTTP {status}", retry_after)
        return Refused(_advice(repo_id, status, error), status)

    # Without one, the kinds of the errors do. A header that cannot be sent is quoted in the error,
    # and it may be the one with the token.
    text = one_line(re.sub(r"Bearer .*", "Bearer ***", str(error), flags=re.DOTALL))
    kind = Unavailable if _is_of_the_network(chain) else Refused
    return kind(f"{type(error).__name__}: {text}")


def _is_of_the_network(chain: Sequence[BaseException]) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Requests that cannot be sent, and HF_HUB_OFFLINE.
    if any(type(each).__name__ in ("LocalProtocolError", "OfflineModeIsEnabled") for each in chain):
        return False
    if any(isinstance(each, OSError) and each.errno in _LOCAL for each in chain):
        return False
    # The HTTP library's error is a base of the client's own. RuntimeError and the built-in
    # ConnectionError (an OSError) come from uploads of large files, OSError from a download that
    # ends too early, and JSONDecodeError from a gateway that answers in HTML.
    http_errors = (base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    kinds: tuple[type, ...] = (*http_errors, OSError, RuntimeError, JSONDecodeError)
    return not isinstance(chain[0], HFValidationError) and any(
        isinstance(each, kinds) for each in chain
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    seconds = headers.get("Retry-After", "")
    if seconds.isdigit():
        return float(seconds)
    # IETF draft: r is how many requests are left, and t the seconds until there are more.
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None


def _advice(repo_id: str, status: int, error: Exception) -> str:
    words = one_line(getattr(error, "server_message", None) or error)
    advice = {
        401: f"{repo_id} needs a valid token: set HF_TOKEN, or run `hf auth login`",
        403: f"the token may not do this with {repo_id}: uploads need write permission, gated data "
        "need access",
        404: f"there is no {repo_id}, or the token may not see it; check the name, and HF_TOKEN",
    }
    return f"HTTP {status}: " + (f"{advice[status]} ({words})" if status in advice else words)
