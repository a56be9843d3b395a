"""Everything that a deployment on Flower needs, written into one folder: `write`; and `conduct`, which runs it."""

import json
import logging
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypfed.backends.flower import templates
from polypfed.backends.flower.certificates import Authority, pem, private_pem, site_keys, write_secret
from polypfed.backends.flower.join import Join
from polypfed.backends.flower.server_app import ServerFile, until_free
from polypfed.backends.flower.site import environment, program
from polypfed.backends.site_file import KEYS
from polypfed.core.errors import BackendError, ConfigError, QuorumError
from polypfed.core.files import write_atomic
from polypfed.core.messages import one_line
from polypfed.core.settings import site_names
from polypfed.privacy import keyring

log = logging.getLogger(__name__)
CONNECTION = "deploy"
_PORT_OF_SITES = 9094  # and the next ones: sites on one machine need a port each


@dataclass(frozen=True)
class Plan:
    """What to deploy.

    Attributes:
        sites: their names.
        host: the server's name or address, as the sites reach it; it stands in the certificate.
        port: the only one that must be reachable.
        study: a study's TOML file; server and sites each get a copy.
        client: makes a site's client. federation: makes the server's federation.
        settings: of the client, by site, beside the study. server_settings: of the federation, beside the study.
        joined: further sites, which have made their keys and settings themselves.
    """

    sites: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 8443
    study: Path | None = None
    client: str = "polypfed.remote:client"
    federation: str = "polypfed.remote:federation"
    settings: Mapping[str, Mapping[str, Any]] | None = None
    server_settings: Mapping[str, Any] | None = None
    joined: Sequence[Join] = ()

    @property
    def names(self) -> list[str]:
        """Of all sites."""
        return [*self.sites, *(join.name for join in self.joined)]


def write(folder: str | Path, plan: Plan) -> Path:
    """Write the deployment into `folder`, which must not exist.

    Makes `ca/` (keep it off the server), `server/` and `sites/NAME/`, each with all that its machine needs and a
    README. Private keys are readable by their owner only.

    Raises:
        ConfigError: the folder exists, a name cannot name a site, or the study cannot be read.
    """
    folder = Path(folder).absolute()
    site_names(plan.names)
    if not plan.names:
        raise ConfigError("there is no site", where="sites", remedy="Name at least one")
    if folder.exists():
        raise ConfigError("exists already", where=folder, remedy="Choose another, or remove it: its keys would be lost")
    if plan.study is not None and not plan.study.is_file():
        raise ConfigError("no such file", where=plan.study)
    authority = Authority.new(f"polypfed {plan.host}")
    (folder / "ca").mkdir(mode=0o700, parents=True)
    (folder / "ca" / "ca.crt").write_bytes(pem(authority.certificate))
    write_secret(folder / "ca" / "ca.key", private_pem(authority.key))
    _server(folder / "server", plan, authority)
    for index, name in enumerate(plan.sites):
        _site(folder, name, _PORT_OF_SITES + index, plan)
    for join in plan.joined:
        _joined(folder, join, plan)
    known = {join.name: join.member for join in plan.joined}
    keyring.provision(plan.names, folder, server=folder / "server" / KEYS, known=known)
    (folder / "README.md").write_text(templates.readme(plan.host, plan.port, plan.sites, list(known)))
    return folder


def _server(server: Path, plan: Plan, authority: Authority) -> None:
    (server / "sites").mkdir(parents=True)
    (server / "ca.crt").write_bytes(pem(authority.certificate))
    certificate, key = authority.server(plan.host)
    (server / "server.pem").write_bytes(certificate)
    write_secret(server / "server.key", key)
    settings = _with_study(server, plan, plan.server_settings or {})
    text = templates.server_toml(plan.federation, settings)
    (server / "server.toml").write_text(text)
    app = server / "app"
    (app / "polypfed_app").mkdir(parents=True)
    for name, content in templates.app().items():
        (app / name).write_text(content)
    _script(server / "start.sh", templates.server_start(plan.port))
    _script(server / "run.sh", templates.server_run())
    (server / "polypfed-superlink.service").write_text(templates.server_unit())
    (server / "README.md").write_text(templates.server_readme(plan.host, plan.port, plan.names))
    _connection(server, plan.port)


def _site(folder: Path, name: str, port: int, plan: Plan) -> None:
    site = folder / "sites" / name
    site.mkdir(parents=True)
    shutil.copy(folder / "ca" / "ca.crt", site / "ca.crt")
    private, public = site_keys()
    write_secret(site / "site.key", private)
    (site / "site.pub").write_bytes(public)
    (folder / "server" / "sites" / f"{name}.pub").write_bytes(public)
    settings = _with_study(site, plan, (plan.settings or {}).get(name, {}))
    server = f"{plan.host}:{plan.port}"
    (site / "site.toml").write_text(templates.site_toml(name, plan.client, server, port, settings))
    _script(site / "start.sh", templates.site_start())
    (site / "polypfed-site.service").write_text(templates.site_unit(name))
    (site / "README.md").write_text(templates.site_readme(name, server))


def _joined(folder: Path, join: Join, plan: Plan) -> None:
    """What a site lacks that made its own keys and settings: it puts this beside them."""
    site = folder / "sites" / join.name
    site.mkdir(parents=True)
    shutil.copy(folder / "ca" / "ca.crt", site / "ca.crt")
    (folder / "server" / "sites" / f"{join.name}.pub").write_bytes(join.node)
    _with_study(site, plan, {})
    _script(site / "start.sh", templates.site_start())
    (site / "polypfed-site.service").write_text(templates.site_unit(join.name))
    (site / "README.md").write_text(templates.site_readme(join.name, f"{plan.host}:{plan.port}"))


def _with_study(target: Path, plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    if plan.study is None:
        return dict(settings)
    shutil.copy(plan.study, target / "study.toml")
    return {"study": "study.toml", **settings}


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _connection(server: Path, port: int) -> None:
    """Where `flwr` finds the SuperLink: its own configuration, with absolute paths."""
    home = server / "flwr-home"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(templates.connection(CONNECTION, port, server / "ca.crt"))


def port_of(server: Path) -> int:
    """The port that `start.sh` gives to the SuperLink."""
    words = (server / "start.sh").read_text().split()
    return int(words[words.index("--port") + 1])


def conduct(server: str | Path, patience: float = 60.0) -> dict[str, Any]:
    """Register the sites' keys and run, or resume, the federation; the outcome as `result.json` gives it.

    Does what a Flower user does with `flwr supernode register` and `flwr run`. A run that loses its SuperLink is
    started again when that is back, and goes on after its last saved round.

    Args:
        server: the folder `server` of a deployment.
        patience: seconds to wait for the SuperLink.

    Raises:
        BackendError: the SuperLink does not answer, or refuses. QuorumError, ConfigError: see `Federation.run`.
    """
    server = Path(server).absolute()
    file, port = ServerFile.load(server / "server.toml"), port_of(server)
    outcome = file.directory / "result.json"
    _connection(server, port)
    outcome.unlink(missing_ok=True)
    while True:
        _answers(server, port, patience)
        register(server)
        until_free(file.directory)  # a run whose SuperLink was lost may not have ended yet
        if not outcome.exists():
            _stream(server)
        if outcome.exists():
            return _judged(json.loads(outcome.read_text()))
        log.warning("the run was lost without a result: trying again")
        time.sleep(1.0)


def _stream(server: Path) -> None:
    """`flwr run --stream`; its words go where ours go.

    Raises:
        BackendError: it did not get as far as starting a run.
    """
    log.info("flwr run %s %s", server / "app", CONNECTION)
    command = [str(program("flwr")), "run", str(server / "app"), CONNECTION, "--stream"]
    started = False
    with subprocess.Popen(
        command, env=environment(server), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            started |= "started run" in line
            sys.stdout.write(line)
            sys.stdout.flush()
    if not started:
        raise BackendError(f"flwr run ended with code {process.returncode}", where=server / "app")


def _judged(result: dict[str, Any]) -> dict[str, Any]:
    if result["status"] == "completed":
        return result
    kinds = {"QuorumError": QuorumError, "ConfigError": ConfigError}
    raise kinds.get(result["error"], BackendError)(str(result["detail"]))


def register(server: Path) -> None:
    """Make the SuperLink take the keys in `sites/`; done twice, it changes nothing.

    Raises:
        BackendError: it refuses one.
    """
    noted = server / "registered.json"  # site -> node id; Flower's own list of nodes has neither names nor keys
    known = json.loads(noted.read_text()) if noted.exists() else {}
    listed = json.loads(flwr(server, "supernode", "ls", CONNECTION, "--format", "json").stdout or "{}")
    alive = {node["node-id"] for node in listed.get("nodes", [])}
    for key in sorted((server / "sites").glob("*.pub")):
        if known.get(key.stem) in alive:
            continue
        done = flwr(server, "supernode", "register", str(key), CONNECTION, "--name", key.stem, "--format", "json")
        said = json.loads(done.stdout or "{}")
        if not said.get("success") and "already in use" not in done.stdout + done.stderr:
            problem = f"the SuperLink refuses the key ({one_line(said.get('error-message', done.stderr))})"
            raise BackendError(problem, where=key)
        known[key.stem] = said.get("node-id", "")
        write_atomic(noted, json.dumps(known, indent=1).encode() + b"\n")
        log.info("registered %s", key.stem)


def flwr(server: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Flower's own command, as the server's folder configures it."""
    command = [str(program("flwr")), *arguments]
    return subprocess.run(command, env=environment(server), text=True, capture_output=True, check=False)


def _answers(server: Path, port: int, patience: float) -> None:
    context = ssl.create_default_context(cafile=str(server / "ca.crt"))
    end = time.monotonic() + patience
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    while True:
        try:
            with opener.open(f"https://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                remedy = "Start it with start.sh"
                raise BackendError(
                    f"no SuperLink answers on port {port} ({error})", where=server, remedy=remedy
                ) from None
        time.sleep(0.3)
