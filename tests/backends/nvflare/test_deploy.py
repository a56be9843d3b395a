"""What `deploy.write` writes, and what `fit_kit` makes of a kit; nothing is started."""

import json
import re
import stat
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polypfed.backends.nvflare import deploy, operate
from polypfed.backends.nvflare import kit as kits
from polypfed.backends.nvflare.kit import CLASSES, expiry, fit_kit, validity
from polypfed.backends.site_file import SiteFile
from polypfed.cli import deploy_nvflare
from polypfed.core.errors import BackendError, ConfigError, QuorumError
from polypfed.core.journal import Journal
from polypfed.core.rundir import RunDirectory
from polypfed.federation import Event
from polypfed.privacy.keyring import open_keys

ADMIN = "admin@polypfed.org"
KITS = ["localhost", "north", "south", ADMIN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("deploy")
    (base / "study.toml").write_text("")
    settings = {"north": {"data": "/data/north"}, "south": {"data": "/data/south"}}
    plan = deploy.Plan(["north", "south"], port=9100, admin_port=9101, study=base / "study.toml", settings=settings)
    return deploy.write(base / "made", plan)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_everybody_gets_a_kit_with_a_readme(folder: Path) -> None:
    assert sorted(p.name for p in (folder / "kits").iterdir()) == sorted(KITS)
    assert all((folder / "kits" / name / "README.md").exists() for name in KITS)
    assert not list((folder / "kits").rglob("*.tenseal"))


def test_private_keys_are_their_owners_alone(folder: Path) -> None:
    keys = list((folder / "kits").rglob("*.key"))
    assert len(keys) == 7  # four of NVFlare, three identities
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_every_site_has_an_identity_and_all_have_one_roster(folder: Path) -> None:
    """The server's identity only signs: it is in nobody's roster of members, and it holds no site's."""
    kits = {name: folder / "kits" / name / "local" / "keys" for name in KITS}
    assert not kits[ADMIN].exists()
    opened = {name: open_keys(kits[name]) for name in KITS if name != ADMIN}
    assert len({found.digest for _, found in opened.values()}) == 1
    _, pinned = opened["localhost"]
    assert pinned.names == ["north", "south"]
    for name in pinned.names:
        assert opened[name][0].public == pinned[name]
        assert pinned[name].fingerprint in (folder / "README.md").read_text()
    assert opened["localhost"][0].public == pinned.server
    assert sorted(p.name for p in kits["localhost"].iterdir()) == ["identity.key", "roster.json"]


def test_the_day_on_which_certificates_expire_is_stated(folder: Path) -> None:
    day = expiry(folder / "kits" / "north")
    assert timedelta(days=350) < day - datetime.now(UTC) < timedelta(days=370)
    for text in (folder / "README.md", *(folder / "kits" / name / "README.md" for name in KITS)):
        assert str(day.date()) in text.read_text()


@pytest.mark.parametrize(("days", "said"), [(31, "valid until"), (29, "WARNING.*in 28 days"), (-1, "WARNING.*expired")])
def test_every_start_warns_in_the_last_days(
    folder: Path, monkeypatch: pytest.MonkeyPatch, days: int, said: str
) -> None:
    monkeypatch.setattr(kits, "expiry", lambda kit: datetime.now(UTC) + timedelta(days=days))
    assert re.search(said, validity(folder / "kits" / "north"))


@pytest.mark.parametrize("name", ["localhost", "north", "south"])
def test_a_job_may_name_our_two_classes_and_ship_no_code(folder: Path, name: str) -> None:
    local = folder / "kits" / name / "local"
    assert set(CLASSES) <= set(read(local / "resources.json")["class_allow_list"])
    roles = read(local / "authorization.json")["permissions"]
    assert all(rights.get("byoc", "none") == "none" for rights in roles.values())
    assert roles["project_admin"]["submit_job"] == "any"


def test_our_two_classes_are_where_the_list_says() -> None:
    from importlib import import_module

    for name in CLASSES:
        module, _, cls = name.rpartition(".")
        assert isinstance(getattr(import_module(module), cls), type)


def test_storage_lies_in_the_kit_wherever_that_lies(folder: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "server"
    shutil.copytree(folder / "kits" / "localhost", moved)
    assert len(fit_kit(moved)) == 2  # the two absolute paths
    assert fit_kit(moved) == []
    text = (moved / "local" / "resources.json").read_text()
    assert str(moved / "jobs-storage") in text
    assert "/tmp/nvflare" not in text


def test_a_kit_of_nvflares_own_is_made_fit_once(tmp_path: Path) -> None:
    (tmp_path / "project.yml").write_text(
        deploy.templates.project("other", "localhost", 9200, 9201, "hospital", ["north"], ADMIN)
    )
    kits = deploy.provision(tmp_path / "project.yml", tmp_path / "made")
    (kits / "north" / "startup" / "client.key").chmod(0o644)
    changed = fit_kit(kits / "north")
    assert any("client.key: mode 0600" in line for line in changed)
    assert any("byoc none" in line for line in changed)
    assert fit_kit(kits / "north") == []
    changed = fit_kit(kits / "localhost", heartbeat=45.0)
    assert any("heart_beat_timeout: 45" in line for line in changed)
    assert fit_kit(kits / "localhost") == []  # what its owner has set stays


def test_settings_name_each_sites_data(folder: Path) -> None:
    site = SiteFile.load(folder / "kits" / "south" / "local" / "polypfed.toml")
    assert site.name == "south"
    assert site.settings == {"study": "study.toml", "data": "/data/south"}
    assert (site.path.parent / "study.toml").exists()
    server = tomllib.loads((folder / "kits" / "localhost" / "local" / "polypfed.toml").read_text())
    assert server["sites"] == ["north", "south"]
    assert server["federation"] == "polypfed.remote:federation"


def test_project_yml_is_what_nvflares_command_reads(folder: Path) -> None:
    text = (folder / "project.yml").read_text()
    assert re.search(r"fed_learn_port: 9100, admin_port: 9101", text)
    assert text.count("type: client") == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sites": []}, "there is no site"),
        ({"sites": ["a", "a"]}, "two sites share a name"),
        ({"sites": ["../a"]}, "cannot name a site"),
        ({"sites": ["a"], "port": 0}, "port: "),
        ({"sites": ["a"], "study": Path("nowhere.toml")}, "no such file"),
    ],
)
def test_a_wrong_plan_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        deploy.Plan(**wrong)


def test_what_nvflare_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NVFlare refuses it"):
        deploy.write(tmp_path / "made", deploy.Plan(["a"], host="not a host!"))


def test_an_existing_folder_is_left_alone(folder: Path) -> None:
    before = sorted(p.stat().st_mtime_ns for p in folder.rglob("*"))
    with pytest.raises(ConfigError, match="exists already"):
        deploy.write(folder, deploy.Plan(["north"]))
    assert sorted(p.stat().st_mtime_ns for p in folder.rglob("*")) == before


def test_the_command_fits_a_kit(folder: Path) -> None:
    done = CliRunner().invoke(deploy_nvflare.app, ["fit", str(folder / "kits" / "north")])
    assert done.exit_code == 0
    assert "Certificates are valid until" in done.output


def test_a_result_is_judged_by_our_own_mark() -> None:
    good = {"status": "completed", "rounds": 3, "sha256": "00"}
    assert operate.judged(good) is good
    for name, kind in (("QuorumError", QuorumError), ("ConfigError", ConfigError), ("Other", BackendError)):
        with pytest.raises(kind, match="why"):
            operate.judged({"status": "failed", "error": name, "detail": "why"})


def test_rounds_are_said_where_the_server_is_on_this_machine(folder: Path) -> None:
    admin, run = folder / "kits" / ADMIN, folder / "kits" / "localhost" / "runs" / "study"
    more = deploy_nvflare._rounds(admin, "study")
    assert list(more()) == []
    run.mkdir(parents=True)
    with RunDirectory(run), Journal(run, 4) as journal:
        journal(Event("round", 1))
        assert list(more()) == ["round 1 of 4"]
        assert list(more()) == []
        journal(Event("round", 2))
        journal(Event("round", 3))
    assert list(more()) == ["round 2 of 4", "round 3 of 4"]  # short ones, and the end, between two looks
    (run / "history.jsonl").write_text(json.dumps({"round": 2, "site": "", "metric": "failed", "value": 0}) + "\n")
    resumed = deploy_nvflare._rounds(admin, "study")
    with RunDirectory(run), Journal(run, 4) as journal:
        journal(Event("round", 3))
        assert list(resumed()) == ["round 3 of 4"]
    assert list(deploy_nvflare._rounds(folder, "study")()) == []
