"""The command line as a user meets it: real processes, one-line errors, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polypfed.data.synth import synth

TINY = """
[data]
partition = "{root}"
[model]
image_size = 64
[train]
batch = 4
[federation]
rounds = 1
quorum = {quorum}
[baselines]
local = {baselines}
central = {baselines}
"""


def polypfed(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from polypfed.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=240, check=False
    )


def config(folder: Path, root: Path, *, quorum: int = 1, baselines: bool = False) -> Path:
    path = folder / "study.toml"
    path.write_text(TINY.format(root=root, quorum=quorum, baselines=str(baselines).lower()))
    return path


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("federation") / "data"
    synth(root, sites=2, train=4, val=3, size=64, seed=1)
    return root


@pytest.mark.slow
def test_a_run_from_config_to_report_and_on(sites: Path, tmp_path: Path) -> None:
    study = config(tmp_path, sites, baselines=True)
    first = polypfed("run", study, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs" / "study"
    assert "Report:" in first.stdout
    assert {"report.html", "model.safetensors", "baselines.jsonl", "config.toml"} <= {p.name for p in run.iterdir()}
    compared = {json.loads(line)["metric"].split("/")[1] for line in (run / "baselines.jsonl").read_text().splitlines()}
    assert compared == {"federated", "central", "local-site-1", "local-site-2"}
    decisions = (run / "sites" / "site-1" / "selection" / "round-0001.csv").read_text().splitlines()
    assert decisions[0] == "image,confidence,kept"
    assert len(decisions) == 1 + 4
    samples = json.loads((run / "samples" / "samples.json").read_text())
    assert {s["site"] for s in samples} == {"site-1", "site-2"}

    again = polypfed("run", study, cwd=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "--resume" in again.stderr

    on = polypfed("run", study, "--resume", "--rounds", 2, cwd=tmp_path)
    assert on.returncode == 0, on.stderr
    rounds = {json.loads(line)["round"] for line in (run / "history.jsonl").read_text().splitlines()}
    assert rounds == {0, 1, 2}
    (run / "report.html").unlink()
    assert polypfed("report", run, cwd=tmp_path).returncode == 0
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_site_with_a_bad_image_does_not_stop_the_others(sites: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(sites, root)
    victim = sorted((root / "site-2" / "train" / "images").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:300])
    study = config(tmp_path, root)
    done = polypfed("run", study, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    failures = [json.loads(x) for x in (tmp_path / "runs/study/failures.jsonl").read_text().splitlines()]
    assert [(f["client"], f["reason"]) for f in failures] == [("site-2", "data")]
    assert victim.name in done.stderr  # said where the file lies, and not to the server
    assert victim.name not in failures[0]["detail"]


@pytest.mark.slow
def test_a_missed_quorum_ends_with_its_own_code_and_can_be_resumed(sites: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(sites, root)
    victim = sorted((root / "site-2" / "train" / "images").iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:300])
    study = config(tmp_path, root, quorum=2)
    missed = polypfed("run", study, cwd=tmp_path)
    assert missed.returncode == 3
    assert "Traceback" not in missed.stderr
    victim.write_bytes(whole)
    assert polypfed("run", study, "--resume", cwd=tmp_path).returncode == 0


BROKEN = {
    "missing folder": (lambda root: shutil.rmtree(root), "data.partition"),
    "empty site": (lambda root: shutil.rmtree(root / "site-1" / "train" / "images"), "site-1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unusable_data_is_one_line_and_leaves_nothing(name: str, sites: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(sites, root)
    study = config(tmp_path, root)
    spoil, named = BROKEN[name]
    spoil(root)
    failed = polypfed("run", study, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert named in failed.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("1 0.5 0.5 0.1 0.1\n", "class"),
        ("0 0.9 0.5 0.4 0.1\n", "outside"),
        ("0 0.5 0.5 nan 0.1\n", "line 1"),
        ("0 0.5 0.5 0.1\n", "line 1"),
    ],
)
def test_yolo_folders_with_bad_labels_are_refused_by_name(label: str, named: str, sites: Path, tmp_path: Path) -> None:
    for site in ("site-1", "site-2"):
        shutil.copytree(sites / site / "train", tmp_path / "sets" / site)
    victim = sorted((tmp_path / "sets" / "site-1" / "labels").glob("*.txt"))[0]
    victim.write_text(label)
    (tmp_path / "study.toml").write_text('[data]\nroot = "sets"\n')
    failed = polypfed("run", "study.toml", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert victim.name in failed.stderr
    assert named in failed.stderr
    assert not (tmp_path / "runs" / "study" / "data").exists()


def test_config_mistakes_are_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[data.synth]\nsites = "two"\n[train]\nlr = 0\nspeed = 1\n')
    failed = polypfed("run", "study.toml", cwd=tmp_path)
    assert failed.returncode == 1
    lines = failed.stderr.splitlines()
    assert len(lines) == 3
    assert all("study.toml" in line for line in lines)


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("[data.synth]\nsites = 1\n")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Gone())\n"
    )
    failed = polypfed("run", "study.toml", cwd=tmp_path, PYTHONPATH=str(blocked))
    assert failed.returncode == 1
    assert "pip install 'polypfed[yolo]'" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_doctor_names_what_is_missing_and_how_to_mend_it(tmp_path: Path) -> None:
    found = polypfed("doctor", "--json", cwd=tmp_path)
    findings = {f["what"]: f for f in json.loads(found.stdout)}
    assert findings["detector"]["state"] == "ok"
    assert found.returncode == int(any(f["state"] == "error" for f in findings.values()))
    for name, finding in findings.items():
        assert finding["state"] == "ok" or finding["remedy"], name


def test_data_commands(tmp_path: Path) -> None:
    made = polypfed("data", "synth", "made", "--sites", 2, "--train", 16, "--val", 4, "--size", 64, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert polypfed("data", "check", "made", cwd=tmp_path).returncode == 0
    divided = polypfed("data", "partition", "made/site-1/train", "made/site-2/train", "--to", "parts", cwd=tmp_path)
    assert divided.returncode == 0, divided.stderr
    assert len(list((tmp_path / "parts").glob("*/data.yaml"))) == 2
    clash = polypfed("data", "synth", "made", cwd=tmp_path)
    assert (clash.returncode, clash.stderr.count("\n")) == (1, 1)
    victim = sorted((tmp_path / "made" / "site-1" / "train" / "images").iterdir())[0]
    victim.write_bytes(np.random.default_rng(0).bytes(64))
    broken = polypfed("data", "check", "made", cwd=tmp_path)
    assert broken.returncode == 1
    assert victim.name in broken.stdout
