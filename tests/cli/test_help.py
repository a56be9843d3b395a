"""Help that teaches: every command shows how it is typed, every such line parses; exit codes, errors and completion."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from polypfed.cli import app, main
from polypfed.cli.codes import Code
from polypfed.cli.examples import EXAMPLES
from polypfed.core.errors import ConfigError, QuorumError


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    commands = getattr(command, "commands", None)
    if commands is None:
        yield " ".join(path), command
        return
    for name, child in commands.items():
        yield from leaves(child, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))
LINES = sorted({line for text in EXAMPLES.values() for line in text.splitlines()})


def test_every_command_has_an_example() -> None:
    assert sorted(COMMANDS) == sorted(EXAMPLES), "add the command to polypfed/cli/examples.py"


@pytest.mark.parametrize("line", LINES)
def test_example_parses(line: str, tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("polypfed") + 1 :]
    name = max((n for n in COMMANDS if words[: len(n.split())] == n.split()), key=len)
    COMMANDS[name].make_context(name, words[len(name.split()) :])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_and_shows_it(name: str) -> None:
    done = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    _, _, shown = done.output.partition("Examples:\n")
    assert [line.strip() for line in shown.strip().splitlines()] == EXAMPLES[name].splitlines()


SNAPSHOTS = {
    "run no.toml": (1, "polypfed: no.toml: cannot be read (No such file or directory)"),
    "report nowhere": (
        1,
        "polypfed: nowhere: there is no history.jsonl. Point to the directory of a run",
    ),
    "watch nowhere": (
        1,
        "polypfed: nowhere: no such folder. Give the folder of a run, or of a deployment",
    ),
    "data check nowhere": (1, "polypfed: nowhere: no such folder"),
    "site run no.toml": (1, "polypfed: {cwd}/no.toml: cannot be read (No such file or directory)"),
    "keys inspect no.json": (1, "polypfed: no.json: cannot be read ([Errno 2] No such file or directory: 'no.json')"),
    "init site . --name a/b": (1, "polypfed: clients: 'a/b' cannot name a site. Use [A-Za-z0-9][A-Za-z0-9_-]{{0,62}}"),
    "run": (2, "Missing argument 'CONFIG'"),
    "doctor nurse": (2, "Invalid value for '[ROLE]:[researcher|site|server|device]': 'nurse' is not one of"),
    "nonsense": (2, "No such command 'nonsense'"),
}


@pytest.mark.parametrize("line", SNAPSHOTS)
def test_what_a_mistake_is_told(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, words = SNAPSHOTS[line]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["polypfed", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == code
    if code == 1:
        assert said == words.format(cwd=tmp_path) + "\n"
    else:
        assert words in re.sub(r"\s+", " ", said)


def test_exit_codes() -> None:
    assert {c.name: c.value for c in Code} == {
        "DONE": 0,
        "ERROR": 1,
        "USAGE": 2,
        "QUORUM": 3,
        "UNCHECKED": 4,
        "STOPPED": 130,
        "TERMINATED": 143,
    }
    page = (Path(__file__).parents[2] / "docs" / "reference" / "command-line.md").read_text()
    assert re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE) == [(str(c.value), c.name) for c in Code]
    assert [Code.of(e) for e in (ConfigError("x"), QuorumError("x"), KeyboardInterrupt())] == [1, 3, 130]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for(shell: str) -> None:
    environment = os.environ | {"_POLYPFED_COMPLETE": f"source_{shell}"}
    code = "import sys; sys.argv[0] = 'polypfed'; from polypfed.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "_POLYPFED_COMPLETE" in done.stdout


def test_bash_completes_a_command() -> None:
    environment = os.environ | {
        "_POLYPFED_COMPLETE": "complete_bash", "COMP_WORDS": "polypfed doct", "COMP_CWORD": "1",
    }  # fmt: skip
    code = "import sys; sys.argv[0] = 'polypfed'; from polypfed.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["doctor"]
