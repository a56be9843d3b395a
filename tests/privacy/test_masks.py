import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from polypfed.privacy.masks import Ring, ring_slots

MODULI = [1 << 16, 1 << 32, 5, 65537, (1 << 31) + 11, 3_000_000_019, (1 << 46) + 15]


@pytest.mark.parametrize("modulus", MODULI)
def test_masks_are_uniform_and_of_any_length(modulus):
    ring = Ring(modulus)
    mask = ring.mask(b"k" * 32, 300_000)
    assert mask.dtype == ring.dtype
    assert int(mask.max()) < modulus
    counts = np.histogram(mask.astype(np.float64), bins=min(modulus, 64), range=(0, modulus))[0]
    assert chisquare(counts).pvalue > 1e-4
    np.testing.assert_array_equal(ring.mask(b"k" * 32, 1000), mask[:1000])
    assert (ring.mask(b"l" * 32, 1000) != mask[:1000]).any()
    assert ring.mask(b"k" * 32, 0).size == 0


def test_a_mask_is_the_key_stream_of_aes_in_counter_mode():
    stream = Cipher(algorithms.AES256(b"s" * 32), modes.CTR(bytes(16))).encryptor().update(bytes(1_000_000))
    np.testing.assert_array_equal(Ring(1 << 16).mask(b"s" * 32, 500_000), np.frombuffer(stream, "<u2"))
    np.testing.assert_array_equal(Ring(1 << 32).mask(b"s" * 32, 250_000), np.frombuffer(stream, "<u4"))


@given(st.sampled_from(MODULI), st.lists(st.integers(0, 1 << 62), min_size=1, max_size=10))
@settings(max_examples=100, deadline=None)
def test_addition_and_subtraction_are_modular(modulus, numbers):
    ring, total, exact = Ring(modulus), Ring(modulus).zeros(1), 0
    for i, n in enumerate([modulus - 1, *numbers, modulus - 1]):
        value = np.array([n % modulus], ring.dtype)
        (ring.add if i % 2 else ring.subtract)(total, value)
        exact = (exact + (n if i % 2 else -n)) % modulus
        assert int(total[0]) == exact


def test_the_ring_is_as_small_as_the_bits_allow():
    assert ring_slots(8).modulus == 1 << 16
    assert ring_slots(8).levels >= 8190
    assert ring_slots(8, bits=15).modulus == 1 << 32
    assert ring_slots(2, bits=14.9).modulus == 1 << 16
