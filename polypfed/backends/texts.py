"""Texts that every deployment writes: systemd units and TOML tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

POLICY = """
[policy]                # what no message can change; `polypfed policy show` explains it
approve = true          # a plan runs here only after `polypfed policy approve`
# strategies = ["fedavg"]           privacy = ["he", "hybrid"]      rounds = 50
# min_cohort = 3                    max_epochs = 10                 keep_samples_days = 90
# disclose = ["loss", "map50"]      # the only metrics that leave
"""


def unit(what: str, restart: Literal["always", "on-failure"]) -> str:
    """A systemd unit for what `start.sh` starts in the foreground."""
    return f"""[Unit]
Description={what}
After=network-online.target time-sync.target
Wants=network-online.target

[Service]
# Set the folder, the user, and POLYPFED_BIN (the bin/ folder of the environment that polypfed is installed in).
WorkingDirectory=/opt/polypfed
User=polypfed
Environment=POLYPFED_BIN=/opt/polypfed/.venv/bin
ExecStart=/opt/polypfed/start.sh
Restart={restart}
RestartSec=10
KillMode=control-group
# Everything but its own folder is read-only to it. Left out: ProtectClock=, which would take the camera away, and
# MemoryDenyWriteExecute=, for LiteRT and numba write code as they run.
NoNewPrivileges=true
CapabilityBoundingSet=
PrivateTmp=true
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=/opt/polypfed
ProtectControlGroups=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
LockPersonality=true
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def table(name: str, values: Mapping[str, Any]) -> str:
    """A TOML table, with an empty line before it."""
    return f"\n[{name}]\n" + "".join(f"{k} = {value(v)}\n" for k, v in values.items())


def value(given: Any) -> str:
    """A TOML value: text, numbers, paths and lists of them."""
    if isinstance(given, list | tuple):
        return "[" + ", ".join(value(v) for v in given) + "]"
    return json.dumps(str(given) if isinstance(given, Path) else given, ensure_ascii=False)
