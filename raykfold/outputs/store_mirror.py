"""The mirror of a run's outputs in a `model_dir` on an object store.

The summary goes last: where it is, everything is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from raykfold.errors import StorageError
from raykfold.files.atomic import remove_tree
from raykfold.files.paths import ModelDir
from raykfold.files.remote import RemotePath, reason
from raykfold.outputs.sync import Mirror, Unavailable, Version, some_of, version_of
from raykfold.training.results import Summary


class StoreMirror(Mirror):
    """Sends new files from `outputs` to `target`.

    Args:
        outputs: working copy of the outputs, on a local disk.
        target: where the outputs belong.
        say: takes lines for the user.
        keep: whether to keep the working copy after everything was sent, for others to use.
        timeout: most seconds to wait at the end of the run.
        pause: seconds from a failure to the next try; the store's client has already retried by
            then.
    """

    def __init__(
        self,
        outputs: ModelDir,
        target: RemotePath,
        say: Callable[[str], None],
        *,
        keep: bool = False,
        timeout: float = 600.0,
        pause: float = 5.0,
    ) -> None:
        super().__init__(str(target), say, timeout=timeout, first_pause=pause, longest_pause=pause)
        self._outputs = outputs
        self._target = target
        self._keep = keep
        self._summary: Summary | None = None
        self._sizes: Mapping[RemotePath, int] | None = None  # of weights that are there already
        self._sent: dict[Path, Version] = {}

    def run_finished(self, summary: Summary) -> None:
        self._summary = summary

    def pending(self) -> Mapping[str, int]:
        return {self._target.scheme: len(self.missing())}

    def missing(self) -> list[str]:
        return [file.name for file in self._missing(self._final)]

    def close(self) -> None:
        """End the thread; if the run is over, after everything was sent.

        Raises:
            StorageError: the run is over, and some files could not be sent in time.
        """
        if not self.started:
            return
        try:
            if self._summary is not None:
                self.finish()  # not before: observers that were closed before may have written
                self.wait()
        finally:
            self.stop()
        if missing := self.missing():
            names = some_of(missing)
            text = f"{self._target}: not sent yet: {names}; the same command sends what is left"
            if self._summary is not None:
                raise StorageError(text)
            self._say(text)
        elif self._summary is not None and self._summary.status == "complete" and not self._keep:
            for path in self._outputs.outputs():
                remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                self._outputs.root.rmdir()

    def send(self, final: bool) -> Iterator[float]:
        try:
            if self._sizes is None:
                self._sizes = self._look()
            for file in self._missing(final):
                if self._stopped:
                    return
                with suppress(FileNotFoundError):  # the run removed it meanwhile
                    version = version_of(file)
                    self._place_of(file).send(file)
                    self._sent[file] = version
                yield 0.0
        except StorageError as error:
            raise Unavailable(reason(error)) from error

    def _look(self) -> Mapping[RemotePath, int]:
        """List the weights of epochs that are there, and delete what is out of date."""
        outputs = self._outputs
        sizes = (self._target / outputs.checkpoints.name).files()
        if outputs.tensorboard.exists():
            # Event files of an earlier session have other names, and hold the same epochs.
            here = {self._place_of(file) for file in outputs.all_event_files()}
            for file in (self._target / outputs.tensorboard.name).files():
                if file not in here:
                    file.unlink(missing_ok=True)
        if not outputs.summary.exists():
            # It says that everything is there, and the run goes on.
            (self._target / outputs.summary.name).unlink(missing_ok=True)
        return sizes

    def _missing(self, final: bool) -> list[Path]:
        """What is not there yet, in the order in which it goes."""
        outputs = self._outputs
        files = [
            *outputs.all_epoch_weights(),
            *outputs.all_best_weights(),
            *outputs.all_event_files(),
            *(outputs.histories, outputs.fold_results, outputs.predictions, outputs.card),
            *(*outputs.all_plots(), outputs.report),
            *(outputs.run_record, outputs.training_state),
            *([outputs.summary] if final else []),
        ]
        return [file for file in files if not self._is_there(file)]

    def _is_there(self, file: Path) -> bool:
        try:
            version = version_of(file)
        except FileNotFoundError:  # not written, or removed
            return True
        if file in self._sent:
            return self._sent[file] == version
        # An epoch's weights are the same in every session. The best weights are not, but their
        # size is.
        return (self._sizes or {}).get(self._place_of(file)) == version[0]

    def _place_of(self, file: Path) -> RemotePath:
        return self._target / file.relative_to(self._outputs.root).as_posix()
