"""Starters: they parse, they pass doctor, they name every setting, and they overwrite nothing."""

import json
import re
import shlex
import shutil
import socket
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from polypfed import config as configs
from polypfed.cli import app
from polypfed.cli.init import starter
from polypfed.config import Config
from polypfed.core.errors import ConfigError
from polypfed.doctor import Asked, examine
from polypfed.privacy.keyring import open_keys


def polypfed(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def errors(role: str, file: Path) -> set[str]:
    return {f.what for f in examine(role, Asked(file, file.parent, quick=True)) if f.state == "error"}


def test_the_researchers_starter_passes_doctor(tmp_path: Path) -> None:
    polypfed("init", "researcher", tmp_path / "new")
    assert errors("researcher", tmp_path / "new" / "study.toml") == set()


def test_its_defaults_are_the_defaults() -> None:
    """With every "#:" line in force the study is the same as without any."""
    text = starter("study.toml")
    said = text.replace("#: ", "")
    assert said != text
    assert configs.parse(said, Path("study.toml")) == configs.parse(text, Path("study.toml"))


def test_it_names_every_setting() -> None:
    text = re.sub(r"^#[:-] ", "", starter("study.toml"), flags=re.MULTILINE).replace("[data.synth]", "[synth]")
    told = {table: set(values) for table, values in tomllib.loads(text).items()}
    for table, known in tables(Config):
        if table in ("select", "strategy", "compare"):  # open tables: of the rule, of the algorithm
            continue
        assert told[table] == known, table


def tables(kind: Any) -> Iterator[tuple[str, set[str]]]:
    called = {"federation": "Rounds", "backend": "Carrier", "track": "TrackSettings"}
    hints = {f.name: configs.__dict__.get(called.get(f.name, f.name.title())) for f in fields(kind)}
    for name, found in hints.items():
        if is_dataclass(found):
            yield name, {f.name for f in fields(found)} - {"synth"}
    yield "synth", {f.name for f in fields(configs.Synth)}


def test_a_sites_starter_needs_only_what_the_server_gives(tmp_path: Path) -> None:
    polypfed("init", "server", tmp_path / "fed", "--site", "north", "--port", free())
    polypfed("init", "site", tmp_path / "own", "--name", "north", "--server", f"127.0.0.1:{free()}")
    own = tmp_path / "own"
    assert stat.S_IMODE((own / "site.key").stat().st_mode) == 0o600
    missing = errors("site", own / "site.toml")
    assert "certificate ca.crt" in missing
    (own / "ca.crt").write_bytes((tmp_path / "fed" / "server" / "ca.crt").read_bytes())
    assert {what for what in errors("site", own / "site.toml") if not what.startswith("server")} == set()
    digest = re.search(r"[0-9a-f]{64}", (own / "site.toml").read_text())
    assert digest is not None


def test_a_site_that_made_its_keys_is_deployed_by_its_public_halves(tmp_path: Path) -> None:
    """What the server's owner writes completes what the site has; nothing of it is secret, and both ends agree."""
    own, fed = tmp_path / "own", tmp_path / "fed"
    said = polypfed("init", "site", own, "--name", "north", "--server", f"127.0.0.1:{free()}")
    assert "approve = true" in (own / "site.toml").read_text()
    assert stat.S_IMODE((own / "keys" / "identity.key").stat().st_mode) == 0o600
    polypfed("init", "researcher", tmp_path)
    command = ("deploy", "flower", fed, "--study", tmp_path / "study.toml", "--site", "south", "--join")
    told = polypfed(*command, own / "north.join.json")
    (digest,) = re.findall(r"[0-9a-f]{64}", told)
    assert digest in said
    assert digest in (own / "site.toml").read_text()
    given = fed / "sites" / "north"
    assert {p.name for p in given.rglob("*.key")} == set()
    assert not {p.name for p in given.iterdir()} & {p.name for p in own.iterdir()} - {"keys"}
    assert (fed / "server" / "sites" / "north.pub").read_bytes() == (own / "site.pub").read_bytes()
    shutil.copytree(given, own, dirs_exist_ok=True)
    identity, roster = open_keys(own / "keys")
    assert roster["north"] == identity.public
    assert roster.names == ["north", "south"]
    assert {what for what in errors("site", own / "site.toml") if not what.startswith(("server", "data"))} == set()


def test_a_join_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    polypfed("init", "site", tmp_path / "own", "--name", "north")
    path = tmp_path / "own" / "north.join.json"
    good = json.loads(path.read_text())
    for change in ({"node": "ssh-ed25519 AAAA"}, {"signing": "00"}, {"name": "../up"}, {"more": 1}, {"node": None}):
        path.write_text(json.dumps(good | change))
        done = CliRunner().invoke(app, ["deploy", "flower", str(tmp_path / "fed"), "--join", str(path)])
        assert isinstance(done.exception, ConfigError), change
        assert str(path) in str(done.exception)
    assert not (tmp_path / "fed").exists()


def test_a_servers_starter_passes_doctor(tmp_path: Path) -> None:
    polypfed("init", "server", tmp_path / "fed", "--site", "north", "--site", "south", "--port", free())
    assert errors("server", tmp_path / "fed" / "server") == set()
    assert configs.load(tmp_path / "fed" / "server" / "study.toml").federation.quorum == 2


def test_a_devices_command_is_one_that_polypfed_takes(tmp_path: Path) -> None:
    polypfed("init", "device", tmp_path)
    script = (tmp_path / "start.sh").read_text()
    values: Mapping[str, str] = dict(re.findall(r"^([A-Z]+)=(\S+)", script, re.MULTILINE))
    command = script[script.index("exec polypfed ") :].partition("\n#")[0].replace("\\\n", " ")
    words = [re.sub(r"\$(\w+)", lambda m: values[m[1]], word) for word in shlex.split(command)[2:]]
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    context = group.commands[words[0]].make_context(words[0], words[1:])
    assert str(context.params["template"]) == "template.zip"
    assert (tmp_path / "start.sh").stat().st_mode & 0o100


@pytest.mark.parametrize("role", ["researcher", "site", "device"])
def test_nothing_is_overwritten(role: str, tmp_path: Path) -> None:
    polypfed("init", role, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for path in before:  # whichever of them is left
        others = [other for other in before if other != path]
        for other in others:
            other.unlink()
        done = CliRunner().invoke(app, ["init", role, str(tmp_path)])
        assert "exists already" in str(done.exception), path
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == {path: before[path]}
        for other in others:
            other.write_bytes(before[other])


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
