import math
from typing import Any

import numpy as np
import pytest

from polypfed.core.errors import ConfigError
from polypfed.core.settings import positive, site_names, whole


@pytest.mark.parametrize("value", [True, 1.0, "1", None, math.nan, np.int64(1), 0, 6])
def test_whole_wants_an_int_within_its_limits(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^quorum: .* is not a whole number from 1 to 5"):
        whole("quorum", value, 1, 5)


def test_whole_passes_its_limits_and_names_half_open_ones() -> None:
    whole("n", 1, 1, 5)
    whole("n", 5, 1, 5)
    whole("n", -(10**30))
    with pytest.raises(ConfigError, match=r"^n: 0 is not a whole number of at least 1"):
        whole("n", 0, 1)
    with pytest.raises(ConfigError, match=r"^n: 'x' is not a whole number$"):
        whole("n", "x")


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1", None, np.float32(0)])
def test_positive_wants_a_finite_number_above_zero(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^lr: .* is not a number above 0"):
        positive(mu=1, lr=value)


def test_positive_passes_numbers() -> None:
    positive(a=1, b=1e-300, c=np.float32(0.5), d=np.int64(3))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-a", "_a", "a\n", "é", "a" * 64, None, 3, b"a"])
def test_what_cannot_name_a_folder_cannot_name_a_site(name: Any) -> None:
    with pytest.raises(ConfigError, match="cannot name a site"):
        site_names(["good", name])


def test_names_are_unique() -> None:
    site_names(["a", "A", "0", "a" * 63, "a-b_C"])
    with pytest.raises(ConfigError, match="share a name"):
        site_names(["a", "b", "a"])
