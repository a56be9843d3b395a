"""What the terminal shows: progress bars, a line per round, tables."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from polypfed.core.history import Table
from polypfed.core.messages import Evaluation, Failure
from polypfed.federation import Event, Listener
from polypfed.privacy.disclosure import HEADINGS
from polypfed.privacy.disclosure import rows as rows_of
from polypfed.privacy.pipeline import Mode

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for `callback(done, total)`; it appears with the first call."""
    with _bar() as bar:
        task = bar.add_task(title, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


@contextmanager
def rounds(sites: int, asked: int, total: int) -> Iterator[Listener]:
    """A bar over all site tasks of a run, and a line for every round and failure."""
    with _bar() as bar:
        task = bar.add_task("round 0: evaluating", total=total * asked + (total + 1) * sites)
        scores: dict[str, tuple[float, int]] = {}

        def listen(event: Event) -> None:
            number = f"round {event.round}/{total}"
            if event.kind == "round":
                bar.update(task, description=f"{number}: training")
            elif event.kind in ("fit", "evaluate"):
                bar.update(task, advance=1, description=f"{number}: {_DOING[event.kind]} {event.site}")
                if isinstance(event.reply, Failure):
                    console.print(f"  {event.site}: {event.reply.reason}: {event.reply.detail}", markup=False)
                elif isinstance(event.reply, Evaluation) and "map50" in event.reply.metrics:
                    scores[event.site] = event.reply.metrics["map50"], event.reply.weight
            elif event.kind == "abandoned":
                console.print(f"  {number}: too few updates, trying again")
            elif scores:
                console.print(f"  {number}  {_scores(scores)}")
                scores.clear()

        yield listen


def disclosure(mode: Mode) -> None:
    """Who could learn what in this mode of privacy."""
    row = rows_of(mode=mode)[0]
    console.print(f"privacy: {mode}")
    for key in ("server", "another_site", "leaked_site", "server_and_site", "cost"):
        console.print(f"  {HEADINGS[key]}: {row[key]}", markup=False)


_DOING = {"fit": "trained", "evaluate": "evaluated"}


def _scores(scores: dict[str, tuple[float, int]]) -> str:
    images = sum(weight for _, weight in scores.values())
    mean = sum(value * weight for value, weight in scores.values()) / max(1, images)
    each = "  ".join(f"{site} {scores[site][0]:.3f}" for site in sorted(scores))
    return f"mAP50 {mean:.3f}   {each}"


@contextmanager
def quiet_rounds(title: str, sites: int, asked: int, total: int) -> Iterator[Listener]:
    """A bar over all site tasks of one run among several, without a line per round."""
    with _bar() as bar:
        task = bar.add_task(title, total=total * asked + (total + 1) * sites)

        def listen(event: Event) -> None:
            if event.kind in ("fit", "evaluate"):
                what = f"{title}: round {event.round}/{total}, {_DOING[event.kind]} {event.site}"
                bar.update(task, advance=1, description=what)

        yield listen


@contextmanager
def counted(title: str, total: int) -> Iterator[Listener]:
    """A bar that advances with every "fit" reply."""
    with _bar() as bar:
        task = bar.add_task(title, total=total)
        yield lambda event: bar.update(task, advance=1, description=f"{title}: {event.site}")


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def cells(heads: Sequence[str], body: Sequence[Sequence[str]], title: str) -> None:
    """Print a table of words and numbers; the first column is words."""
    out = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        out.add_column(escape(head).replace(" ", "\n"), justify="right" if place else "left", no_wrap=True)
    for line in body:
        out.add_row(*map(escape, line))
    console.print(out)


def table(found: Table, title: str) -> None:
    """Print a metric by round and site."""
    out = RichTable("round", *[site or "all" for site in found.sites], title=title, title_justify="left")
    for number in found.rounds:
        cells = [found.cells.get((number, site)) for site in found.sites]
        out.add_row(str(number), *["-" if c is None else f"{c:.3f}" for c in cells])
    console.print(out)
