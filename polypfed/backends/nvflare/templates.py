"""The texts of a deployment: the project, scripts, units, settings and READMEs."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from polypfed.backends.texts import POLICY, table, value

_BUILDERS = """builders:
  - {path: nvflare.lighter.impl.workspace.WorkspaceBuilder, args: {template_file: [master_template.yml]}}
  - {path: nvflare.lighter.impl.static_file.StaticFileBuilder, args: {config_folder: config, scheme: tcp}}
  - {path: nvflare.lighter.impl.cert.CertBuilder}
  - {path: nvflare.lighter.impl.signature.SignatureBuilder}
"""


def project(name: str, host: str, port: int, admin_port: int, org: str, sites: Sequence[str], admin: str) -> str:
    """`project.yml`, as `nvflare provision` reads it too."""
    clients = "".join(f"  - {{name: {site}, type: client, org: {org}}}\n" for site in sites)
    return f"""api_version: 3
name: {name}
description: polypfed
participants:
  - {{name: {host}, type: server, org: {org}, default_host: {host}, fed_learn_port: {port}, admin_port: {admin_port}}}
{clients}  - {{name: {admin}, type: admin, org: {org}, role: project_admin}}
{_BUILDERS}"""


def start() -> str:
    """Server or site, in the foreground."""
    return """#!/bin/bash
# Starts NVFlare in the foreground; stop it with SIGTERM or from the administrator's end.
# POLYPFED_BIN is the bin/ folder of the environment that polypfed is installed in.
set -eu
cd "$(dirname "$0")"
export PATH="${POLYPFED_BIN:-$(dirname "$(command -v polypfed || echo /usr/bin/polypfed)")}:$PATH"
export YOLO_OFFLINE=true YOLO_AUTOINSTALL=false HF_HUB_OFFLINE=1
python3 -m polypfed.backends.nvflare.kit .
exec ./startup/sub_start.sh --once
"""


def server_toml(federation: str, sites: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The server's settings."""
    return f"""# What the server runs, whatever a job says. Relative paths are relative to this file.
federation = {value(federation)}
directory = "../runs"   # one folder per run: model, checkpoints, history; a run that it holds is resumed
sites = {value(sorted(sites))}
patience = 30           # seconds without a sign of a site after which it is given up for the round
{table("settings", settings)}"""


def site_toml(name: str, client: str, settings: Mapping[str, Any]) -> str:
    """A site's settings."""
    return f"""# This site, whatever a job says. Relative paths are relative to this file; nothing in it is ever sent.
name = {value(name)}
client = {value(client)}
state = "../state"      # what this site keeps between rounds, one folder per run; back it up
{POLICY}{table("settings", settings)}"""


def readme(
    host: str, port: int, admin_port: int, sites: Sequence[str], admin: str, expires: date, prints: Mapping[str, str]
) -> str:
    """The folder's own README."""
    folders = "\n".join(f"- `kits/{name}` goes to {name}." for name in sites)
    roster = "\n".join(f"| {name} | `{print_}` |" for name, print_ in sorted(prints.items()))
    return f"""# A polypfed deployment on NVFlare

Server: `{host}`, port {port} for sites and {admin_port} for administrators. Sites: {", ".join(sites)}.
**All certificates, the authority's included, are valid until {expires}.** Provision anew before that day.

- `kits/{host}` goes to the server.
{folders}
- `kits/{admin}` goes to the administrator.
- `ca/` holds what signs certificates. Keep it off the server.

Hand the folders over by a way you trust, and delete your copies: each holds a private key. Each has a README.

For encrypted and masked runs (`[privacy]` in the study) each site has keys of its own in `local/keys`, and a roster of
all public ones; the server has none that opens anything. `polypfed keys inspect local/keys/roster.json` at each site
must show:

| site | fingerprint |
|---|---|
{roster}
"""


def server_readme(host: str, port: int, admin_port: int, sites: Sequence[str], expires: date) -> str:
    """For whoever runs the server."""
    return f"""# The server

Certificates are valid until **{expires}**.

1. Install: `pip install 'polypfed[nvflare]'`, the same version as at the sites. `{host}` must be this machine's name
   for the sites; ports {port} and {admin_port} must be reachable.
2. Look at `local/polypfed.toml`: it says what is run, and with whom ({", ".join(sites)}). A job cannot change it, and
   cannot bring code (`local/authorization.json`).
3. `./start.sh` starts the server in the foreground (or enable `polypfed-nvflare.service`).

Runs are kept in `runs/`, outside NVFlare's jobs. `runs/NAME/result.json` is the outcome; do not go by the status of
NVFlare's job. A run that was broken off goes on when its job is submitted again.
"""


def site_readme(name: str, server: str, expires: date) -> str:
    """For a hospital's IT staff."""
    return f"""# Site {name}

This machine trains on its own images. Model weights and a few numbers leave it, over mutual TLS, to `{server}`;
images, labels and file names never do. It opens no port to the outside: it dials out to `{server}` only.
Certificates are valid until **{expires}**.

1. Install: `pip install 'polypfed[nvflare,yolo]'`.
2. Look at `local/polypfed.toml`: it names this site's data. A job cannot change it, and cannot bring code.
3. NVFlare's own privacy filters apply if you write `local/privacy.json` (see `local/privacy.json.sample`): they see
   every update as weight differences, layer by layer, before it leaves. What they change no longer fits this site's
   signature: the server's owner must then move `local/keys/roster.json` away, or it is refused.
4. `polypfed policy approve local/polypfed.toml --study local/study.toml` lets the federation do here what the study
   says, and nothing else; `polypfed policy show` lists what the server has asked for.
5. `./start.sh` joins (or enable `polypfed-nvflare.service`). A site that comes back while a job runs takes part again
   in the next job.

`polypfed audit show state` tells what was asked of this site and what left it. Below `state/` lies what this site keeps
between rounds; a run's folder may be deleted when its study is over.
"""


def admin_readme(admin: str, expires: date) -> str:
    """For the administrator."""
    return f"""# The administrator {admin}

The certificate is valid until **{expires}**. In an environment with `polypfed[nvflare]`:

    polypfed nvflare run .          # submit, watch, fetch the result; after a break, the same command resumes
    polypfed nvflare status .       # who is there, and what runs
    polypfed nvflare stop .         # shut down all sites, then the server

NVFlare's own console is `startup/fl_admin.sh`.
"""
