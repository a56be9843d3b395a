"""What a run is doing now, as values: read from its folder, never asked of its process."""

import statistics
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polypfed.report.read import Run, read_progress
from polypfed.report.watch.locks import is_open

Status = Literal["waiting", "running", "complete", "stopped", "failed"]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class SiteNow:
    """One site.

    Attributes:
        doing: in words; `good` is False where the site's last reply did not count, None where there is nothing to say.
        heard: when its last reply came, in seconds since 1970.
        kept, images: what its selector kept of what it looked at, in its last round.
        refused: replies that did not count, over the whole run.
    """

    name: str
    doing: str
    good: bool | None = None
    heard: float | None = None
    kept: int | None = None
    images: int | None = None
    loss: float | None = None
    map50: float | None = None
    refused: int = 0


@dataclass(frozen=True)
class Now:
    """A run at one moment.

    Attributes:
        status: waiting for its first event, running, complete, stopped (its process is gone) or failed (it said why).
        detail: why it failed.
        round, rounds: the round under way (0 scores the initial model) and how many are planned, if it is known.
        due: when it will end at the pace so far, in seconds since 1970.
        epsilon, budget: of differential privacy: spent, and given.
        refused: every reply that did not count: mappings with "round", "client", "reason" and "detail".
        run: the record that the figures come from.
    """

    status: Status
    detail: str
    round: int
    rounds: int | None
    phase: str
    due: float | None
    sites: tuple[SiteNow, ...]
    epsilon: float | None
    budget: float | None
    refused: tuple[Line, ...]
    run: Run


def look(folder: Path, clock: float | None = None) -> Now:
    """The run in `folder` now.

    Args:
        clock: the time, in seconds since 1970.

    Raises:
        DataError: a file of the run is damaged.
    """
    run, journal = read_progress(folder)
    return now(run, journal, is_open(folder), time.time() if clock is None else clock)


def now(run: Run, journal: Sequence[Line], working: bool | None, clock: float) -> Now:
    """The moment that these records show; `working` as `is_open` says it."""
    since = _since_begin(journal)
    done, number, rounds = max(run.rounds, default=0), _round(run, since), _rounds(run, since)
    status, detail = _status(run, since, working, rounds is not None and done >= rounds)
    refused = _refused(run, since)
    running = status == "running"
    phase = _phase(since) if running else ""
    return Now(
        status, detail, number, rounds, phase,
        _due(run, since, rounds, done, clock) if running else None,
        tuple(_site(run, since, name, number, phase, refused) for name in _names(run, since)),
        run.last("epsilon"), _budget(run), refused, run,
    )  # fmt: skip


def _since_begin(journal: Sequence[Line]) -> Sequence[Line]:
    begins = [i for i, line in enumerate(journal) if line.get("kind") == "begin"]
    return journal[begins[-1] :] if begins else journal


def _status(run: Run, since: Sequence[Line], working: bool | None, done: bool) -> tuple[Status, str]:
    last = since[-1] if since else {}
    if last.get("kind") == "end":
        return ("complete", "") if last.get("ok") else ("failed", str(last.get("detail", "")))
    if working is False and (since or run.facts):
        return ("complete" if done else "stopped"), ""
    return ("running", "") if since or run.rounds else ("waiting", "")


def _rounds(run: Run, since: Sequence[Line]) -> int | None:
    told = since[0].get("rounds") if since else None
    value = _given(run, "federation", "rounds") if told is None else told
    return value if isinstance(value, int) else None


def _given(run: Run, table: str, key: str) -> Any:
    """A setting of RUN/config.toml."""
    found = tomllib.loads(run.config).get(table)
    return found.get(key) if isinstance(found, dict) else None


def _round(run: Run, since: Sequence[Line]) -> int:
    told = [line["round"] for line in since if isinstance(line.get("round"), int)]
    return told[-1] if told else max(run.rounds, default=0)


def _phase(since: Sequence[Line]) -> str:
    """What the round is at, by its last event."""
    kinds = {"begin": "scoring", "round": "training", "fit": "training", "evaluate": "scoring", "saved": "saved"}
    last = str(since[-1].get("kind", "")) if since else ""
    return "trying again" if last == "abandoned" else kinds.get(last, "")


def _due(run: Run, since: Sequence[Line], rounds: int | None, done: int, clock: float) -> float | None:
    pace = list(run.series("round_s").values())
    if rounds is None or not pace:
        return None
    starts = [float(line["time"]) for line in since if line.get("kind") == "round" and "time" in line]
    start = starts[-1] if starts and _phase(since) != "saved" else clock
    return max(clock, start + (rounds - done) * statistics.median(pace))


def _names(run: Run, since: Sequence[Line]) -> list[str]:
    settings = run.facts.get("settings")
    named = settings.get("sites", []) if isinstance(settings, Mapping) else []
    return sorted({*map(str, named), *run.sites, *(str(line["site"]) for line in since if line.get("site"))})


def _site(run: Run, since: Sequence[Line], name: str, number: int, phase: str, refused: Sequence[Line]) -> SiteNow:
    heard = [line for line in since if line.get("site") == name]
    last = heard[-1] if heard else {}
    doing, good = _doing(last, number, phase, _asks_all(run))
    kept, images = run.last("kept", name), run.last("images", name)
    fresh = last.get("metrics", {}) if last.get("kind") == "fit" else {}
    return SiteNow(
        name, doing, good, last.get("time"),
        _whole(fresh.get("kept", kept)), _whole(fresh.get("images", images)),
        fresh.get("loss", run.last("loss", name)), run.last("map50", name),
        sum(failure.get("client") == name for failure in refused),
    )  # fmt: skip


def _doing(last: Line, number: int, phase: str, all_asked: bool) -> tuple[str, bool | None]:
    """A site's state: what it last sent, if that was for the round and phase under way."""
    kind, of = last.get("kind"), last.get("round")
    if last.get("ok") is False and of == number:
        return f"{'update' if kind == 'fit' else 'evaluation'} refused: {last.get('reason', '')}", False
    if of == number and kind == "evaluate":
        return f"scored round {number}", True
    if of == number and kind == "fit" and phase != "scoring":
        return f"trained round {number}", True
    if phase == "training":
        return "training" if all_asked else "training, or not drawn", None
    if phase in ("scoring", "trying again"):
        return phase, None
    return f"last heard in round {of}" if of is not None else "not heard", None


def _asks_all(run: Run) -> bool:
    settings = run.facts.get("settings")
    return not isinstance(settings, Mapping) or settings.get("per_round") is None


def _refused(run: Run, since: Sequence[Line]) -> tuple[Line, ...]:
    """Everything refused: what is recorded, then what the journal alone knows, since the round is not yet saved."""
    saved = [i for i, line in enumerate(since) if line.get("kind") == "saved"]
    fresh = since[saved[-1] + 1 :] if saved else since
    known = {_key(failure) for failure in run.failures}
    found = [
        {"client": line.get("site"), **{key: line.get(key) for key in ("round", "reason", "detail")}}
        for line in fresh
        if line.get("ok") is False and line.get("site")
    ]
    return (*run.failures, *(failure for failure in found if _key(failure) not in known))


def _key(failure: Line) -> tuple[Any, ...]:
    return tuple(failure.get(key) for key in ("client", "round", "reason", "detail"))


def _budget(run: Run) -> float | None:
    """Of the study, or where there is none, as on the server of a deployment, of the run itself."""
    told = run.facts.get("budget")
    value = told.get("epsilon") if isinstance(told, dict) else _given(run, "privacy", "epsilon")
    return float(value) if isinstance(value, int | float) else None


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
