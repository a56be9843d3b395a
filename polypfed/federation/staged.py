"""The round engine where updates pass through stages: what the server gets is one flat vector of each site."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polypfed.clients.outbox import describe, plan_of
from polypfed.core.errors import ConfigError
from polypfed.core.history import row
from polypfed.core.messages import Failure, Update
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.seeds import derive
from polypfed.federation.collect import Collected, record
from polypfed.federation.engine import Engine
from polypfed.privacy.errors import BudgetExhausted, IncompatiblePrivacy
from polypfed.privacy.group import LEAST
from polypfed.privacy.keyring import open_keys, provision
from polypfed.privacy.ledger import Ledger
from polypfed.privacy.plan import Plan
from polypfed.privacy.quantise import Grid
from polypfed.privacy.roster import Identity, Roster
from polypfed.privacy.stage import At, Mask, Noise, Quantise, TopK
from polypfed.strategies.base import nested, uploads
from polypfed.strategies.fedbuff import FedBuff
from polypfed.strategies.keepbest import KeepBest

if TYPE_CHECKING:
    from polypfed.federation.api import Federation

_ANY = ModelSpec.of({"x": np.zeros(2)})


def check_stages(fed: "Federation") -> None:
    """Refuse at construction what does not go together.

    Raises:
        IncompatiblePrivacy: with the reason and a way out.
    """
    layers = list(nested(fed.strategy))
    if any(isinstance(layer, FedBuff) for layer in layers):
        raise IncompatiblePrivacy("FedBuff's rounds have no common start", where="strategy", remedy="Use FedAvg")
    kinds = {stage.kind for stage in fed.stages}
    follow = any(isinstance(stage, Quantise) for stage in fed.stages) and kinds & {"mask", "encrypt"} != {"mask"}
    if follow and any(isinstance(layer, KeepBest) for layer in layers):
        why = "sees no model" if "encrypt" in kinds else "hears of the scores when the sites have made the step"
        raise IncompatiblePrivacy(f"KeepBest decides on the server, which {why}", where="strategy")
    if fed.evaluate == "matrix":
        raise IncompatiblePrivacy(
            "the cross-site matrix shows each site's model to the others", where="evaluate", remedy='Use "global"'
        )
    if any(stage.kind == "noise" for stage in fed.stages) and fed.budget is None:
        raise IncompatiblePrivacy(
            "noise without a budget", where="budget", remedy="Give Ledger(epsilon=..., delta=...); math.inf only counts"
        )
    if fed.clients:
        try:
            spec = fed.strategy.wire(_ANY)
        except ConfigError:  # it keeps parts of a model at the sites, by names that this one has not
            spec = _ANY
        Plan.of(spec, uploads(fed.strategy, spec.boundary), fed.strategy.reducer, fed.stages, len(fed.clients))


class StagedEngine(Engine):
    """One run under stages. In itself for float stages; the ones below it add masks and ciphertext."""

    plan: Plan
    identity: Identity
    roster: Roster

    @property
    def keyed(self) -> bool:
        """Do the stages need keys?"""
        return any(stage.kind in ("encrypt", "mask") for stage in self.fed.stages)

    def _place(self) -> Path | None:
        """Keys need a place: a folder that is deleted at the end, if the run has none.

        Remote sites bring keys of their own, which the roster in the server's folder of keys knows.
        """
        if not self.keyed:
            return super()._place()
        root = self.folder.path if self.folder else Path(tempfile.mkdtemp(prefix="polypfed-"))
        if not self.folder:
            self._stack.callback(shutil.rmtree, root, ignore_errors=True)
        if self.fed.clients:
            provision([c.name for c in self.fed.clients], root)
        given = None if self.fed.clients else self.fed.keys
        self.identity, self.roster = open_keys(Path(given) if given else root / "keys")
        return root

    def _signer(self) -> Any:
        return self.identity.signer if self.keyed else super()._signer()

    @property
    def least(self) -> int:
        """Under masks a sum of too few cannot be opened."""
        mask = self.plan.pipeline.find(Mask)
        return max(super().least, 0 if mask is None else max(LEAST, mask.of(self.asked)))

    def _check(self, layout: ModelSpec) -> None:
        super()._check(layout)
        if self.keyed and self.roster.names != self.sites:
            raise ConfigError(
                f"names {self.roster.names}, the sites are {self.sites}", where="keys/roster.json",
                remedy="Make the roster anew with polypfed keys",
            )  # fmt: skip
        self.plan = plan_of(self.fed.strategy, layout, self.fed.stages, len(self.sites))

    def _settings(self, layout: str) -> dict[str, Any]:
        return super()._settings(layout) | {"stages": describe(self.fed.stages)}

    def _lengths(self) -> dict[str, int]:
        return {"sent": self.plan.sent} | ({"unclipped": 1} if self.plan.adaptive else {})

    def _about(self, **more: Any) -> dict[str, Any]:
        """What a site must know of the stages."""
        about = {"list": describe(self.fed.stages), "sites": len(self.sites), "simulate": self.fed.seeded_noise}
        about |= {"seed": derive(self.fed.seed, "stages")} | ({} if self._norm is None else {"norm": self._norm})
        return about | more

    @property
    def _norm(self) -> float | None:
        """C of this round, where it moves."""
        adaptive = self.plan.adaptive
        return None if adaptive is None else float(self.now.privacy.get("norm", adaptive.initial))

    @property
    def _grid(self) -> Grid:
        """Of the next round's updates, where the server knows it."""
        kept = self.now.privacy.get("grid")
        return Grid.from_json(kept) if kept else self.plan.first_grid(self.now.x)

    def _more_config(self) -> dict[str, Any]:
        return {"stages": self._about()}

    def _more_vectors(self) -> Mapping[str, Vector]:
        reference = self.now.state.get("stages.reference")
        return {} if reference is None else {"reference": reference}

    def _collected(self, number: int, names: list[str]) -> Collected:
        return _Flat(self, number, names)

    def _at(self, number: int, count: int) -> At:
        reference = self.now.state.get("stages.reference")
        seed = derive(self.fed.seed, "stages")
        simulate = self.fed.seeded_noise
        return At(seed, number, "", reference, self._norm, simulate, count=count, planned=self.asked)

    def _mean(self, got: Collected) -> dict[str, Vector]:
        mean = got.queue.result()
        at = self._at(got.number, got.working)
        flat = self.plan.pipeline.backward(mean["sent"], at, self.plan.length)
        if self.plan.adaptive is not None and at.norm is not None and got.working:
            unclipped = round(got.working * float(mean["unclipped"][0]))
            self.now.privacy = self.now.privacy | {"norm": self.plan.adaptive.moved(at.norm, unclipped, at.noise())}
        return self._split(flat)

    def _split(self, flat: Vector) -> dict[str, Vector]:
        self._released = flat
        return self.plan.split(flat)

    def _step(self, number: int, got: Collected) -> None:
        """As ever, with the mean that the stages give; the release has been charged before."""
        super()._step(number, got)
        if self.plan.pipeline.find(TopK) is not None and got.working:
            self.now.state = {**self.now.state, "stages.reference": self._released}

    def _attempting(self, number: int) -> None:
        """Keep in the ledger what this attempt will cost, before anything is released: sites answer each of them.

        Raises:
            BudgetExhausted: it would cost more than is left.
        """
        noise, budget = self.plan.pipeline.find(Noise), self.fed.budget
        if noise is None or budget is None:
            return
        spent = self.now.privacy.get("ledger")
        ledger = (Ledger.from_json(spent) if spent else budget).charge(noise.multiplier)
        self.now.privacy = self.now.privacy | {"ledger": ledger.to_json()}
        self.history.rows.append(row(number, "", "epsilon", ledger.spent))
        self.witness.spent(number, ledger.spent)
        self._save()  # before the release: a run that is killed behind it must not forget what it cost

    def until(self, rounds: int) -> Any:
        """Rounds up to `rounds`, or to the last one that the privacy budget allows."""
        try:
            return super().until(rounds)
        except BudgetExhausted as end:
            record(self, Failure("", self.now.round + 1, "budget", str(end)))
            self._commit()
            return super().until(self.now.round)


class _Flat(Collected):
    """Updates that are one flat vector each."""

    def _lengths(self, engine: "Engine") -> dict[str, int]:
        return engine.lengths

    def _parts(self, update: Update) -> Mapping[str, Vector]:
        return update.vectors
