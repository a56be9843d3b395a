"""A run directory as values: what the report shows, read with suspicion."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from polypfed.core.errors import DataError
from polypfed.core.journal import FILE as JOURNAL
from polypfed.report.pictures import Picture, read_pictures
from polypfed.select import Decision, read_decisions

BASELINE = "baseline/"
_TEXT_LIMIT = 256 * 1024 * 1024


@dataclass(frozen=True)
class Run:
    """Everything known of one run.

    Attributes:
        cells: (metric, site, round) -> value; site "" is the whole federation. The last row of a kind wins.
        failures: RUN/failures.jsonl: mappings with "round", "client", "reason" and "detail", in order.
        facts: RUN/run.json.
        config: the text of RUN/config.toml.
        decisions: what each site's selector decided.
        pictures: sample images with true and predicted boxes.
    """

    name: str
    cells: Mapping[tuple[str, str, int], float]
    failures: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    decisions: tuple[Decision, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def series(self, metric: str, site: str = "") -> dict[int, float]:
        """One metric of one site by round, in order."""
        return dict(self._lines.get((metric, site), {}))

    def last(self, metric: str, site: str = "") -> float | None:
        """Its value in the last round that has one."""
        return next(reversed(self.series(metric, site).values()), None)

    @cached_property
    def _lines(self) -> dict[tuple[str, str], dict[int, float]]:
        lines: dict[tuple[str, str], dict[int, float]] = {}
        for (metric, site, round), value in sorted(self.cells.items()):
            lines.setdefault((metric, site), {})[round] = value
        return lines

    @property
    def metrics(self) -> list[str]:
        """All metric names, sorted."""
        return sorted({metric for metric, _, _ in self.cells})

    @property
    def sites(self) -> list[str]:
        """All sites, sorted."""
        return sorted({site for _, site, _ in self.cells if site})

    @property
    def rounds(self) -> list[int]:
        """All rounds, sorted; baselines do not count."""
        return sorted({r for metric, _, r in self.cells if not metric.startswith(BASELINE)})


def read_run(directory: str | Path) -> Run:
    """Read RUN/history.jsonl, and whatever else is there.

    That is: baselines.jsonl (rows like the history's), failures.jsonl, run.json, config.toml, sites/NAME/selection/ and
    samples/.

    Raises:
        DataError: there is no history, or one of the files is not what its name says.
    """
    run = Path(directory)
    if not (run / "history.jsonl").is_file():
        raise DataError("there is no history.jsonl", where=run, remedy="Point to the directory of a run")
    return Run(
        name=run.resolve().name,
        cells=_cells(run / "history.jsonl") | _cells(run / "baselines.jsonl"),
        failures=tuple(_lines(run / "failures.jsonl")),
        facts=_object(run / "run.json"),
        config=_config(run / "config.toml"),
        decisions=tuple(d for site in _folders(run / "sites") for d in read_decisions(site, site.name)),
        pictures=read_pictures(run),
    )


def read_progress(directory: str | Path) -> tuple[Run, tuple[Mapping[str, Any], ...]]:
    """What a run has recorded so far, without its pictures and decisions, and its journal; nothing need be there yet.

    Raises:
        DataError: one of the files is not what its name says.
    """
    run = Path(directory)
    found = Run(
        name=run.resolve().name,
        cells=_cells(run / "history.jsonl"),
        failures=tuple(_lines(run / "failures.jsonl")),
        facts=_object(run / "run.json"),
        config=_config(run / "config.toml"),
    )
    return found, tuple(_lines(run / JOURNAL))


def _cells(path: Path) -> dict[tuple[str, str, int], float]:
    cells: dict[tuple[str, str, int], float] = {}
    for line, row in enumerate(_lines(path), 1):
        try:
            value = float(row["value"])
            key = str(row["metric"]), str(row["site"]), int(row["round"])
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"line {line} is not a row of round, site, metric and value", where=path, remedy="Fix or delete it"
            ) from None
        if math.isfinite(value):
            cells[key] = value
    return cells


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line without its line feed was cut by a crash and is left out."""
    lines = _text(path).split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_mapping(json.loads(line)))
        except ValueError:
            if number == len(lines):
                break
            raise DataError(f"line {number} is not a JSON object", where=path, remedy="Fix or delete it") from None
    return found


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(_text(path)))
    except ValueError:
        raise DataError("this is not a JSON object", where=path, remedy="Delete it to report without it") from None


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _config(path: Path) -> str:
    text = _text(path)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"this is not TOML: {error}", where=path) from None
    return text


def _text(path: Path) -> str:
    """The text of a file, "" if there is none."""
    try:
        if path.stat().st_size > _TEXT_LIMIT:
            raise DataError(f"over {_TEXT_LIMIT >> 20} MiB", where=path)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as text ({error})", where=path) from None


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
