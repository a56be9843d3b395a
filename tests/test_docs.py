"""README and docs: Python blocks run, commands are such as polypfed takes, links lead somewhere, names are told."""

import html
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import click
import pytest
import typer

import polypfed
from polypfed.cli import app
from polypfed.core.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOLD = [page for page in PAGES if "decisions" not in page.parts]  # decisions quote what was, and may be no more


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [str(block) for block in found]


PYTHON = {f"{name_of(p)}:{i}": b for p in TOLD for i, b in enumerate(blocks(p, "python"))}


def commands() -> Iterator[tuple[str, str]]:
    """(page, line) of every command `polypfed ...` in a block, whatever marks the block."""
    for page in TOLD:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        fenced = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        indented = "\n".join(re.findall(r"^    (\S.*)$", text, re.MULTILINE))
        for line in re.sub(
            r"<<'(\w+)'\n.*?\n\1\n", "\n", fenced + "\n" + indented + "\n", flags=re.DOTALL
        ).splitlines():
            if re.match(r"(ssh .* )?polypfed ", line.strip()):
                yield name_of(page), line.strip().rstrip("&").strip()


COMMANDS = sorted(set(commands()))


def test_there_is_something_to_test() -> None:
    assert "README.md:0" in PYTHON
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("name", PYTHON)
def test_python_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(PYTHON[name], name, "exec"), {"__name__": "__main__"})  # noqa: S102 - running it is the test
    except MissingExtraError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: str(value)[:60])
def test_command_is_one_that_polypfed_takes(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("polypfed") + 1 :]
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&")), len(words))]
    command: click.Command = typer.main.get_command(app)
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    if not isinstance(command, click.Group):  # a group alone names its commands in passing
        command.make_context(page, words)
    assert not isinstance(command, click.Group) or not words or words[0].startswith("-"), f"{line}: no such command"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), f"{page}: {target}"
            if anchor and place.suffix == ".md":
                assert anchor in anchors(place), f"{page}: {target}"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", head.lower()).replace(" ", "-") for head in heads}


def public_rooms() -> list[ModuleType]:
    """The package and its rooms, as far as they list their names."""
    found = (import_module(f"polypfed.{module.name}") for module in iter_modules(polypfed.__path__) if module.ispkg)
    return [room for room in (polypfed, *found) if hasattr(room, "__all__")]


def methods(thing: object) -> Iterator[str]:
    """Public methods and properties that a class defines itself."""
    for name, value in vars(thing).items() if inspect.isclass(thing) else ():
        plain = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(plain) and plain.__name__ == name:
            yield name


@pytest.mark.parametrize("room", public_rooms(), ids=lambda room: room.__name__)
def test_every_public_name_is_documented(room: ModuleType) -> None:
    """Of every name in `__all__`, and of its public methods; a method may have its text from a base class."""
    things = {name: getattr(room, name) for name in room.__all__}
    told = {n: t for n, t in things.items() if inspect.isclass(t) or inspect.isfunction(t) or inspect.ismodule(t)}
    told |= {f"{name}.{m}": getattr(thing, m) for name, thing in told.items() for m in methods(thing)}
    assert told
    assert [name for name, thing in told.items() if not inspect.getdoc(thing)] == []


def test_rooms_and_names_are_found() -> None:
    rooms = public_rooms()
    assert len(rooms) >= 13
    assert "fit" in set(methods(polypfed.NumpyClient))


@pytest.mark.slow
def test_the_researchers_tutorial_as_it_stands(tmp_path: Path) -> None:
    """All but the install, and with fewer images and rounds."""
    script = "\n".join(b for b in blocks(ROOT / "docs/tutorials/researcher.md", "sh") if "pip install" not in b)
    less = "sed -i 's/^train = 80/train = 16/; s/^val = 24/val = 8/; s/^rounds = 10/rounds = 2/' study/study.toml"
    script = script.replace("polypfed doctor", f"{less}\npolypfed doctor", 1)
    fake = tmp_path / "bin" / "polypfed"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from polypfed.cli import main; main()' \"$@\"\n")
    fake.chmod(0o755)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PYTHONPATH": path}
    done = subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "study" / "report.html").is_file()
    assert list((tmp_path / "runs" / "compared").glob("*.svg"))


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = html.unescape(page.read_text(encoding="utf-8"))
        assert not re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="https?://[^"]+"', text), page
    shown = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ("Federation", "FedAvg", "Scaffold", "TorchClient", "Below", "check_strategy"):
        assert f"{name}</code>" in shown or f"{name}</span>" in shown, name
