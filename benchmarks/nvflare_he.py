"""NVFlare's stock encrypted FedAvg and our `he`, each through a provisioned server and two sites over mutual TLS.

    unshare -n sh -c 'ip link set lo up; python benchmarks/nvflare_he.py [--rounds 2]'

The model has YOLOv5n's tensors; nothing is trained, so that only what carries and encrypts them is measured. Stock:
`FedAvgRecipeWithHE` in kits that `HEBuilder` has given its CKKS contexts. A job of so many rounds, from its submission
to its end: seconds, CPU seconds and bytes on the loopback interface, and the most memory of any one process. Without a
network namespace of its own the bytes are those of everybody on the machine.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SITES, ADMIN = ["site-1", "site-2"], "admin@polypfed.org"
TICK = os.sysconf("SC_CLK_TCK")
TRAIN = """
import sys
sys.path.insert(0, {root!r})
import nvflare.client as flare
import torch
from nvflare_he import arrays

flare.init()
params = {{name: torch.from_numpy(value) for name, value in arrays().items()}}
while flare.is_running():
    flare.receive()
    flare.send(flare.FLModel(params=params, meta={{"NUM_STEPS_CURRENT_ROUND": 1}}))
"""


def arrays() -> dict[str, np.ndarray]:
    """The tensors of a YOLOv5n, by name."""
    from _yolov5n import model

    return {name: np.asarray(value, np.float32) for name, value in model().items()}


class Site:
    """A client that moves every weight a little."""

    def __init__(self, name: str) -> None:
        from polypfed import ModelSpec

        self.name, values = name, arrays()
        self.spec = ModelSpec.of(values)
        self.x = self.spec.pack(values)

    def initial(self) -> Any:
        return self.spec, self.x

    def fit(self, task: Any) -> Any:
        from polypfed import Update

        return Update(self.name, task.round, {"delta": np.full(self.spec.size, 1e-3, np.float32)}, 1)

    def evaluate(self, task: Any) -> Any:
        from polypfed import Evaluation

        return Evaluation(self.name, task.round, {}, 0)

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing is kept."""


def client(name: str, base: Path) -> Site:
    """For a site's settings."""
    return Site(name)


def federation(names: list[str], base: Path) -> Any:
    """For the server's settings."""
    from polypfed import Federation
    from polypfed.privacy.modes import stages

    lines = stages("he", cap=1, bound=1.0)
    return Federation(initial=Site(names[0]).initial(), stages=lines, quorum=2, evaluate="off"), 2


def ours(folder: Path, ports: tuple[int, int]) -> tuple[Path, Callable[[Any, int], str]]:
    """Kits, and what submits a job of so many rounds."""
    from polypfed.backends.nvflare import deploy, operate

    names = {"client": "nvflare_he:client", "federation": "nvflare_he:federation"}
    kits = deploy.write(folder / "ours", deploy.Plan(SITES, port=ports[0], admin_port=ports[1], **names)) / "kits"
    for path in (kits / name / "local" / "polypfed.toml" for name in SITES):
        path.write_text(path.read_text().replace("approve = true", "approve = false"))
    return kits, lambda opened, rounds: operate.submit(opened, kits / ADMIN, "study", rounds)


def stock(folder: Path, ports: tuple[int, int]) -> tuple[Path, Callable[[Any, int], str]]:
    """The same, as NVFlare's documentation says."""
    from polypfed.backends.nvflare import deploy, kit, templates

    text = templates.project("stock", "localhost", *ports, "hospital", SITES, ADMIN)
    last = "  - {path: nvflare.lighter.impl.signature"
    text = text.replace(last, "  - {path: nvflare.lighter.impl.he.HEBuilder}\n" + last)
    (folder / "project.yml").write_text(text)
    kits = deploy.provision(folder / "project.yml", folder / "stock")
    for name in ("localhost", *SITES):
        kit.fit_kit(kits / name)
        (kits / name / "local" / "authorization.json").unlink()  # its recipe ships the training script

    def submit(opened: Any, rounds: int) -> str:
        from nvflare.app_opt.pt.recipes.fedavg_he import FedAvgRecipeWithHE

        script = folder / "train_he.py"
        script.write_text(TRAIN.format(root=str(HERE)))
        recipe = FedAvgRecipeWithHE(name="stock", min_clients=2, num_rounds=rounds, train_script=str(script))
        recipe.export(str(folder / "jobs"))
        return str(opened.submit_job(str(folder / "jobs" / "stock")))

    return kits, submit


def measure(side: str, rounds: int, folder: Path) -> dict[str, Any]:
    """One job in a deployment of its own."""
    from polypfed.backends.nvflare import operate
    from polypfed.backends.nvflare.simulation import family
    from tests.live.loopback import free_ports

    ports = free_ports(2)
    kits, submit = (ours if side == "ours" else stock)(folder, (ports[0], ports[1]))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(HERE)}
    started = []
    for name in ("localhost", *SITES):
        with open(folder / f"{name}.log", "wb") as log:
            command = ["bash", str(kits / name / "startup" / "sub_start.sh"), "--once"]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
    sampler = Sampler([process.pid for process in started])
    try:
        with operate.session(kits / ADMIN, 90.0) as opened:
            while operate.status(opened)["sites"] != SITES:
                time.sleep(0.5)
            begun, sent = time.monotonic(), _bytes()
            sampler.start()
            meta = operate.watch(opened, submit(opened, rounds))
            row = {"seconds": time.monotonic() - begun, "bytes": _bytes() - sent, "status": meta["status"]}
            return row | sampler.stop()
    finally:
        for process in started:
            for pid in family(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


class Sampler:
    """CPU seconds of all processes below some, and the peak of each one's memory, since `start`."""

    def __init__(self, roots: list[int]) -> None:
        self._roots, self._done = roots, threading.Event()
        self._cpu, self._peak, self._before = dict[int, float](), dict[int, int](), dict[int, float]()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._look()
        self._before = dict(self._cpu)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        self._done.set()
        self._thread.join()
        cpu = sum(self._cpu.values()) - sum(self._before.values())
        return {"cpu_s": cpu, "peak_mb": max(self._peak.values()) / 1024}

    def _run(self) -> None:
        while not self._done.wait(0.2):
            self._look()

    def _look(self) -> None:
        from polypfed.backends.nvflare.simulation import family

        for pid in [p for root in self._roots for p in family(root)]:
            with suppress(OSError, StopIteration):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._cpu[pid] = max(self._cpu.get(pid, 0.0), (int(fields[11]) + int(fields[12])) / TICK)
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                self._peak[pid] = int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _bytes() -> int:
    """What has gone through the loopback interface of this network namespace."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--sides", nargs="+", default=["ours", "stock"], choices=["ours", "stock"])
    options.add_argument("--out", type=Path, default=Path("runs/bench/nvflare_he.jsonl"))
    given = options.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for side in given.sides:
        with tempfile.TemporaryDirectory() as folder:
            row = {"bench": "nvflare_he", "side": side, "rounds": given.rounds, "load": os.getloadavg()[0]}
            row |= measure(side, given.rounds, Path(folder)) | {"date": datetime.now(UTC).date().isoformat()}
        print(json.dumps(row), flush=True)
        with open(given.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
