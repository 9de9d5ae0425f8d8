"""The mirror on the Hugging Face Hub: weights and results go up while training runs.

There is no queue that a kill could lose: what has to go up is the difference between the files in
`model_dir` and what the repository says that it holds. ``python -m raykfold.hub upload`` sends what
an earlier run could not. The summary goes with the last commit, so a repository that has one is
complete.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykfold.config.run_config import RunConfig
from raykfold.data.reading import FILE_NAMES, missing_arrays
from raykfold.errors import BadData
from raykfold.files.atomic import link_file, write_file
from raykfold.files.paths import ModelDir, is_weights
from raykfold.files.scratch import scratch_dir
from raykfold.observers import Observer, RunStart
from raykfold.outputs.hub_client import (
    ModelRepository,
    Refused,
    Unavailable,
    content_ids,
    fetch_dataset,
)
from raykfold.outputs.model_card import model_card
from raykfold.state.archive import read_summary
from raykfold.text import duration, one_line
from raykfold.training.results import EpochMetrics, FoldResult, Summary

CARD = "README.md"
FILES_A_COMMIT = 90  # the Hub asks for less than 100
FIRST_PAUSE = 5.0  # seconds after a failure; doubled with every further one
LONGEST_PAUSE = 300.0
LONGEST_WAIT = 60.0  # seconds between two commits, or tries, once somebody waits for the end
_SAY_SECONDS = 30.0
_TRIES_TO_SEE = 5
_FETCHED = ".fetched-"


class Uploader:
    """Brings a run's files to a repository, in a thread of its own, until `finish` or `stop`.

    Args:
        outputs: the run's.
        repository: where they go.
        upload: ``all`` weights, or the ``best`` of each fold.
        interval: seconds from one commit to the next, at least.
        first_pause: seconds to the second try after a failure.
        repeats: of the run, by the folder that they go to, where they lie outside of `outputs`.
    """

    def __init__(
        self,
        outputs: ModelDir,
        repository: ModelRepository,
        *,
        upload: str = "all",
        interval: float = 60.0,
        first_pause: float = FIRST_PAUSE,
        repeats: Mapping[str, ModelDir] | None = None,
    ) -> None:
        self._outputs = outputs
        self._repository = repository
        self._upload = upload
        self._interval = interval
        self._first_pause = first_pause
        self._repeats = dict(repeats or {})
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="hub", daemon=True)
        self._changed = threading.Condition()
        self._news = False
        self._over = False
        self._stopped = False
        self._created = False
        self._seen = False  # whether `_there` is what the repository says
        self._there: dict[str, str] = {}  # path → id of its content
        self._ids: dict[Path, tuple[Any, tuple[str, str]]] = {}  # as of which size and time
        self._last_commit = float("-inf")
        self._attempt: list[str] | None = None  # paths of a commit that may be there or not
        self._failures = 0
        self._takes_card = True
        self._broken = False
        self._told_of_others = False

    # --- for the driver's thread -----------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There are new files."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def finish(self) -> None:
        """There will be no further files: end when all are up."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End now, or after the request that is under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Whether it has come to its end by then."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def broken(self) -> bool:
        """Whether it has given up."""
        return self._broken

    def notices(self) -> list[str]:
        """Lines for the user since the last call."""
        lines = []
        while not self._notices.empty():
            lines.append(self._notices.get())
        return lines

    def left(self) -> list[str]:
        """Paths in the repository of files that are not known to be there."""
        return list(self._missing(self._over))

    def pending(self) -> int:
        """How many files are not known to be up, of what they were when they were last read.

        Cheap, and for any thread: no file is read.
        """
        files = self._files(self._over)
        unknown = {path for path, file in files.items() if not self._is_known_to_be_up(path, file)}
        return len(unknown if self._over else unknown - {CARD})  # a card alone waits for weights

    # --- in the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._stopped:
                try:
                    if not self._step():
                        return
                except Unavailable as unavailable:
                    self._outlast(unavailable)
        except Refused as refused:
            self._broken = True
            self._say(f"{refused}; uploads stop here, and nothing else does")
        except Exception as error:  # a full disk, or a fault of ours: training must not feel it
            self._broken = True
            self._say(f"uploads stop here, and nothing else does: {one_line(error)}")

    def _step(self) -> bool:
        """Make the next commit, when there is something for it and its time has come.

        Returns:
            Whether there is more to come.

        Raises:
            Unavailable, Refused: by the Hub.
        """
        self._open()
        self._look()
        over, self._news = self._over, False  # before the look at the files: later ones are news
        self._write_card(over)
        missing = self._missing(over)
        if missing and (over or missing.keys() != {CARD}):  # a card alone can wait for weights
            self._commit_when_due()
            return True
        if over:
            return False
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._over or self._stopped)
        return True

    def _open(self) -> None:
        if not self._created:
            url = self._repository.create()
            self._created = True
            self._say(f"the repository {url} is open, and takes the weights")

    def _look(self) -> None:
        """Learn what the repository holds: at first, and after a commit of unknown outcome."""
        if self._seen:
            return
        try:
            self._there = self._repository.contents()
        except Refused as refused:
            # The Hub can take a moment to know a repository that it has just made.
            if refused.status != 404 or self._failures >= _TRIES_TO_SEE:
                raise
            raise Unavailable(str(refused)) from refused
        self._seen = True
        if self._attempt is None:
            self._is_reached()
            self._tell_of_others()
            return
        paths, self._attempt = self._attempt, None
        if not set(paths) & set(self.left()):  # only its reply was lost
            self._last_commit = time.monotonic()
            self._is_reached()

    def _tell_of_others(self) -> None:
        """Another run's files stay where they are: nobody has asked for them to go."""
        ours = self._files(True)
        others = [path for path in self._there if is_weights(path) and path not in ours]
        if others and not self._told_of_others:
            self._say(f"{some_of(others)} in the repository: of another run, not touched")
        self._told_of_others = True

    def _commit_when_due(self) -> None:
        interval = min(self._interval, LONGEST_WAIT) if self._over else self._interval
        due = self._last_commit + interval
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, max(0.0, due - time.monotonic()))
        if not self._stopped:
            over = self._over  # asked once: the card and the summary must be of one mind
            self._write_card(over)
            missing = self._missing(over)
            batch = self._batch(missing)
            try:
                self._commit(batch, self._stale(over, missing, batch))
            except Refused as refused:
                if refused.status != 400 or CARD not in batch:
                    raise
                self._say(f"{refused}; going on without the model card")
                self._takes_card = False

    def _commit(self, batch: Mapping[str, Path], stale: Sequence[str]) -> None:
        with scratch_dir(self._outputs.root) as aside:
            # A file that is replaced meanwhile must not change under the upload's feet.
            files = {path: aside / str(number) for number, path in enumerate(batch)}
            for path, copy in files.items():
                link_file(batch[path], copy)
            ids = {path: content_ids(copy)[0] for path, copy in files.items()}
            self._attempt, self._seen = list(files), False
            self._repository.commit(files, stale, _title(files))
        self._last_commit, self._attempt, self._seen = time.monotonic(), None, True
        self._there.update(ids)
        for path in stale:
            self._there.pop(path)
        self._is_reached()

    def _batch(self, missing: Mapping[str, Path]) -> dict[str, Path]:
        """What goes into the next commit; the summary only where nothing else is left."""
        if len(missing) <= FILES_A_COMMIT:
            return dict(missing)
        first = [path for path in missing if path == CARD]
        rest = [path for path in missing if path not in (CARD, self._summary)]
        return {path: missing[path] for path in [*first, *rest][:FILES_A_COMMIT]}

    def _stale(self, over: bool, missing: Collection[str], batch: Collection[str]) -> list[str]:
        """An earlier summary, which says that the repository is complete: it is not now."""
        name = self._summary
        is_final = name in self._files(over) and name not in missing
        return [name] if name in self._there and name not in batch and not is_final else []

    @property
    def _summary(self) -> str:
        return self._outputs.summary.name

    def _missing(self, over: bool) -> dict[str, Path]:
        """Those of `_files` that are not known to be there."""
        files = self._files(over).items()
        return {path: file for path, file in files if self._is_missing(path, file)}

    def _files(self, over: bool) -> dict[str, Path]:
        """Path in the repository → file, in the order in which they go up."""
        outputs = self._outputs
        files = self._files_of(outputs)
        for name, repeat in {**outputs.repeats(), **self._repeats}.items():
            results = [repeat.summary] if over and repeat.summary.exists() else []
            of_repeat = self._files_of(repeat) | {file.name: file for file in results}
            files |= {f"{name}/{path}": file for path, file in of_repeat.items()}
        if self._takes_card and outputs.card.exists():
            files[CARD] = outputs.card
        if over and outputs.summary.exists():
            files[self._summary] = outputs.summary
        return files

    def _files_of(self, outputs: ModelDir) -> dict[str, Path]:
        """Of the run or of a repeat: weights and results, but for the summary."""
        weights = outputs.all_epoch_weights() if self._upload == "all" else []
        files = {f"{file.parent.name}/{file.name}": file for file in weights}
        files |= {file.name: file for file in outputs.all_best_weights()}
        files |= {f"{file.parent.name}/{file.name}": file for file in outputs.all_plots()}
        results = [outputs.histories, outputs.fold_results, outputs.predictions, outputs.report]
        return files | {file.name: file for file in results if file.exists()}

    def _is_missing(self, path: str, file: Path) -> bool:
        try:
            there = self._there.get(path)
            return there is None or there not in self._content_ids(file)
        except FileNotFoundError:  # the run took it back meanwhile
            return False

    def _is_known_to_be_up(self, path: str, file: Path) -> bool:
        try:
            as_of = _as_of(file)
        except FileNotFoundError:  # the run took it back meanwhile
            return True
        read, ids = self._ids.get(file, (None, ()))
        return read == as_of and self._there.get(path) in ids

    def _content_ids(self, file: Path) -> tuple[str, str]:
        as_of = _as_of(file)
        if file not in self._ids or self._ids[file][0] != as_of:
            self._ids[file] = (as_of, content_ids(file))
        return self._ids[file][1]

    def _write_card(self, over: bool) -> None:
        outputs = self._outputs
        if not (outputs.run_record.exists() and outputs.training_state.exists()):
            return
        summary = read_summary(outputs.summary) if over else None
        card = model_card(
            self._repository.repo_id,
            _json(outputs.run_record),
            _json(outputs.training_state),
            summary,
            [f"{file.parent.name}/{file.name}" for file in outputs.all_plots()],
        ).encode()
        if not (outputs.card.exists() and outputs.card.read_bytes() == card):
            write_file(outputs.card, card)

    def _outlast(self, unavailable: Unavailable) -> None:
        if not self._failures:
            self._say(f"not to be reached now ({unavailable}); uploads are tried again")
        over = self._over
        longest = LONGEST_WAIT if over else LONGEST_PAUSE
        pause = min(self._first_pause * 2 ** min(self._failures, 10), longest)
        self._failures += 1
        asked = unavailable.retry_after or 0.0
        with self._changed:
            # Once the run is over somebody waits: try at once, unless asked not to.
            self._changed.wait_for(
                lambda: self._stopped or (self._over and not over and not asked), max(pause, asked)
            )

    def _is_reached(self) -> None:
        if self._failures:
            self._say("reached again")
        self._failures = 0

    def _say(self, text: str) -> None:
        self._notices.put(f"Hub: {text}")


def _as_of(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _title(files: Collection[str]) -> str:
    last = ModelDir(Path()).summary.name in files
    return f"{'Results' if last else 'Weights'}: {_counted(files)}"


def _counted(files: Collection[str]) -> str:
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


class Mirror(Observer):
    """Has an `Uploader` follow the run, and waits for it at the end.

    Args:
        uploader: not started yet.
        timeout: seconds to wait at the end.
        say: takes lines for the user.
        again: the command that sends what is left.
    """

    def __init__(
        self, uploader: Uploader, *, timeout: float, say: Callable[[str], None], again: str
    ) -> None:
        self._uploader = uploader
        self._timeout = timeout
        self._say = say
        self._again = again
        self._started = False
        self._over = False

    def run_started(self, start: RunStart) -> None:
        self._uploader.start()
        self._started = True

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._uploader.wake()

    def fold_finished(self, result: FoldResult) -> None:
        self._uploader.wake()

    def time_passed(self) -> None:
        _pass_on(self._uploader, self._say)

    def run_finished(self, summary: Summary) -> None:
        self._uploader.finish()
        self._over = True

    def pending(self) -> Mapping[str, int]:
        return {"Hub": self._uploader.pending()}

    def close(self) -> None:
        if not self._started:
            return
        try:
            if self._over:
                wait_for(self._uploader, self._timeout, self._say)
        finally:
            self._uploader.stop()
            self.time_passed()
            left = self._uploader.left()
            if left:
                self._say(f"Hub: not up yet: {some_of(left)}; to send them: {self._again}")
            elif self._over and not self._uploader.broken:
                self._say("Hub: everything is up")


def wait_for(uploader: Uploader, seconds: float, say: Callable[[str], None]) -> bool:
    """Wait for the end of an uploader that was told to finish; whether it came."""
    ends = time.monotonic() + seconds
    says = time.monotonic() + 1.0  # most often there is nothing left to wait for
    while not (ended := uploader.wait(0.1)) and time.monotonic() < ends:
        _pass_on(uploader, say)
        if time.monotonic() >= says:
            says = time.monotonic() + _SAY_SECONDS
            files, patience = _counted(uploader.left()), duration(ends - time.monotonic())
            say(f"Hub: waiting for {files} to go up, {patience} at most")
    _pass_on(uploader, say)
    return ended


def _pass_on(uploader: Uploader, say: Callable[[str], None]) -> None:
    for line in uploader.notices():
        say(line)


def some_of(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:3])
    return shown if len(paths) <= 3 else f"{len(paths)} files ({shown}, …)"


def mirror(config: RunConfig, token: str | None, say: Callable[[str], None]) -> Mirror:
    """The mirror of a run whose `hf_model_repo_id` is given."""
    assert config.hf_model_repo_id is not None
    uploader = Uploader(
        config.outputs,
        ModelRepository(config.hf_model_repo_id, token, private=config.hf_private),
        upload=config.hub_upload,
        interval=config.hub_interval,
        repeats={
            repeat.model_place.name: repeat.outputs
            for repeat in map(config.repeat, range(1, config.repeats))
        },
    )
    again = shlex.join(
        [
            *("python", "-m", "raykfold.hub", "upload"),
            *("--model_dir", str(config.model_path), "--repo", config.hf_model_repo_id),
            *("--hub_upload", config.hub_upload),
        ]
    )
    return Mirror(uploader, timeout=config.hub_timeout, say=say, again=again)


def fetch_missing(
    processed_dir: Path, repo_id: str, token: str | None, say: Callable[[str], None]
) -> None:
    """Download what `processed_dir` lacks of a data set from a dataset repository.

    A file is there whole or not at all, and those that are there stay.

    Raises:
        BadData: the repository cannot be read, or lacks it too.
    """
    lacking = missing_arrays(processed_dir)
    if not lacking:
        return
    say(f"{processed_dir} lacks {', '.join(lacking)}: fetching from the dataset {repo_id} (Hub)")
    if processed_dir.exists() and not processed_dir.is_dir():
        raise BadData(f"--processed_dir {processed_dir}: is no folder")
    # A name that stays, for a fetch that was cut short to go on, but not with another's files.
    aside = processed_dir / f"{_FETCHED}{repo_id.replace('/', '--')}"
    choices = [
        names for names in FILE_NAMES if not any((processed_dir / name).exists() for name in names)
    ]
    # The arrays come last: while one is missing, the next call fetches what is.
    for file in reversed(_fetch_with_patience(repo_id, choices, aside, token, say)):
        os.replace(file, processed_dir / file.name)
    for left in processed_dir.glob(f"{_FETCHED}*"):
        shutil.rmtree(left)
    lacking = missing_arrays(processed_dir)
    if lacking:
        files = ", ".join(f"{name}.npy (or .pkl)" for name in lacking)
        raise BadData(f"--hf_repo_id {repo_id}: the dataset has no {files}")


def _fetch_with_patience(
    repo_id: str,
    choices: Sequence[Sequence[str]],
    folder: Path,
    token: str | None,
    say: Callable[[str], None],
) -> list[Path]:
    pauses = iter((1.0, 4.0, 16.0))
    while True:
        try:
            return fetch_dataset(repo_id, choices, folder, token, progress=sys.stderr.isatty())
        except Refused as refused:
            raise BadData(f"--hf_repo_id {repo_id}: {refused}") from refused
        except Unavailable as unavailable:
            pause = next(pauses, None)
            if pause is None:
                raise BadData(
                    f"--hf_repo_id {repo_id}: cannot be fetched now ({unavailable}); the same "
                    "command goes on with it"
                ) from unavailable
            say(f"Hub: not to be reached now ({unavailable}); tried again")
            time.sleep(max(pause, unavailable.retry_after or 0.0))
