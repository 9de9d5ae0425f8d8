"""The mirror of a run in a model repository on the Hugging Face Hub.

``python -m raykfold.hub upload`` sends what an earlier run could not. The summary goes with the
last commit, so a repository that has one is complete.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import link_file, write_file
from raykfold.files.paths import ModelDir, is_weights
from raykfold.files.scratch import scratch_dir
from raykfold.outputs.hub_client import ModelRepository, Refused, content_ids
from raykfold.outputs.model_card import model_card
from raykfold.outputs.sync import (
    FIRST_PAUSE,
    LONGEST_WAIT_AT_END,
    Mirror,
    Unavailable,
    Version,
    some_of,
    version_of,
)
from raykfold.state.archive import read_summary
from raykfold.state.record import read_record
from raykfold.text import count_of
from raykfold.training.results import Summary

CARD = "README.md"
FILES_PER_COMMIT = 90  # the Hub asks for fewer than 100
_TRIES_TO_SEE = 5  # a repository that was just created


class HubMirror(Mirror):
    """Sends the weights and results of a run to its repository, many files in each commit.

    Args:
        outputs: outputs of the run.
        repository: where to send them; created if it does not exist.
        say: takes lines for the user.
        upload: which weights to send: ``all``, or the ``best`` of each fold.
        interval: least seconds from one commit to the next.
        timeout: most seconds to wait at the end of the run.
        first_pause: seconds from a failure to the second try.
        repeats: folder in the repository → outputs of a repeat that are not below `outputs`.
        command: what the user runs to send what is missing in the end.
    """

    def __init__(
        self,
        outputs: ModelDir,
        repository: ModelRepository,
        say: Callable[[str], None],
        *,
        upload: str = "all",
        interval: float = 60.0,
        timeout: float = 600.0,
        first_pause: float = FIRST_PAUSE,
        repeats: Mapping[str, ModelDir] | None = None,
        command: str = "",
    ) -> None:
        super().__init__("Hub", say, timeout=timeout, first_pause=first_pause)
        self._outputs = outputs
        self._repository = repository
        self._upload = upload
        self._interval = interval
        self._repeats = dict(repeats or {})
        self._command = command
        self._created = False
        self._there: Mapping[str, str] = {}  # path in the repository → id of its content
        self._there_is_current = False
        self._attempt: set[str] = set()  # paths of a commit of unknown outcome
        self._last_commit = float("-inf")
        self._sends_card = True
        self._told_of_others = False
        # file → version of it that was read, and the ids of its content
        self._ids: dict[Path, tuple[Version, tuple[str, str]]] = {}

    # --- for the driver --------------------------------------------------------------------

    def run_finished(self, summary: Summary) -> None:
        self.finish()

    def pending(self) -> Mapping[str, int]:
        """As `missing`, but reads no file: one that was not read yet counts."""
        missing = self._missing(self._final, read=False).keys()
        return {"Hub": len(missing if self._final else missing - {CARD})}

    def missing(self) -> list[str]:
        return list(self._missing(self._final))

    def close(self) -> None:
        if not self.started:
            return
        try:
            if self._final:
                self.wait()
        finally:
            self.stop()
            if missing := self.missing():
                self._say(f"Hub: not sent yet: {some_of(missing)}; to send them: {self._command}")
            elif self._final and not self._broken:
                self._say("Hub: everything is up")

    # --- in the thread ---------------------------------------------------------------------

    def send(self, final: bool) -> Iterator[float]:
        if not self._created:
            url = self._repository.create()
            self._created = True
            self._notice(f"uploads go to the repository {url}")
        while True:
            self._look(final)
            self._write_card(final)
            missing = self._missing(final)
            if not missing or (not final and missing.keys() == {CARD}):
                return  # a card alone waits for weights
            interval = min(self._interval, LONGEST_WAIT_AT_END) if final else self._interval
            if (pause := self._last_commit + interval - time.monotonic()) > 0:
                yield pause
                continue  # more files may have come
            summary, batch = self._outputs.summary, missing
            if len(missing) > FILES_PER_COMMIT:  # the card goes first, and the summary last
                paths = sorted(missing, key=lambda path: (path != CARD, path == summary.name))
                batch = {path: missing[path] for path in paths[:FILES_PER_COMMIT]}
            # The summary of an earlier session would say that the repository is complete.
            current = final and summary.exists() and summary.name not in missing
            is_outdated = summary.name in self._there and summary.name not in batch and not current
            if self._stopped:
                return
            try:
                self._commit(batch, [summary.name] if is_outdated else [])
            except Refused as refused:
                if refused.status != 400 or CARD not in batch:
                    raise
                self._notice(f"{refused}; going on without the model card")
                self._sends_card = False
            else:
                yield 0.0

    def _look(self, final: bool) -> None:
        """List the repository: at first, and after a commit of unknown outcome."""
        if self._there_is_current:
            return
        try:
            self._there = self._repository.contents()
        except Refused as refused:
            # The Hub may need a moment before it lists a repository that was just created.
            if refused.status != 404 or self._failures >= _TRIES_TO_SEE:
                raise
            raise Unavailable(str(refused)) from refused
        self._there_is_current = True
        if self._attempt and not self._attempt & self._missing(final).keys():
            self._last_commit = time.monotonic()  # only the reply was lost
        self._attempt = set()
        if not self._told_of_others:  # their files stay: nobody asked to delete them
            ours = self._files(True)
            others = [path for path in self._there if is_weights(path) and path not in ours]
            if others:
                self._notice(f"{some_of(others)} in the repository: of another run, not touched")
            self._told_of_others = True

    def _commit(self, batch: Mapping[str, Path], outdated: Sequence[str]) -> None:
        with scratch_dir(self._outputs.root) as folder:
            # Links, because a file that is replaced meanwhile must not change during the upload.
            links = {path: folder / str(number) for number, path in enumerate(batch)}
            for path, link in links.items():
                link_file(batch[path], link)
            ids = {path: content_ids(link)[0] for path, link in links.items()}
            self._attempt, self._there_is_current = set(batch), False
            kind = "Results" if self._outputs.summary.name in batch else "Weights"
            self._repository.commit(links, outdated, f"{kind}: {count_of(len(batch), 'file')}")
        self._last_commit = time.monotonic()
        there = {**self._there, **ids}
        self._there = {path: there[path] for path in there if path not in outdated}
        self._attempt, self._there_is_current = set(), True

    def _write_card(self, final: bool) -> None:
        outputs = self._outputs
        record = read_record(outputs.run_record)
        if record is None or not outputs.training_state.exists():
            return
        card = model_card(
            self._repository.repo_id,
            record,
            json.loads(outputs.training_state.read_bytes()),
            read_summary(outputs.summary) if final else None,
            [f"{file.parent.name}/{file.name}" for file in outputs.all_plots()],
        ).encode()
        if not (outputs.card.exists() and outputs.card.read_bytes() == card):
            write_file(outputs.card, card)

    # --- what is here, and what of it is there; for both threads ------------------------------

    def _files(self, final: bool) -> dict[str, Path]:
        """Path in the repository → file, in the order in which they go."""
        files: dict[str, Path] = {}
        runs = {"": self._outputs, **self._outputs.repeats(), **self._repeats}
        for folder, run in runs.items():
            weights = run.all_epoch_weights() if self._upload == "all" else []
            results = [run.histories, run.fold_results, run.predictions, run.report]
            top = [*run.all_best_weights(), *(file for file in results if file.exists())]
            paths = {f"{file.parent.name}/{file.name}": file for file in weights}
            paths |= {file.name: file for file in top}
            paths |= {f"{file.parent.name}/{file.name}": file for file in run.all_plots()}
            if final and folder and run.summary.exists():  # where it is, everything is
                paths[run.summary.name] = run.summary
            prefix = f"{folder}/" if folder else ""
            files |= {f"{prefix}{path}": file for path, file in paths.items()}
        if self._sends_card and self._outputs.card.exists():
            files[CARD] = self._outputs.card
        if final and self._outputs.summary.exists():
            files[self._outputs.summary.name] = self._outputs.summary
        return files

    def _missing(self, final: bool, *, read: bool = True) -> dict[str, Path]:
        """Those of `_files` whose content the repository is not known to hold."""
        files = self._files(final).items()
        return {path: file for path, file in files if not self._is_there(path, file, read)}

    def _is_there(self, path: str, file: Path, read: bool) -> bool:
        try:
            version = version_of(file)
            if path not in self._there:
                return False
            known = self._ids.get(file)
            if read and (known is None or known[0] != version):
                known = self._ids[file] = version, content_ids(file)
        except FileNotFoundError:  # the run removed it meanwhile
            return True
        return known is not None and known[0] == version and self._there[path] in known[1]


def hub_mirror(config: RunConfig, token: str | None, say: Callable[[str], None]) -> HubMirror:
    """Return the mirror of a run whose `hf_model_repo_id` is given."""
    assert config.hf_model_repo_id is not None
    repeats = map(config.repeat, range(1, config.repeats))
    return HubMirror(
        config.outputs,
        ModelRepository(config.hf_model_repo_id, token, private=config.hf_private),
        say,
        upload=config.hub_upload,
        interval=config.hub_interval,
        timeout=config.hub_timeout,
        repeats={repeat.model_place.name: repeat.outputs for repeat in repeats},
        command=shlex.join(
            [
                *("python", "-m", "raykfold.hub", "upload"),
                *("--model_dir", str(config.model_path), "--repo", config.hf_model_repo_id),
                *("--hub_upload", config.hub_upload),
            ]
        ),
    )
