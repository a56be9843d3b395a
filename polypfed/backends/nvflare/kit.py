"""A start-up kit of NVFlare's, made fit for polypfed: `python -m polypfed.backends.nvflare.kit FOLDER`."""

import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

CLASSES = (
    "polypfed.backends.nvflare.controller.PolypController",
    "polypfed.backends.nvflare.executor.PolypExecutor",
)
"""What a job may name; neither takes the name of code from a job that ships none."""

_STOCK_HEARTBEAT = 600
_SOON = 30  # days before the end of the certificates from which on every start warns
_RIGHTS = ("submit_job", "clone_job", "manage_job", "download_job", "view", "operate", "shell_commands")


def fit_kit(kit: Path, heartbeat: float = 90.0) -> list[str]:
    """Make a kit fit for polypfed; what was changed, one line each. Done twice, it changes nothing.

    Jobs may name CLASSES and ship no code; storage lies in the kit and not in the system's temporary
    folder; private keys are their owner's alone; a lost site is noticed after `heartbeat` seconds. Storage needs
    absolute paths, so `start.sh` calls this wherever the kit now lies.
    """
    kit = kit.absolute()
    changed: list[str] = []
    for key in sorted((kit / "startup").glob("*.key")):
        if key.stat().st_mode & 0o077:
            key.chmod(0o600)
            changed.append(f"{key.name}: mode 0600")
    local = kit / "local"
    for name in ("resources.json", "authorization.json"):
        default = local / f"{name}.default"
        if not (local / name).exists() and default.exists():
            shutil.copyfile(default, local / name)
    if (local / "resources.json").exists() and (local / "resources.json.default").exists():
        _edit(local / "resources.json", lambda r: _fit_resources(r, kit, heartbeat), changed)
    if (local / "authorization.json").exists():
        _edit(local / "authorization.json", _forbid_code, changed)
    return changed


def _edit(path: Path, change: Callable[[dict[str, Any]], list[str]], changed: list[str]) -> None:
    values = json.loads(path.read_text())
    before = json.dumps(values)
    changed += [f"{path.name}: {line}" for line in change(values)]
    if json.dumps(values) != before:
        path.write_text(json.dumps(values, indent=2) + "\n")


def _fit_resources(resources: dict[str, Any], kit: Path, heartbeat: float) -> list[str]:
    allowed = resources.get("class_allow_list")  # an administrator's kit has none
    missing = [name for name in CLASSES if name not in allowed] if isinstance(allowed, list) else []
    resources |= {"class_allow_list": allowed + missing} if isinstance(allowed, list) else {}
    lines = [f"class_allow_list: {name}" for name in missing]
    for server in resources.get("servers", []):
        if server.get("heart_beat_timeout") == _STOCK_HEARTBEAT:
            server["heart_beat_timeout"] = heartbeat
            lines.append(f"heart_beat_timeout: {heartbeat:g}")
    places = [
        (c["args"], "uri_root", "jobs-storage") for c in resources.get("components", []) if c["id"] == "job_manager"
    ]
    if "snapshot_persistor" in resources:
        storage = resources["snapshot_persistor"]["args"]["storage"]["args"]
        places.append((storage, "root_dir", "snapshot-storage"))
    for arguments, key, name in places:
        if arguments[key] != str(kit / name):
            arguments[key] = str(kit / name)
            lines.append(f"{key}: {kit / name}")
    return lines


def _forbid_code(authorization: dict[str, Any]) -> list[str]:
    lines, roles = [], authorization["permissions"]
    for role, rights in roles.items():
        if rights == "any":  # everything: spell it out, but for code
            roles[role] = dict.fromkeys(_RIGHTS, "any") | {"byoc": "none"}
            lines.append(f"{role}: byoc none")
        elif rights.get("byoc", "none") != "none":
            rights["byoc"] = "none"
            lines.append(f"{role}: byoc none")
    return lines


def expiry(kit: Path) -> datetime:
    """When the first of the kit's certificates, the authority's included, ceases to be valid (UTC)."""
    found = [x509.load_pem_x509_certificate(p.read_bytes()) for p in (kit / "startup").glob("*.crt")]
    found += [x509.load_pem_x509_certificate(p.read_bytes()) for p in (kit / "startup").glob("rootCA.pem")]
    return min(certificate.not_valid_after_utc for certificate in found)


def validity(kit: Path) -> str:
    """One line on how long the kit's certificates are valid; a warning in the last 30 days."""
    end = expiry(kit)
    left = (end - datetime.now(UTC)).days
    if left >= _SOON:
        return f"Certificates are valid until {end.date()}"
    passed = "have expired" if left < 0 else f"expire in {left} days"
    return f"WARNING: certificates {passed} ({end.date()}). Provision anew: nobody can join without valid ones"


if __name__ == "__main__":
    for line in [*fit_kit(Path(sys.argv[1])), validity(Path(sys.argv[1]))]:
        sys.stderr.write(f"{line}\n")
