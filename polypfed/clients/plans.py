"""Plans at a site: those that wait for its owner, and those the owner has approved. One file each, named by hash."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypfed.clients.plan import Plan, hash_of, plan_of
from polypfed.core.errors import ConfigError, MessageError
from polypfed.core.files import write_atomic
from polypfed.core.messages import Task, strict_json

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_MOST = 50  # plans that wait; a server that asks for ever new ones fills no disk


@dataclass(frozen=True)
class Plans:
    """The plans below a folder.

    Args:
        folder: `waiting/` and `approved/` are made in it when they are needed.
    """

    folder: Path

    def waiting(self) -> dict[str, Plan]:
        """By hash, what a server has asked for and nobody has approved."""
        return self._read("waiting")

    def approved(self) -> dict[str, Plan]:
        """By hash, what the owner has approved."""
        return self._read("approved")

    def ask(self, task: Task) -> None:
        """Keep a task's plan for the owner to see."""
        plan = plan_of(task.config)
        if len(self._paths("waiting")) < _MOST:
            self._write("waiting", plan)

    def approve(self, plan: str | Plan) -> str:
        """Approve a plan that waits, by its hash, or one that is given whole; its hash.

        Raises:
            ConfigError: no plan of this hash waits.
        """
        if isinstance(plan, str):
            waiting = self.waiting()
            if not _HASH.fullmatch(plan) or plan not in waiting:
                remedy = "`polypfed policy show` lists those that wait"
                raise ConfigError(f"no plan {plan[:80]!r} waits", where=self.folder, remedy=remedy)
            plan = waiting[plan]
        self._write("approved", plan)
        name = hash_of(plan)
        self._path("waiting", name).unlink(missing_ok=True)
        return name

    def revoke(self, name: str) -> None:
        """Take an approval back.

        Raises:
            ConfigError: there is none.
        """
        if not _HASH.fullmatch(name) or not self._path("approved", name).exists():
            raise ConfigError(f"no plan {name[:80]!r} is approved", where=self.folder)
        self._path("approved", name).unlink()

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name.removeprefix('sha256:')}.json"

    def _paths(self, kind: str) -> list[Path]:
        return sorted((self.folder / kind).glob("*.json"))

    def _write(self, kind: str, plan: Plan) -> None:
        write_atomic(self._path(kind, hash_of(plan)), json.dumps(plan, indent=1, sort_keys=True).encode() + b"\n")

    def _read(self, kind: str) -> dict[str, Any]:
        """Only files that hold the plan they are named after count."""
        found = {}
        for path in self._paths(kind):
            try:
                plan = strict_json(path.read_bytes())
            except (OSError, MessageError):
                continue
            if self._path(kind, hash_of(plan)) == path:
                found[hash_of(plan)] = plan
        return found
