"""One study file, two ends: the server's federation and a site's client fit together."""

from pathlib import Path

import pytest

from polypfed import remote
from polypfed.backends import Local
from polypfed.core.errors import ConfigError, DataError
from polypfed.data.synth import synth
from polypfed.federation import Federation

pytestmark = pytest.mark.slow
STUDY = """
[data.synth]
sites = 9

[model]
image_size = 64

[train]
batch = 4

[federation]
rounds = 1
quorum = 2
evaluate = "off"
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY)
    synth(tmp_path / "data", sites=2, train=6, val=2, size=64, seed=1)
    return tmp_path


def test_the_two_ends_meet(base: Path) -> None:
    names = sorted(p.name for p in (base / "data").iterdir() if p.is_dir())
    clients = [remote.client(name, base, data=f"data/{name}") for name in names]
    fed, rounds = remote.federation(names, base)
    assert fed.initial is not None
    assert (fed.quorum, rounds, fed.clients) == (2, 1, [])
    spec, x = clients[0].initial()
    assert fed.initial[0] == spec
    assert fed.initial[1].tobytes() == x.tobytes()
    history = Federation(clients=clients, quorum=2, evaluate="off").run(1, Local())  # the clients really train
    assert not history.failures
    assert list(base.glob("state/sites/*/selection/*.csv"))  # which images each chose stays beside its state


def test_what_is_missing_is_named(base: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        remote.client("a", base, data="nothing")
    with pytest.raises(ConfigError, match=r"other.toml: cannot be read"):
        remote.federation(["a"], base, study="other.toml")
    (base / "data" / "empty" / "train").mkdir(parents=True)
    client = remote.client("empty", base, data="data/empty")
    with pytest.raises(DataError, match="train"):
        client._open("train")


def test_deployments_in_clear_clip_to_the_median_norm_and_research_does_not(tmp_path: Path) -> None:
    from polypfed import Krum, Mean, NormClip
    from polypfed import config as configs
    from polypfed.strategies import FedAvg, FedNova, KeepBest

    path = tmp_path / "study.toml"
    path.write_text('[data.synth]\n[strategy]\nname = "keepbest"\ninner = { name = "fedavg" }\n')
    assert remote.planned(path).strategy == KeepBest(inner=FedAvg(reducer=NormClip(refuse_opposed=True)))
    assert remote.planned(path, clip=False).strategy == KeepBest(inner=FedAvg())
    assert configs.federation(configs.load(path), []).strategy == KeepBest(inner=FedAvg())
    assert remote.clipped(FedAvg(reducer=Krum(f=1))) == FedAvg(reducer=Krum(f=1))
    assert remote.clipped(FedAvg(reducer=Mean("uniform"))) == FedAvg(
        reducer=NormClip(weights="uniform", refuse_opposed=True)
    )
    assert remote.clipped(FedNova()) == FedNova()
    path.write_text(path.read_text() + '[privacy]\nmode = "he"\n[federation]\nevaluate = "global"\n')
    with pytest.raises(Exception, match="KeepBest"):
        remote.planned(path)
    path.write_text('[data.synth]\n[privacy]\nmode = "he"\n[federation]\nevaluate = "global"\n')
    assert remote.planned(path).strategy == FedAvg()


def test_a_study_named_from_another_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "study.toml").write_text("[data.synth]\n")
    monkeypatch.chdir(tmp_path)
    assert remote.planned(Path("kit/study.toml")) == remote.planned(tmp_path / "kit" / "study.toml")
