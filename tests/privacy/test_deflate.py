"""Integers as few bytes: exactly back, near the entropy, and nothing else is taken for them."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polypfed.core.errors import ConfigError
from polypfed.privacy.deflate import deflate, inflate, longest
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.slots import Slots, open_slots

SHAPES = [(1.5, 3, 1), (2.3, 4, 1), (2.3, 4, 4), (8, 4, 3), (15, 2, 2), (20, 100, 57)]


@pytest.mark.parametrize(("bits", "sites", "count"), SHAPES)
def test_every_sum_comes_back(bits: float, sites: int, count: int) -> None:
    slots = open_slots(sites, bits)
    most = count * slots.levels

    @given(arrays(np.uint32, st.integers(0, 300), elements=st.integers(0, most)))
    def check(total: np.ndarray) -> None:
        data = deflate(total, slots, count)
        assert len(data) <= longest(total.size, slots, count)
        back = inflate(data, total.size, slots, count)
        assert back.dtype == np.uint32
        np.testing.assert_array_equal(back, total)

    check()
    np.testing.assert_array_equal(inflate(deflate(np.array([0, most]), slots, count), 2, slots, count), [0, most])


def drawn(slots: Slots, count: int, deviation: float, size: int = 200_000) -> np.ndarray:
    normal = np.random.default_rng(0).normal(count * slots.levels / 2, deviation, size)
    return np.clip(np.rint(normal), 0, count * slots.levels).astype(np.uint32)


def entropy(values: np.ndarray) -> float:
    share = np.bincount(values) / values.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize(
    ("bits", "count", "deviation", "room"),
    [(1.5, 1, 0.6, 1.02), (2.3, 1, 0.9, 1.02), (2.3, 4, 1.6, 1.06), (3.1, 4, 2.5, 1.03), (8, 4, 40, 1.25)],
)
def test_it_takes_little_more_than_the_entropy(bits: float, count: int, deviation: float, room: float) -> None:
    slots = open_slots(4, bits)
    values = drawn(slots, count, deviation)
    spent = 8 * len(deflate(values, slots, count)) / values.size
    assert entropy(values) < spent < room * entropy(values)


def test_what_is_no_sum_is_refused_without_its_memory() -> None:
    slots = open_slots(3, 2.3)
    good = deflate(np.array([0, 1, 2, 3, 4, 0]), slots)

    def raw(data: bytes) -> bytes:
        stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return stream.compress(data) + stream.flush()

    for data, words in (
        (b"", "is not of 2 bytes"),
        (good[:-1], "is not of 2 bytes"),
        (good + b"x", "1 bytes too many"),
        (b"\xff" * 20, "is not deflated"),
        (raw(bytes(1)), "is not of 2 bytes"),
        (raw(bytes(50 << 20)), "is not of 2 bytes"),
        (raw(bytes([0, 125])), "not from 0 to 4"),
    ):
        with pytest.raises(FrameRefused, match=words) as caught:
            inflate(data, 6, slots)
        assert caught.value.reason == "body"
    most = open_slots(3, 8)
    for data, words in ((raw(bytes(5)), "is not of 5 bytes"), (raw(bytes(5)) + raw(b"aaaaa"), "not from 0 to 256")):
        with pytest.raises(FrameRefused, match=words):
            inflate(data, 5, most)


def test_levels_are_even_and_as_many_as_asked_for() -> None:
    assert [open_slots(4, bits).levels for bits in (0.5, 1, 2.3, 3.1, 8, 15)] == [2, 2, 4, 8, 256, 32768]
    with pytest.raises(ConfigError, match="do not fit"):
        open_slots(4, 30)
    with pytest.raises(ConfigError, match="do not fit"):
        open_slots(2, 500)
