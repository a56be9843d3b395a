"""PolypRecipe: our rounds as any other NVFlare recipe, `PolypRecipe(...).execute(SimEnv | PocEnv | ProdEnv)`.

Importing `nvflare.recipe` takes `--export` out of `sys.argv`, so import this module where it is used.
"""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from nvflare.job_config.api import FedJob
from nvflare.recipe.spec import Recipe

from polypfed.backends.nvflare.controller import PolypController
from polypfed.backends.nvflare.executor import PolypExecutor
from polypfed.core.errors import ConfigError


class PolypRecipe(Recipe):  # type: ignore[misc]  # nvflare has no types
    """A federation as an NVFlare job.

    In a provisioned deployment (ProdEnv) no code travels: server and sites run what their own `local/polypfed.toml`
    says, and the job gives the run's name only. In SimEnv and PocEnv, `code` is a Python file with the functions
    `federation(sites, base, **settings) -> (Federation, rounds)` and `client(name, base, **settings) -> Client`,
    which goes with the job.

    Args:
        name: of the job.
        run: of the run; a job with the name of an earlier run resumes it. None is the job's name.
        rounds: server rounds; 0 leaves them to the federation's function.
        min_clients: sites without which NVFlare does not start the job.
        code: the Python file.
        settings: of `federation`. client_settings: of `client`.
        interval: seconds after which a site asks for work again if its long poll brought none.

    Raises:
        ConfigError: the code is no Python file, or there are settings without code.
    """

    def __init__(
        self,
        name: str = "polypfed",
        *,
        run: str | None = None,
        rounds: int = 0,
        min_clients: int = 1,
        code: str | Path | None = None,
        settings: dict[str, Any] | None = None,
        client_settings: dict[str, Any] | None = None,
        interval: float = 0.05,
    ) -> None:
        if code is None and (settings or client_settings):
            raise ConfigError("settings go with code", where="settings", remedy="Set them in local/polypfed.toml")
        if code is not None and (Path(code).suffix != ".py" or not Path(code).is_file()):
            raise ConfigError("is no Python file", where=code)
        module = Path(code).stem if code is not None else ""
        federation, client = (f"{module}:federation", f"{module}:client") if module else ("", "")
        job = FedJob(name=name, min_clients=min_clients)
        job.set_app_packages(["polypfed"])
        job.to_server(PolypController(run or name, rounds, federation, settings), id="rounds")
        job.to_server({"server": {"task_request_interval": interval}})
        job.to_clients(PolypExecutor(client, client_settings))
        if code is not None:  # as a folder: of a file NVFlare would keep its path, and take along what it imports
            folder = tempfile.mkdtemp(prefix="polypfed-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            shutil.copy(code, folder)
            job.to_server(folder)
            job.to_clients(folder)
        super().__init__(job)
