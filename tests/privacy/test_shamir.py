import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError
from polypfed.privacy import shamir

# The worked example of Wikipedia's article on Shamir's scheme: secret 1234, f = 1234 + 166 x + 94 x^2 modulo 1613.
POINTS = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}


def test_published_shares():
    assert {x: shamir.value_at([1234, 166, 94], x, 1613) for x in range(1, 7)} == POINTS
    for chosen in itertools.combinations(POINTS, 3):
        assert shamir.join({x: POINTS[x] for x in chosen}, 1613) == 1234


@given(st.integers(0, 2**256 - 1), st.integers(1, 9), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, data):
    points = data.draw(st.lists(st.integers(1, 1000), min_size=threshold, max_size=12, unique=True))
    shares = shamir.split(secret, threshold, points)
    chosen = data.draw(st.permutations(points))[:threshold]
    assert shamir.join({x: shares[x] for x in chosen}) == secret


def test_one_share_fewer_gives_nothing():
    """With t - 1 shares every secret remains possible: a share takes all values modulo 7 whatever the secret."""
    for secret in range(7):
        assert {shamir.split(secret, 2, [1, 2], prime=7)[1] for _ in range(400)} == set(range(7))


def test_misuse_is_refused():
    for threshold, points in ((3, [1, 2]), (0, [1]), (1, [0, 1]), (1, [1, 1])):
        with pytest.raises(ConfigError):
            shamir.split(1, threshold, points)
    with pytest.raises(ConfigError):
        shamir.split(7, 1, [1], prime=7)
