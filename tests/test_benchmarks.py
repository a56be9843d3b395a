"""The quick form of a benchmark still supports what is claimed of it."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_scaffold_needs_at_most_half_of_the_rounds_on_sorted_labels(tmp_path: Path) -> None:
    out = tmp_path / "strategies.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "strategies.py"), "--quick", "--check", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rounds: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for line in out.read_text().splitlines():
        row = json.loads(line)
        rounds[row["strategy"], row["similarity"], row["epochs"]].append(row["rounds"] or row["limit"] + 1)
    assert all(len(found) == 5 for found in rounds.values())
    for epochs in (1, 10):
        pairs = zip(rounds["scaffold", 0, epochs], rounds["fedavg", 0, epochs], strict=True)
        assert median(ours / theirs for ours, theirs in pairs) <= 0.5
        level = median(rounds["scaffold", 100, epochs]) / median(rounds["fedavg", 100, epochs])
        assert 0.5 <= level <= 2, "nothing to gain where all sites are alike"
    assert median(rounds["fedavg", 0, 10]) > 1.25 * median(rounds["fedavg", 0, 1])
    assert median(rounds["scaffold", 0, 10]) <= 1.25 * median(rounds["scaffold", 0, 1])
    assert (tmp_path / "strategies.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_every_script_can_be_loaded() -> None:
    """They import each other by name, from their own folder, where no other test looks."""
    for package in ("flwr", "nvflare", "psutil", "sklearn", "torch"):
        pytest.importorskip(package, exc_type=ImportError)
    scripts = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem != "nvflare_job")
    scripts += ["peers.run", "peers.work", "peers.table", "peers.yolo"]
    taken = [p.name for p in (ROOT / "benchmarks").rglob("*.py") if "from benchmarks" in p.read_text(encoding="utf-8")]
    assert not taken, "opacus installs a package of that name, which would be found instead"
    code = f"import importlib\nfor name in {scripts}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_device_table_is_what_the_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import _edge_table

    rows = [json.loads(line) for line in (_edge_table.RESULTS / "rows.jsonl").read_text().splitlines()]
    text = _edge_table.table(rows)
    assert text == (_edge_table.RESULTS / "table.md").read_text()
    old = rows[0] | {"value": 123.25, "holds": False}
    assert "| 123.2 |" not in _edge_table.table([old, *rows]), "of each claim the last row counts"
    assert f"| {old['claim']} | 123.2 | {old['limit']} | NO |" in _edge_table.table([old])


def claimed() -> list[tuple[str, str]]:
    """(cells of a table's row in the README but the first, the recorded tables that the row or its paragraph links)."""
    blocks, found, above = (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n"), [], ""
    for block in blocks:
        for line in block.splitlines():
            links = re.findall(r"\((benchmarks/results/[^)]+\.md)\)", line if "](" in line else above)
            cells = line.split("|")[2:]
            if links and line.startswith("|") and "---" not in line and line != block.splitlines()[0]:
                found.append((" ".join(cells), "\n".join((ROOT / link).read_text(encoding="utf-8") for link in links)))
        above = block
    return found


def test_every_figure_in_a_table_of_the_readme_is_one_that_its_script_recorded() -> None:
    """Within the places the README shows: a figure that was typed, or that a newer run has changed, is found here."""
    rows = claimed()
    assert len(rows) > 15, "the tables link to what they rest on"
    number = re.compile(r"\d+(?:\.\d+)?")
    for shown, recorded in rows:
        known = [Decimal(n) for n in number.findall(recorded)]
        for figure in map(Decimal, number.findall(re.sub(r"\([^)]*\.md\)", "", shown))):
            half = Decimal(1).scaleb(int(figure.as_tuple().exponent)) / 2
            assert any(abs(value - figure) <= half for value in known), f"{figure} of {shown!r} is not recorded"
