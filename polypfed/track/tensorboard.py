"""TensorBoard: event files in its own format, written by its own writer; neither TensorFlow nor PyTorch is needed."""

import time
from pathlib import Path
from typing import Any

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require
from polypfed.core.journal import Happening
from polypfed.track.tracking import figures

ALL = "all sites"
"""The run that holds the whole federation's figures; no site can have a blank in its name."""


class TensorBoard:
    """Writes FOLDER/NAME/SITE, which TensorBoard shows as one curve per site in a chart per metric; steps are rounds.

    TensorBoard keeps scalars as float32, so its figures are the history's rounded to that. When a run is resumed, its
    curves are written anew, and a mark tells readers to forget the earlier ones.

    Args:
        folder: what `tensorboard --logdir` is given.
        name: of the run.
    """

    def __init__(self, folder: str | Path, name: str = "run") -> None:
        self._folder = Path(folder) / name
        self._writers: dict[str, Any] = {}

    def open(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: it cannot be made. MissingExtraError: TensorBoard is not installed.
        """
        self._events: Any = require("tensorboard.compat.proto.event_pb2", extra="tensorboard")
        self._summary: Any = require("tensorboard.compat.proto.summary_pb2", extra="tensorboard").Summary
        self._writing: Any = require("tensorboard.summary.writer.event_file_writer", extra="tensorboard")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot be made ({error.strerror})", where=self._folder) from None

    def tell(self, event: Happening) -> None:
        """Write what is new."""
        for (metric, site, round), value in figures(event.rows).items():
            self._writer(site).add_event(self._event(metric, round, value))
        for writer in self._writers.values() if event.rows else ():
            writer.flush()

    def close(self, error: BaseException | None) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, site: str) -> Any:
        """The site's file; its first event tells readers to forget what earlier files say."""
        if site not in self._writers:
            self._writers[site] = self._writing.EventFileWriter(str(self._folder / (site or ALL)))
            began = self._events.SessionLog(status=self._events.SessionLog.START)
            self._writers[site].add_event(self._events.Event(wall_time=time.time(), step=0, session_log=began))
        return self._writers[site]

    def _event(self, metric: str, round: int, value: float) -> Any:
        summary = self._summary(value=[self._summary.Value(tag=metric, simple_value=value)])
        return self._events.Event(wall_time=time.time(), step=round, summary=summary)
