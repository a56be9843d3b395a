import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.privacy.slots import Slots


@st.composite
def layouts(draw: st.DrawFn) -> Slots:
    lanes = draw(st.integers(1, 5))
    sites = draw(st.integers(1, 64))
    base = draw(st.integers(2 * sites + 1, max(2 * sites + 1, int(2 ** (60 / lanes)))))
    base = min(base, 1 << 32) if lanes == 1 else base
    return Slots(base**lanes + draw(st.integers(0, 5)), base, lanes, sites)


@settings(max_examples=150, deadline=None)
@given(layouts(), st.integers(1, 40), st.randoms(use_true_random=False), st.booleans())
def test_sums_are_exact_up_to_the_admitted_number_of_sites(slots, length, random, extreme):
    values = [
        [slots.levels if extreme or random.random() < 0.5 else random.randint(0, slots.levels) for _ in range(length)]
        for _ in range(slots.sites)
    ]
    total = [0] * slots.count(length)
    for own in values:
        packed = slots.pack(np.array(own, np.uint32))
        total = [(a + int(b)) % slots.modulus for a, b in zip(total, packed, strict=True)]
    sums = slots.unpack(np.array(total, np.uint64), length)
    assert sums.tolist() == [sum(column) for column in zip(*values, strict=True)]


def test_one_site_more_would_carry_so_the_margin_is_real():
    slots = Slots(100**2, 100, 2, sites=3)
    assert slots.levels * slots.sites < 100 <= (slots.levels + 2) * slots.sites


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"modulus": 9_999, "base": 100, "lanes": 2, "sites": 2}, "do not fit"),
        ({"modulus": 100, "base": 10, "lanes": 2, "sites": 10}, "no room"),
        ({"modulus": 100, "base": 10, "lanes": 0, "sites": 1}, "whole number"),
    ],
)
def test_a_layout_that_could_wrap_is_refused(fields, word):
    with pytest.raises(ConfigError, match=word):
        Slots(**fields)


def test_values_outside_are_refused_not_wrapped():
    slots = Slots(10_000, 100, 2, 3)
    with pytest.raises(LayoutError, match="above 32 levels"):
        slots.pack(np.array([33], np.uint32))
    with pytest.raises(LayoutError, match="larger than any sum"):
        Slots(20_000, 100, 2, 3).unpack(np.array([15_000], np.uint64), 2)
    with pytest.raises(LayoutError, match="slots, not"):
        slots.unpack(np.zeros(3, np.uint64), 2)
