"""A run that is written down as it goes."""

import json
from pathlib import Path
from typing import Any

import pytest

import polypfed as pf
from polypfed.core.errors import ConfigError
from polypfed.core.journal import FILE
from polypfed.federation import Event, recorded


class Listens:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def __enter__(self) -> None:
        self.heard.append("in")

    def __exit__(self, kind: Any, *_: object) -> None:
        self.heard.append("out" if kind is None else kind.__name__)

    def __call__(self, event: Event) -> None:
        self.heard.append(event.kind)


def federation() -> pf.Federation:
    return pf.Federation(clients=[pf.NumpyClient("a", lambda x: x - 1, [0.0])])


def kinds(folder: Path) -> list[str]:
    return [json.loads(text)["kind"] for text in (folder / FILE).read_text().splitlines()]


def test_listeners_hear_all_of_it_and_a_second_call_goes_on(tmp_path: Path) -> None:
    first, second = Listens(), Listens()
    recorded(federation(), 1, pf.backends.Local(), tmp_path, first, None, second)
    assert first.heard == second.heard == "in evaluate saved round fit evaluate saved out".split()
    history = recorded(federation(), 2, pf.backends.Local(), tmp_path)
    assert sorted(history.values("accepted")) == [1, 2]
    assert kinds(tmp_path).count("begin") == kinds(tmp_path).count("end") == 2


def test_a_folder_with_a_run_can_be_refused(tmp_path: Path) -> None:
    recorded(federation(), 1, pf.backends.Local(), tmp_path)
    listens = Listens()
    with pytest.raises(ConfigError, match="holds a run"):
        recorded(federation(), 1, pf.backends.Local(), tmp_path, listens, resume=False)
    assert listens.heard == ["in", "ConfigError"]
