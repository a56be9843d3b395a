"""Every example file is good; the real-image study runs whole on generated frames in its layout."""

import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from polypfed import compare as compares
from polypfed import config as configs
from polypfed import run as runs
from polypfed.data.synth import synth

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
CENTRES = ["polypgen_c1", "polypgen_c2", "polypgen_c3", "polypgen_c4"]
SMALL = {
    "federation.rounds": 1,
    "federation.quorum": 4,
    "model.image_size": 64,
    "model.warm_start": "",
    "train.batch": 4,
    "train.epochs": 1,
    "backend.workers": 1,
    "baselines.local": False,
    "baselines.central": False,
}


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_is_a_valid_config(path: Path, tmp_path: Path) -> None:
    needs_images = "root = " in path.read_text(encoding="utf-8")
    config = configs.load(path, {"data.root": tmp_path} if needs_images else None)
    assert config.federation.rounds >= 1


def test_the_demo_is_a_valid_config() -> None:
    text = files("polypfed").joinpath("demo.toml").read_text(encoding="utf-8")
    config = configs.parse(text, Path("demo.toml"))
    assert config.baselines.local
    assert config.data.synth is not None


@pytest.mark.slow
def test_the_polypgen_study_runs(tmp_path: Path) -> None:
    synth(tmp_path / "made", sites=CENTRES, train=14, val=1, size=64, seed=5)
    for centre in CENTRES:
        shutil.copytree(tmp_path / "made" / centre / "train", tmp_path / "sets" / centre)
    config = configs.load(EXAMPLES[0].parent / "polypgen.toml", {"data.root": tmp_path / "sets", **SMALL})
    folder = tmp_path / "run"
    sites = runs.sites_of(config, folder)
    assert sorted(sites) == CENTRES
    history, _ = runs.federate(config, sites, folder)
    assert history.values("accepted") == {1: 4.0}
    assert history.table("map50").sites == [*CENTRES, ""]


@pytest.mark.slow
def test_no_strategy_of_the_comparison_is_refused(tmp_path: Path) -> None:
    synth(tmp_path / "made", sites=CENTRES, train=14, val=1, size=64, seed=5)
    for centre in CENTRES:
        shutil.copytree(tmp_path / "made" / centre / "train", tmp_path / "sets" / centre)
    config = configs.load(EXAMPLES[0].parent / "strategies.toml", {"data.root": tmp_path / "sets", **SMALL})
    trials = compares.plan(config, [], 1, tmp_path / "out")
    assert [t.name for t in trials] == "fedavg fedprox fedadam scaffold fedbn fedper keepbest".split()
    sites = runs.sites_of(trials[0].config, tmp_path / "run")
    assert {t.name: compares.refusal(t, sites) for t in trials} == dict.fromkeys((t.name for t in trials), "")
