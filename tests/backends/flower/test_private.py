"""Encrypted and masked rounds between both ends of a written deployment: all but Flower's own processes."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("flwr")
pytest.importorskip("tenseal")

from flwr.app import Context, Message, RecordDict

from polypfed import Federation
from polypfed.backends import Local
from polypfed.backends.flower import deploy
from polypfed.backends.flower.client_app import app
from polypfed.backends.flower.server_app import ServerFile, conduct
from polypfed.backends.resident import Resident
from polypfed.backends.site_file import SiteFile
from polypfed.core.rundir import load_model
from tests.backends.flower.test_client_app import identity as identity  # every test needs it
from tests.backends.flower.test_grid import Scripted
from tests.live.flower import study

NAMES = ["a", "b", "c"]
MODES = [("he", "scaffold"), ("secagg", "fedadam"), ("hybrid", "fedavg")]


class Sites(Scripted):
    """A Grid whose nodes are the sites of a deployment, each with its resident worker."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        super().__init__(self._serve)
        self.nodes, self._config = [], dict[int, dict[str, Any]]()
        for number, name in enumerate(NAMES, 7):
            file, socket = folder / "sites" / name / "site.toml", folder / f"w{number}" / "w"
            file.write_text(file.read_text().replace("approve = true", "approve = false"))
            stack.enter_context(Resident(SiteFile.load(file), socket))
            key = (folder / "sites" / name / "site.pub").read_bytes()
            self.nodes.append(SimpleNamespace(node_id=number, public_key=key))
            self._config[number] = {"site": str(file), "worker": str(socket)}

    def get_nodes(self) -> list[Any]:
        return self.nodes

    def _serve(self, message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        context = Context(1, node, self._config[node], RecordDict(), {})
        return [Message(app(message, context).content, reply_to=message)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Sites]]:
    plan = deploy.Plan(
        NAMES,
        client="tests.live.flower.study:client",
        federation="tests.live.flower.study:federation",
        settings={n: {"names": NAMES} for n in NAMES},
    )
    folder = deploy.write(tmp_path_factory.mktemp("pf") / "d", plan)
    with ExitStack() as stack:
        yield folder, Sites(folder, stack)


@pytest.mark.parametrize(("mode", "strategy"), MODES)
def test_the_bits_of_local(deployment: tuple[Path, Sites], tmp_path: Path, mode: str, strategy: str) -> None:
    """One run after the other, at the same workers."""
    folder, grid = deployment
    settings: dict[str, Any] = {"strategy": strategy, "mode": mode, "quorum": 3, "evaluate": "global"}
    here = Federation(clients=study.clients(NAMES), **study.settings(**settings)).run(2, Local(), tmp_path)
    server = folder / "server" / "server.toml"
    federation = "tests.live.flower.study:federation"
    file = ServerFile(server, federation, folder / "server" / mode, folder / "server" / "sites", 1, 1)
    file.settings.update(settings | {"rounds": 2})
    there = conduct(grid, file)  # type: ignore[arg-type]
    assert not there.failures
    if mode == "secagg":
        assert there.model is not None
        assert here.model is not None
        assert there.model.tobytes() == here.model.tobytes()
        return
    assert there.model is None
    for name in NAMES:
        models = [f / "sites" / name / "model.safetensors" for f in (folder / "sites" / name / "state", tmp_path)]
        assert load_model(models[0])[1].tobytes() == load_model(models[1])[1].tobytes()


def test_a_site_that_demands_encryption_answers_nothing_else(deployment: tuple[Path, Sites], tmp_path: Path) -> None:
    """A server that leaves the stages out gets no update from it."""
    folder, grid = deployment
    file = folder / "sites" / "a" / "site.toml"
    was = file.read_text()
    config = grid._config[7]
    grid._config[7] = {"site": config["site"]}  # without the worker, which has read the file already
    try:
        file.write_text(was.replace("approve = false", 'approve = false\nprivacy = ["he", "hybrid"]'))
        server = ServerFile(
            folder / "server" / "server.toml", "tests.live.flower.study:federation", tmp_path / "run",
            folder / "server" / "sites", 1, 1, {"rounds": 1, "quorum": 2},
        )  # fmt: skip
        found = conduct(grid, server)  # type: ignore[arg-type]
    finally:
        file.write_text(was)
        grid._config[7] = config
    assert [(f.client, f.reason) for f in found.failures] == [("a", "policy")]
    assert "privacy 'plain' is not allowed here" in found.failures[0].detail
