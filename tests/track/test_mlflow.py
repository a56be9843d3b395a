"""MLflow: a database file through its own client, and its own server."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

import polypfed as pf
from polypfed.core.errors import ConfigError, QuorumError
from polypfed.core.history import History
from polypfed.federation import Event
from polypfed.track import MLflow, Tracking
from polypfed.track.mlflow import name_of
from tests.live.loopback import free_ports
from tests.track.conftest import federation

pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytestmark = pytest.mark.slow
PARAMS = {"strategy.name": "fedavg", "rounds": 5}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Its address, and what ends it."""
    if find_spec("flask_cors") is None or find_spec("pandas") is None:
        pytest.skip("MLflow's server needs flask-cors and pandas")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
        )
    try:
        url, end = f"http://127.0.0.1:{port}", monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                assert monotonic() < end, (tmp_path / "log").read_text()
                assert process.poll() is None, (tmp_path / "log").read_text()
                sleep(0.5)
        yield url, lambda: end_group(process)
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def found(uri: str, experiment: str) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def check(uri: str, experiment: str, run: Callable[..., History]) -> None:
    """One run in two parts: every figure at its round, once, to the last bit."""
    history = run(lambda: Tracking(MLflow(uri, experiment, "study", PARAMS)))
    client, (one,) = found(uri, experiment)
    keys = {(r["metric"], r["site"]) for r in history.rows}
    assert set(one.data.metrics) == {name_of(*key) for key in keys}
    for metric, site in keys:
        points = client.get_metric_history(one.info.run_id, name_of(metric, site))
        assert [(p.step, p.value) for p in sorted(points, key=lambda p: p.step)] == sorted(
            history.values(metric, site).items()
        )
    assert (one.info.run_name, one.info.status) == ("study", "FINISHED")
    assert one.data.params == {"strategy.name": "fedavg", "rounds": "5"}


def test_a_database_file_has_the_history(run: Callable[..., History], database: str) -> None:
    check(database, "figures", run)


Server = tuple[str, Callable[[], None]]


def test_its_server_has_the_history_and_may_go_away(
    run: Callable[..., History], server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, die = server
    check(url, "figures", run)
    with Tracking(MLflow(url)) as tracking:

        def listen(event: Event) -> None:
            if (event.kind, event.round) == ("round", 2):
                die()
            tracking(event)

        history = federation().run(3, pf.backends.Local(), tmp_path / "second", listen)
    assert history.rows[-1]["round"] == 3
    assert any("the run goes on without it" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("error", "status"), [(QuorumError("too few"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (None, "FINISHED")]
)
def test_how_the_run_ended(error: BaseException | None, status: str, database: str) -> None:
    tracker = MLflow(database, f"ended-{status}")
    tracker.open()
    tracker.tell(Event("round", 1, run="0"))
    assert found(database, f"ended-{status}")[1][0].info.status == "RUNNING"
    tracker.close(error)
    assert found(database, f"ended-{status}")[1][0].info.status == status


def test_every_metric_name_that_the_gate_admits_is_taken(database: str) -> None:
    names = ["a@b", "a+b", "/x", "a//b", "./x", "..", "a/..", "x:y", "y" * 200]
    rows = [{"round": 1, "site": "s" * 60, "metric": name, "value": 0.1} for name in names]
    tracker = MLflow(database, "names")
    tracker.open()
    tracker.tell(Event("saved", 1, rows=rows, run="1"))
    assert len(found(database, "names")[1][0].data.metrics) == len(names)


def test_a_server_that_is_not_there_is_said_before_the_run_begins(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ConfigError, match="cannot be used"), Tracking(MLflow(url)) as listen:
        federation().run(1, pf.backends.Local(), tmp_path / "run", listen)
    assert not (tmp_path / "run").exists()


def test_no_telemetry() -> None:
    code = (
        "from polypfed.track import MLflow; import sys\n"
        "t = MLflow(sys.argv[1]); t.open()\n"
        "from mlflow.telemetry import get_telemetry_client; assert get_telemetry_client() is None"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "DO_NOT_TRACK", "CI"))}
    done = subprocess.run(
        [sys.executable, "-c", code, "sqlite://"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
