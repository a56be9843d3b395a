"""What the servers' files of both engines have in common."""

from importlib import import_module
from pathlib import Path

import pytest

from polypfed.core.errors import ConfigError

FILES = {
    "flower": ("flwr", "polypfed.backends.flower.server_app", 'directory = "run"\nsites = "keys"\n'),
    "nvflare": ("nvflare", "polypfed.backends.nvflare.controller", ""),
}


@pytest.mark.parametrize("engine", FILES)
def test_the_server_names_its_trackers(tmp_path: Path, engine: str) -> None:
    package, module, more = FILES[engine]
    pytest.importorskip(package)
    server_file = import_module(module).ServerFile
    text, path = f'federation = "mine:federation"\n{more}', tmp_path / "server.toml"
    (tmp_path / "keys").mkdir()
    path.write_text(text + '\n[track]\njson = "run.log"\nprometheus = 9464\n')
    track = server_file.load(path).track
    assert (track.json, track.prometheus, track.mlflow) == (str(tmp_path / "run.log"), 9464, "")
    path.write_text(text + "\n[track]\nprometheus = 0.5\n")
    with pytest.raises(ConfigError, match=r"server.toml: \[track\] prometheus: 0.5 is not of type int"):
        server_file.load(path)
