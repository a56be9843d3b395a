"""A shell that tests type into: commands to their end, and services that are ended with the shell."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.live.loopback import BIN, family, kill
from tests.problems import ROOT


class Typed:
    """Commands of this environment, in one folder; what they say is in the file `said`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        path = os.pathsep.join([str(BIN), environment["PATH"]])
        self.folder, self.environment = folder, dict(environment) | {"PATH": path, "PYTHONPATH": str(ROOT)}
        self.services: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Typed":
        return self

    def __exit__(self, *_: object) -> None:
        for service in reversed(self.services):
            members = family(service.pid)
            service.terminate()
            try:
                service.wait(20)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()
            for pid in members:
                kill(pid)

    def run(self, line: str, seconds: float = 300.0) -> None:
        """To its end, which must be good."""
        code = self._popen(line).wait(seconds)
        assert code == 0, f"{line}: code {code}\n{self.said[-4000:]}"

    def start(self, line: str) -> None:
        """In the background, until the shell is left."""
        self.services.append(self._popen(f"exec {line}"))

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def _popen(self, line: str) -> "subprocess.Popen[bytes]":
        with open(self.folder / "said", "ab") as said:
            return subprocess.Popen(
                ["bash", "-c", line],
                cwd=self.folder,
                env=self.environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
