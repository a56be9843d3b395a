import csv
import io
import json

import numpy as np
import pytest

from polypfed.core.history import History, mean_rows, row


def history() -> History:
    return History(
        rows=[
            row(0, "b", "map50", 0.1),
            row(0, "", "map50", 0.15),
            row(0, "a", "map50", np.float32(0.2)),
            row(1, "a", "map50", 0.3),
            row(1, "a", "loss", 2),
        ]
    )


def test_a_row_is_tidy() -> None:
    assert row(1, "a", "loss", np.float64(2)) == {"round": 1, "site": "a", "metric": "loss", "value": 2.0}
    assert type(row(1, "a", "loss", 2)["value"]) is float


def test_values_are_one_metric_of_one_site_by_round() -> None:
    assert history().values("map50", "a") == {0: pytest.approx(0.2), 1: 0.3}
    assert history().values("map50") == {0: 0.15}
    assert history().values("nothing") == {}


def test_the_table_reads_like_one() -> None:
    table = history().table("map50")
    assert (table.rounds, table.sites) == ([0, 1], ["a", "b", ""])
    assert table[1, "a"] == 0.3
    assert str(table).splitlines() == [
        "map50",
        "round      a      b    all",
        "    0  0.200  0.100  0.150",
        "    1  0.300      -      -",
    ]


def test_an_empty_table_has_only_its_head() -> None:
    assert str(History().table("map50")) == "map50\nround"


def test_json_lines_and_csv_hold_every_row() -> None:
    lines = [json.loads(line) for line in history().json_lines().splitlines()]
    assert lines == history().rows
    read = list(csv.DictReader(io.StringIO(history().csv())))
    assert [float(r["value"]) for r in read] == [r["value"] for r in history().rows]
    assert read[0] == {"round": "0", "site": "b", "metric": "map50", "value": "0.1"}


def test_means_are_weighted_by_validation_examples() -> None:
    rows = mean_rows(
        4, [({"map50": 0.5, "loss": 1.0}, 30), ({"map50": 0.9}, 10), ({"map50": 0.0}, 0), ({"idle": 1.0}, 0)]
    )
    assert [(r["round"], r["site"], r["metric"]) for r in rows] == [(4, "", "loss"), (4, "", "map50")]
    assert [r["value"] for r in rows] == pytest.approx([1.0, 0.6])


def test_no_evaluations_give_no_rows() -> None:
    assert mean_rows(1, []) == []
