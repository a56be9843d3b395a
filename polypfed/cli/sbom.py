"""`polypfed sbom`: what polypfed runs with here, as CycloneDX; and whether any of it is older than a known weakness.

Works without a network: versions and licences are those of the installed packages, weaknesses those of the table below,
which is as old as this release. `pip-audit` knows more, where there is a network.
"""

import importlib.metadata
import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from polypfed.cli.show import console

FLOORS = {
    "nvflare": ("2.7.2", "CVE-2026-24178, CVE-2026-24186: dashboard bypass, deserialisation"),
    "torch": ("2.10", "CVE-2025-32434, CVE-2026-24747: code from files under weights_only"),
    "ultralytics": ("8.3.47", "releases 8.3.41, 42, 45 and 46 carried a miner"),
    "mlflow": ("2.14", "CVE-2024-37052 to 37060: deserialisation"),
}
"""The least version without the weakness; public advisories, read in 2026-11."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def sbom(
    to: Annotated[Path | None, typer.Option("--output", "-o", help="The CycloneDX JSON file to write.")] = None,
    check: Annotated[bool, typer.Option(help="Exit code 1 if a package has a weakness that is known here.")] = True,
) -> None:
    """List the packages that polypfed runs with, and look for known weaknesses without a network."""
    found = installed("polypfed")
    if to is not None:
        to.write_text(json.dumps(bill(found), indent=1) + "\n", encoding="utf-8")
        console.print(f"Written: {to}, {len(found)} packages", markup=False)
    weak = list(weaknesses({name: dist.version for name, dist in found.items()}))
    for line in weak:
        console.print(line, markup=False)
    if not weak:
        console.print(f"{len(found)} packages, none with a weakness that is known here")
    raise typer.Exit(1 if weak and check else 0)


def installed(root: str) -> dict[str, importlib.metadata.Distribution]:
    """By normalised name, the package and all it needs, extras included, as far as they are installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [root]
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [match.group() for r in found[name].requires or () if (match := _NAME.match(r))]
    return dict(sorted(found.items()))


def weaknesses(versions: dict[str, str]) -> Iterator[str]:
    """A line for each package that is older than its floor."""
    for name, (floor, why) in FLOORS.items():
        if name in versions and _numbers(versions[name]) < _numbers(floor):
            yield f"{name} {versions[name]} is older than {floor}: {why}"


def bill(found: dict[str, importlib.metadata.Distribution]) -> dict[str, Any]:
    """CycloneDX 1.6."""
    parts = [_component(name, dist) for name, dist in found.items()]
    main = next(part for part in parts if part["name"] == "polypfed")
    wanted = {
        n: sorted({normal(m.group()) for r in d.requires or () if (m := _NAME.match(r))}) for n, d in found.items()
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {"timestamp": datetime.now(UTC).isoformat(timespec="seconds"), "component": main},
        "components": [part for part in parts if part is not main],
        "dependencies": [
            {"ref": _purl(n, found[n].version), "dependsOn": [_purl(m, found[m].version) for m in needs if m in found]}
            for n, needs in wanted.items()
        ],
    }


def _component(name: str, dist: importlib.metadata.Distribution) -> dict[str, Any]:
    purl = _purl(name, dist.version)
    part: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": dist.version, "purl": purl}
    about = dist.metadata.json
    licence = str(about.get("license_expression") or about.get("license") or "")
    if licence and len(licence) < 100:  # some packages put the whole text there
        part["licenses"] = [{"license": {"name": licence}}]
    return part


def normal(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers; what has none is older than everything."""
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(number) for number in found.group().split(".")) if found else ()
