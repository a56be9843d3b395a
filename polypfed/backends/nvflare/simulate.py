"""`python -m polypfed.backends.nvflare.simulate JOB WORKSPACE SITES THREADS`: NVFlare's simulator, in this process."""

import json
import sys
from pathlib import Path

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner


def main(job: str, workspace: str, sites: str, threads: str) -> int:
    """Run the job to its end; the exit code is the simulator's."""
    _allow(Path(job), Path(workspace))
    runner = SimulatorRunner(job, workspace, clients=sites, threads=int(threads), max_clients=sites.count(",") + 1)
    return int(MainProcessMonitor.run(main_func=runner.simulator_run_main, run_dir=workspace) or 0)


def _allow(job: Path, workspace: Path) -> None:
    """Our classes, and the filters that the caller named, beside those that NVFlare lets a job name."""
    client = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    named = [f["path"] for entry in client["task_result_filters"] for f in entry["filters"]]
    resources = {"format_version": 2, "class_allow_list": [*DEFAULT_CLASS_ALLOW_LIST, "polypfed.", *named]}
    local = workspace / "local"
    local.mkdir(parents=True, exist_ok=True)
    (local / "resources.json").write_text(json.dumps(resources))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
