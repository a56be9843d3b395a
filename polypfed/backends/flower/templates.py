"""The texts of a deployment: scripts, units, settings and READMEs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polypfed.backends.flower.site import OFFLINE
from polypfed.backends.texts import POLICY, table, unit, value

_EXPORTS = "\n".join(f"export {name}={value}" for name, value in OFFLINE.items())
_HEAD = f"""#!/bin/sh
# Nothing here needs a network beyond this federation, and nothing reports to anybody.
set -eu
cd "$(dirname "$0")"
{_EXPORTS}
export FLWR_HOME="$PWD/flwr-home"
PATH="${{POLYPFED_BIN:-$(dirname "$(command -v polypfed || echo /usr/bin/polypfed)")}}:$PATH"
"""


def server_start(port: int) -> str:
    """The SuperLink, in the foreground."""
    return f"""{_HEAD}export POLYPFED_SERVER="$PWD/server.toml"
exec flower-superlink \\
  --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key \\
  --enable-supernode-auth --disable-runtime-dependency-installation \\
  --database state.db --host "${{POLYPFED_HOST:-0.0.0.0}}" --port {port}
"""


def server_run() -> str:
    """Registers the sites and runs or resumes the federation."""
    return f"""{_HEAD}exec polypfed deploy run .
"""


def site_start() -> str:
    """A site, in the foreground."""
    return f"""{_HEAD}exec polypfed site run site.toml
"""


def server_unit() -> str:
    """systemd unit of the SuperLink."""
    return unit("polypfed server (Flower SuperLink)", "always")


def site_unit(name: str) -> str:
    """systemd unit of a site."""
    return unit(f"polypfed site {name} (Flower SuperNode and its resident worker)", "always")


def connection(name: str, port: int, certificate: Path) -> str:
    """`config.toml` of the `flwr` command."""
    return f"""[superlink]
default = "{name}"

[superlink.{name}]
address = "127.0.0.1:{port}"
root-certificates = {json.dumps(str(certificate))}
"""


def app() -> dict[str, str]:
    """The Flower app: two modules of one import each, so that no code of ours travels with it."""
    return {
        "pyproject.toml": """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "polypfed-app"
version = "1.0.0"
description = "A polypfed federation as a Flower app"
license = "Apache-2.0"
# polypfed itself is not named: each machine runs the version that its owner has installed.
dependencies = ["flwr>=1.41.0,<1.42"]

[tool.hatch.build.targets.wheel]
packages = ["polypfed_app"]

[tool.flwr.app]
publisher = "polypfed"

[tool.flwr.app.components]
serverapp = "polypfed_app.server:app"
clientapp = "polypfed_app.client:app"

[tool.flwr.app.config]
server = ""  # path of server.toml; empty takes it from POLYPFED_SERVER, which start.sh sets
""",
        "polypfed_app/__init__.py": '"""A polypfed federation as a Flower app."""\n',
        "polypfed_app/server.py": "from polypfed.backends.flower import server_app\n\napp = server_app.app\n",
        "polypfed_app/client.py": "from polypfed.backends.flower import client_app\n\napp = client_app.app\n",
    }


def server_toml(federation: str, settings: Mapping[str, Any]) -> str:
    """The server's settings."""
    return f"""# What the server runs. Relative paths are relative to this file.
federation = {value(federation)}
directory = "run"   # model, checkpoints and history; a run that it holds is resumed
sites = "sites"     # NAME.pub of every site that may take part: this is the allow-list
wait = 120          # seconds to wait for all sites at the start
patience = 120      # seconds to wait, in a round, for as many sites as the quorum asks
{table("settings", settings)}"""


def site_toml(name: str, client: str, server: str, port: int, settings: Mapping[str, Any]) -> str:
    """A site's settings."""
    engine = {"server": server, "certificate": "ca.crt", "key": "site.key", "port": port}
    return f"""# This site. Relative paths are relative to this file; nothing in it is ever sent.
name = {value(name)}
client = {value(client)}
state = "state"     # what this site keeps between rounds: back it up, or the run must start anew
{table("settings", settings)}{POLICY}{table("flower", engine)}"""


def readme(host: str, port: int, sites: Sequence[str], joined: Sequence[str] = ()) -> str:
    """The folder's own README."""
    folders = "\n".join(
        f"- `sites/{name}/` goes to {name}; `site.key` and `keys/identity.key` in it are that site's secrets."
        for name in sites
    )
    folders += "".join(
        f"\n- `sites/{name}/` goes to {name}, which has its keys already; nothing in it is secret." for name in joined
    )
    return f"""# A polypfed deployment on Flower

Server: `{host}:{port}`. Sites: {", ".join([*sites, *joined])}.

- `ca/` signs the server's certificate. Keep it off the server; it is needed again when the certificate is renewed.
- `server/` goes to the server. Only port {port} must be reachable; sites dial out.
{folders.strip()}

Hand the folders over by a way you trust, and delete your copies of the secrets. Each folder has a README of its own.
"""


def server_readme(host: str, port: int, sites: Sequence[str]) -> str:
    """For whoever runs the server."""
    return f"""# The server

1. Install: `pip install 'polypfed[flower]'`, the same version as at the sites.
2. `./start.sh` starts the SuperLink on port {port} (or enable `polypfed-superlink.service`). `POLYPFED_HOST` narrows
   the address it listens on.
3. `./run.sh` registers the keys in `sites/`, runs the federation of `server.toml`, and ends with code 0 when it is
   complete, 3 when a round missed its quorum, 1 for other errors. **After any break, `./run.sh` again: the run goes on
   after its last saved round.**

A Flower user can do the same by hand, with `FLWR_HOME=$PWD/flwr-home` in the environment:

    flwr supernode register sites/{sites[0]}.pub deploy --name {sites[0]}
    flwr run app deploy --stream

A new site: add its `NAME.pub` to `sites/`, and its `member.json` to the roster here and at every site (`polypfed keys
roster`). A site to be shut out: remove its file and `flwr supernode unregister NODE_ID deploy`. Either way the run
begins anew. `keys/identity.key` signs the sums of encrypted runs and the audit log; it opens nothing.

The certificate names {host}; it is valid for two years.
"""


def site_readme(name: str, server: str) -> str:
    """For a hospital's IT staff."""
    return f"""# Site {name}

This machine trains on its own images. Model weights and a few numbers leave it, over TLS, to `{server}`; images,
labels and file names never do. It opens no port to the outside: it dials out to `{server}` only.

1. Install: `pip install 'polypfed[flower,yolo]'`; with `he` in the brackets too if the study is encrypted.
2. Look at `site.toml`. The private key `site.key` must stay readable by its owner only (mode 0600).
3. `polypfed site dry-run site.toml --approve` checks everything, trains once on this site's data, and shows what would
   be sent; it sends nothing. If all is well, the federation may then do here what the study says, and nothing else.
   Leave `--approve` out to look first. Without a study, `polypfed policy show site.toml` lists what the server has
   asked for; `polypfed policy approve` approves it by its hash.
4. `./start.sh` joins (or enable `polypfed-site.service`). It may be stopped and started at any time.

`polypfed audit show state` tells what was asked of this site and what left it; `polypfed audit export` writes it for a
data protection officer. `keys/identity.key` signs this site's updates: keep it secret (mode 0600).

| message | meaning |
|---|---|
| code 2004 or "could not be activated" | the key is not registered, or its last connection still counts: wait 70 s |
| "certificate verify failed" | `ca.crt` is not the authority of that server, or the server's certificate has expired |
| "Invalid SuperNode authentication" | this machine's clock is wrong: it may be at most 5 s fast and 5 min slow |
"""
