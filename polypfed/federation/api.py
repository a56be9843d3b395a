"""Federation: the settings of a run, and its beginning and resumption."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polypfed.clients.base import Client
from polypfed.core.errors import CheckpointError, ConfigError
from polypfed.core.history import History
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.settings import positive, site_names, whole
from polypfed.federation.blind import BlindEngine
from polypfed.federation.engine import Engine
from polypfed.federation.masked import MaskedEngine
from polypfed.federation.packed import PackedEngine
from polypfed.federation.protocol import Backend, Listener
from polypfed.federation.staged import StagedEngine, check_stages
from polypfed.privacy.ledger import Ledger
from polypfed.privacy.stage import Quantise, Stage
from polypfed.strategies.base import Strategy, nested
from polypfed.strategies.fedavg import FedAvg
from polypfed.strategies.keepbest import KeepBest
from polypfed.strategies.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Sites that train one model together.

    Args:
        clients: the sites, where the backend runs them on this machine; remote backends bring their own.
        strategy: the federated algorithm.
        quorum: accepted updates without which a round does not count; checked at aggregation.
        deadline: seconds for one exchange with the sites.
        per_round: sites asked to train in a round, drawn anew each round; None asks all.
        retries: how often an abandoned round is tried again before the run ends.
        seed: from which every other seed is derived.
        evaluate: "global" scores the global model on every site after each round, "matrix" each site's local model
            too (the cross-site matrix), "off" nothing.
        keep_best: the metric whose best round is kept as `History.best`; "-loss" means lower is better.
        initial: layout and starting model; None takes it from the clients, which must agree.
        max_norm: largest norm of a delta; None is 1000 * (|x| + sqrt(P)).
        stages: what is done to an update before it leaves: clip, noise, compress, mask, encrypt, in this order. Empty
            sends deltas in clear. `privacy.stages("he")` gives the usual ones of a mode.
        budget: the privacy ledger that noise is charged to; the run ends before it overspends.
        keys: folder of the server's identity and of the roster, as `polypfed keys` makes it: every update must then be
            signed by its site, and the heads of the audit log are signed. None asks for no signatures.
        seeded_noise: noise from `seed` instead of the operating system: for simulations, never to protect anybody.

    Raises:
        ConfigError: a setting is out of range, or two clients share a name.
    """

    clients: Sequence[Client] = ()
    strategy: Strategy = FedAvg()
    quorum: int = 1
    deadline: float = 3600.0
    per_round: int | None = None
    retries: int = 1
    seed: int = 0
    evaluate: Literal["global", "matrix", "off"] = "global"
    keep_best: str = "map50"
    initial: tuple[ModelSpec, Vector] | None = None
    max_norm: float | None = None
    stages: Sequence[Stage] = ()
    budget: Ledger | None = None
    seeded_noise: bool = False
    keys: str | Path | None = None

    def __post_init__(self) -> None:
        names = [c.name for c in self.clients]
        site_names(names)
        if self.per_round is not None:
            whole("per_round", self.per_round, 1, len(names) or None)
        whole("quorum", self.quorum, 1, self.per_round or len(names) or None)
        whole("retries", self.retries, 0, 1000)
        whole("seed", self.seed)
        positive(deadline=self.deadline, **{} if self.max_norm is None else {"max_norm": self.max_norm})
        if self.evaluate not in ("global", "matrix", "off"):
            raise ConfigError(f"{self.evaluate!r} is not one of global, matrix, off", where="evaluate")
        Registry.check(self.strategy)
        if self.evaluate == "off" and any(isinstance(s, KeepBest) for s in nested(self.strategy)):
            raise ConfigError("KeepBest decides by evaluation", where="evaluate", remedy='Use "global" or "matrix"')
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.stages:
            check_stages(self)

    def run(
        self, rounds: int, backend: Backend, directory: str | Path | None = None, listen: Listener | None = None
    ) -> History:
        """Train for `rounds` server rounds.

        Args:
            rounds: at least 0; round 0 scores the initial model.
            directory: where the run is kept and can be resumed; nothing is written if None.
            listen: called with every Event.

        Raises:
            ConfigError: the folder holds a run already, or the sites cannot make a quorum.
            LayoutError: the initial model does not fit its layout, or the model is no longer finite.
            QuorumError: a round failed `retries` + 1 times; the run can be resumed.
            CheckpointError: the disk does not take what must be kept.
        """
        whole("rounds", rounds, 0)
        with self._open(backend, directory, listen) as engine:
            engine.begin()
            return engine.until(rounds)

    def resume(self, directory: str | Path, rounds: int, backend: Backend, listen: Listener | None = None) -> History:
        """Continue the run in `directory` until `rounds` rounds are done, to the same bits as without a break.

        Raises:
            CheckpointError: the folder holds no run, or one with other settings.
            QuorumError: a round failed `retries` + 1 times.
        """
        if not (Path(directory) / "run.json").exists():
            raise CheckpointError("holds no run", where=directory, remedy="Start it first")
        with self._open(backend, directory, listen) as engine:
            engine.restore()
            return engine.until(rounds)

    def _open(self, backend: Backend, directory: str | Path | None, listen: Listener | None) -> Engine:
        kinds = {stage.kind for stage in self.stages}
        kind: type[Engine] = StagedEngine if kinds else Engine
        if any(isinstance(stage, Quantise) for stage in self.stages):
            kind = BlindEngine if "encrypt" in kinds else MaskedEngine if "mask" in kinds else PackedEngine
        return kind(self, backend, Path(directory) if directory is not None else None, listen)
