import importlib.metadata
import json
from pathlib import Path

from typer.testing import CliRunner

from polypfed.cli import app
from polypfed.cli.sbom import FLOORS, weaknesses

RUN = CliRunner()


def test_the_bill_lists_what_is_installed_with_versions_and_needs(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["sbom", "-o", str(tmp_path / "sbom.json")])
    assert done.exit_code == 0, done.output
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "polypfed"
    parts = {part["name"]: part for part in bill["components"]}
    for name in ("numpy", "safetensors", "pydantic"):
        assert parts[name]["version"] == importlib.metadata.version(name)
        assert parts[name]["purl"] == f"pkg:pypi/{name}@{parts[name]['version']}"
    refs = {part["bom-ref"] for part in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {d["ref"] for d in bill["dependencies"]} == refs
    assert all(set(d["dependsOn"]) <= refs for d in bill["dependencies"])


def test_an_old_package_is_named_with_its_weakness() -> None:
    assert not list(weaknesses({name: floor for name, (floor, _) in FLOORS.items()}))
    found = list(weaknesses({"torch": "2.9.1+cpu", "nvflare": "2.7.1", "numpy": "0.1", "ultralytics": "8.3.46"}))
    assert [line.split()[0] for line in found] == ["nvflare", "torch", "ultralytics"]
    assert "CVE-2026-24747" in found[1]
