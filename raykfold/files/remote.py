"""Paths on an object store, S3 or Google Cloud Storage, with the methods of `pathlib.Path` in use.

An object store has no folders, renames or locks. It has a put that happens as a whole or not at
all, and everything here rests on that.

Credentials come from where the stores' own tools look: the environment, their configuration
files, the machine's role. Workers need them too, so they stay in the environment.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from raykfold.errors import BadInput, StorageError
from raykfold.files.scratch import free_bytes
from raykfold.text import one_line, size_text

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSelector, FileSystem

T = TypeVar("T")

# The options that a URI may have after its ?.
_OPTIONS = {
    "s3": {"endpoint_override", "scheme", "region", "tls_ca_file_path"},
    "gs": {"endpoint_override", "scheme", "project_id"},
}
_EXPECTED = "expected a path, or an s3://, gs:// or file:// URI"
# Pauses between tries double from about half a second to 20: twelve tries take about two minutes.
_PATIENT_TRIES = 12
_PATIENT_SECONDS = 120
_IMPATIENT_TRIES = 2
_IMPATIENT_SECONDS = 5
_PAUSE_SECONDS = 0.5
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, order=True)
class RemotePath:
    """A path on an object store: immutable, hashable, and without connections when pickled.

    Methods that send a request retry it through an outage of a minute or two. They raise
    `FileNotFoundError` where no object is, and `StorageError` for every other failure.

    Attributes:
        scheme: ``s3`` or ``gs``.
        key: ``bucket/path``, without a slash at its end.
        query: the URI's options, after its ``?``.
        anonymous: send requests without credentials (``gs://anonymous@…``).
        patient: retry through outages; False for a request that somebody waits for.
    """

    scheme: str
    key: str
    query: str = ""
    anonymous: bool = False
    patient: bool = True

    def __str__(self) -> str:
        user = "anonymous@" if self.anonymous else ""
        # Quote only characters that have a meaning in URIs.
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
        """Return the path relative to `above`."""
        return self.key.removeprefix(f"{above.key}/")

    def impatient(self) -> RemotePath:
        """Return the same path, whose requests fail within seconds."""
        return replace(self, patient=False)

    @property
    def filesystem(self) -> FileSystem:
        """pyarrow's file system, in which the path is `key`; pickling preserves its patience."""
        bucket = self.key.partition("/")[0]
        return _filesystem(self.scheme, bucket, self.query, self.anonymous, self.patient)

    # ---- Reading

    def exists(self) -> bool:
        """Return whether there is an object here or below."""
        from pyarrow.fs import FileType

        return self._info().type != FileType.NotFound

    def is_dir(self) -> bool:
        """Return whether there are objects below."""
        from pyarrow.fs import FileType

        return self._info().type == FileType.Directory

    def version(self) -> tuple[int, int]:
        """Return the size of an object and when it was changed, in whole seconds.

        Raises:
            FileNotFoundError: there is no object here.
        """
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(str(self))
        return info.size, int(info.mtime.timestamp())

    def read_bytes(self) -> bytes:
        return self._ask(lambda files: files.open_input_file(self.key).read())

    def fetch(self, target: Path) -> None:
        """Write the object's content to the file `target`, a part at a time."""

        def copy(files: FileSystem) -> None:
            with files.open_input_stream(self.key) as source, target.open("wb") as file:
                while part := source.read(_CHUNK_BYTES):
                    file.write(part)

        self._ask(copy)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the paths directly below, if any."""
        yield from (each for each, _ in self._list(recursive=False))

    def sizes(self) -> dict[str, int]:
        """Return name → size of what lies directly below; 0 for what has more below itself."""
        listed = self._list(recursive=False)
        return {each.name: info.size if info.is_file else 0 for each, info in listed}

    def files(self) -> dict[RemotePath, int]:
        """Return all objects below, at any depth, with their sizes."""
        return {each: info.size for each, info in self._list(recursive=True) if info.is_file}

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield what `Path.glob` would, without ``**``; only parts with a wildcard are listed."""
        part, _, rest = pattern.partition("/")
        if re.search(r"[*?\[]", part):
            found = [each for each in self.iterdir() if fnmatchcase(each.name, part)]
        else:
            found = [self / part] if rest or (self / part).exists() else []
        for each in found:
            yield from each.glob(rest) if rest else (each,)

    # ---- Writing

    def write_bytes(self, content: bytes) -> None:
        """Put the object, all of it or nothing."""

        def put(files: FileSystem) -> None:
            # allow_delayed_open: content that fits into one request is put with one.
            stream = files.open_output_stream(self.key)
            stream.write(content)
            stream.close()

        self._ask(put)

    def send(self, source: Path) -> None:
        """Put the content of the file `source`, without reading all of it into memory."""
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
        """Delete all objects below, if any."""
        with suppress(FileNotFoundError):
            self._ask(lambda files: files.delete_dir(self.key))

    # ---- Requests

    def _info(self) -> FileInfo:
        info: FileInfo = self._ask(lambda files: files.get_file_info(self.key))
        return info

    def _list(self, *, recursive: bool) -> list[tuple[RemotePath, FileInfo]]:
        from pyarrow.fs import FileSelector

        below: FileSelector = FileSelector(self.key, allow_not_found=True, recursive=recursive)
        found: list[FileInfo] = self._ask(lambda files: files.get_file_info(below))
        return sorted((replace(self, key=info.path.rstrip("/")), info) for info in found)

    def _ask(self, request: Callable[[FileSystem], T]) -> T:
        ends = time.monotonic() + (_PATIENT_SECONDS if self.patient else _IMPATIENT_SECONDS)

        def ask() -> T:
            _under_way.append(None)
            try:
                while True:
                    try:
                        return request(self.filesystem)
                    except OSError as error:
                        if _OVERFLOWN not in str(error) or time.monotonic() > ends:
                            raise
                        time.sleep(_PAUSE_SECONDS)
            finally:
                _under_way.pop()

        try:
            return _without_signals(ask)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self}: no such object") from None
        except (OSError, ValueError) as error:  # pyarrow's own errors are of both kinds
            raise StorageError(
                f"{self}: {reason(error)}; what was complete before is safe, and the same command "
                "resumes from it"
            ) from error


Place = Path | RemotePath

# pyarrow does not retry this error. It comes when a store answers the read of a small object with
# an error message longer than the object, also where the object was deleted a moment before.
_OVERFLOWN = "Failed to flush response stream"

_under_way: list[None] = []  # an item for each request


def leave(code: int) -> NoReturn:
    """End the process with an exit code, at once where a request is under way.

    An ordinary exit would wait for the request, which takes minutes in an outage.
    """
    if _under_way:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # Skip the interpreter's last search for cycles. With torch and Ray imported it takes most of a
    # second, and the process frees all memory anyway.
    gc.freeze()
    sys.exit(code)


def place(value: object) -> Place:
    """Return the path that `value` names: a local path, a file:// URI, or a URI of a store.

    Args:
        value: a text, or anything that is a path.

    Raises:
        ValueError: it is none of these; the text says what would be right.
    """
    if isinstance(value, RemotePath):
        return value
    if isinstance(value, os.PathLike):
        path = Path(os.fsdecode(value))
        if re.match(r"[a-z0-9]+:/", str(path)):
            raise ValueError("a Path drops a slash of a URI; expected a string")
        return path
    if not isinstance(value, str):
        raise ValueError(_EXPECTED)
    if "://" not in value:
        return Path(value)
    # Not left to urlsplit, which finds no scheme in some texts that have one.
    scheme = value.partition("://")[0].lower()
    try:
        parts = urlsplit(value)
    except ValueError as error:
        raise ValueError(f"{_EXPECTED} ({error})") from None
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ValueError("expected a file:// URI with three slashes and an absolute path")
        return Path(unquote(parts.path))
    if scheme not in _OPTIONS:
        raise ValueError(_EXPECTED)
    user, at, bucket = parts.netloc.rpartition("@")
    anonymous = scheme == "gs" and user == "anonymous"
    if at and not anonymous:
        raise ValueError("has credentials; expected them in the environment, not in a URI")
    if not bucket:
        raise ValueError(f"names no bucket; expected {scheme}://bucket/path")
    if parts.fragment:
        raise ValueError("has a #; write it as %23")
    options = parse_qsl(parts.query, keep_blank_values=True)
    for option, _ in options:
        if option not in _OPTIONS[scheme]:
            known = ", ".join(sorted(_OPTIONS[scheme]))
            raise ValueError(f"{option!r} is not an option of {scheme}://; expected one of {known}")
    if dict(options).get("scheme", "https") not in ("http", "https"):
        raise ValueError("has another scheme after the ? than http or https")
    names = [name for name in unquote(parts.path).split("/") if name]
    if {".", ".."} & set(names):
        raise ValueError("has . or .. in its path; expected the path itself")
    return RemotePath(scheme, "/".join([bucket, *names]), parts.query, anonymous)


def impatient(place: Place) -> Place:
    """Return the same path, whose requests, if it is on a store, fail within seconds."""
    return place.impatient() if isinstance(place, RemotePath) else place


def reason(error: Exception) -> str:
    """Return what a store said, for an error of pyarrow or one raised from it."""
    text = one_line(error.__cause__ or error, longest=None)
    return re.sub(r" \((Request ID|Details): .*", "", text)[:300]


def without_password(text: str) -> str:
    """Return `text`, which may be a URI, without its credentials and options."""
    return re.sub(r"(://[^?]*)\?.*", r"\1?…", re.sub(r"://[^/?#]*@", "://…@", text))


@contextmanager
def local_copy(
    remote: RemotePath,
    wanted: Callable[[Iterable[str]], Iterable[str]],
    folder: Path,
    chosen_by: str = "TMPDIR",
) -> Iterator[Path]:
    """Fetch objects directly below `remote` into `folder`, and yield `folder`.

    An error raised inside that names the folder is raised again and names `remote` instead.

    Args:
        wanted: chooses the objects to fetch, among the names of all.
        folder: on a disk with room for them.
        chosen_by: what a message calls that folder.

    Raises:
        BadInput: the store cannot be reached, or refuses; or there is no room.
    """
    try:
        sizes = remote.impatient().sizes()
        names = list(wanted(sizes))
        needed, free = sum(sizes[name] for name in names), free_bytes(folder)
        if needed > free:
            raise BadInput(
                f"{chosen_by}: has {size_text(free)} free, and {remote} takes {size_text(needed)}; "
                "expected a folder with that room"
            )
        for name in names:
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
    """Return Ray Train's ``storage_path`` and ``storage_filesystem``, None for the local one."""
    if isinstance(storage, RemotePath):
        return storage.key, storage.filesystem
    return str(storage), None


def same_store(beside: Place, path: str) -> Place:
    """Return a path that Ray names without a scheme, on the file system of `beside`."""
    return replace(beside, key=path) if isinstance(beside, RemotePath) else Path(path)


@functools.cache
def _filesystem(scheme: str, bucket: str, query: str, anonymous: bool, patient: bool) -> FileSystem:
    """Return the process's only file system for a store, which keeps its connections.

    One is made for all requests, because pyarrow waits with making another until no request of the
    process is under way. In an outage a request takes minutes.
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
        """Keeps its retry strategy when Ray pickles it for a worker, as S3FileSystem does not."""

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


def _without_signals(call: Callable[[], T]) -> T:
    """Return what `call` returns, run in a thread that no signal interrupts.

    Python's signal handlers run in the main thread. There, one would cut a put short and leave
    half an object that looks whole; or Ctrl-C would be heard only after an outage.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="storage", daemon=True).start()
    return outcome.result()
