import itertools

from hypothesis import given
from hypothesis import strategies as st

from polypfed.report.scale import duration, percent, signed, size, ticks, whole_ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_range_in_few_equal_steps(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found[0] <= low + 1e-6 * span
    assert found[-1] >= low + span - 1e-6 * span
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) - min(steps) < 1e-6 * max(steps)


@given(st.integers(0, 50), st.integers(0, 5000))
def test_whole_ticks_lie_on_rounds_of_the_run(low: int, span: int) -> None:
    found = whole_ticks([low, low + span])
    assert all(low <= t <= low + span for t in found)
    assert 1 <= len(found) <= 12 or span > 2000


def test_numbers_read_well() -> None:
    assert [duration(59.94), duration(60), duration(3599.6), duration(86400)] == [
        "59.9 s",
        "1 min 00 s",
        "1 h 00 min",
        "24 h 00 min",
    ]
    assert [size(0), size(999), size(1000), size(2.5e9)] == ["0 B", "999 B", "1.0 kB", "2.5 GB"]
    assert [percent(0.005), percent(1.0), percent(float("nan"))] == ["0 %", "100 %", "–"]
    assert [signed(0.0), signed(-0.1234)] == ["+0.000", "−0.123"]
