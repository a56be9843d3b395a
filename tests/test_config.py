"""The file edge: every mistake in one go, with file, field and remedy; nothing guessed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import config as configs
from polypfed.backends import Local
from polypfed.clients import NumpyClient
from polypfed.core.errors import ConfigError
from polypfed.privacy.stage import Mask, Quantise
from polypfed.strategies import FedAvg

SYNTH = "[data.synth]\nsites = 2\n"


def parse(text: str, **override: object) -> configs.Config:
    return configs.parse(text, Path("study.toml"), {k.replace("__", "."): v for k, v in override.items()})


def test_defaults_are_the_seed_rule_over_fedavg() -> None:
    config = parse(SYNTH)
    assert config.select == {"name": "below", "threshold": 0.7}
    assert config.strategy == {"name": "fedavg"}
    assert config.data.synth is not None
    assert config.data.synth.sites == 2


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(SYNTH + "[train]\nepochs = '3'\nlr = -1\nspeed = 2\n[federation]\nrounds = 0\n")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["train.epochs", "train.lr", "train.speed", "federation.rounds"]
    assert all(line.startswith("study.toml: ") for line in lines)
    assert "no such setting" in lines[2]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[data]\nsources = []\n", "data"),
        ("data = [\n", "not TOML"),
        (SYNTH + "[strategy]\nname = 'fedfoo'\n", "fedfoo"),
        (SYNTH + "[strategy]\nname = 'fedavg'\neta = -1.0\n", "eta"),
        (SYNTH + "[strategy]\nname = 'fedavg'\nbeta = 1.0\n", "beta"),
        (SYNTH + "[select]\nname = 'below'\nthreshold = 7\n", "threshold"),
        (SYNTH + "[select]\nname = 'above'\n", "above"),
        (SYNTH + "[model]\nimage_size = 100\n", "image_size"),
        (SYNTH + "[model]\narch = 'yolov9'\n", "arch"),
        (SYNTH + "[backend]\nname = 'pigeon'\n", "backend.name"),
        (SYNTH + "[federation]\ndeadline = inf\n", "deadline"),
        ("[data]\nroot = ['$NOT_SET_ANYWHERE/x', 'nowhere']\n", "data.root"),
        ("[data]\npartition = 'nowhere'\n", "data.partition"),
        ("data = 3\n", "data"),
        ("", "data"),
    ],
)
def test_one_mistake_names_its_field(text: str, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse(text)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        configs.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        configs.load(tmp_path / "bad.toml")


def test_paths_are_relative_to_the_file_and_the_first_that_exists_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sets").mkdir()
    file = tmp_path / "study.toml"
    file.write_text("[data]\nroot = ['$NOT_SET_ANYWHERE', 'gone', 'sets']\n[model]\nwarm_start = ['gone.npz', '']\n")
    config = configs.load(file)
    assert config.data.root == str(tmp_path / "sets")
    assert config.model.warm_start is None
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("NOT_SET_ANYWHERE", str(tmp_path / "mine"))
    assert configs.load(file).data.root == str(tmp_path / "mine")


def test_overrides_replace_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    config = parse("[data]\nroot = 'gone'\n", data__root=Path("here"), federation__rounds=9)
    assert config.data.root == str(tmp_path / "here")
    assert config.federation.rounds == 9
    with pytest.raises(ConfigError, match=r"federation\.rounds"):
        parse(SYNTH, federation__rounds=0)


def test_builds_what_it_says() -> None:
    config = parse(
        SYNTH + "[strategy]\nname = 'FedAvg'\neta = 0.5\n[federation]\nquorum = 1\nseed = 4\n[backend]\nworkers = 3\n"
    )
    clients = [NumpyClient("a", lambda x: x, [1.0])]
    fed = configs.federation(config, clients)
    assert fed.strategy == FedAvg(eta=0.5)
    assert (fed.seed, fed.evaluate, fed.clients) == (4, "matrix", clients)
    carrier = configs.backend(config)
    assert isinstance(carrier, Local)
    assert carrier.workers == 3


def test_describe_drops_what_is_not_set() -> None:
    plain = configs.describe(parse(SYNTH))
    assert "partition" not in plain["data"]
    assert plain["data"]["synth"]["sites"] == 2


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ("bits = 2.3", [Quantise(2.3, cap=4096)]),
        ("bits = 2.3\ncap = 300", [Quantise(2.3, cap=300)]),
        ("", []),
        ('mode = "secagg"', [Quantise(8.0, cap=4096), Mask()]),
        ('mode = "secagg"\nbits = 12.0', [Quantise(12.0, cap=4096), Mask()]),
    ],
)
def test_bits_round_in_every_mode_and_are_eight_where_integers_are_added_anyway(table: str, wanted: list[Any]) -> None:
    config = parse(f"[data.synth]\n[privacy]\n{table}\n")
    assert list(configs.federation(config, []).stages) == wanted
    assert config.evaluate == ("global" if wanted else "matrix")


DP = '[data.synth]\n[privacy]\nmode = "dp"\n'


@pytest.mark.parametrize(("mode", "scored"), [("plain", "matrix"), ("dp", "global"), ("he", "global")])
def test_a_mode_of_privacy_has_no_matrix_unless_the_file_asks_for_one(mode: str, scored: str) -> None:
    assert parse(f'[data.synth]\n[privacy]\nmode = "{mode}"\n').evaluate == scored
    asked = parse(f'[data.synth]\n[federation]\nevaluate = "matrix"\n[privacy]\nmode = "{mode}"\n')
    assert asked.evaluate == "matrix"  # which the federation then refuses, with the reason


@pytest.mark.parametrize("strategy", ['"fedavg"', '"scaffold"', '"keepbest"\ninner = { name = "fedavgm" }'])
def test_under_noise_all_sites_weigh_alike(strategy: str) -> None:
    pytest.importorskip("dp_accounting")
    clients = [NumpyClient(name, lambda x: x, np.zeros(2)) for name in "ab"]
    fed = configs.federation(parse(f"{DP}[strategy]\nname = {strategy}\n"), clients)
    assert getattr(fed.strategy.reducer, "weights", None) == "uniform"


def test_weights_by_examples_that_the_file_names_are_refused_under_noise() -> None:
    text = f'{DP}[strategy]\nname = "fedavg"\nreducer = {{ name = "mean", weights = "examples" }}\n'
    clients = [NumpyClient(name, lambda x: x, np.zeros(2)) for name in "ab"]
    with pytest.raises(ConfigError, match="sensitivity would depend on the data"):
        configs.federation(parse(text), clients)
