"""A deployment's real processes on the loopback interface, started as its README says, and ended by their pids."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polypfed.backends.flower import deploy, templates
from polypfed.backends.flower.server_app import ServerFile
from tests.live.loopback import BIN, family, free_ports, kill
from tests.problems import ROOT


class Deployment:
    """The folder that `deploy.write` makes, and what runs in it.

    Args:
        approve: as `deploy.write` leaves it: a plan runs at a site only once its owner has approved it. Else all do.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        site: dict[str, Any] | None = None,
        approve: bool = False,
        **server: Any,
    ) -> None:
        self.names, self.folder = sorted(names), folder / "deployment"
        self.port, *self.ports = free_ports(1 + len(names))
        settings = {n: {"names": self.names, **(site or {}).get(n, {})} for n in self.names}
        plan = deploy.Plan(
            self.names,
            port=self.port,
            client="tests.live.flower.study:client",
            federation="tests.live.flower.study:federation",
            settings=settings,
            server_settings=server,
        )
        deploy.write(self.folder, plan)
        for index, name in enumerate(self.names):
            self.edit(f"sites/{name}/site.toml", f"port = {9094 + index}", f"port = {self.ports[index]}")
            if not approve:
                self.edit(f"sites/{name}/site.toml", "approve = true", "approve = false")
        self.environment = os.environ | {
            "POLYPFED_BIN": str(BIN),
            "POLYPFED_HOST": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.server = self.folder / "server"

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def serve(self, directory: str, **settings: Any) -> None:
        """From now on `run` runs this federation, in a folder of the server of that name."""
        path = self.server / "server.toml"
        file = ServerFile.load(path)
        text = templates.server_toml(file.federation, settings)
        path.write_text(text.replace('directory = "run"', f'directory = "{directory}"'))

    @property
    def directory(self) -> Path:
        """Where the server keeps the run."""
        return ServerFile.load(self.server / "server.toml").directory

    def start(self, what: str, script: str = "start.sh") -> subprocess.Popen[bytes]:
        """Run a script of "server" or "sites/NAME", its output in SCRIPT.log beside it."""
        place = self.folder / what
        with open(place / f"{script}.log", "ab") as log:
            process = subprocess.Popen(
                [f"./{script}"], cwd=place, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.running[f"{what}/{script}"] = process
        return process

    def start_all(self) -> None:
        self.start("server")
        deploy._answers(self.server, self.port, 60)
        deploy.register(self.server)
        for name in self.names:
            self.start(f"sites/{name}")

    def run(self, seconds: float = 120.0) -> dict[str, Any]:
        """./run.sh to its end; the outcome."""
        process = self.start("server", "run.sh")
        process.wait(seconds)
        found: dict[str, Any] = json.loads((self.directory / "result.json").read_text())
        return found | {"code": process.returncode}

    def policy(self, name: str, *words: str) -> str:
        """`polypfed policy` of that site: what it prints."""
        file = str(self.folder / "sites" / name / "site.toml")
        command = [str(BIN / "polypfed"), "policy", words[0], file, *words[1:]]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    def log(self, what: str, script: str = "start.sh") -> str:
        return (self.folder / what / f"{script}.log").read_text(errors="replace")

    def failures(self) -> list[dict[str, Any]]:
        path = self.directory / "failures.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def accepted(self) -> dict[int, int]:
        return {r["round"]: r["value"] for r in self.history() if r["metric"] == "accepted"}

    def history(self) -> list[dict[str, Any]]:
        """The rows so far."""
        return [json.loads(line) for line in (self.directory / "history.jsonl").read_text().splitlines()]

    def processes(self, what: str) -> list[int]:
        """All processes that descend from the one started as `what`, itself first."""
        return family(self.running[what].pid)

    def stop(self, what: str, number: int = signal.SIGTERM) -> None:
        process = self.running.pop(what)
        family_ = family(process.pid)
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in family_:  # what it should have ended itself, at the latest now
            kill(pid)

    def close(self) -> None:
        for what in sorted(self.running, key=lambda w: not w.startswith("sites")):
            self.stop(what)
