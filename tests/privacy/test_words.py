import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.words import add_mod, pack, packed_bytes, unpack


@given(st.integers(2, 62), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_words_are_little_endian_bits_one_after_another(bits, rows, groups, seed):
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, 64 * groups), dtype=np.uint64)
    data = pack(values, bits)
    assert len(data) == packed_bytes(rows, 64 * groups, bits)
    whole = sum(int(v) << (i * bits) for i, v in enumerate(values.reshape(-1)))
    assert int.from_bytes(data, "little") == whole
    prime = (1 << bits) - 1
    np.testing.assert_array_equal(unpack(data, rows, 64 * groups, bits, prime), values % np.uint64(prime))


def test_a_wrong_length_is_refused():
    data = pack(np.full((1, 64), 1000, np.uint64), 10)
    for wrong in (data[:-1], data + b"x", b""):
        with pytest.raises(FrameRefused, match="are not"):
            unpack(wrong, 1, 64, 10, 1021)


@given(st.integers(3, (1 << 62) - 1), st.lists(st.integers(0, 1 << 62), min_size=2, max_size=20))
def test_addition_is_modular(prime, numbers):
    numbers = [n % prime for n in numbers]
    total = np.zeros(1, np.uint64)
    for n in numbers:
        add_mod(total, np.array([n], np.uint64), prime)
    assert int(total[0]) == sum(numbers) % prime
