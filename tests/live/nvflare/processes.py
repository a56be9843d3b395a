"""A deployment's real processes on the loopback interface, started as its README says, and ended by their pids."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polypfed.backends.nvflare import deploy
from tests.live.loopback import BIN, alive, command, family, free_ports
from tests.problems import ROOT

ADMIN = "admin@polypfed.org"
PATIENT = 90.0


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
        self.port, self.admin_port = free_ports(2)
        settings = {n: {"names": self.names, **(site or {}).get(n, {})} for n in self.names}
        plan = deploy.Plan(
            self.names,
            port=self.port,
            admin_port=self.admin_port,
            client="tests.live.nvflare.study:client",
            federation="tests.live.nvflare.study:federation",
            settings=settings,
            server_settings=server,
        )
        deploy.write(self.folder, plan)
        for name in () if approve else self.names:
            path = self.kit(name) / "local" / "polypfed.toml"
            path.write_text(path.read_text().replace("approve = true", "approve = false"))
        self.server, self.admin = self.kit("localhost"), self.kit(ADMIN)
        self.environment = os.environ | {
            "POLYPFED_BIN": str(BIN),
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def kit(self, name: str) -> Path:
        return self.folder / "kits" / name

    def start(self, *names: str) -> None:
        for name in names:
            with open(self.kit(name) / "out.log", "ab") as log:
                self.running[name] = subprocess.Popen(
                    ["./start.sh"],
                    cwd=self.kit(name),
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def start_all(self) -> None:
        self.start("localhost", *self.names)
        self.wait_for_sites()

    def wait_for_sites(self) -> None:
        found = self.ask(
            "import time\n"
            "for _ in range(200):\n"
            "    answer = operate.status(opened)['sites']\n"
            f"    if answer == {self.names!r}: break\n"
            "    time.sleep(0.2)\n"
        )
        assert found == self.names

    def ask(self, code: str) -> Any:
        """What `code` leaves in `answer`, in a process of its own: NVFlare's sessions never let go of their threads."""
        program = (
            "import json\n"
            "from pathlib import Path\n"
            "from polypfed.backends.nvflare import operate\n"
            f"kit = Path({str(self.admin)!r})\n"
            f"with operate.session(kit, {PATIENT}) as opened:\n{textwrap.indent(code, '    ')}\n"
            "    print('ANSWER', json.dumps(answer, default=str), flush=True)\n"
        )
        return json.loads(self._python("-c", program)[1].partition("ANSWER ")[2].splitlines()[0])

    def command(self, *words: str) -> tuple[int, str, str]:
        """`polypfed nvflare WORDS`; exit code and output."""
        return self._python(str(BIN / "polypfed"), "nvflare", *words, check=False)

    def policy(self, name: str, *words: str) -> str:
        """`polypfed policy` of that site: what it prints."""
        file = str(self.kit(name) / "local" / "polypfed.toml")
        return self._python(str(BIN / "polypfed"), "policy", words[0], file, *words[1:])[1]

    def conduct(self, run: str = "study", rounds: int = 0) -> dict[str, Any]:
        """`polypfed nvflare run`; RUN/result.json."""
        more = ["--rounds", str(rounds)] if rounds else []
        code, out, errors = self.command("run", str(self.admin), "--name", run, *more)
        self.said = out + errors
        result: dict[str, Any] = json.loads((self.run_folder(run) / "result.json").read_text())
        assert (code == 0) == (result["status"] == "completed"), self.said
        return result

    def _python(self, *arguments: str, check: bool = True) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr

    def log(self, name: str) -> str:
        return (self.kit(name) / "out.log").read_text(errors="replace")

    def run_folder(self, run: str = "study") -> Path:
        return self.server / "runs" / run

    def lines(self, file: str, run: str = "study") -> list[dict[str, Any]]:
        path = self.run_folder(run) / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def accepted(self, run: str = "study") -> dict[int, int]:
        return {r["round"]: r["value"] for r in self.lines("history.jsonl", run) if r["metric"] == "accepted"}

    def processes(self, name: str, word: str = "") -> list[int]:
        """Those that descend from the one started as `name` and whose command holds `word`."""
        return [pid for pid in family(self.running[name].pid) if word in command(pid)]

    def kill(self, name: str) -> None:
        """As a power cut: the process and all below it."""
        process = self.running.pop(name)
        for pid in family(process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def close(self) -> list[int]:
        """End everything; the processes that are still there afterwards."""
        pids = [pid for name in self.running for pid in family(self.running[name].pid)]
        for name in list(self.running):
            self.kill(name)
        time.sleep(0.5)
        return [pid for pid in pids if alive(pid)]


def edit(deployment: Deployment, **settings: object) -> None:
    """The server's settings, as its owner edits them."""
    path = deployment.server / "local" / "polypfed.toml"
    head = path.read_text().partition("[settings]")[0]
    path.write_text(head + "[settings]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
