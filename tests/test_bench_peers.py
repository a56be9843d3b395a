"""What the benchmarks `federated-real` and `peers` make of settings and rows; and that Flower is given our work."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polypfed import config as configs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import federated_real
    import scale

    return SimpleNamespace(real=federated_real, scale=scale)


def test_the_study_of_a_deployment_is_what_its_settings_say(benches: Any, tmp_path: Path, real_data: Path) -> None:
    sites, studies = benches.real.settings("small")
    assert {s["train"] for s in sites.values()} & {s["val"] for s in sites.values()} == set(), "nobody trains on them"
    read = {n: configs.load(benches.real.study_file(s, tmp_path / n / "study.toml")) for n, s in studies.items()}
    assert (read["whole"].train.freeze, read["frozen"].train.freeze) == (0, 10)
    assert replace(read["frozen"], train=read["whole"].train) == read["whole"], "nothing else differs"
    assert read["whole"].select == {"name": "all"}
    assert read["whole"].federation.evaluate == "matrix"
    value = {"a": [1, "two"], "b": {"c": 0.5, "d": True}}
    assert tomllib.loads(f"v = {benches.real.toml(value)}")["v"] == value


def test_a_row_is_known_by_its_study_and_engine_and_not_by_where_weights_lie(benches: Any) -> None:
    _, studies = benches.real.settings("small")
    keys = {benches.real.key(s, e) for s in studies.values() for e in benches.real.ENGINES}
    assert len(keys) == len(studies) * len(benches.real.ENGINES)
    moved = studies["whole"] | {"model.warm_start": ["elsewhere"]}
    assert benches.real.key(moved, "local") == benches.real.key(studies["whole"], "local")


def test_the_table_says_whether_an_engine_gave_other_bits(benches: Any, tmp_path: Path) -> None:
    sites, studies = benches.real.settings("small")
    matrix = {"global": {"c1": 0.5, "c3": 0.75, "all": 0.625}, "c1": {"c1": 0.25, "c3": 0.125}}
    shared = {"curve": [0.0, 0.625], "matrix": matrix, "round_s": [1.0, 3.0], "cpu_s": 7.0, "tls": "TLSv1.3"}
    shared |= {"bytes_up": 1.0, "bytes_down": 1.0, "load": [1.0, 2.0], "date": "2026-01-01T00", "cpu": "a processor"}
    shared |= {"versions": {"numpy": "2"}, "settings": studies["frozen"], "cell": "frozen"}
    bits = {"local": "aa", "flower": "aa", "nvflare": "bb"}
    rows = [shared | {"engine": engine, "sha256": found} for engine, found in bits.items()]
    lines = benches.real.table(rows, sites, studies).splitlines()
    verdict = {
        line.split(" | ")[1]: line.split(" | ")[-1].strip(" |") for line in lines if line.startswith("| frozen |")
    }
    assert verdict == {"local": "", "flower": "yes", "nvflare": "**no**"}
    assert "| c1 (trained on C1) | 0.250 | 0.125 |" in lines
    benches.real.plot(rows, tmp_path / "plot.svg")
    assert b"validated at" in (tmp_path / "plot.svg").read_bytes()


def test_points_on_ray_stay_out_of_the_lines_of_this_process(benches: Any) -> None:
    about = {"date": "2026-01-01T00", "cpu": "a processor", "versions": {"numpy": "2"}, "load": [1.0, 9.0]}
    own = [
        about | {"sites": n, "params": benches.scale.SMALL, "rounds": 4, "cpu_s_round": n / 10, "cpu_s": n / 2}
        | {"memory_mb": 3.0, "mb_up_round": 1.0}
        for n in (2, 20, 200)
    ]  # fmt: skip
    ray = [
        r | {"engine": "flower", "cpu_s_round": 50.0 + r["sites"], "wall_s_round": 1.0, "first_round_s": 9.0}
        for r in own
    ]
    text = benches.scale.table(own + ray)
    assert "- sites: CPU s = " in text
    assert "+ 0.1 per site (R² 1.000)" in text
    assert "- on Ray: CPU s = 50 + 1 per site (R² 1.000)" in text
    assert "On Ray: load 1 to 9" in text


def test_every_stored_row_of_the_peers_is_in_their_table(benches: Any, real_data: Path) -> None:
    pytest.importorskip("flwr", exc_type=ImportError)
    from peers import table, yolo

    stored = ROOT / "benchmarks" / "results" / "peers"
    path = stored / "yolo.jsonl"
    assert len(yolo.rows("small", path)) == len(path.read_text(encoding="utf-8").splitlines()), "a row is under no key"
    engines = [json.loads(line) for line in (stored / "engines.jsonl").read_text(encoding="utf-8").splitlines()]
    text = (stored / "table.md").read_text(encoding="utf-8")
    assert yolo.table("small", path) in text
    assert table.table(engines) in text


@pytest.mark.slow
def test_flowers_average_of_the_whole_model_is_ours_and_parts_stay_at_their_site(benches: Any, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from peers import yolo
    from studies.study import Cell

    import polypfed as pf
    from polypfed import run as runs

    text = "[data]\nsynth = { sites = 2, train = 4, val = 2, size = 64 }\n[federation]\nrounds = 1\n"
    config = configs.parse(text, tmp_path, {"select.name": "all", "model.image_size": 64})
    cell = Cell("full", 0, config)
    whole = yolo.federate(["backbone", "neck", "head"], cell, tmp_path)
    neck = yolo.federate(["neck"], cell, tmp_path)
    clients = runs.clients_of(config, runs.sites_of(config, tmp_path), None)
    ours = pf.Federation(clients=clients).run(1, pf.backends.Local()).model
    assert ours is not None
    (one, two), (a, b) = whole.members.values(), neck.members.values()
    assert np.allclose(one.mine, ours, rtol=0, atol=1e-5), "the same training, and means that differ in rounding only"
    assert np.array_equal(one.mine, two.mine)
    assert whole.up == whole.down == 2 * 4 * one.spec.size
    same = {p.group for p in a.spec.parts if np.array_equal(a.mine[p.start : p.stop], b.mine[p.start : p.stop])}
    other = {p.group for p in a.spec.parts if not np.array_equal(a.mine[p.start : p.stop], b.mine[p.start : p.stop])}
    assert other == {"backbone", "head"}
    assert "neck" in same
    assert neck.up == 2 * 4 * sum(p.stop - p.start for p in a.spec.parts if p.group == "neck")
