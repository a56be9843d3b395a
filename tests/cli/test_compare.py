"""`polypfed compare` as a user meets it: a kill and a resume, the printed table, one-line errors."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polypfed import cli
from polypfed.data.synth import synth
from tests.scored import TINY

STUDY = (
    TINY
    + """
[federation]
rounds = 3
[compare.fedavg]
[compare.scaffold]
[compare.fedbuff]
"""
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    synth(folder / "data", sites=2, train=4, val=2, size=64, seed=1)
    (folder / "study.toml").write_text(STUDY.format(root=folder / "data"))
    return folder / "study.toml"


def started(*arguments: object, cwd: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from polypfed.cli import main; main()", "compare", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_in_the_second_run(process: "subprocess.Popen[str]", out: Path) -> bool:
    """SIGKILL when round 1 of the second strategy is done."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if (out / "seed-0" / "scaffold" / "checkpoint" / "round-000001.ckpt").exists():
            process.kill()
            break
        time.sleep(0.005)
    process.communicate()
    return process.returncode == -9


def columns(path: Path) -> list[dict[str, str]]:
    """The table but for the CPU seconds."""
    return [{k: v for k, v in r.items() if k != "cpu_s_mean"} for r in csv.DictReader(path.read_text().splitlines())]


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_table(study: Path, tmp_path: Path) -> None:
    straight = started(study, "--seeds", 1, "-d", "straight", cwd=tmp_path)
    printed, errors = straight.communicate(timeout=240)
    assert straight.returncode == 0, errors
    assert re.search(r"fedavg +> 3 +0\.\d{3} +0\.\d{3} ", printed)
    assert "fedbuff: refused: buffer: the buffer takes 10 updates" in printed
    names = {p.name for p in (tmp_path / "straight").glob("comparison.*")}
    assert names == {f"comparison.{suffix}" for suffix in ("csv", "jsonl", "md", "svg")}

    assert killed_in_the_second_run(started(study, "--seeds", 1, "-d", "cut", cwd=tmp_path), tmp_path / "cut")
    on = started(study, "--seeds", 1, "-d", "cut", "--resume", cwd=tmp_path)
    assert "Table and plot" in on.communicate(timeout=240)[0]
    assert columns(tmp_path / "cut" / "comparison.csv") == columns(tmp_path / "straight" / "comparison.csv")
    for name in ("fedavg", "scaffold"):
        first, second = (tmp_path / d / "seed-0" / name / "model.safetensors" for d in ("straight", "cut"))
        assert first.read_bytes() == second.read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "cut/seed-0/scaffold/history.jsonl").read_text().splitlines()]
    assert sorted({r["round"] for r in rows}) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--strategies", "fedavg,fedfoo"), "fedfoo"),
        (("--strategies", "fedavg, fedavg"), "twice"),
        (("--target", "1.5"), "target"),
        (("--target", "nan"), "target"),
        (("--metric", "map99"), "map50_95"),
        (("--seeds", "0"), "seeds"),
        (("--rounds", "0"), "rounds"),
        (("--data", "/nowhere"), "data"),
        (("--directory", "{taken}"), "--resume"),
        (("--directory", "{taken}/settings.json/x"), "cannot hold a comparison"),
        (("--directory", "{spoilt}", "--resume"), "is damaged"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...],
    named: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = study.parent / "taken"
    taken.mkdir(exist_ok=True)
    (taken / "settings.json").write_text("{}")
    spoilt = study.parent / "spoilt"
    spoilt.mkdir(exist_ok=True)
    (spoilt / "settings.json").write_text("[1")
    given = [a.format(taken=taken, spoilt=spoilt) for a in arguments]
    monkeypatch.setattr(sys, "argv", ["polypfed", "compare", str(study), *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capsys.readouterr().err
    assert ended.value.code == 1
    assert errors.count("\n") == 1
    assert named in errors
    assert list(tmp_path.iterdir()) == []


def test_a_config_with_nothing_to_compare_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.toml").write_text("[data.synth]\nsites = 2\n")
    monkeypatch.setattr(sys, "argv", ["polypfed", "compare", str(tmp_path / "plain.toml")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "[compare.NAME]" in capsys.readouterr().err
