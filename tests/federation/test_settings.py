"""What is refused when a federation is built or begins: every setting by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, NumpyClient
from polypfed.backends import Local
from polypfed.core.errors import ConfigError, LayoutError
from polypfed.strategies import Base
from tests.problems import Quadratic, Scripted, honest, sites, start

# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"quorum": 0}, "quorum"),
        ({"quorum": 5}, "quorum"),
        ({"quorum": 3, "per_round": 2}, "quorum"),
        ({"quorum": True}, "quorum"),
        ({"per_round": 0}, "per_round"),
        ({"per_round": 5}, "per_round"),
        ({"per_round": "2"}, "per_round"),
        ({"retries": -1}, "retries"),
        ({"seed": 1.0}, "seed"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"deadline": "1 h"}, "deadline"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"max_norm": float("nan")}, "max_norm"),
        ({"evaluate": "globl"}, "evaluate"),
        ({"clients": [*sites(2), sites(1)[0]]}, "clients"),
        ({"clients": [NumpyClient("../a", Quadratic(1, 1), [0.0])]}, "clients"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        Federation(**({"clients": sites(4)} | settings))


def test_a_strategy_nobody_registered_is_refused() -> None:
    @dataclass(frozen=True)
    class Mine(Base):
        def step(self, x: Any, state: Any, mean: Any, cohort: Any) -> Any:
            return x, state

    with pytest.raises(ConfigError, match="no strategy is called 'mine'"):
        Federation(clients=sites(), strategy=Mine())


def test_there_must_be_sites_and_enough_of_them() -> None:
    with pytest.raises(ConfigError, match="there is no site"):
        Federation().run(1, Local())
    remote = Scripted(honest)
    remote.host(sites(3), None)
    with pytest.raises(ConfigError, match=r"^quorum: 4 is not a whole number from 1 to 3"):
        Federation(quorum=4, initial=start()).run(1, remote)


@pytest.mark.parametrize("rounds", [-1, 1.0, True, "3"])
def test_rounds_is_a_whole_number(rounds: Any) -> None:
    with pytest.raises(ConfigError, match=r"^rounds: "):
        Federation(clients=sites()).run(rounds, Local())


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (np.zeros(3), "the vector is float64"),
        (np.zeros(4, np.float32), "not float32"),
        (np.array([0, np.nan, 0], np.float32), "the initial model is not finite"),
    ],
)
def test_an_initial_model_that_does_not_fit_is_refused(x: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=problem):
        Federation(clients=sites(), initial=(start()[0], x)).run(1, Local(), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_backend_with_names_that_are_no_names_is_refused() -> None:
    @dataclass
    class Remote(Scripted):
        clients: Any = ("../../etc",)

    with pytest.raises(ConfigError, match="cannot name a site"):
        Federation(initial=start()).run(1, Remote(honest))
