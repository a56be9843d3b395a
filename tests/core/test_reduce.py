import random
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError
from polypfed.core.messages import Update, encode
from polypfed.core.model import Vector
from polypfed.core.reduce import BLOCK, NAMES, InOrder, Mean


def updates(count: int, size: int = 3, seed: int = 0) -> list[Update]:
    """Values over many magnitudes, so that another order of additions gives other bits."""
    draw = np.random.default_rng(seed)
    scales = 10.0 ** draw.integers(-6, 7, (count, size))
    values = (draw.standard_normal((count, size)) * scales).astype(np.float32)
    weights = draw.integers(1, 1000, count)
    return [Update(f"c{i:03d}", 1, {"delta": values[i]}, int(weights[i])) for i in range(count)]


def reduced(got: list[Update], rule: Mean | None = None, names: list[str] | None = None, **options: Any) -> Vector:
    """The mean of `got`, which arrive in this order."""
    names = names or [u.client for u in got]
    queue = InOrder((rule or Mean()).start({"delta": got[0].vectors["delta"].size}), names, **options)
    for update in got:
        queue.add(update)
    return queue.result()["delta"]


def exact(got: list[Update], weights: str = "examples") -> list[Fraction]:
    """The weighted mean in rational arithmetic."""
    factors = [Fraction(u.weight if weights == "examples" else int(u.weight > 0)) for u in got]
    columns = zip(*(map(Fraction, u.vectors["delta"].tolist()) for u in got), strict=True)
    return [sum((f * v for f, v in zip(factors, c, strict=True)), Fraction(0)) / sum(factors) for c in columns]


def assert_rounded(found: Vector, wanted: list[Fraction]) -> None:
    """Each value is one of the two float32 beside the exact one."""
    for value, true in zip(found, wanted, strict=True):
        nearest = np.float32(float(true))
        assert value in (nearest, np.nextafter(nearest, np.float32(-np.inf)), np.nextafter(nearest, np.float32(np.inf)))


@pytest.mark.parametrize("count", [1, 2, 5, 32, 33, 64, 65, 100])
@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_the_mean_is_the_exact_one_rounded(count: int, weights: Any) -> None:
    got = updates(count)
    assert_rounded(reduced(got, Mean(weights)), exact(got, weights))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
            st.integers(min_value=0, max_value=10_000_000),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_the_mean_of_anything_in_range_is_close_to_the_exact_one(pairs: list[tuple[float, int]]) -> None:
    got = [Update(f"c{i:03d}", 1, {"delta": np.array([v], np.float32)}, w) for i, (v, w) in enumerate(pairs)]
    found = float(reduced(got)[0])
    if not sum(w for _, w in pairs):
        assert found == 0.0
        return
    largest = max(abs(v) for v, w in pairs if w)
    assert abs(Fraction(found) - exact(got)[0]) <= Fraction(largest) * Fraction(1, 2**23)


def test_all_arrival_orders_of_five_give_the_same_bits() -> None:
    got = updates(5)
    naive = {
        sum((u.weight * u.vectors["delta"] for u in order), np.zeros(3, np.float32)).tobytes()
        for order in permutations(got)
    }
    assert len(naive) > 1  # these updates do tell orders apart
    assert len({reduced(list(order)).tobytes() for order in permutations(got)}) == 1


@pytest.mark.parametrize("count", [31, 32, 33, 64, 70, 129])
@pytest.mark.parametrize("rule", [Mean(), Mean("uniform"), Mean(dtype="float32")])
def test_arrival_order_of_many_gives_the_same_bits(count: int, rule: Mean) -> None:
    got = updates(count, size=7)
    straight = reduced(got, rule).tobytes()
    for seed in range(5):
        assert reduced(random.Random(seed).sample(got, count), rule).tobytes() == straight
    assert reduced(got[::-1], rule).tobytes() == straight


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_blocks_of_32_names_are_summed_first(dtype: Any) -> None:
    """A second implementation, which adds whole blocks as workers may."""
    got = updates(100, size=50, seed=3)
    kind = np.dtype(dtype).type
    total = np.zeros(50, dtype)
    for start in range(0, 100, NAMES):
        block = np.zeros(50, dtype)
        for update in got[start : start + NAMES]:
            block += update.vectors["delta"].astype(dtype) * kind(update.weight)
        total += block
    wanted = (total / kind(sum(u.weight for u in got))).astype(np.float32)
    assert reduced(got, Mean(dtype=dtype)).tobytes() == wanted.tobytes()


def test_a_missing_client_does_not_move_the_blocks_of_the_others() -> None:
    got = updates(70, size=50, seed=3)
    names = [u.client for u in got]
    present = got[:5] + got[6:]
    blocks = [[u for u in got[s : s + NAMES] if u in present] for s in range(0, 70, NAMES)]
    total = sum(sum(u.vectors["delta"].astype(np.float64) * u.weight for u in b) for b in blocks)
    wanted = (total / sum(u.weight for u in present)).astype(np.float32)
    assert reduced(present, names=names).tobytes() == wanted.tobytes()
    assert reduced(present[::-1], names=names).tobytes() == wanted.tobytes()


def test_vectors_longer_than_a_cache_block() -> None:
    size = 2 * BLOCK + 5
    draw = np.random.default_rng(1)
    got = [Update(n, 1, {"delta": draw.standard_normal(size).astype(np.float32)}, w) for n, w in (("a", 3), ("b", 5))]
    wanted = (3.0 * got[0].vectors["delta"].astype(float) + 5.0 * got[1].vectors["delta"].astype(float)) / 8.0
    assert reduced(got).tobytes() == wanted.astype(np.float32).tobytes()


def test_float64_keeps_what_float32_loses() -> None:
    got = [Update(f"c{i:03d}", 1, {"delta": np.array([v], np.float32)}, 1) for i, v in enumerate([1e8, 1, -1e8, 1])]
    assert reduced(got).tolist() == [0.5]
    assert reduced(got, Mean(dtype="float32")).tolist() == [0.25]


def test_vectors_are_not_changed() -> None:
    got = updates(5)
    before = [encode(u) for u in got]
    reduced(got[::-1])
    assert [encode(u) for u in got] == before


def test_zero_weight_adds_nothing_whatever_it_holds() -> None:
    got = updates(4)
    idle = Update("c001x", 1, {"delta": np.full(3, 1e20, np.float32)}, 0)
    names = [u.client for u in [*got, idle]]
    for weights in ("examples", "uniform"):
        alone = reduced(got, Mean(weights), names)
        assert reduced([idle, *got], Mean(weights), names).tobytes() == alone.tobytes()


@pytest.mark.parametrize("rule", [Mean(), Mean("uniform"), Mean(dtype="float32")])
def test_a_sum_without_weight_is_zero_and_never_a_division_by_zero(rule: Mean) -> None:
    assert rule.start({"delta": 2}).result()["delta"].tolist() == [0.0, 0.0]
    idle = Update("a", 1, {"delta": np.ones(2, np.float32)}, 0)
    assert reduced([idle], rule).tolist() == [0.0, 0.0]


def test_several_vectors_are_kept_apart() -> None:
    queue = InOrder(Mean().start({"delta": 2, "dc": 1}), ["a", "b"])
    queue.add(Update("b", 1, {"delta": np.array([2, 4], np.float32), "dc": np.array([8], np.float32)}, 1))
    queue.add(Update("a", 1, {"delta": np.array([0, 0], np.float32), "dc": np.array([0], np.float32)}, 3))
    found = queue.result()
    assert (found["delta"].tolist(), found["dc"].tolist()) == ([0.5, 1.0], [2.0])


def test_scaling_all_weights_changes_nothing() -> None:
    got = updates(10)
    scaled = [Update(u.client, 1, u.vectors, 4 * u.weight) for u in got]
    assert reduced(scaled).tobytes() == reduced(got).tobytes()


def test_early_updates_are_spooled_above_the_limit_and_the_bits_stay(tmp_path: Path) -> None:
    got = updates(70, size=11)
    straight = reduced(got).tobytes()
    seen: list[int] = []
    queue = InOrder(Mean().start({"delta": 11}), [u.client for u in got], tmp_path, limit=100)
    for update in random.Random(1).sample(got, 70):
        queue.add(update)
        seen.append(len(list(tmp_path.iterdir())))
    assert max(seen) > 50  # 100 bytes hold two vectors of 44
    assert queue.result()["delta"].tobytes() == straight
    assert list(tmp_path.iterdir()) == []


def test_memory_that_became_free_is_used_again(tmp_path: Path) -> None:
    got = updates(9, size=11)
    queue = InOrder(Mean().start({"delta": 11}), [u.client for u in got], tmp_path, limit=2 * 44)
    for order in ((2, 1, 0), (5, 4, 3), (8, 7, 6)):  # two wait each time, and then are counted
        for i in order:
            queue.add(got[i])
            assert not list(tmp_path.iterdir())
    assert queue.result()["delta"].tobytes() == reduced(got).tobytes()


def test_a_waiting_update_is_a_copy() -> None:
    got = updates(2)
    wanted = reduced(got).tobytes()
    queue = InOrder(Mean().start({"delta": 3}), ["c000", "c001"])
    queue.add(got[1])
    got[1].vectors["delta"][:] = 0  # a client may reuse its buffer
    queue.add(got[0])
    assert queue.result()["delta"].tobytes() == wanted


def test_skipped_and_silent_clients_contribute_nothing() -> None:
    got = updates(6)
    names = [u.client for u in got]
    wanted = reduced([got[1], got[4]], names=names).tobytes()
    queue = InOrder(Mean().start({"delta": 3}), names)
    queue.add(got[4])
    queue.skip("c000")
    queue.skip("c000")
    queue.skip("stranger")
    queue.add(got[1])
    queue.skip("c001")  # was counted already
    queue.skip("c004")  # is waiting
    assert queue.result()["delta"].tobytes() == wanted


@pytest.mark.parametrize("early", [True, False])
def test_a_second_turn_is_an_error_not_a_silent_loss(early: bool) -> None:
    got = updates(3)
    queue = InOrder(Mean().start({"delta": 3}), [u.client for u in got])
    queue.add(got[2] if early else got[0])
    with pytest.raises(ValueError, match="has had its turn"):
        queue.add(got[2] if early else got[0])
    queue.skip("c001")
    with pytest.raises(ValueError, match="has had its turn"):
        queue.add(got[1])


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights: 'examlpes' is not examples, uniform or"):
        Mean("examlpes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dtype: 'float16'"):
        Mean(dtype="float16")  # type: ignore[arg-type]
