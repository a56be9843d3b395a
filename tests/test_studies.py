"""The engine of the studies: nothing is computed twice, a kill costs at most a round, tables come from rows."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polypfed.core.errors import ConfigError

ROOT = Path(__file__).parents[1]
STUDY = """
question = "Does it work?"
against = "one"
plot = "curves"
[base]
data.synth = { sites = 3, train = 3, val = 2, size = 64 }
model.image_size = 64
train.batch = 3
select.name = "all"
[budget.small]
seeds = [0, 1]
base.federation.rounds = 2
[budget.paper]
seeds = [0]
base.federation.rounds = 9
[cells.one]
[cells.two]
train.lr = 0.01
[cells.long]
budgets = ["paper"]
"""


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from studies import cell, details, draw, engine, show, study, watch

    return SimpleNamespace(cell=cell, details=details, draw=draw, engine=engine, show=show, study=study, watch=watch)


@pytest.fixture
def one(studies: Any, tmp_path: Path) -> Any:
    (tmp_path / "try.toml").write_text(STUDY)
    return studies.study.load("try", "small", tmp_path)


def made_up(cell: Any, folder: Path, data: Path) -> dict[str, Any]:
    """A row by hand; the two cells differ by exactly two points."""
    value = 0.5 if cell.name == "one" else 0.52
    scores = dict.fromkeys(("map50", "map50_95", "precision", "recall", "f1"), value)
    about = {"date": "2026-01-01", "cpu": "a processor, 2 cores", "versions": {"numpy": "2"}, "load": [1.0, 2.0]}
    counts = {
        "images": 10.0,
        "kept": 4.0,
        "cpu_s": 3.0,
        "bytes_up": 4e6 if cell.name == "one" else 2e6,
        "bytes_down": 2e6,
        "failures": 0,
    }
    row = {"key": cell.key, "cell": cell.name, "seed": cell.seed, "settings": cell.settings}
    return row | scores | counts | about | {"curve": [0.1, 0.3, value], "by_site": {"a": value, "b": value}}


def test_a_budget_decides_seeds_cells_and_settings(studies: Any, one: Any, tmp_path: Path) -> None:
    assert [(c.name, c.seed) for c in one.cells] == [("one", 0), ("two", 0), ("one", 1), ("two", 1)]
    assert {c.config.federation.rounds for c in one.cells} == {2}
    assert {c.config.data.synth.seed for c in one.cells if c.seed == 1} == {1}
    paper = studies.study.load("try", "paper", tmp_path)
    assert [c.name for c in paper.cells] == ["one", "two", "long"]
    assert {c.config.federation.rounds for c in paper.cells} == {9}


def test_no_cell_is_computed_twice_whatever_it_is_called(studies: Any, one: Any, tmp_path: Path) -> None:
    path, ran = tmp_path / "results" / "try" / "rows.jsonl", []
    (tmp_path / "results" / "edge").mkdir(parents=True)
    (tmp_path / "results" / "edge" / "rows.jsonl").write_text('{"frame_ms": 27.0}\n')  # of a benchmark that is no study

    def run(cell: Any, folder: Path, data: Path) -> dict[str, Any]:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(cell.key)
        return made_up(cell, folder, data)

    with pytest.raises(KeyboardInterrupt):
        list(studies.engine.complete(one, path, tmp_path / "work", run))
    ran_before, ran[:] = list(ran), []
    rest = list(studies.engine.complete(one, path, tmp_path / "work", run))
    assert len(ran_before) == 3
    assert [r["key"] for r in rest] == ran == [one.cells[3].key]
    renamed = replace(one, cells=tuple(replace(c, name=c.name.upper()) for c in one.cells))
    other = tmp_path / "results" / "other" / "rows.jsonl"
    list(studies.engine.complete(renamed, other, tmp_path / "work", run))
    assert len(ran) == 1, "the rows of another study count too"
    assert [r["cell"] for r in studies.engine.rows(renamed, other)] == ["ONE", "TWO", "ONE", "TWO"]


def test_privacy_is_said_by_stages_alone(studies: Any, one: Any, tmp_path: Path) -> None:
    """It is no part of a cell's key, so it must not decide anything."""
    text = (tmp_path / "try.toml").read_text(encoding="utf-8")
    (tmp_path / "other.toml").write_text(text.replace("[cells.one]", '[cells.one]\nprivacy.mode = "he"'))
    with pytest.raises(ConfigError, match="stages"):
        studies.study.load("other", "small", tmp_path)


def test_some_cells_and_seeds_can_be_run_alone(studies: Any, one: Any) -> None:
    assert [(c.name, c.seed) for c in studies.study.only(one, ["two"]).cells] == [("two", 0), ("two", 1)]
    assert [(c.name, c.seed) for c in studies.study.only(one, ["two", "one"], [1]).cells] == [("two", 1), ("one", 1)]
    with pytest.raises(ConfigError, match="no cell 'three'"):
        studies.study.only(one, ["three"])


def test_a_change_of_any_setting_is_another_cell(one: Any) -> None:
    first = one.cells[0]
    changed = [
        replace(first, pool=("*",)),
        replace(first, seed=7),
        replace(first, stages=({"name": "topk", "share": 0.1},)),
        replace(first, config=replace(first.config, train=replace(first.config.train, lr=0.5))),
    ]
    assert len({first.key, *(c.key for c in changed)}) == 5
    workers = replace(first, config=replace(first.config, backend=replace(first.config.backend, workers=2)))
    assert workers.key == first.key, "the number of workers does not decide the bits"


def test_table_and_plot_come_from_the_rows(studies: Any, one: Any, tmp_path: Path) -> None:
    rows = [made_up(c, tmp_path, tmp_path) for c in one.cells[:3]]
    text = studies.show.write(one, rows, tmp_path)
    line = next(x for x in text.splitlines() if x.startswith("| two"))
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[:3] == ["two", "**0.520**", "+2.0"]
    assert cells[-4:] == ["40%", "1.00", "1.00", "3"], "kept; MB of one of two sites; CPU seconds"
    assert "Not run yet: two (seed 1)" in text
    assert "2 seeds" in text
    before = (tmp_path / "plot.svg").read_bytes()
    studies.show.write(one, rows, tmp_path)
    assert (tmp_path / "plot.svg").read_bytes() == before
    assert b"mAP50" in before


def test_bytes_are_told_per_round_and_for_the_whole_run(studies: Any, one: Any, tmp_path: Path) -> None:
    rows = [made_up(c, tmp_path, tmp_path) for c in one.cells[:2]]
    federation = rows[1]["settings"]["federation"]
    rows[1] |= {"settings": rows[1]["settings"] | {"federation": federation | {"rounds": 1}}}
    study = replace(one, plot="bytes", cells=one.cells[:2])
    line = next(x for x in studies.show.write(study, rows, tmp_path).splitlines() if x.startswith("| two"))
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[-6:] == ["1.00", "1.00", "33.3%", "2.00", "66.7%", "3"], "2 MB for 3 a round, in one round for two"
    import page

    told = page.verdict(study, rows)
    assert "Fewest bytes of these: two (1 seed), 66.7% fewer in the whole run, 33.3% fewer in a round." in told


def more(row: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a cell of two rounds beside its scores."""
    by_round = {
        "images": [5.0, 5.0],
        "kept": [5.0, 2.0],
        "loss": [9.0, 7.0],
        "minutes": [0.5, 0.25],
        "cpu_s": [1.0, 1.0],
    }
    levels = {m: [1 - i / 20 for i in range(19)] for m in ("precision", "recall", "f1")}
    easy = {"images": 8, "found": 6, "sure": 2, "first": 4, "first_found": 3}
    histogram = {"polyp": [1, 0, 0, 0, 0, 0, 0, 0, 0, 3], "none": [2] + [0] * 9}
    seen = {"by_round": by_round, "val_loss": [12.0, 8.0, 8.5], "confidence": [0.0, 0.4, 0.6]}
    return row | seen | {"levels": levels, "histogram": histogram, "easy": easy}


def test_details_come_from_the_rows_and_older_rows_leave_blanks(studies: Any, one: Any, tmp_path: Path) -> None:
    study = replace(one, details=("rounds", "easy", "losses", "levels"), cells=one.cells[:2])
    old, new = (made_up(c, tmp_path, tmp_path) for c in study.cells)
    text = studies.show.write(study, [old, more(new)], tmp_path).splitlines()
    assert "| two: images kept |  | 5 | 2 |" in text
    assert "| two: confidence | 0.000 | 0.400 | 0.600 |" in text
    assert "| two: minutes |  | 0.50 | 0.25 |" in text
    assert "| one: confidence |  |  |  |" in text
    assert "| two | 8 | 75.0% | 25.0% | 4 | 75.0% |" in text
    assert "| two | 9.00 | 7.00 | 8.00 | 8.00 | 8.50 | 2 | 0.520 | 2 | 0.520 |" in text
    assert any(line.startswith("| two | 0.800 | 0.800") and line.endswith("| 25% | 0% | 75% |") for line in text)
    assert b"validation loss" in (tmp_path / "details.svg").read_bytes()
    assert studies.draw.details(study, {"one": [old]}, "") is None, "nothing to draw"


def test_what_was_found_surely_once_and_lost_later_is_counted(studies: Any) -> None:
    def look(best: list[float], found: list[int], sure: list[int]) -> Any:
        boxes, levels = np.array([1, 1, 1, 0]), np.zeros(19, int)
        masks = (np.array(found, bool), np.array(sure, bool))
        return studies.watch.Look(1.0, boxes, np.array(best), *masks, right=levels + 2, detections=levels + 4)

    start = look([0.9, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0])  # before training: it counts for nothing
    first, second = (
        look([0.1, 0.8, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]),
        look([0.9, 0.3, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]),
    )
    last = look([0.2, 0.4, 0.9, 0.7], [0, 1, 1, 0], [0, 0, 1, 0])
    figures = studies.watch.figures([start, first, second, last])
    assert figures["easy"] == {"images": 2, "found": 1, "sure": 0, "first": 1, "first_found": 1}
    assert figures["confidence"] == [0.3, 0.3, 0.4, 0.5], "of the three images with a polyp"
    assert figures["histogram"]["polyp"] == [0, 0, 1, 0, 1, 0, 0, 0, 0, 1]
    assert figures["histogram"]["none"] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert {figures["levels"][m][0] for m in ("precision", "recall")} == {0.5, 0.6667}
    assert studies.watch.figures([]) == {}


def test_early_stopping_keeps_the_best_round_before_its_patience_ends(studies: Any) -> None:
    assert studies.details.stopped([0.0, 0.5, 0.4, 0.5, 0.4, 0.9]) == (4, 1)
    assert studies.details.stopped([0.0, 0.5, 0.4, 0.6, 0.6]) == (4, 3)


@pytest.mark.slow
def test_a_killed_cell_goes_on_from_its_last_round_to_the_same_figures(studies: Any, one: Any, tmp_path: Path) -> None:
    cell = one.cells[0]
    short = replace(cell, config=replace(cell.config, federation=replace(cell.config.federation, rounds=1)))
    studies.cell.outcome(short, tmp_path / "run", tmp_path / "data")  # as if killed behind the first round
    resumed = studies.cell.outcome(cell, tmp_path / "run", tmp_path / "data")
    whole = studies.cell.outcome(cell, tmp_path / "whole", tmp_path / "data")
    assert resumed["resumed"]
    assert not whole["resumed"]
    same = (
        "curve",
        "by_site",
        "bytes_up",
        "bytes_down",
        "kept",
        "val_loss",
        "confidence",
        "levels",
        "histogram",
        "easy",
    )
    assert {k: resumed[k] for k in same} == {k: whole[k] for k in same}
    assert len(whole["curve"]) == len(whole["val_loss"]) == len(whole["confidence"]) == 3
    assert whole["by_round"]["kept"] == [9.0, 9.0]
    assert all(loss > 0 for loss in (*whole["val_loss"], *whole["by_round"]["loss"]))
    plain = studies.cell.runs.federate(
        cell.config, studies.cell.runs.sites_of(cell.config, tmp_path / "data"), tmp_path / "plain"
    )[0]
    assert [plain.table("map50")[r, ""] for r in range(3)] == whole["curve"], "looking changes nothing"
    assert whole["kept"] == 2 * 9


KILLED = """
import sys, pathlib
from studies import cell, engine, study
folder = pathlib.Path({folder!r})
one = study.load("try", "small", folder)
for row in engine.complete(one, folder / "results" / "try" / "rows.jsonl", folder / "work", cell.outcome):
    print(row["cell"], row["seed"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_that_was_killed_goes_on_and_recomputes_nothing(studies: Any, tmp_path: Path) -> None:
    (tmp_path / "try.toml").write_text(STUDY.replace("seeds = [0, 1]", "seeds = [0]"))
    one = studies.study.load("try", "small", tmp_path)
    path, run = tmp_path / "results" / "try" / "rows.jsonl", tmp_path / "work" / "runs" / one.cells[1].key
    places = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    command = [sys.executable, "-c", KILLED.format(folder=str(tmp_path))]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": places})

    process = start()
    while not (run / "checkpoint").exists():  # the first cell is done, and the second has saved something
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.communicate(timeout=60)[0].split() == ["one", "0"]
    assert process.returncode == -signal.SIGKILL
    first = path.read_text()
    assert list(studies.engine.read(path)) == [one.cells[0].key]
    again = start()
    assert again.communicate(timeout=300)[0].split() == ["two", "0"], "the row that was there is not computed again"
    assert path.read_text().startswith(first)
    row = studies.engine.read(path)[one.cells[1].key]
    assert row["resumed"]
    whole = studies.cell.outcome(one.cells[1], tmp_path / "whole", tmp_path / "data")
    assert {k: row[k] for k in ("curve", "by_site", "bytes_up", "val_loss")} == {
        k: whole[k] for k in ("curve", "by_site", "bytes_up", "val_loss")
    }
    assert start().communicate(timeout=300)[0] == "", "nothing is left to do"


@pytest.mark.slow
def test_pooled_training_sees_all_images_and_is_scored_at_every_site(studies: Any, one: Any, tmp_path: Path) -> None:
    from polypfed import run as runs
    from polypfed.clients import DetectorClient
    from polypfed.core.messages import Task

    cell = replace(one.cells[0], pool=("*",))
    row = studies.cell.outcome(cell, tmp_path / "run", tmp_path / "data")
    assert row["kept"] == 2 * 9
    assert len(row["by_site"]) == 3
    sites = runs.sites_of(cell.config, tmp_path / "data")
    plain = DetectorClient("s", train=[s.train for s in sites.values()], imgsz=64, batch=3, selector=runs.All())
    found = plain.fit(Task(1, "fit", {"model": plain.initial()[1]}, {"seed": 0, "strategy": {"name": "fedavg"}}))
    assert found.weight == 9, "and so does a client that is simply given all folders"


def test_bench_finds_studies_and_scripts_of_the_checkout(tmp_path: Path, real_data: Path) -> None:
    def bench(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from polypfed.cli import main; main()", "bench", *words]
        return subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    wrong = bench("communicaton")
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "'communicaton'" in wrong.stderr
    assert " communication," in wrong.stderr
    for name in ("gap", "federated-real", "federated_real"):
        shown = bench(name, "--help")
        assert shown.returncode == 0
        assert "[--budget BUDGET]" in shown.stdout, "the script's own help"
    cell = bench("gap", "--cells", "nonsense")
    assert cell.returncode == 1
    assert "has no cell 'nonsense'" in cell.stderr


def test_every_stored_row_is_whole_and_under_the_key_of_its_settings(studies: Any, real_data: Path) -> None:
    stored = [ROOT / "benchmarks" / "results" / name / "rows.jsonl" for name in studies.study.names()]
    for path in filter(Path.is_file, stored):
        rows = studies.engine.read(path)
        assert {studies.study.digest(r["settings"]) for r in rows.values()} == set(rows), path
        assert {r["cell"] for r in rows.values()} <= {
            c.name for budget in ("small", "paper") for c in studies.study.load(path.parent.name, budget).cells
        }, path


def test_the_page_is_what_the_rows_say(studies: Any, real_data: Path) -> None:
    import page

    assert (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8") == page.text()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == page.front()


def test_points_are_over_the_seeds_that_both_cells_have(studies: Any) -> None:
    ours = [{"seed": 0, "map50": 0.5}, {"seed": 1, "map50": 0.9}, {"seed": 2, "map50": 0.1}]
    base = [{"seed": 1, "map50": 0.8}, {"seed": 0, "map50": 0.6}]
    assert studies.engine.points(ours, base) == pytest.approx(0.0)
    assert studies.engine.points(ours[2:], base) is None
