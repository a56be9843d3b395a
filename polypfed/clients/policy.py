"""A site's own policy: what its owner lets a federation do there. No message can change it.

[policy]
strategies = ["fedavg", "scaffold"]   # names, wrapped ones among them
max_epochs = 10                       # of the client, in a round
min_cohort = 3                        # sites asked in a round, as the server says
privacy = ["he", "hybrid"]            # modes
epsilon = 8.0                         # noise must be added at this site, and cost no more than this in a run
delta = 1e-5
rounds = 50                           # the last one
approve = true                        # a new plan waits for `polypfed policy approve`
plans = ["sha256:..."]                # approved here, beside those of the command
disclose = ["loss", "map50"]          # the only metrics that leave
keep_samples_days = 90                # older records of single samples are deleted
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from polypfed.clients.plan import digest, mode_of, names_of, plan_of
from polypfed.core.errors import ConfigError, Refused
from polypfed.core.messages import Task
from polypfed.core.settings import positive, whole
from polypfed.privacy.pipeline import Mode

MODES = get_args(Mode)
ALWAYS = frozenset({"model_digest"})
"""Metrics of the protocol itself, which say nothing of a site's images."""


@dataclass(frozen=True)
class Policy:
    """What a task may ask for; None or empty leaves a matter open. See the file's head for the settings.

    Raises:
        ConfigError: a setting is of the wrong type or out of range.
    """

    strategies: Sequence[str] | None = None
    max_epochs: int | None = None
    min_cohort: int | None = None
    privacy: Sequence[str] | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    rounds: int | None = None
    approve: bool = False
    plans: Sequence[str] = ()
    disclose: Sequence[str] | None = None
    keep_samples_days: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_epochs", "min_cohort", "rounds", "keep_samples_days"):
            if getattr(self, name) is not None:
                whole(f"policy.{name}", getattr(self, name), 1)
        for name in ("strategies", "privacy", "plans", "disclose"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)):
                raise ConfigError(f"{value!r} is not a list of words", where=f"policy.{name}")
        if wrong := sorted(set(self.privacy or ()) - set(MODES)):
            raise ConfigError(f"{wrong[0]!r} is not one of {', '.join(MODES)}", where="policy.privacy")
        if self.epsilon is not None:
            positive(epsilon=self.epsilon)
        positive(delta=self.delta)
        if type(self.approve) is not bool:
            raise ConfigError(f"{self.approve!r} is not true or false", where="policy.approve")

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: object = "policy") -> "Policy":
        """The policy of a TOML table.

        Raises:
            ConfigError: a setting is unknown, of the wrong type or out of range.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(table) - set(known)):
            raise ConfigError(
                f"policy.{unknown[0]}: there is no such setting", where=where, remedy=f"It has: {', '.join(known)}"
            )
        return cls(**table)

    def check(self, task: Task, epochs: int | None, approved: Sequence[str]) -> None:
        """See that the task is within the policy.

        Args:
            epochs: of the client, if it has such a setting. approved: hashes of plans that the owner has approved.

        Raises:
            Refused: with reason "policy"; it says what is not allowed, and how the owner may allow it.
        """
        if self.strategies is not None:
            for name in names_of(task.config.get("strategy")):
                _need(name in self.strategies, f"strategy {name!r} is not allowed here")
        if self.privacy is not None:
            mode = mode_of(task.config)
            _need(mode in self.privacy, f"privacy {mode!r} is not allowed here")
        if self.rounds is not None:
            _need(task.round <= self.rounds, f"round {task.round} is beyond {self.rounds}")
        if self.max_epochs is not None and epochs is not None:
            _need(epochs <= self.max_epochs, f"{epochs} epochs in a round are more than {self.max_epochs}")
        if self.min_cohort is not None and task.kind == "fit":
            cohort = task.config.get("cohort")
            several = type(cohort) is int and cohort >= self.min_cohort
            _need(several, f"{cohort} sites take part in the round, not {self.min_cohort}")
        if self.epsilon is not None:
            _need(self.noise(task) is not None, "no noise is added at this site")
        if self.approve:
            plan = digest(task.config)
            _need(plan in (*self.plans, *approved), f"the plan is not approved: polypfed policy approve {plan}")

    def noise(self, task: Task) -> float | None:
        """The noise multiplier of what this site sends under the task; None if it adds no real noise."""
        plan = plan_of(task.config)
        for stage in plan["stages"]:
            if stage.get("name") == "noise" and stage.get("where") == "site" and not plan["simulate"]:
                return float(stage.get("multiplier", 0.0)) or None
        return None

    def disclosed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics that may leave; "map50@NAME" goes by the name of map50."""
        if self.disclose is None:
            return dict(metrics)
        allowed = {*self.disclose, *ALWAYS}
        return {name: value for name, value in metrics.items() if name.partition("@")[0] in allowed}


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise Refused("policy", problem)
