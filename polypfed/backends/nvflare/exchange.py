"""One exchange with the sites of an NVFlare job: one task per site, replies as they come, a deadline of our own."""

import logging
import math
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask
from nvflare.apis.controller_spec import Task as EngineTask
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from polypfed.backends.nvflare.payload import Layout, reply_from_shareable, task_to_shareable
from polypfed.core.errors import BackendError
from polypfed.core.messages import Failure, Reply, Task

log = logging.getLogger(__name__)
WAIT = "polypfed.wait"
"""Topic of a site's question whether there is work; answered when there is, or after HOLD seconds."""

HOLD = 2.0
_GRACE = 10.0  # seconds that NVFlare's own timeout, a net, lies behind our deadline
_LOOK = 0.1


class ExchangeController(Controller):  # type: ignore[misc]  # nvflare has no types
    """What our two controllers have in common: `exchange`, and a bell that wakes sites when there is work.

    Args:
        shared: sites take turns in fewer processes than there are sites, so none may wait while another has work.
        patience: seconds without a sign from a site after which it is given up for the round; 0 waits for the deadline.
    """

    def __init__(self, shared: bool = False, patience: float = 0.0) -> None:
        super().__init__()
        self._shared, self._patience = shared, patience
        self._bell = threading.Condition()
        self._work = set[str]()  # sites for which a task lies ready
        self._seen = dict[str, float]()
        self._ended = False

    def start_controller(self, fl_ctx: FLContext) -> None:
        """See Controller."""
        fl_ctx.get_engine().register_aux_message_handler(WAIT, self._hold)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """See Controller."""
        if "torch" not in sys.modules:  # NVFlare would load it now, for seconds, to clean up tensors we do not send
            sys.modules.setdefault("nvflare.app_opt.pt.tensor_downloader", None)  # type: ignore[arg-type]
        with self._bell:
            self._ended = True
            self._bell.notify_all()

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """See Controller: what comes after the deadline does not count."""
        log.warning("%s: an answer to %s came late and was dropped", client.name, task_name)

    def exchange(
        self, tasks: Mapping[str, Task], deadline: float, layout: Layout, fl_ctx: FLContext, abort: Signal
    ) -> Iterator[Reply]:
        """See `Backend.exchange`.

        Raises:
            BackendError: the job was aborted.
        """
        begun, box = monotonic(), queue.SimpleQueue[tuple[str, Any]]()
        sent = {site: self._send(site, tasks[site], deadline, layout, box, fl_ctx) for site in sorted(tasks)}
        waiting, end = set(tasks), begun + deadline
        try:
            while waiting and monotonic() < end:
                if abort.triggered:
                    raise BackendError("the job was aborted", where="nvflare", remedy="Submit it again to resume it")
                try:
                    site, result = box.get(timeout=min(_LOOK, max(0.0, end - monotonic())))
                except queue.Empty:
                    for site in sorted(self._silent(waiting, begun)):
                        waiting.discard(site)
                        yield Failure(site, tasks[site].round, "lost", "no sign of the site", tasks[site].run)
                    continue
                if site in waiting:
                    waiting.discard(site)
                    yield reply_from_shareable(result, site, tasks[site], layout)
        finally:
            for site in waiting:
                self._take(site)
            for task in sent.values():
                self.cancel_task(task, fl_ctx=fl_ctx)
        for site in sorted(waiting):
            yield Failure(site, tasks[site].round, "deadline", "no answer within the deadline", tasks[site].run)

    def _send(self, site: str, task: Task, deadline: float, layout: Layout, box: Any, fl_ctx: FLContext) -> EngineTask:
        fetched = threading.Event()

        def sent(client_task: ClientTask, fl_ctx: FLContext) -> None:
            fetched.set()
            self._take(site)

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:  # in NVFlare's thread: hand over, no more
            box.put((client_task.client.name, client_task.result))
            client_task.result = None

        data = task_to_shareable(task, layout, deadline)
        timeout = math.ceil(min(deadline, 1e8) + _GRACE)
        posted = EngineTask(task.kind, data, timeout=timeout, after_task_sent_cb=sent, result_received_cb=received)
        self.send(posted, fl_ctx, targets=[site])
        with self._bell:
            if not fetched.is_set():
                self._work.add(site)
                self._bell.notify_all()
        return posted

    def _take(self, site: str) -> None:
        with self._bell:
            self._work.discard(site)

    def _silent(self, waiting: set[str], begun: float) -> set[str]:
        if not self._patience:
            return set()
        with self._bell:
            return {s for s in waiting if monotonic() - max(begun, self._seen.get(s, 0.0)) > self._patience}

    def _hold(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Answer a site when there is work for it."""
        site, end = fl_ctx.get_peer_context().get_identity_name(), monotonic() + float(request.get("hold", 0.0))
        with self._bell:
            self._seen[site] = monotonic()
            while not self._ended and not (self._work if self._shared else site in self._work):
                left = end - monotonic()
                if left <= 0 or not self._bell.wait(left):
                    break
            self._seen[site] = monotonic()
        return make_reply(ReturnCode.OK)


def names_of(fl_ctx: FLContext) -> Sequence[str]:
    """The sites of this job, sorted."""
    return sorted(client.name for client in fl_ctx.get_engine().get_clients())


def in_simulator(fl_ctx: FLContext) -> bool:
    """True if NVFlare runs its simulator."""
    return bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False))
