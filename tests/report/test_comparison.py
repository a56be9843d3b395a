"""Figures of a comparison against values worked out by other means: numpy over plain lists."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError
from polypfed.core.history import Row, row
from polypfed.report import Goal, Outcome, write_comparison
from polypfed.report.comparison import lines, results
from polypfed.report.comparison_files import csv_text, markdown, plot, table

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6)
SEEDS = (
    st.integers(1, 4)
    .flatmap(lambda n: st.lists(SCORES, min_size=n, max_size=n))
    .filter(lambda runs: len({len(scores) for scores in runs}) == 1)
)


def history(scores: list[tuple[float, float]], **extra: float) -> list[Row]:
    """Two sites, of which b counts thrice; round 0 first."""
    rows: list[Row] = []
    for number, (a, b) in enumerate(scores):
        rows += [row(number, "a", "map50", a), row(number, "b", "map50", b), row(number, "", "map50", (a + 3 * b) / 4)]
        if number:
            rows += [row(number, s, "cpu_s", seconds) for s, seconds in (("a", 1.5), ("b", 0.25))]
            rows += [row(number, "", "bytes_up", 100.0 * number), row(number, "", "bytes_down", 7.0)]
            rows += [row(number, "", "failed", 0.0)]
        rows += [row(number, "", name, value) for name, value in extra.items()]
    return rows


def done(name: str, seed: int, rows: list[Row], rounds: int) -> Outcome:
    return Outcome(name, seed, {"name": name}, "done", rounds, rows=rows)


@given(SEEDS, st.floats(0.05, 1))
def test_the_figures_are_those_of_plain_arithmetic(runs: list[list[tuple[float, float]]], target: float) -> None:
    last = len(runs[0]) - 1
    (line,) = lines(results([done("x", i, history(r), last) for i, r in enumerate(runs)], Goal("map50", target)))
    means = np.array([[(a + 3 * b) / 4 for a, b in r] for r in runs])
    reached = [int(np.argmax(m >= target)) if (m >= target).any() else math.inf for m in means]
    assert line.rounds_to_target == sorted(reached)
    assert line.mean(lambda r: r.final) == pytest.approx(means[:, -1].mean())
    assert line.mean(lambda r: r.worst) == pytest.approx(np.array(runs)[:, -1].min(1).mean())
    assert line.at("a") == pytest.approx(np.array(runs)[:, -1, 0].mean())
    assert line.mean(lambda r: r.cpu_s) == pytest.approx(1.75 * last)
    assert line.mean(lambda r: r.bytes_up) == pytest.approx(100 * (last + 1) / 2)
    assert line.mean(lambda r: r.bytes_down) == pytest.approx(7)
    if len(runs) > 1:
        assert line.spread == pytest.approx(means[:, -1].std(ddof=1), abs=1e-9)
        band = plot([line], Goal("map50", target)).bands["x"]
        assert band[last] == pytest.approx((means[:, -1].min(), means[:, -1].max()))
    else:
        assert line.spread is None
    drawn = plot([line], Goal("map50", target)).series["x"]
    assert [drawn[r] for r in range(last + 1)] == pytest.approx(list(means.mean(0)))


def test_rounds_beyond_those_asked_for_do_not_count() -> None:
    (result,) = results([done("x", 0, history([(0.1, 0.1), (0.2, 0.2), (0.9, 0.9)]), 1)], Goal("map50", 0.5))
    assert (result.final, result.rounds_to_target, result.cpu_s, result.bytes_up) == (0.2, None, 1.75, 100.0)


def test_the_second_models_of_the_sites_get_a_line_of_their_own() -> None:
    rows = [*history([(0.1, 0.1), (0.2, 0.2)], own_map50=0.5), row(1, "a", "own_map50", 0.7)]
    shared, own = lines(results([done("ditto", 0, rows, 1)], Goal()))
    assert (shared.strategy, own.strategy) == ("ditto", "ditto, own")
    assert (shared.mean(lambda r: r.final), own.mean(lambda r: r.final), own.at("a")) == (0.2, 0.5, 0.7)


OUTCOMES = [
    done("good", 0, history([(0.0, 0.0), (0.8, 0.4)]), 1),
    done("good", 1, history([(0.0, 0.0), (0.8, 0.8)]), 1),
    Outcome("bad", 0, {"name": "bad"}, "refused", 1, "it | cannot"),
    Outcome("bad", 1, {"name": "bad"}, "refused", 1, "it | cannot"),
    done("half", 0, history([(0.1, 0.1), (0.2, 0.2)], failed=2.0), 1),
    Outcome("half", 1, {"name": "half"}, "failed", 1, "diverged"),
]


def test_what_is_refused_or_failed_is_shown_with_its_reason() -> None:
    found = lines(results(OUTCOMES, Goal("map50", 0.6)))
    _, body = table(found, Goal("map50", 0.6))
    assert body[0][:4] == ["good", "> 1 (1 to > 1)", "0.650 ± 0.212", "0.600"]
    assert body[1] == ["bad", "refused", "–", "–", "–", "–", "–"]
    assert body[2][2] == "0.200"
    text = markdown(found, Goal("map50", 0.6))
    assert text.count("- bad: refused: it | cannot") == 1
    assert "- half, seed 1: failed: diverged" in text
    assert "- half, seed 0: 4 updates lost" in text
    assert set(plot(found, Goal()).series) == {"good", "half"}


def test_the_files_say_the_same(tmp_path: Path) -> None:
    write_comparison(OUTCOMES, Goal("map50", 0.6), tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".jsonl", ".md", ".svg"]
    records = [json.loads(line) for line in (tmp_path / "comparison.jsonl").read_text().splitlines()]
    assert [(r["strategy"], r["seed"], r["status"]) for r in records] == [
        (o.strategy, o.seed, o.status) for o in OUTCOMES
    ]
    by_name = {r["strategy"]: r for r in csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text()))}
    good = [r["final"] for r in records if r["strategy"] == "good"]
    assert float(by_name["good"]["final_mean"]) == pytest.approx(np.mean(good))
    assert (by_name["good"]["reached_target"], by_name["good"]["rounds_to_target_median"]) == ("1", "")
    assert (by_name["bad"]["final_mean"], by_name["bad"]["done"]) == ("", "0")
    assert records[0]["worst_site"] == 0.4


def test_nothing_done_is_still_a_table() -> None:
    found = lines(results(OUTCOMES[2:4], Goal()))
    assert plot(found, Goal()).svg()
    assert next(csv.DictReader(io.StringIO(csv_text(found))))["reason"] == "bad: refused: it | cannot"


@pytest.mark.parametrize(
    ("metric", "target", "named"),
    [("map99", 0.5, "map50_95"), ("map50", 0.0, "target"), ("map50", 1.01, "target"), ("f1", math.nan, "target")],
)
def test_a_goal_that_makes_no_sense(metric: str, target: float, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Goal(metric, target)
