"""A comparison through its Python interface, on detectors that are real but for their score."""

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import compare as compares
from polypfed import config as configs
from polypfed import run as runs
from polypfed.compare import Trial
from polypfed.config import Config
from polypfed.core.errors import CheckpointError, ConfigError, PolypfedError
from polypfed.federation import Event, Listener
from polypfed.report import Goal, write_comparison
from tests.scored import TINY, make_sites, score_by_fingerprint

TABLES = """
[federation]
rounds = 2
[compare.fedavg]
[compare.strong]
name = "fedprox"
mu = 0.5
[compare.ditto]
inner = {name = "fedavg", eta = 0.5, reducer = {name = "mean", weights = "uniform"}}
[compare.fedbuff]
[compare.wild]
name = "fedadagrad"
eta = 1e38
"""
GOAL = Goal("map50", 0.4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sites(tmp_path_factory.mktemp("sites"))


def study(root: Path, folder: Path, tables: str = TABLES) -> Config:
    folder.mkdir(exist_ok=True)
    (folder / "study.toml").write_text(TINY.format(root=root) + tables)
    return configs.load(folder / "study.toml")


def run_all(config: Config, folder: Path, names: list[str], seeds: int = 1, resume: bool = False, **extra: Any) -> None:
    trials = compares.plan(config, names, seeds, folder)
    compares.claim(config, folder, resume=resume)
    write_comparison(list(compares.outcomes(trials, **extra)), GOAL, folder)


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        score_by_fingerprint(patch)
        run_all(study(root, folder), folder / "out", [], seeds=2)
    return folder / "out"


@pytest.mark.slow
def test_the_table_is_what_the_histories_say(made: Path) -> None:
    lines = {r["strategy"]: r for r in csv.DictReader((made / "comparison.csv").read_text().splitlines())}
    assert list(lines) == ["fedavg", "strong", "ditto", "ditto, own", "fedbuff", "wild"]
    for name, metric in (("fedavg", "map50"), ("strong", "map50"), ("ditto", "map50"), ("ditto, own", "own_map50")):
        finals, sites, reached, seconds, up = [], [], [], [], []
        for seed in (0, 1):
            path = made / f"seed-{seed}" / name.removesuffix(", own") / "history.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            curve = {r["round"]: r["value"] for r in rows if (r["metric"], r["site"]) == (metric, "")}
            assert sorted(curve) == [0, 1, 2]
            finals.append(curve[2])
            reached.append(min((r for r, v in curve.items() if v >= 0.4), default=math.inf))
            sites.append(
                {r["site"]: r["value"] for r in rows if (r["metric"], r["round"]) == (metric, 2) and r["site"]}
            )
            seconds.append(sum(r["value"] for r in rows if r["metric"] == "cpu_s"))
            up.append(np.mean([r["value"] for r in rows if r["metric"] == "bytes_up"]))
        line = lines[name]
        assert float(line["final_mean"]) == pytest.approx(np.mean(finals))
        assert float(line["final_sd"]) == pytest.approx(np.std(finals, ddof=1))
        assert float(line["worst_site_mean"]) == pytest.approx(np.mean([min(s.values()) for s in sites]))
        assert float(line["site site-2"]) == pytest.approx(np.mean([s["site-2"] for s in sites]))
        assert float(line["cpu_s_mean"]) == pytest.approx(np.mean(seconds))
        assert float(line["bytes_up_per_round"]) == pytest.approx(np.mean(up))
        assert line["reached_target"] == str(sum(r < math.inf for r in reached))
        middle = np.median(reached)
        assert line["rounds_to_target_median"] == ("" if middle == math.inf else f"{middle:g}") or float(
            line["rounds_to_target_median"]
        ) == pytest.approx(middle)


@pytest.mark.slow
def test_all_start_from_the_same_model_of_the_seed(made: Path) -> None:
    records = [json.loads(line) for line in (made / "comparison.jsonl").read_text().splitlines()]
    first = {(r["seed"], r["by_round"]["0"]) for r in records if r["by_round"]}
    assert len(first) == 2, "one initial model for each of two seeds"
    last = {r["by_round"]["2"] for r in records if r["by_round"]}
    assert len(last) == 8, "and they do not stay the same: three strategies and the own models, twice"


@pytest.mark.slow
def test_settings_reach_the_strategies(made: Path) -> None:
    records = [json.loads(line) for line in (made / "comparison.jsonl").read_text().splitlines()]
    settings = {r["strategy"]: r["settings"] for r in records}
    assert settings["strong"] | {"reducer": None} == {"name": "fedprox", "mu": 0.5, "eta": 1.0, "reducer": None}
    assert settings["ditto"]["inner"]["reducer"]["weights"] == "uniform"
    about = json.loads((made / "seed-1" / "ditto" / "run.json").read_text())
    assert about["settings"]["strategy"]["inner"]["eta"] == 0.5


@pytest.mark.slow
def test_what_cannot_work_is_named_and_the_others_go_on(made: Path) -> None:
    lines = {r["strategy"]: r for r in csv.DictReader((made / "comparison.csv").read_text().splitlines())}
    assert "the buffer takes 10 updates of different sites, there are 2" in lines["fedbuff"]["reason"]
    assert not (made / "seed-0" / "fedbuff").exists(), "refused before anything is written"
    assert "failed" in lines["wild"]["reason"]
    assert "nan" in lines["wild"]["reason"]
    assert lines["wild"]["done"] == "0"
    text = (made / "comparison.md").read_text()
    assert "| fedbuff | refused |" in text
    assert "| wild | failed |" in text


def stripped(folder: Path) -> list[dict[str, str]]:
    return [
        {k: v for k, v in r.items() if k != "cpu_s_mean"}
        for r in csv.DictReader((folder / "comparison.csv").read_text().splitlines())
    ]


class Broken(BaseException):
    """The power is cut."""


@pytest.mark.slow
def test_a_comparison_broken_off_goes_on_to_the_same_table(
    made: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_by_fingerprint(monkeypatch)
    config, names = study(root, tmp_path), ["fedavg", "strong", "ditto"]
    out, begun = tmp_path / "out", list[str]()

    @contextmanager
    def cut(trial: Trial, sites: int) -> Iterator[Listener]:
        def listen(event: Event) -> None:
            if event.kind == "fit" and trial.name == "strong" and event.round == 2:
                raise Broken

        yield listen

    @contextmanager
    def watch(trial: Trial, sites: int) -> Iterator[Listener]:
        yield lambda event: begun.append(trial.name) if event.kind == "round" else None

    with pytest.raises(Broken):
        run_all(config, out, names, watch=cut)
    with pytest.raises(ConfigError, match="--resume"):
        run_all(config, out, names)
    run_all(config, out, names, resume=True, watch=watch)
    assert begun == ["strong", "ditto", "ditto"], "what was done is not repeated"
    run_all(config, out, names, seeds=2, resume=True, watch=watch)
    assert begun[3:] == [n for n in names for _ in range(2)], "only the second seed is new"
    assert stripped(out) == [r for r in stripped(made) if r["strategy"] not in ("fedbuff", "wild")]


@pytest.mark.slow
def test_going_on_with_other_settings_is_refused(made: Path, root: Path, tmp_path: Path) -> None:
    other = study(root, tmp_path)
    other = replace(other, train=replace(other.train, lr=0.02))
    with pytest.raises(CheckpointError, match=r"train\.lr was 0\.01 when the comparison began and is 0\.02 now"):
        compares.claim(other, made, resume=True)
    free = study(root, tmp_path)
    compares.claim(replace(free, federation=replace(free.federation, rounds=9), compare={}), made, resume=True)


def test_synthetic_data_are_made_once_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_by_fingerprint(monkeypatch)
    config = study(tmp_path, tmp_path, "[federation]\nrounds = 1\n")
    made = configs.Synth(sites=2, train=2, val=1, size=64, seed=3)
    config = replace(config, data=replace(config.data, partition=None, synth=made))
    trials = compares.plan(config, ["fedavg", "fednova"], 2, tmp_path / "out")
    assert [t.config.data.synth.seed for t in trials if t.config.data.synth] == [3, 3, 4, 4]
    list(compares.outcomes(trials))
    frames = {p.read_bytes() for p in (tmp_path / "out").glob("seed-*/data/site-1/train/images/*")}
    assert len(frames) == 4, "two frames for each of two seeds, shared by both strategies"


@pytest.mark.parametrize(
    ("name", "train", "named"),
    [
        ("scaffold", {"clip": 10.0}, "gradients are clipped"),
        ("fednova", {"optimizer": "AdamW"}, "AdamW"),
        ("fedbuff", {}, "buffer takes 10"),
        ("fedper", {}, "no such part"),
    ],
)
def test_what_a_strategy_refuses_is_said_before_round_1(
    name: str, train: dict[str, Any], named: str, root: Path, tmp_path: Path
) -> None:
    tables = '[compare.fedper]\nlocal = ["no such part"]\n[compare.fedavg]\n'
    config = study(root, tmp_path, tables)
    config = replace(config, train=replace(config.train, **train))
    refused, fine = compares.plan(config, [name, "fedavg"], 1, tmp_path / "out")
    sites = runs.sites_of(config, tmp_path)
    assert named in compares.refusal(refused, sites)
    assert compares.refusal(fine, sites) == ""


def test_what_no_strategy_survives_is_raised(root: Path, tmp_path: Path) -> None:
    config = study(root, tmp_path)
    config = replace(config, federation=replace(config.federation, quorum=3))
    (trial,) = compares.plan(config, ["fedavg"], 1, tmp_path / "out")
    with pytest.raises(ConfigError, match="quorum"):
        compares.refusal(trial, runs.sites_of(config, tmp_path))


@pytest.mark.parametrize(
    ("names", "seeds", "named"),
    [
        (["fedavg", "fedfoo"], 1, "fedfoo"),
        (["strong", "strong"], 1, "twice"),
        (["../x"], 1, "folder"),
        (["data"], 1, "folder"),
        (["fedavg"], 0, "seeds"),
        ([], 1, "names no strategy"),
    ],
)
def test_plans_that_make_no_sense(names: list[str], seeds: int, named: str, root: Path, tmp_path: Path) -> None:
    config = study(root, tmp_path, '[compare.strong]\nname = "fedprox"\n' if names else "")
    with pytest.raises(ConfigError, match=named):
        compares.plan(config, names, seeds, tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "named"),
    [("mu = -1", "mu"), ("speed = 1", "speed"), ('name = "sgd"', "sgd"), ('inner = {name = "fedavg"}', "inner")],
)
def test_tables_that_make_no_sense(table: str, named: str, root: Path, tmp_path: Path) -> None:
    config = study(root, tmp_path, f"[compare.fedprox]\n{table}\n")
    with pytest.raises(PolypfedError, match=rf"\[compare\.fedprox\].*{named}"):
        compares.plan(config, [], 1, tmp_path / "out")
