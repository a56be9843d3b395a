"""A provisioned deployment on NVFlare, written into one folder: `write`.

NVFlare's own library makes keys, certificates and start-up kits; we make each kit fit for our rounds (`fit_kit`) and
add what its people need: settings, a start script, a unit, a README.
"""

import contextlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypfed.backends.nvflare import templates
from polypfed.backends.nvflare.controller import SERVER_FILE
from polypfed.backends.nvflare.executor import SITE_FILE
from polypfed.backends.nvflare.kit import expiry, fit_kit
from polypfed.backends.site_file import KEYS
from polypfed.backends.texts import unit
from polypfed.core.errors import ConfigError
from polypfed.core.settings import positive, site_names, whole
from polypfed.privacy import keyring

PROJECT = "polypfed"


@dataclass(frozen=True)
class Plan:
    """What to deploy.

    Attributes:
        sites: their names, which stand in their certificates.
        host: the server's name, as sites reach it; it stands in its certificate.
        port: for sites. admin_port: for administrators.
        admin: the administrator's name, an e-mail address. org: the organisation in the certificates.
        study: a study's TOML file; server and sites each get a copy.
        client: makes a site's client. federation: makes the server's federation.
        settings: of the client, by site, beside the study. server_settings: of the federation, beside the study.
        heartbeat: seconds without a heartbeat after which NVFlare calls a site gone (its own default is 600).
    """

    sites: Sequence[str]
    host: str = "localhost"
    port: int = 8002
    admin_port: int = 8003
    admin: str = "admin@polypfed.org"
    org: str = "polypfed"
    study: Path | None = None
    client: str = "polypfed.remote:client"
    federation: str = "polypfed.remote:federation"
    settings: Mapping[str, Mapping[str, Any]] | None = None
    server_settings: Mapping[str, Any] | None = None
    heartbeat: float = 90.0

    def __post_init__(self) -> None:
        site_names(list(self.sites))
        if not self.sites:
            raise ConfigError("there is no site", where="sites", remedy="Name at least one")
        whole("port", self.port, 1, 65535)
        whole("admin_port", self.admin_port, 1, 65535)
        positive(heartbeat=self.heartbeat)
        if self.study is not None and not self.study.is_file():
            raise ConfigError("no such file", where=self.study)


def write(folder: str | Path, plan: Plan) -> Path:
    """Write the deployment into `folder`, which must not exist.

    Makes `project.yml`, `kits/NAME` for the server, each site and the administrator, and a README. What signs
    certificates stays in `ca/`: keep it off the server.

    Raises:
        ConfigError: the folder exists, or NVFlare refuses the plan.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise ConfigError("exists already", where=folder, remedy="Choose another, or remove it: its keys would be lost")
    folder.mkdir(mode=0o700, parents=True)
    (folder / "project.yml").write_text(
        templates.project(PROJECT, plan.host, plan.port, plan.admin_port, plan.org, plan.sites, plan.admin)
    )
    made = provision(folder / "project.yml", folder / "ca")
    shutil.move(made, folder / "kits")
    kits = {name: folder / "kits" / name for name in (plan.host, *plan.sites, plan.admin)}
    for kit in kits.values():
        fit_kit(kit, plan.heartbeat)
    keys = {name: kits[name] / "local" / KEYS for name in (plan.host, *plan.sites)}
    keyring.provision(plan.sites, folder, sites={n: keys[n] for n in plan.sites}, server=keys[plan.host])
    prints = {m.name: m.fingerprint for m in keyring.read_roster(keys[plan.host] / keyring.ROSTER).members}
    _server(folder / "kits" / plan.host, plan)
    for name in plan.sites:
        _site(folder / "kits" / name, name, plan)
    _admin(folder / "kits" / plan.admin, plan)
    expires = expiry(folder / "kits" / plan.host).date()
    (folder / "README.md").write_text(
        templates.readme(plan.host, plan.port, plan.admin_port, plan.sites, plan.admin, expires, prints)
    )
    return folder


def provision(project: Path, workspace: Path) -> Path:
    """Run NVFlare's own provisioning; the folder of the kits it has made.

    Raises:
        ConfigError: it refuses the project.
    """
    from nvflare.lighter.entity import Project
    from nvflare.lighter.prov_utils import prepare_builders, prepare_packager
    from nvflare.lighter.provision import prepare_project
    from nvflare.lighter.provisioner import Provisioner
    from nvflare.lighter.utils import load_yaml

    described = load_yaml(str(project))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            parsed: Project = prepare_project(described)
            context = Provisioner(str(workspace), prepare_builders(described), prepare_packager(described)).provision(
                parsed
            )
    except Exception as error:
        raise ConfigError(f"NVFlare refuses it ({error})", where=project) from error
    kits = sorted((workspace / str(described["name"])).glob("prod_*"))
    if not kits or (isinstance(context, dict) and context.get("build_error")):
        raise ConfigError(f"NVFlare could not provision it ({said.getvalue().strip()[-300:]})", where=project)
    return kits[-1]


def _server(kit: Path, plan: Plan) -> None:
    settings = _with_study(kit, plan, plan.server_settings or {})
    (kit / "local" / SERVER_FILE).write_text(templates.server_toml(plan.federation, plan.sites, settings))
    _started(
        kit, "server", templates.server_readme(plan.host, plan.port, plan.admin_port, plan.sites, expiry(kit).date())
    )


def _site(kit: Path, name: str, plan: Plan) -> None:
    settings = _with_study(kit, plan, (plan.settings or {}).get(name, {}))
    (kit / "local" / SITE_FILE).write_text(templates.site_toml(name, plan.client, settings))
    _started(kit, name, templates.site_readme(name, f"{plan.host}:{plan.port}", expiry(kit).date()))


def _started(kit: Path, name: str, readme: str) -> None:
    (kit / "start.sh").write_text(templates.start())
    (kit / "start.sh").chmod(0o755)
    (kit / "polypfed-nvflare.service").write_text(unit(f"polypfed {name} (NVFlare)", "on-failure"))
    (kit / "README.md").write_text(readme)


def _admin(kit: Path, plan: Plan) -> None:
    (kit / "README.md").write_text(templates.admin_readme(plan.admin, expiry(kit).date()))


def _with_study(kit: Path, plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    if plan.study is None:
        return dict(settings)
    shutil.copyfile(plan.study, kit / "local" / "study.toml")
    return {"study": "study.toml", **settings}
