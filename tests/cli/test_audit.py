"""`polypfed audit` and `polypfed policy`, as somebody types them."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polypfed import Federation
from polypfed.backends import Local
from polypfed.cli import app
from polypfed.core import audit
from polypfed.core.errors import ConfigError
from tests.problems import sites

RUN = CliRunner()


def said(*words: object, code: int = 0) -> str:
    done = RUN.invoke(app, [str(w) for w in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Federation(clients=sites()).run(2, Local(), folder)
    return folder


def test_a_run_is_shown_and_verified(run: Path) -> None:
    assert "site-01" in said("audit", "show", run, "--last", 0)
    site = run / "sites" / "site-01"
    assert "fit" in said("audit", "show", site)
    found = said("audit", "verify", run, "--against", site)
    assert "13 lines, whole" in found
    assert "3 heads from elsewhere" in found  # two that the site was told, one of the checkpoint


def test_a_cut_log_is_found_by_the_checkpoint_and_by_a_site(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = (run / "audit.jsonl").read_bytes().splitlines(keepends=True)[:2]
    path.write_bytes(b"".join(lines))
    prev = json.loads((run / "audit.jsonl").read_bytes().splitlines()[2])["prev"]
    audit.write_head(path, audit.Head(2, prev, sum(map(len, lines))))
    assert "whole" in said("audit", "verify", path)
    assert "line 3" in said("audit", "verify", path, "--run", run, code=1)
    assert "line 3" in said("audit", "verify", path, "--against", run / "sites" / "site-02", code=1)
    (tmp_path / "other.jsonl").write_text("rubbish\n")
    for unchecked in (
        (path, "--against", tmp_path / "other.jsonl"),
        (path, "--run", tmp_path / "no-run"),
        (path, "--roster", tmp_path / "no-roster.json"),
        (tmp_path / "no-log.jsonl",),
    ):
        assert "cannot be checked" in said("audit", "verify", *unchecked, code=4)
    said("audit", "verify", path, "--no-such-option", code=2)


def test_exports_say_what_is_in_the_log_and_whether_it_is_whole(run: Path, tmp_path: Path) -> None:
    said("audit", "export", run, "--to", tmp_path / "log.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "log.csv").read_text())))
    assert len(rows) == 1 + 13 + 1
    assert rows[1][2] == "A run began"
    assert "whole: 13 lines" in rows[-1][2]
    said("audit", "export", run, "--to", tmp_path / "log.html")
    page = (tmp_path / "log.html").read_text()
    assert page.count("An update of a site was accepted") == 8
    assert "The log is whole" in page
    changed = tmp_path / "audit.jsonl"
    changed.write_text((run / "audit.jsonl").read_text().replace('"weight":7', '"weight":8', 1))
    said("audit", "export", changed, "--to", tmp_path / "bad.html")
    assert "NOT whole: line 4" in (tmp_path / "bad.html").read_text()


def test_a_missing_log_is_said_in_a_line(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["audit", "show", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "there is no audit log" in str(done.exception)


def test_a_plan_is_approved_from_a_study_and_taken_back(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="no torch: install polypfed[yolo]")
    from polypfed import remote
    from polypfed.backends.site_file import SiteFile
    from polypfed.clients.plan import hash_of, plan_of
    from polypfed.clients.plans import Plans
    from polypfed.federation.plan import task_config

    file, study = tmp_path / "site.toml", tmp_path / "study.toml"
    file.write_text('name = "a"\nclient = "polypfed.remote:client"\n[policy]\napprove = true\n')
    study.write_text('[data.synth]\n[strategy]\nname = "keepbest"\ninner = { name = "fedprox", mu = 0.1 }\n')
    name = hash_of(plan_of(task_config(remote.planned(study))))
    assert name in said("policy", "approve", file, "--study", study)
    assert list(Plans(SiteFile.load(file).charter.plans or tmp_path).approved()) == [name]
    shown = said("policy", "show", file)
    assert f"approved: {name}" in shown
    assert "normclip" in shown
    assert name in said("policy", "revoke", file, name)
    assert name not in said("policy", "show", file)
    said("policy", "approve", file, "sha256:0", code=1)
