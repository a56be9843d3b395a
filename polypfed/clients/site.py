"""Site: the shell around a Client that every backend runs. It answers every task, keeps state, and never raises."""

import logging
from dataclasses import replace
from pathlib import Path

from polypfed.clients.base import Client
from polypfed.core.errors import DataError, MissingExtraError, PolypfedError, StateError
from polypfed.core.files import read_framed, write_framed
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update, stamp

log = logging.getLogger(__name__)


class Site:
    """One client and its transactional state.

    A client's state after round r counts only once the server says that the update of round r was accepted
    (`task.config["accepted"]`); until then it is pending and is dropped if a later task says otherwise.

    Args:
        client: what trains.
        directory: where the state is kept across restarts; in memory if None.
    """

    def __init__(self, client: Client, directory: Path | None = None) -> None:
        self.client = client
        self._path = directory / "state.bin" if directory else None
        self._committed: tuple[int, bytes] = (0, b"")
        self._pending: tuple[int, bytes] | None = None
        self._holds: bytes | None = None  # the state the client object has now, if we know it
        if self._path and self._path.exists():
            self._read(self._path)

    @property
    def name(self) -> str:
        """The client's name."""
        return self.client.name

    def perform(self, task: Task) -> Reply:
        """The client's answer to `task`; whatever goes wrong becomes a Failure."""
        try:
            return stamp(self._fit(task) if task.kind == "fit" else self._evaluate(task), task.run)
        except Exception as error:  # noqa: BLE001 - one site's mistake must not end the federation
            reason = _reason(error)
            detail = str(error) if isinstance(error, PolypfedError) else f"{type(error).__name__}: {error}"
            log.warning("%s, round %d: %s", self.name, task.round, detail, exc_info=reason == "crashed")
            return Failure(self.name, task.round, reason, detail, task.run)

    def _fit(self, task: Task) -> Update:
        accepted = int(task.config.get("accepted", 0))
        self._settle(accepted)
        update = self.client.fit(task)
        if not isinstance(update, Update):
            raise TypeError(f"fit returned {type(update).__name__}, not an Update")
        self._holds = self.client.state()
        if self._holds and accepted and not self._committed[1]:  # it keeps state, and what it kept is gone
            raise self._lost(accepted)
        self._pending = (task.round, self._holds)
        self._write()
        return update

    def _evaluate(self, task: Task) -> Evaluation:
        """Metrics of "model", and of every "model@NAME" as "metric@NAME"."""
        result = self.client.evaluate(task)
        metrics = dict(result.metrics)
        for key in sorted(task.vectors):
            if key.startswith("model@"):
                other = replace(task, vectors={"model": task.vectors[key]})
                metrics |= {f"{k}@{key[6:]}": v for k, v in self.client.evaluate(other).metrics.items()}
        return replace(result, metrics=metrics)

    def _settle(self, accepted: int) -> None:
        """Commit or drop what is pending, and put the client into the committed state."""
        known = [entry for entry in (self._pending, self._committed) if entry is not None]
        match = next((entry for entry in known if entry[0] == accepted), None)
        if match is None:
            if any(state for _, state in known):
                raise self._lost(accepted)
            match = (accepted, b"")
        self._committed, self._pending = match, None
        if self._holds != match[1]:
            self.client.restore(match[1])

    def _lost(self, accepted: int) -> StateError:
        return StateError(
            f"the server counts round {accepted} as this site's last, the site's own state is of another",
            where=self.name,
            remedy="Give the site its state folder back, or start the run anew",
        )

    def _write(self) -> None:
        if self._path is None or self._pending is None:
            return
        if not self._pending[1] and not self._committed[1] and not self._path.exists():
            return  # a client that keeps nothing leaves no file
        header = {"committed": self._committed[0], "pending": self._pending[0], "split": len(self._committed[1])}
        write_framed(self._path, header, self._committed[1] + self._pending[1])

    def _read(self, path: Path) -> None:
        header, body = read_framed(path)
        split = int(header["split"])
        self._committed = (int(header["committed"]), body[:split])
        self._pending = (int(header["pending"]), body[split:])


def _reason(error: Exception) -> str:
    known = ((DataError, "data"), (StateError, "state"), (MissingExtraError, "extra"), (PolypfedError, "client"))
    return next((word for kind, word in known if isinstance(error, kind)), "crashed")
