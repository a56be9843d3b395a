"""`polypfed run` under every kind of strategy: the report, the samples and the baselines are of the right model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from polypfed import cli
from polypfed import config as configs
from polypfed import run as runs
from polypfed.core.checkpoint import load
from polypfed.core.history import History
from tests.scored import TINY, fingerprint, make_sites, score_by_fingerprint

STRATEGIES = {
    "scaffold": 'name = "scaffold"',
    "fedbn": 'name = "fedbn"',
    "fedper": 'name = "fedper"\nlocal = ["head"]',
    "ditto": 'name = "ditto"',
    "keepbest": 'name = "keepbest"\ninner = {name = "fedper", local = ["backbone"]}',
}
PERSONAL = {"fedbn", "fedper", "ditto", "keepbest"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sites(tmp_path_factory.mktemp("sites"))


def rows(path: Path) -> dict[tuple[str, str, int], float]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {(r["metric"], r["site"], r["round"]): r["value"] for r in found}


def recorded(folder: Path) -> History:
    checkpoint = load(folder / "checkpoint")
    return History(spec=checkpoint.spec, model=checkpoint.x)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_from_config_to_report(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score_by_fingerprint(monkeypatch)
    text = (
        TINY.format(root=root)
        + "[track]\njson = 'run.log'\n[federation]\nrounds = 2\n[baselines]\nlocal = true\n"
        + f"[strategy]\n{STRATEGIES[name]}\n"
    )
    (tmp_path / "study.toml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["polypfed", "run", str(tmp_path / "study.toml"), "-d", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err
    run = tmp_path / "run"
    figures = [line for line in map(json.loads, (tmp_path / "run.log").read_text().splitlines()) if "metric" in line]
    assert {(f["metric"], f.get("site", ""), f["round"]): f["value"] for f in figures} == rows(run / "history.jsonl")
    _check_models(name, run, configs.load(tmp_path / "study.toml"))
    assert (run / "failures.jsonl").read_text() == ""
    assert len(json.loads((run / "samples" / "samples.json").read_text())) == 6
    page = (run / "report.html").read_text(encoding="utf-8")
    assert ("each site&#x27;s own model sees" in page) == (name in PERSONAL)
    assert ("shared part in each site&#x27;s own layers" in page) == (name in PERSONAL - {"ditto"})


def _check_models(name: str, run: Path, config: Any) -> None:
    """What `models_of` gives is what the sites scored, after the last round and beside the baselines."""
    history, scored, compared = recorded(run), rows(run / "history.jsonl"), rows(run / "baselines.jsonl")
    clients = runs.clients_of(config, runs.sites_of(config, run), None)
    models = runs.models_of(config, clients, history, run)
    assert sorted(models) == ["site-1", "site-2"]
    whole = clients[0].initial()[0].size
    metric = "own_map50" if name == "ditto" else "map50"
    for site, x in models.items():
        assert x.shape == (whole,)
        assert fingerprint(x) == scored[metric, site, 2] == compared["baseline/federated/map50", site, 2]
    assert history.model is not None
    assert (history.model.size < whole) == (name in PERSONAL - {"ditto"})
    assert len({fingerprint(x) for x in models.values()}) == (2 if name in PERSONAL else 1)


def test_a_site_whose_own_part_is_elsewhere_is_left_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_by_fingerprint(monkeypatch)
    (tmp_path / "study.toml").write_text(
        TINY.format(root=root) + '[strategy]\nname = "fedbn"\n[federation]\nrounds = 1\n'
    )
    config = configs.load(tmp_path / "study.toml")
    history, clients = runs.federate(config, runs.sites_of(config, tmp_path), tmp_path / "run")
    for state in (tmp_path / "run" / "sites" / "site-2" / "state").iterdir():
        state.unlink()
    assert set(runs.models_of(config, clients, history, tmp_path / "run")) == {"site-1"}
    runs.draw_samples(config, clients, history, tmp_path / "run")
    samples = json.loads((tmp_path / "run" / "samples" / "samples.json").read_text())
    assert {s["site"] for s in samples} == {"site-1"}
