"""Paths on an object store, S3 or Google Cloud Storage: what the rest asks of a `pathlib.Path`.

An object store has no folders, no renames and no locks. What it has is a put that happens as a
whole or not at all, and everything here is made of that.

Credentials come from where the stores' own tools look: the environment, their configuration
files, the machine's role. Workers need them too, so they are not taken out of the environment.
"""

from __future__ import annotations

import functools
import gc
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from raykfold.errors import BadInput, StorageError
from raykfold.text import one_line

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSelector, FileSystem

T = TypeVar("T")

# What may stand behind the ? of a URI.
_OPTIONS = {
    "s3": {"endpoint_override", "scheme", "region", "tls_ca_file_path"},
    "gs": {"endpoint_override", "scheme", "project_id"},
}
_WANTED = "want a path, or an s3://, gs:// or file:// URI"
# Pauses between tries double from about half a second to 20: twelve are two minutes, give or take.
_PATIENT_TRIES = 12
_PATIENT_SECONDS = 120
_IMPATIENT_TRIES = 2
_IMPATIENT_SECONDS = 5
_PAUSE_SECONDS = 0.5
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, order=True)
class RemotePath:
    """A path on an object store: immutable, hashable, and free of connections when pickled.

    Every method that asks the store bridges an outage of a minute or two, and raises
    `FileNotFoundError` where nothing is, and `StorageError` for all else that goes wrong.

    Attributes:
        scheme: ``s3`` or ``gs``.
        key: ``bucket/path``, without a slash at its end.
        query: what stood behind the ``?`` of the URI.
        anonymous: ask without credentials (``gs://anonymous@…``).
        patient: bridge outages; False for a look that somebody waits for.
    """

    scheme: str
    key: str
    query: str = ""
    anonymous: bool = False
    patient: bool = True

    def __str__(self) -> str:
        user = "anonymous@" if self.anonymous else ""
        # Only what a reader of URIs would take for something else.
        key = re.sub("[%?#]", lambda mark: quote(mark[0]), self.key)
        return f"{self.scheme}://{user}{key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, below: str | Path) -> RemotePath:
        return replace(self, key=f"{self.key}/{below}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        above = self.key.rpartition("/")[0]
        return replace(self, key=above) if above else self

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def path_below(self, above: RemotePath) -> str:
        """The path from `above` to here."""
        return self.key.removeprefix(f"{above.key}/")

    def impatient(self) -> RemotePath:
        """The same place, for a look that fails within seconds."""
        return replace(self, patient=False)

    @property
    def filesystem(self) -> FileSystem:
        """pyarrow's file system, in which this is `key`; its patience survives pickling."""
        bucket = self.key.partition("/")[0]
        return _filesystem(self.scheme, bucket, self.query, self.anonymous, self.patient)

    # --- reading ---------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether an object, or one below it, is there."""
        from pyarrow.fs import FileType

        return self._info().type != FileType.NotFound

    def is_dir(self) -> bool:
        """Whether objects are below it."""
        from pyarrow.fs import FileType

        return self._info().type == FileType.Directory

    def version(self) -> tuple[int, int]:
        """Size and time, in whole seconds, of an object.

        Raises:
            FileNotFoundError: it is not there.
        """
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(str(self))
        return info.size, int(info.mtime.timestamp())

    def read_bytes(self) -> bytes:
        return self._ask(lambda files: files.open_input_file(self.key).read())

    def fetch(self, target: Path) -> None:
        """Write the content to the file `target`, a part at a time."""

        def copy(files: FileSystem) -> None:
            with files.open_input_stream(self.key) as source, target.open("wb") as file:
                while part := source.read(_CHUNK_BYTES):
                    file.write(part)

        self._ask(copy)

    def iterdir(self) -> Iterator[RemotePath]:
        """What is right below; nothing where nothing is."""
        yield from (each for each, _ in self._list(recursive=False))

    def files(self) -> dict[RemotePath, int]:
        """Every object below, however deep, with its size."""
        return {each: info.size for each, info in self._list(recursive=True) if info.is_file}

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """As `Path.glob`, without ``**``; a part without a wildcard costs no listing."""
        part, _, rest = pattern.partition("/")
        if re.search(r"[*?\[]", part):
            found = [each for each in self.iterdir() if fnmatchcase(each.name, part)]
        else:
            found = [self / part] if rest or (self / part).exists() else []
        for each in found:
            yield from each.glob(rest) if rest else (each,)

    # --- writing ---------------------------------------------------------------------------

    def write_bytes(self, content: bytes) -> None:
        """Put the object, all of it or nothing."""

        def put(files: FileSystem) -> None:
            # Opened late: what fits into one request is put with one.
            stream = files.open_output_stream(self.key)
            stream.write(content)
            stream.close()

        self._ask(put)

    def send(self, source: Path) -> None:
        """Put the content of the file `source`, which is not read into memory as a whole."""
        from pyarrow.fs import LocalFileSystem, copy_files

        local = LocalFileSystem()
        self._ask(lambda files: copy_files(str(source), self.key, local, files, use_threads=False))

    def copy_to(self, target: RemotePath) -> None:
        """Copy an object within the store."""
        self._ask(lambda files: files.copy_file(self.key, target.key))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            self._ask(lambda files: files.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Delete every object below; nothing has to be there."""
        with suppress(FileNotFoundError):
            self._ask(lambda files: files.delete_dir(self.key))

    # --- asking ----------------------------------------------------------------------------

    def _info(self) -> FileInfo:
        info: FileInfo = self._ask(lambda files: files.get_file_info(self.key))
        return info

    def _list(self, *, recursive: bool) -> list[tuple[RemotePath, FileInfo]]:
        from pyarrow.fs import FileSelector

        below: FileSelector = FileSelector(self.key, allow_not_found=True, recursive=recursive)
        found: list[FileInfo] = self._ask(lambda files: files.get_file_info(below))
        return sorted((replace(self, key=info.path.rstrip("/")), info) for info in found)

    def _retried(self, request: Callable[[FileSystem], T]) -> T:
        ends = time.monotonic() + (_PATIENT_SECONDS if self.patient else _IMPATIENT_SECONDS)
        while True:
            try:
                return request(self.filesystem)
            except OSError as error:
                if _OVERFLOWN not in str(error) or time.monotonic() > ends:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _ask(self, request: Callable[[FileSystem], T]) -> T:
        def counted() -> T:
            _under_way.append(None)
            try:
                return self._retried(request)
            finally:
                _under_way.pop()

        try:
            return _interruptible(counted)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self}: is not there") from None
        except (OSError, ValueError) as error:  # pyarrow's own errors are of both kinds
            raise StorageError(
                f"{self}: {reason(error)}; what was complete before is safe, and the same command "
                "resumes from it"
            ) from error


Place = Path | RemotePath

# What pyarrow says, and does not retry, when a store answers a read of a small object with an
# error that is longer than the object: also when it was deleted a moment before.
_OVERFLOWN = "Failed to flush response stream"

_under_way: list[None] = []  # one for each request


def leave(code: int) -> NoReturn:
    """End the process, at once where a request is under way.

    At an ordinary end pyarrow waits for it, and one that bridges an outage takes minutes.
    """
    if _under_way:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # What is alive goes with the process. The interpreter would look through all of it for cycles,
    # which takes most of a second with torch and Ray imported.
    gc.freeze()
    sys.exit(code)


def place(value: str | Path | RemotePath) -> Place:
    """A path as people write it: a URI of an object store, or a local path, also as a file:// URI.

    Raises:
        ValueError: it is neither; the text says what would be right.
    """
    if isinstance(value, RemotePath):
        return value
    if isinstance(value, Path):
        if re.match(r"[a-z0-9]+:/", str(value)):
            raise ValueError("a Path swallows a slash of a URI; want it as text")
        return value
    if "://" not in value:
        return Path(value)
    return _parsed(value)


def _parsed(uri: str) -> Place:
    # By hand where urlsplit would take a part of a name for something else, or drop it.
    scheme = uri.partition("://")[0].lower()
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ValueError(f"{_WANTED} ({error})") from None
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ValueError("want a file:// URI with three slashes and an absolute path")
        return Path(unquote(parts.path))
    if scheme not in _OPTIONS:
        raise ValueError(_WANTED)
    user, at, bucket = parts.netloc.rpartition("@")
    anonymous = scheme == "gs" and user == "anonymous"
    if at and not anonymous:
        raise ValueError("want no credentials in a URI; they come from the environment")
    if not bucket:
        raise ValueError(f"names no bucket; want {scheme}://bucket/path")
    if parts.fragment:
        raise ValueError("has a #; write it as %23")
    known = ", ".join(sorted(_OPTIONS[scheme]))
    options = parse_qsl(parts.query, keep_blank_values=True)
    for option, _ in options:
        if option not in _OPTIONS[scheme]:
            raise ValueError(f"{option!r} is no option of {scheme}://; want one of {known}")
    if dict(options).get("scheme", "https") not in ("http", "https"):
        raise ValueError("the scheme behind the ? is http or https")
    names = [name for name in unquote(parts.path).split("/") if name]
    if {".", ".."} & set(names):
        raise ValueError("has . or .. for a name; want the path itself")
    return RemotePath(scheme, "/".join([bucket, *names]), parts.query, anonymous)


def reason(error: Exception) -> str:
    """What a store said, of its errors and of those made of them."""
    text = one_line(error.__cause__ or error, longest=None)
    return re.sub(r" \((Request ID|Details): .*", "", text)[:300]


def without_password(text: str) -> str:
    """`text`, which may be a URI, as it can be shown."""
    return re.sub(r"(://[^?]*)\?.*", r"\1?…", re.sub(r"://[^/?#]*@", "://…@", text))


@contextmanager
def fetched(
    remote: RemotePath, wanted: Callable[[Iterable[str]], Iterable[str]], folder: Path
) -> Iterator[Path]:
    """Objects right below `remote`, as files in `folder`: those that `wanted` chooses by name.

    An error inside that names the folder names `remote` instead.

    Raises:
        BadInput: the store cannot be reached, or refuses.
    """
    try:
        for name in wanted([each.name for each in remote.impatient().iterdir()]):
            (remote / name).fetch(folder / name)
    except StorageError as error:
        raise BadInput(f"{remote}: cannot be read ({reason(error)})") from None
    try:
        yield folder
    except BadInput as error:
        local = re.escape(str(folder)) + r"(?:/([\w.-]+))?"
        text = re.sub(local, lambda at: str(remote / at[1] if at[1] else remote), str(error))
        raise type(error)(text) from error


def for_ray(storage: Place) -> tuple[str, Any]:
    """What Ray Train calls ``storage_path`` and ``storage_filesystem``; None is the local one."""
    if isinstance(storage, RemotePath):
        return storage.key, storage.filesystem
    return str(storage), None


def same_store(beside: Place, path: str) -> Place:
    """What the file system of `beside` calls `path`, as Ray names it: without a scheme."""
    return replace(beside, key=path) if isinstance(beside, RemotePath) else Path(path)


@functools.cache
def _filesystem(scheme: str, bucket: str, query: str, anonymous: bool, patient: bool) -> FileSystem:
    """One for each store and process, which keeps its connections.

    Made early and once also because pyarrow makes a new one only when no request of the process
    is under way, and one that bridges an outage is for minutes.
    """
    options = dict(parse_qsl(query))
    if scheme == "s3":
        return _s3(bucket, options, (scheme, bucket, query, anonymous, patient))
    from pyarrow.fs import GcsFileSystem

    limit = timedelta(seconds=_PATIENT_SECONDS if patient else _IMPATIENT_SECONDS)
    return GcsFileSystem(anonymous=anonymous, retry_time_limit=limit, **options)


def _s3(bucket: str, options: dict[str, str], made_from: tuple[Any, ...]) -> FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    class PatientS3(S3FileSystem):
        """Ray sends its file system to workers, and pyarrow's own pickle forgets its patience."""

        def __reduce__(self) -> tuple[Any, ...]:
            return _filesystem, made_from

    patient = made_from[-1]
    if "region" not in options and "endpoint_override" not in options:
        options = {**options, "region": resolve_s3_region(bucket)}
    files: FileSystem = PatientS3(
        connect_timeout=5 if patient else 3,
        request_timeout=30 if patient else 5,
        allow_delayed_open=True,
        retry_strategy=AwsStandardS3RetryStrategy(
            max_attempts=_PATIENT_TRIES if patient else _IMPATIENT_TRIES
        ),
        **options,
    )
    return files


def _interruptible(call: Callable[[], T]) -> T:
    """Run `call` where no signal can cut it short, nor has to wait for it.

    Python's handlers run in the main thread: within a put that would leave half an object for a
    whole one, and in an outage Ctrl-C would be heard minutes later.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    ended: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=run, name="storage", daemon=True).start()
    result, error = ended.get()
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
