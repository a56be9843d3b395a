import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import CheckpointError, ConfigError
from polypfed.privacy.errors import BudgetExhausted
from polypfed.privacy.ledger import Ledger

pytest.importorskip("dp_accounting")

SETTINGS = [  # (sampling rate, z, releases, delta)
    (1, 4, 20, 1e-5),
    (1, 1, 1, 1e-5),
    (1, 0.7, 5, 1e-4),
    (1, 10, 300, 1e-6),
    (1, 2.5, 50, 1e-3),
    (0.1, 1, 100, 1e-5),
    (0.01, 1.1, 1000, 1e-6),
    (0.5, 3, 40, 1e-5),
    (0.25, 0.8, 10, 1e-5),
    (0.02, 2.0, 5000, 1e-6),
]


@pytest.mark.filterwarnings("ignore:Optimal order is the:UserWarning")
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_epsilon_is_within_a_hundredth_of_another_accountant(setting):
    """Opacus', asked now, with its own orders."""
    accountants = pytest.importorskip("opacus.accountants")
    rate, multiplier, releases, delta = setting
    other = accountants.RDPAccountant()
    other.history = [(multiplier, rate, releases)]
    ledger = Ledger(math.inf, delta, ((rate, multiplier, releases),))
    assert ledger.spent == pytest.approx(other.get_epsilon(delta), rel=0.01)


@given(st.floats(0.8, 20), st.integers(1, 200), st.sampled_from([1e-3, 1e-5, 1e-7]))
@settings(max_examples=40, deadline=None)
def test_the_gaussian_by_hand(multiplier, releases, delta):
    """Canonne, Kamath and Steinke's conversion of alpha T / 2 z^2, minimised over a fine grid of alpha."""
    alpha = np.concatenate([np.arange(1.01, 11, 0.01), np.arange(11, 1100)])
    divergence = alpha * releases / (2 * multiplier**2)
    epsilon = divergence + np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)
    assert Ledger(math.inf, delta, ((1.0, multiplier, releases),)).spent == pytest.approx(
        max(0.0, float(epsilon.min())), rel=0.01, abs=1e-3
    )


def test_a_charge_that_would_overspend_is_refused_and_changes_nothing():
    ledger, rounds = Ledger(epsilon=3.0, delta=1e-5), 0
    while ledger.charged(4.0).spent <= 3.0:
        ledger = ledger.charge(4.0)
        rounds += 1
    with pytest.raises(BudgetExhausted, match=r"epsilon 3\.\d+ of 3\.000, 2\.\d+ is spent"):
        ledger.charge(4.0)
    assert rounds == Ledger(epsilon=3.0, delta=1e-5).affordable(4.0) > 3
    assert ledger.entries == ((1.0, 4.0, rounds),)
    assert ledger.spent <= 3.0 < ledger.charged(4.0).spent
    assert ledger.affordable(4.0) == 0
    with pytest.raises(BudgetExhausted):
        Ledger(epsilon=0.1, delta=1e-5).charge(1.0)


def test_a_stronger_noise_is_cheaper_and_mixtures_add():
    one = Ledger(math.inf, 1e-5)
    assert one.spent == 0
    assert one.charged(2.0).spent < one.charged(1.0).spent
    mixed = one.charged(2.0).charged(2.0).charged(1.0, 0.1)
    assert mixed.entries == ((1.0, 2.0, 2), (0.1, 1.0, 1))
    assert mixed.spent >= one.charged(2.0, releases=2).spent
    assert one.affordable(50.0, most=20) == 20


def test_it_survives_a_checkpoint_and_never_rolls_back():
    old = Ledger(8.0, 1e-5).charged(4.0, releases=3)
    new = old.charged(4.0).charged(2.0)
    for ledger in (old, new, Ledger(math.inf, 1e-3)):
        assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger
    assert new.continues(old)
    assert old.continues(old)
    assert not old.continues(new)
    assert not Ledger(8.0, 1e-5).charged(3.0, releases=9).continues(old)
    assert not Ledger(8.0, 1e-5).continues(old)
    for bad in ({}, {"epsilon": 1, "delta": 2, "entries": []}, {"epsilon": 1, "delta": 1e-5, "entries": [[1, 0, 1]]}):
        with pytest.raises(CheckpointError, match="no privacy ledger"):
            Ledger.from_json(bad)


def test_settings_without_a_meaning_are_refused():
    for fields in (
        {"epsilon": 0.0, "delta": 1e-5},
        {"epsilon": 1.0, "delta": 0.0},
        {"epsilon": 1.0, "delta": 1.0},
        {"epsilon": 1.0, "delta": 1e-5, "entries": ((1.5, 1.0, 1),)},
        {"epsilon": 1.0, "delta": 1e-5, "entries": ((1.0, 1.0, 0),)},
    ):
        with pytest.raises(ConfigError):
            Ledger(**fields)
