"""The site's end of a job: a thin Executor; the client itself trains in a process of its own."""

import logging
import os
import re
import threading
from contextlib import suppress
from multiprocessing.connection import Client as connect
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from polypfed.backends.nvflare.exchange import HOLD, WAIT, in_simulator
from polypfed.backends.nvflare.parcel import Parcel, receive, send
from polypfed.backends.nvflare.payload import Order, reply_to_shareable, task_from_shareable
from polypfed.backends.nvflare.pool import Pool
from polypfed.backends.site_file import Later, SiteFile
from polypfed.core.errors import ConfigError, MessageError, PolypfedError
from polypfed.core.messages import Failure, Reply, Task, decode, encode

log = logging.getLogger(__name__)
SITE_FILE = "polypfed.toml"
"""The site's own settings, in the folder `local/` of its kit."""

_BEAT = 5.0  # seconds between two signs of life while the client trains
_RUN = re.compile(r"[0-9a-f]{1,64}")


class PolypExecutor(Executor):  # type: ignore[misc]  # nvflare has no types
    """Performs fit and evaluate.

    What it serves is the site's own `local/polypfed.toml`. A job may name a client of its own only if it ships code,
    which NVFlare has then authorised (BYOC).

    Args:
        client: "module:function" of the job's own code; "" for the site's file.
        settings: of that function.
        socket: where the process that hosts all clients of a simulation listens.
    """

    _always_serialize_args = ("client", "settings", "socket")

    def __init__(self, client: str = "", settings: dict[str, Any] | None = None, socket: str = "") -> None:
        super().__init__()
        self.client, self.settings, self.socket = client, settings or {}, socket
        self._work: _Work | None = None
        self._refused = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """See FLComponent."""
        if event_type == EventType.START_RUN:
            self._start(fl_ctx)
        elif event_type == EventType.BEFORE_PULL_TASK:
            self._say(fl_ctx, HOLD)
        elif event_type in (EventType.END_RUN, EventType.SWAP_OUT) and self._work is not None:
            self._work.close()

    def _start(self, fl_ctx: FLContext) -> None:
        try:
            name = str(fl_ctx.get_identity_name())
            simulated = self.socket and in_simulator(fl_ctx)  # elsewhere no job may choose a socket
            self._work = Relayed(name, self.socket) if simulated else Own(self._site(name, fl_ctx))
        except PolypfedError as error:  # the site goes on answering, and says what is wrong
            self._refused = str(error)
            log.error("%s", error)

    def _site(self, name: str, fl_ctx: FLContext) -> SiteFile:
        workspace = fl_ctx.get_engine().get_workspace()
        root = Path(workspace.get_root_dir()).absolute()
        if self.client:
            shipped = Path(workspace.get_app_custom_dir(fl_ctx.get_job_id()))
            if not shipped.is_dir():
                raise ConfigError("the job names a client but ships no code", where=name, remedy="Leave `client` out")
            return SiteFile(root / SITE_FILE, name, self.client, root / "state", self.settings)
        site = SiteFile.load(Path(workspace.get_site_config_dir()) / SITE_FILE)
        if site.name != name:
            raise ConfigError(f"is for {site.name!r}, the certificate says {name!r}", where=site.path)
        return site

    def _say(self, fl_ctx: FLContext, hold: float) -> None:
        """Tell the server that this site is alive; with `hold`, wait that long for work."""
        request = Shareable()
        request["hold"] = hold
        engine = fl_ctx.get_engine()
        with suppress(Exception):  # without an answer the site asks for a task all the same
            engine.send_aux_request(None, WAIT, request, timeout=2 * hold, fl_ctx=fl_ctx, optional=True)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """See Executor."""
        try:
            order = task_from_shareable(shareable)
        except Exception as error:  # noqa: BLE001 - anything may have been sent
            log.error("not a task: %s", error)
            return make_reply(ReturnCode.BAD_TASK_DATA)
        if self._work is None:
            name = str(fl_ctx.get_identity_name())
            return reply_to_shareable(Failure(name, order.task.round, "client", self._refused, order.task.run), [])
        last = monotonic()

        def aborted() -> bool:
            nonlocal last
            if monotonic() - last > _BEAT:
                last = monotonic()
                self._say(fl_ctx, 0.0)
            return bool(abort_signal.triggered)

        return reply_to_shareable(self._work.perform(order, aborted), order.layout)


class _Work(Protocol):
    def perform(self, order: Order, aborted: Any) -> Reply: ...
    def close(self) -> None: ...


class Relayed:
    """The client lives in the process that hosts a simulation; this one ends with it."""

    def __init__(self, name: str, socket: str) -> None:
        self.name = name
        try:
            self._pipe: Connection = connect(socket, "AF_UNIX")
            self._pipe.send_bytes(f"site {name}".encode())
        except OSError:
            os._exit(1)  # nobody is there to work for
        self._answers = threading.Condition()
        self._answer: Parcel | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                parcel = receive(self._pipe)
            except (EOFError, OSError):
                os._exit(1)
            with self._answers:
                self._answer = parcel
                self._answers.notify()

    def perform(self, order: Order, aborted: Any) -> Reply:
        """The reply of the client behind the socket."""
        send(self._pipe, encode(order.task))
        with self._answers:
            while self._answer is None:
                self._answers.wait()
            parcel, self._answer = self._answer, None
        reply = decode(parcel.data)
        if isinstance(reply, Task):
            raise MessageError("a Task, not a reply")
        return reply

    def close(self) -> None:
        """The connection stays: the process ends when the other end does."""


class Own:
    """The client has a process below this one; its state lies below `state`/RUN."""

    def __init__(self, site: SiteFile) -> None:
        self.site = site
        self._run = ""
        self._pool: Pool | None = None

    def perform(self, order: Order, aborted: Any) -> Reply:
        """The client's reply, within the seconds that the order gives."""
        end, task = monotonic() + order.deadline, order.task
        if not _RUN.fullmatch(task.run):
            return Failure(self.site.name, task.round, "policy", f"{task.run!r} cannot name a run", task.run)
        if self._pool is None or self._run != task.run:
            self.close()
            folder = self.site.state / task.run
            self._pool, self._run = Pool([Later(self.site)], folder, 1), task.run
        return self._pool.perform(self.site.name, task, end, aborted)

    def close(self) -> None:
        """End the client's process."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None
