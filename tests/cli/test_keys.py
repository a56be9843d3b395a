"""`polypfed keys` from the first identity to a rotated job key, as the people who run sites would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polypfed import Federation, NumpyClient
from polypfed.backends import Local
from polypfed.cli.keys import app
from polypfed.core.errors import ConfigError
from polypfed.core.rundir import load_model
from polypfed.privacy.modes import stages
from tests.problems import Quadratic

pytest.importorskip("tenseal")
RUN = CliRunner()


def keys(*words: Any) -> str:
    result = RUN.invoke(app, [str(w) for w in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def fed() -> Federation:
    clients = [NumpyClient(f"s{i}", Quadratic(1.0, float(i)), np.zeros(5), lr=0.1, weight=5) for i in range(2)]
    return Federation(clients=clients, stages=stages("he", bits=12, cap=10, bound=1.0))


def test_identities_and_a_roster(tmp_path: Path) -> None:
    for name in ("a", "b", "server"):
        said = keys("create", name, "--to", tmp_path / name)
        assert "private" in said
    members = [tmp_path / n / "member.json" for n in ("a", "b")]
    listed = keys("roster", *members, "--server", tmp_path / "server" / "member.json", "--to", tmp_path / "roster.json")
    shown = keys("inspect", tmp_path / "a" / "identity.key")
    fingerprint = shown.partition("fingerprint: ")[2].strip()
    assert len(fingerprint.split()) == 8
    assert fingerprint.split()[0] in listed
    assert fingerprint in keys("inspect", tmp_path / "a" / "member.json")
    assert (tmp_path / "a" / "identity.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="holds an identity already"):
        keys("create", "a", "--to", tmp_path / "a")


def test_a_rotated_key_is_used_from_the_next_round_on(tmp_path: Path) -> None:
    fed().run(2, Local(), tmp_path)
    own = tmp_path / "sites" / "s1" / "keys"
    with pytest.raises(ConfigError, match="has a job key"):
        keys("wrap", tmp_path, "--keys", own)
    assert "epoch 2" in keys("rotate", tmp_path, "--keys", own)
    assert "leader: s1" in keys("inspect", tmp_path / "sums" / "keys-000002.bin")
    history = fed().resume(tmp_path, 4, Local())
    assert not history.failures
    sites = [load_model(tmp_path / "sites" / s / "model.safetensors")[1].tobytes() for s in ("s0", "s1")]
    assert sites[0] == sites[1]


def test_what_is_no_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ConfigError, match=r"x.json.*cannot be read"):
        keys("inspect", tmp_path / "x.json")


def test_a_run_in_clear_has_no_job_key(tmp_path: Path) -> None:
    fed().run(1, Local(), tmp_path / "he")
    clients = [NumpyClient(f"s{i}", Quadratic(1.0, float(i)), np.zeros(5)) for i in range(2)]
    Federation(clients=clients).run(1, Local(), tmp_path / "plain")
    with pytest.raises(ConfigError, match="not encrypted"):
        keys("wrap", tmp_path / "plain", "--keys", tmp_path / "he" / "sites" / "s0" / "keys")
