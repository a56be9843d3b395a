"""A site's part in the steps around a masked update: keys, shares, the list of survivors, what opens the sum."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from polypfed.core.errors import ConfigError, StateError
from polypfed.core.messages import Task, Update
from polypfed.privacy.group import Group
from polypfed.privacy.keys import job_id
from polypfed.privacy.masks import Ring
from polypfed.privacy.plan import Plan
from polypfed.privacy.roster import Identity, Roster
from polypfed.privacy.secagg import MaskingSite
from polypfed.privacy.slots import Integers
from polypfed.privacy.stage import Mask


def group_of(run: str, number: int, attempt: int, roster: Roster, names: tuple[str, ...], plan: Plan) -> Group:
    """Who masks together in this attempt, equal at the server and at every site."""
    mask, layout = plan.pipeline.find(Mask), plan.pipeline.layout
    if mask is None or layout is None:
        raise ConfigError("nothing is masked", where="stages")
    ring = Ring(layout[0].modulus)
    return Group(job_id(run), number, attempt, roster, names, mask.of(len(names)), ring, plan.codec().size)


class Steps:
    """The attempt that is under way. Its secrets live in this object only.

    A site that was restarted in the middle of an attempt is lost for it.
    """

    def __init__(self, plan: Plan, identity: Identity, roster: Roster) -> None:
        self._plan, self._identity, self._roster = plan, identity, roster
        self._attempt: tuple[int, int] = (0, 0)
        self._site: MaskingSite | None = None

    @property
    def group(self) -> Group:
        """Of the attempt.

        Raises:
            StateError: none is under way.
        """
        if self._site is None:
            raise StateError("takes part in no attempt", where=self._identity.name)
        return self._site.group

    def take(self, task: Task) -> Update:
        """The answer to a step, by the task's phase."""
        about = task.config["stages"]
        step = {"keys": self._keys, "shares": self._shares, "confirm": self._confirm, "reveal": self._reveal}
        vectors = {name: np.frombuffer(data, np.uint8) for name, data in step[about["phase"]](task, about).items()}
        return Update(self._identity.name, task.round, vectors, 0)  # type: ignore[arg-type]  # bytes travel as uint8

    def mask(self, task: Task, slots: Integers) -> Integers:
        """The slots under masks with every peer whose shares the task brings."""
        sealed = {k.partition(".")[2]: v.tobytes() for k, v in task.vectors.items() if k.startswith("share.")}
        return self._open(task, task.config["stages"]).mask(slots, sealed)

    def _open(self, task: Task, about: Mapping[str, Any]) -> MaskingSite:
        if self._site is None or self._attempt != (task.round, int(about["attempt"])):
            raise StateError("was restarted in the middle of an attempt", where=self._identity.name)
        return self._site

    def _keys(self, task: Task, about: Mapping[str, Any]) -> dict[str, bytes]:
        attempt, names = int(about["attempt"]), tuple(about["group"])
        group = group_of(task.run, task.round, attempt, self._roster, names, self._plan)
        self._attempt, self._site = (task.round, attempt), MaskingSite(group, self._identity)
        return {"keys": self._site.keys()}

    def _shares(self, task: Task, about: Mapping[str, Any]) -> dict[str, bytes]:
        advertised = {k.partition(".")[2]: v.tobytes() for k, v in task.vectors.items() if k.startswith("keys.")}
        return {f"share.{peer}": data for peer, data in self._open(task, about).shares(advertised).items()}

    def _confirm(self, task: Task, about: Mapping[str, Any]) -> dict[str, bytes]:
        return {"signature": self._open(task, about).confirm(about["survivors"])}

    def _reveal(self, task: Task, about: Mapping[str, Any]) -> dict[str, bytes]:
        signatures = {name: bytes.fromhex(signature) for name, signature in about["signatures"].items()}
        reveal = self._open(task, about).reveal(signatures)
        self._site = None
        return {"reveal": json.dumps(reveal.to_json()).encode()}
