import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import isprime, primerange

from polypfed.core.errors import ConfigError
from polypfed.privacy.params import PROFILES, HEParams, is_prime


def test_primes_are_those_of_another_implementation():
    assert [n for n in range(2000) if is_prime(n)] == list(primerange(2000))
    for n in range(2**61 - 400, 2**61 + 400):
        assert is_prime(n) == isprime(n)


@given(st.integers(2, 128), st.integers(1, 5), st.sampled_from(sorted(PROFILES)))
@settings(max_examples=60, deadline=None)
def test_a_sum_decrypts_in_the_worst_case(sites, lanes, profile):
    try:
        params = HEParams(profile, sites, lanes)
    except ConfigError:
        assert HEParams(profile, 2, lanes).slots.levels >= 1  # only too many sites make it impossible
        return
    t = params.slots.modulus
    assert 2 * 22 * sites * t <= params.prime
    assert params.slots.base**lanes == t
    assert 2 * 22 * sites * (params.slots.base + 1) ** lanes > params.prime or params.slots.base == 1 << 32
    assert params.slots.levels * sites < params.slots.base
    assert isprime(params.prime)
    assert params.prime.bit_length() == params.prime_bits


@pytest.mark.parametrize(
    ("sites", "bits", "lanes", "bytes_per_value"),
    [(2, 14.8, 3, 2.26), (8, 8, 4, 1.695), (2, 8.4, 5, 1.356), (2, 22, 2, 3.39)],
)
def test_the_cheapest_layout_with_the_wished_bits_is_taken(sites, bits, lanes, bytes_per_value):
    params = HEParams.for_sites(sites, bits=bits)
    assert (params.lanes, round(params.bytes_per_value, 3)) == (lanes, pytest.approx(bytes_per_value, abs=0.002))
    assert params.bits >= bits


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="too many"):
        HEParams.for_sites(64, bits=40)
    with pytest.raises(ConfigError, match="bits or lanes"):
        HEParams.for_sites(4, bits=8, lanes=2)
    with pytest.raises(ConfigError, match="profile"):
        HEParams.for_sites(4, profile="none")
    for sites in (1, 0, 129):
        with pytest.raises(ConfigError, match="sites"):
            HEParams.for_sites(sites)


def test_other_parameters_have_another_id():
    ids = {HEParams(p, s, k).id for p in PROFILES for s in (2, 3) for k in (2, 3, 4)}
    assert len(ids) == 18
