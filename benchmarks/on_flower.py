"""What the Flower adapter costs.

1. CPU, in one process: the same training and averaging as a hand-written Flower app (ClientApp with a torch loop,
   Flower's FedAvg) and through polypfed (TorchClient, records, gate, round engine), in turns; every message goes
   through Flower's own serialisation in both. The goal: at most 5 % more.
2. What a message would cost at a site without a resident worker: a fresh process that loads Flower, and one that
   loads torch and the detector too.
3. --live: a SuperLink and two SuperNodes on the loopback interface: start-up, seconds per round, bytes.

python benchmarks/on_flower.py [--repeats N] [--live] [--check] [--out FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_LOG_LEVEL": "ERROR"}

import logging

import numpy as np
import torch
from _common import about, append, single_thread, tell
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

import polypfed as pf
from polypfed.backends.flower.grid import OverGrid
from polypfed.backends.flower.records import pack_reply, unpack_task
from polypfed.clients import Site, TorchClient

CLIENTS, ROUNDS, IMAGES, BATCH, LR, SHARE = 4, 2, 640, 32, 0.05, 0.05
IDS = list(range(11, 11 + CLIENTS))
Handler = Callable[[Message, Context], Message]


def model() -> nn.Module:
    """2.5 million parameters, as many as a YOLOv5n."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 1280), nn.ReLU(), nn.Linear(1280, 1100), nn.ReLU(), nn.Linear(1100, 10))


def data(site: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(site)
    x, y = draw.normal(size=(IMAGES, 784)).astype(np.float32), draw.integers(0, 10, IMAGES)
    return torch.from_numpy(x), torch.from_numpy(y)


class InProcess:
    """A Grid whose nodes are called at once; content goes through Flower's bytes both ways."""

    def __init__(self, handler: Handler, ids: list[int] = IDS) -> None:
        self.ids = ids
        self.handler, self.ready, self.count, self.bytes = handler, list[Message](), 0, 0

    def get_node_ids(self) -> list[int]:
        return list(self.ids)

    def push_messages(self, messages: Any) -> list[str]:
        out = []
        for message in messages:
            self.count += 1
            out.append(f"m{self.count}")
            message.metadata.__dict__["_message_id"] = out[-1]
            sent = Message(self._wire(message.content), message.metadata.dst_node_id, message.metadata.message_type)
            sent.metadata.__dict__["_message_id"] = out[-1]
            reply = self.handler(sent, Context(1, message.metadata.dst_node_id, {}, RecordDict(), {}))
            self.ready.append(Message(self._wire(reply.content), reply_to=sent))
        return out

    def _wire(self, content: RecordDict) -> RecordDict:
        raw = recorddict_to_proto(content).SerializeToString()
        self.bytes += len(raw)
        return recorddict_from_proto(type(recorddict_to_proto(RecordDict())).FromString(raw))

    def pull_messages(self, ids: Any) -> list[Message]:
        out, self.ready = self.ready, []
        return out

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        self.push_messages(messages)
        return self.pull_messages([])


def by_hand() -> Callable[[], InProcess]:
    """A Flower app as its tutorials write it."""
    app, net, sets = ClientApp(), model(), {i: data(i) for i in IDS}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        order = torch.randperm(IMAGES)
        x, y = sets[context.node_id]
        for at in range(0, IMAGES, BATCH):
            pick = order[at : at + BATCH]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[pick]), y[pick]).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": IMAGES})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    def run() -> InProcess:
        grid = InProcess(app)
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS)
        strategy.start(grid, ArrayRecord(model().state_dict()), num_rounds=ROUNDS)
        return grid

    return run


def adapted() -> Callable[[], InProcess]:
    """The same through polypfed."""
    net = model()
    made = {
        f"node-{i}": TorchClient(f"node-{i}", net, nn.functional.cross_entropy, data(i), optimizer=_sgd, batch=BATCH)
        for i in IDS
    }
    sites = {name: Site(client) for name, client in made.items()}

    def handle(message: Message, context: Context) -> Message:
        task, name, _ = unpack_task(message.content)
        return Message(pack_reply(sites[name].perform(task)), reply_to=message)

    initial = made[f"node-{IDS[0]}"].initial()
    nodes = {f"node-{i}": i for i in IDS}

    def run() -> InProcess:
        grid = InProcess(handle)
        backend = OverGrid(grid, list(nodes), lambda: nodes)  # type: ignore[arg-type]
        history = pf.Federation(initial=initial, quorum=CLIENTS, evaluate="off").run(ROUNDS, backend)
        assert not history.failures
        return grid

    return run


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR)


def cpu(repeats: int) -> dict[str, Any]:
    """CPU seconds of both, in turns; the first turn is warm-up."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    ways = {"by hand": by_hand(), "polypfed": adapted()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    volume = {}
    for repeat in range(repeats + 1):
        for name, run in ways.items():
            begun = time.process_time()
            grid = run()
            if repeat:
                seconds[name].append(time.process_time() - begun)
            volume[name] = round(grid.bytes / grid.count / 2)
    ratios = [a / b for a, b in zip(seconds["polypfed"], seconds["by hand"], strict=True)]
    return {
        "cpu_s": {name: round(median(s), 3) for name, s in seconds.items()},
        "ratio": round(median(ratios), 4),
        "ratios": [round(r, 4) for r in ratios],
        "bytes_per_message": volume,
    }


PROCESSES = {
    "Flower alone": "import flwr.clientapp",
    "relay to the resident worker": "import polypfed.backends.flower.client_app",
    "client in Flower's process": (
        "import polypfed.backends.flower.client_app\n"
        "from polypfed.clients import DetectorClient\n"
        "DetectorClient('a', train='.').initial()"
    ),
}


def processes(repeats: int) -> dict[str, float]:
    """CPU seconds of a fresh process, as Flower starts one per message."""
    out = {}
    for name, code in PROCESSES.items():
        took = []
        for _ in range(repeats):
            before = os.times()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            after = os.times()
            took.append(after.children_user + after.children_system - before.children_user - before.children_system)
        out[name] = round(median(took), 2)
    return out


def live(rounds: int = 4) -> dict[str, Any]:
    """A real deployment with a client that does next to nothing; its model is scored each round.

    Under "global" the scores ride with the next round's training, under "matrix" they are a message of their own.
    """
    from tests.live.flower.processes import Deployment

    with tempfile.TemporaryDirectory() as folder:
        found = Deployment(Path(folder), ["a", "b"])
        try:
            begun = time.monotonic()
            found.start_all()
            out: dict[str, Any] = {"start": round(time.monotonic() - begun, 1)}
            for evaluate, name in (("global", "one message"), ("matrix", "two messages")):
                found.serve(evaluate, strategy="fedavg", rounds=rounds, evaluate=evaluate)
                begun = time.monotonic()
                assert found.run(300)["status"] == "completed"
                whole = time.monotonic() - begun
                rows = [json.loads(line) for line in (found.directory / "history.jsonl").read_text().splitlines()]
                seconds = [r["value"] for r in rows if r["metric"] == "round_s"]
                out[f"a round, {name}"] = [round(s, 1) for s in seconds]
                out[f"around the rounds, {name}"] = round(whole - sum(seconds), 1)
        finally:
            found.close()
    return out


def table(found: dict[str, Any]) -> str:
    lines = ["| one run of 2 rounds, 4 clients, 2.5 M parameters | CPU s | bytes per message |", "|---|---|---|"]
    seconds, volume = found["in_process"]["cpu_s"], found["in_process"]["bytes_per_message"]
    lines += [f"| {name} | {seconds[name]:.2f} | {volume[name]} |" for name in seconds]
    spread = found["in_process"]["ratios"]
    lines.append(f"| ratio | **{found['in_process']['ratio']:.3f}** ({min(spread):.3f} to {max(spread):.3f}) | |")
    lines += ["", "| a fresh process per message | CPU s |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in found["processes"].items()]
    if "live" in found:
        lines += ["", "| deployment, 2 SuperNodes, TLS | s |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in found["live"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--live", action="store_true")
    options.add_argument("--check", action="store_true")
    options.add_argument("--out", type=Path, default=Path("runs/bench/flower.jsonl"))
    given = options.parse_args()
    single_thread()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"load": os.getloadavg()[0], "in_process": cpu(given.repeats), "processes": processes(3)}
    if given.live:
        found["live"] = live()
    where = about("flower", ("polypfed", "numpy", "torch", "flwr"))
    append(given.out, [where | found])
    tell(given.out, where, table(found))
    return int(given.check and found["in_process"]["ratio"] > 1 + SHARE)


if __name__ == "__main__":
    sys.exit(main())
