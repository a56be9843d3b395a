from typing import Any

import numpy as np
import pytest

from polypfed import Client, NumpyClient, Task
from polypfed.clients.base import HasInitial, agreed
from polypfed.core.errors import ConfigError
from polypfed.core.messages import Evaluation
from polypfed.core.pack import pack_state, unpack_state
from tests.problems import Odd, exit_soft, sites


def client(**change: Any) -> NumpyClient:
    settings: dict[str, Any] = {
        "gradient": lambda x: 2 * (x - 3),
        "x0": [[1.0], [2.0]],
        "lr": 0.25,
        "steps": 2,
        "weight": 5,
    }
    return NumpyClient("a", **(settings | change))


def test_it_is_a_client_that_proposes_its_start() -> None:
    assert isinstance(client(), Client)
    assert isinstance(client(), HasInitial)
    spec, x = client().initial()
    assert (spec.size, spec.boundary, x.dtype, x.tolist()) == (2, 2, np.float32, [1, 2])


def test_two_steps_by_hand() -> None:
    """lr 1/4 halves the way to 3: 1 -> 2 -> 2.5 and 2 -> 2.5 -> 2.75."""
    _, x = client().initial()
    x.setflags(write=False)
    update = client().fit(Task(4, "fit", {"model": x}))
    assert update.vectors["delta"].tolist() == [1.5, 0.75]
    assert update.vectors["delta"].dtype == np.float32
    assert (update.client, update.round, update.weight, update.metrics) == ("a", 4, 5, {"images": 5})


def test_evaluation_is_the_loss_or_the_norm_of_the_gradient() -> None:
    task = Task(4, "evaluate", {"model": np.array([0, 7], np.float32)})
    assert client().evaluate(task).metrics == {"gradient_norm": 10.0}
    found = client(loss=lambda x: np.float32(x.sum())).evaluate(task)
    assert isinstance(found, Evaluation)
    assert (found.metrics, found.weight, found.round) == ({"loss": 7.0}, 5, 4)


def test_a_gradient_of_another_size_is_not_spread_over_the_model() -> None:
    for gradient in (lambda x: np.ones(1), lambda x: np.ones((3, 1)), lambda x: 1.0):
        with pytest.raises(ValueError, match="reshape"):
            client(gradient=gradient).fit(Task(1, "fit", {"model": np.zeros(2, np.float32)}))


@pytest.mark.parametrize("change", [{"lr": 0}, {"lr": float("nan")}, {"steps": 0}, {"steps": 1.0}, {"steps": True}])
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(change))}: "):
        client(**change)


def test_state_is_nothing_or_named_vectors() -> None:
    assert (client().state(), pack_state({}), unpack_state(b"")) == (b"", b"", {})
    kept = {"c_i": np.arange(6, dtype=np.float32)[::2], "v": np.ones(1, np.float32)}
    again = unpack_state(pack_state(kept))
    assert {k: v.tolist() for k, v in again.items()} == {"c_i": [0, 2, 4], "v": [1]}
    other = client()
    other.restore(pack_state(kept))
    assert other.state() == pack_state(kept)
    other.restore(b"")
    assert other.state() == b""


def test_clients_agree_on_the_start_or_the_first_who_does_not_is_named() -> None:
    spec, x = agreed(sites(3))
    assert spec.size == 3
    assert x.tolist() == pytest.approx([-0.3, 0.3, 0.9])
    three = sites(3)
    three[1].x0 = [0.0, 0.0, 1.0]
    with pytest.raises(ConfigError, match=r"^site-01: proposes another model"):
        agreed(three)
    three[1].x0 = [0.0]
    with pytest.raises(ConfigError, match=r"^site-01: proposes another model"):
        agreed(three)


def test_a_client_without_a_proposal_is_not_asked() -> None:
    class Silent:
        name = "silent"

    assert agreed([Silent(), *sites(2)])[0].size == 3  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="no client has initial"):
        agreed([Silent()])  # type: ignore[list-item]
    assert isinstance(Odd(sites(1)[0], exit_soft), HasInitial)
