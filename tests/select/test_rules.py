"""Selection rules by hand, by property, and their record on disk."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError, DataError
from polypfed.select import (
    All,
    Below,
    HardestK,
    Judge,
    MissedOrFalse,
    Random,
    Replay,
    Score,
    Selector,
    decisions,
    from_config,
    read_decisions,
    to_config,
    write_decisions,
)

RULES = [All(), Below(), Random(0.5), HardestK(3), MissedOrFalse(), Replay(Below(), 0.5), Replay(MissedOrFalse(), 0.1)]
scores_of = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 2), st.integers(0, 2)), max_size=30).map(
    lambda rows: [Score(f"i{n:02d}", *row) for n, row in enumerate(rows)]
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def chosen(rule: Selector, *confidences: float) -> list[bool]:
    return rule.choose([Score(f"i{n}", c) for n, c in enumerate(confidences)], rng()).tolist()


def test_below_is_strict_and_counts_nothing_found_as_zero():
    assert chosen(Below(0.7), 0.0, 0.69, 0.7, 0.71) == [True, True, False, False]


def test_below_compares_as_the_detector_answers():
    seven = float(np.float32(0.7))  # 0.699999988...: below 0.7 as float64, equal to it as float32
    assert seven < 0.7
    assert chosen(Below(0.7), seven) == [False]
    assert chosen(Below(0.7), float(np.nextafter(np.float32(0.7), np.float32(0)))) == [True]


def test_a_confidence_that_is_no_number_counts_as_nothing_found():
    assert chosen(Below(0.7), math.nan) == [True]
    assert chosen(HardestK(1), 0.1, math.nan) == [False, True]


def test_the_int8_grid_falls_apart_at_the_threshold():
    assert chosen(Below(0.7), 179 / 256, 180 / 256) == [True, False]


def test_hardest_k_breaks_ties_by_name_and_takes_all_of_a_small_site():
    assert chosen(HardestK(2), 0.5, 0.5, 0.5, 0.9) == [True, True, False, False]
    assert chosen(HardestK(9), 0.5, 0.9) == [True, True]


def test_random_share_is_exact_and_changes_with_the_seed():
    some = [Score(f"i{n}", 0.5) for n in range(40)]
    assert Random(0.25).choose(some, rng()).sum() == 10
    assert Random(0.0).choose(some, rng()).sum() == 0
    assert (Random(0.5).choose(some, rng(1)) != Random(0.5).choose(some, rng(2))).any()


def test_mistakes_are_hard_however_confident():
    seen = [Score("a", 0.99, missed=1), Score("b", 0.99, false_alarms=1), Score("c", 0.99), Score("d", 0.1)]
    assert MissedOrFalse().choose(seen, rng()).tolist() == [True, True, False, True]
    assert MissedOrFalse(otherwise=None).choose(seen, rng()).tolist() == [True, True, False, False]
    assert MissedOrFalse(0.4, 0.6).judge == Judge(0.4, 0.6)


def test_replay_adds_a_share_of_the_easy_ones():
    seen = [Score(f"i{n}", 0.1 if n < 10 else 0.9) for n in range(30)]
    mask = Replay(Below(0.7), 0.25).choose(seen, rng())
    assert mask[:10].all()
    assert mask[10:].sum() == 5


@given(scores_of, st.sampled_from(RULES), st.integers(0, 5))
def test_every_rule_is_a_pure_function_of_scores_and_seed(scores, rule, seed):
    assert isinstance(rule, Selector)
    first = rule.choose(scores, rng(seed))
    assert first.dtype == bool
    assert first.shape == (len(scores),)
    assert (rule.choose(scores, rng(seed)) == first).all()


@given(scores_of, st.floats(0, 1), st.integers(0, 5))
def test_replay_never_drops_what_the_inner_rule_chose(scores, share, seed):
    inner = Below(0.7).choose(scores, rng(seed))
    assert (Replay(Below(0.7), share).choose(scores, rng(seed)) >= inner).all()


@given(scores_of, st.integers(1, 40))
def test_hardest_k_keeps_nobody_easier_than_whom_it_leaves(scores, k):
    mask = HardestK(k).choose(scores, rng())
    assert mask.sum() == min(k, len(scores))
    kept, left = (
        [s.confidence for s, m in zip(scores, mask, strict=True) if m],
        [s.confidence for s, m in zip(scores, mask, strict=True) if not m],
    )
    assert not kept or not left or max(kept) <= min(left)


def test_only_rules_that_look_at_nothing_are_blind():
    assert [r.blind for r in RULES] == [True, False, True, False, False, False, False]
    assert Replay(All()).blind


@pytest.mark.parametrize("rule", RULES)
def test_config_round_trip(rule):
    assert from_config(to_config(rule)) == rule


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "bellow"}, "selector.name: unknown selector 'bellow'. Known: all, below"),
        ({"name": "below", "treshold": 0.5}, "selector.treshold: below has no such setting. Settings: threshold"),
        ({"name": "below", "threshold": 1.5}, "threshold must lie in"),
        ({"name": "below", "threshold": "0.5"}, "threshold must lie in"),
        ({"name": "below", "threshold": math.nan}, "threshold must lie in"),
        ({"name": "random"}, "missing 1 required"),
        ({"name": "hardest-k", "k": 0}, "at least 1"),
        ({"name": "hardest-k", "k": True}, "at least 1"),
        ({"name": "replay", "inner": {"name": "x"}}, "selector.inner.name: unknown"),
        ({}, "unknown selector None"),
        ({"name": ["all"]}, "unknown selector"),
    ],
)
def test_wrong_configuration_names_the_field(config, message):
    with pytest.raises(ConfigError) as raised:
        from_config(config)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nested_rules_must_agree_on_what_a_mistake_is():
    with pytest.raises(ConfigError, match="another threshold"):
        MissedOrFalse(0.3, otherwise=MissedOrFalse(0.4))


def test_record_on_disk(tmp_path: Path):
    seen = [Score('odd, "name"', float(np.float32(0.7))), Score("b", 0.0), Score("c", math.nan)]
    rows = decisions("site-a", 3, seen, np.array([False, True, True]))
    (path,) = write_decisions(rows, tmp_path / "sites" / "site-a")
    assert path == tmp_path / "sites" / "site-a" / "selection" / "round-0003.csv"
    assert path.read_text().splitlines() == ["image,confidence,kept", '"odd, ""name""",0.699999988,0', "b,0,1", "c,,1"]
    back = read_decisions(tmp_path / "sites" / "site-a", "site-a")
    assert back[:2] == rows[:2]
    assert math.isnan(back[2].confidence)
    assert [p.name for p in path.parent.iterdir()] == ["round-0003.csv"]


def test_record_of_a_round_is_replaced_whole(tmp_path: Path):
    for count in (5, 2):
        write_decisions(decisions("a", 1, [Score(str(n), 0.5) for n in range(count)], np.ones(count, bool)), tmp_path)
    assert len(read_decisions(tmp_path)) == 2


def test_foreign_file_among_the_records(tmp_path: Path):
    (tmp_path / "selection").mkdir()
    (tmp_path / "selection" / "round-0001.csv").write_text("something else\n")
    with pytest.raises(DataError, match="not a record"):
        read_decisions(tmp_path)


def test_scores_and_mask_must_match():
    with pytest.raises(DataError, match="1 scores"):
        decisions("a", 1, [Score("x", 0.1)], np.ones(2, bool))
