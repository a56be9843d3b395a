"""Figures against values worked out by hand."""

import pytest

from polypfed.report.figures import ALL, GLOBAL, about, by_site, compared, headline, kept, matrix
from polypfed.report.read import Run
from polypfed.select import Decision

CELLS = {
    ("map50", "", 0): 0.1,
    ("map50", "", 1): 0.7,
    ("map50", "", 2): 0.6,
    ("map50", "a", 2): 0.8,
    ("map50", "b", 2): 0.4,
    ("map50@a", "a", 2): 0.9,
    ("map50@a", "b", 2): 0.1,
    ("map50@b", "a", 2): 0.2,
    ("map50@b", "b", 2): 0.5,
    ("map50@a", "a", 1): 0.3,
    ("images", "a", 1): 100.0,
    ("kept", "a", 1): 80.0,
    ("images", "b", 1): 60.0,
    ("kept", "b", 1): 40.0,
    ("round_s", "", 1): 10.0,
    ("round_s", "", 2): 20.0,
    ("bytes_up", "", 1): 1e6,
    ("bytes_down", "", 1): 3e6,
}
LOCAL = {
    ("baseline/local-a/map50", "a", 2): 0.5,
    ("baseline/local-a/map50", "b", 2): 0.3,
    ("baseline/local-b/map50", "a", 2): 0.1,
    ("baseline/local-b/map50", "b", 2): 0.7,
    ("baseline/federated/map50", "a", 2): 0.8,
    ("baseline/federated/map50", "b", 2): 0.4,
}
OVERALL = {("baseline/local-a/map50", "", 2): 0.45, ("baseline/local-b/map50", "", 2): 0.25}


def _tiles(cells: dict[tuple[str, str, int], float]) -> dict[str, tuple[str, str]]:
    return {t.label: (t.big, t.small) for t in headline(Run("r", cells))}


def test_headline() -> None:
    assert _tiles(CELLS) == {
        "mAP50, global model, all sites": ("0.600", "0.100 in round 0; best 0.700 in round 1"),
        "Images kept for training": ("75 %", "120 of 160 looked at"),
        "Time": ("30.0 s", "15.0 s a round (median)"),
        "Traffic": ("4.0 MB", "3.0 MB down, 1.0 MB up"),
        "Refused or failed": ("0", "every update counted"),
    }


def test_the_gain_over_the_best_site_alone() -> None:
    assert _tiles(CELLS | LOCAL | OVERALL)["mAP50 over the best site alone"] == ("+0.150", "a alone: 0.450")


def test_compared_uses_one_kind_of_mean_for_all() -> None:
    lines = compared(Run("r", CELLS | LOCAL | OVERALL))
    assert [(c.name, c.overall, c.weighted) for c in lines] == [
        (GLOBAL, 0.6, True),
        ("a alone", 0.45, True),
        ("b alone", 0.25, True),
    ]
    lines = compared(Run("r", CELLS | LOCAL | dict([next(iter(OVERALL.items()))])))
    assert [(c.name, c.weighted) for c in lines] == [(GLOBAL, False), ("a alone", False), ("b alone", False)]
    assert [c.overall for c in lines] == pytest.approx([0.6, 0.4, 0.4])
    assert compared(Run("r", CELLS)) == []


def test_matrix_is_of_the_last_round_with_the_global_model_below() -> None:
    heat = matrix(Run("r", CELLS))
    assert heat is not None
    assert (list(heat.rows), list(heat.columns)) == (["a", "b", GLOBAL], ["a", "b"])
    assert heat.values["a", "a"] == 0.9
    assert heat.values[GLOBAL, "b"] == 0.4
    assert heat.framed == {("a", "a"), ("b", "b")}
    assert heat.low <= 0.1
    assert heat.high >= 0.9


def test_matrix_has_a_column_for_all_sites_if_every_model_has_a_figure() -> None:
    heat = matrix(Run("r", CELLS | {("map50@a", "", 2): 0.55, ("map50@b", "", 2): 0.35}))
    assert heat is not None
    assert list(heat.columns) == ["a", "b", ALL]
    assert [heat.values[m, ALL] for m in heat.rows] == [0.55, 0.35, 0.6]


def test_kept_falls_back_to_the_records() -> None:
    decisions = tuple(Decision("a", 3, str(i), 0.1 * i, i < 2) for i in range(5))
    assert kept(Run("r", {}, decisions=decisions)) == {("a", 3): (2, 5)}
    assert kept(Run("r", CELLS, decisions=decisions)) == {("a", 1): (80, 100), ("b", 1): (40, 60)}


def test_series_end_with_the_federation() -> None:
    assert by_site(Run("r", CELLS), "map50") == {"a": {2: 0.8}, "b": {2: 0.4}, ALL: {0: 0.1, 1: 0.7, 2: 0.6}}


def test_about_survives_odd_facts() -> None:
    facts = {"started": "soon", "settings": ["?"], "config": 7, "seed": 3}
    assert about(Run("r", CELLS, facts=facts)) == ["2 sites", "2 rounds", "soon", "seed 3"]
    facts = {"settings": {"strategy": {"name": "fedavg"}, "seed": 1}, "config": {"select": {"name": "below"}}}
    assert about(Run("r", CELLS, facts=facts))[2:] == ["fedavg", "selector below", "seed 1"]
