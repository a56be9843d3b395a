"""`polypfed compare`: several strategies on one config."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polypfed import config as configs
from polypfed.cli import show
from polypfed.federation import Listener

if TYPE_CHECKING:
    from polypfed.compare import Trial
    from polypfed.report.comparison import Goal, Line, Outcome


def compare(
    config: Annotated[Path, typer.Argument(help="A TOML file, such as examples/strategies.toml.")],
    strategies: Annotated[
        str,
        typer.Option(
            help="Names with commas between: of strategies, or of [compare.NAME] tables. Default: all tables."
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(help="Runs of each strategy; each draws data, model and order anew.")] = 3,
    target: Annotated[float, typer.Option(help="Value of the metric to be reached.")] = 0.6,
    metric: Annotated[str, typer.Option(help="map50, map50_95, precision, recall or f1.")] = "map50",
    directory: Annotated[Path | None, typer.Option("--directory", "-d", help="Where the runs are kept.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in the folder.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Server rounds, instead of the file's.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the images, instead of data.root.")] = None,
) -> None:
    """Run every strategy with every seed at equal budget; write one table and one plot."""
    given = {"federation.rounds": rounds, "data.root": data}
    settings = configs.load(config, {k: v for k, v in given.items() if v is not None})
    with show.console.status("loading PyTorch"):
        from polypfed import compare as compares
        from polypfed.report import Goal
    goal, folder = Goal(metric, target), directory or Path("runs") / f"compare-{config.stem}"
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    trials = compares.plan(settings, names, seeds, folder)
    compares.claim(settings, folder, resume=resume)
    show.console.print(f"{len(trials)} runs of {settings.federation.rounds} rounds, kept in {folder}", markup=False)
    found = []
    for outcome in compares.outcomes(trials, _watching(trials), lambda: show.progress("making the sites' data")):
        found.append(outcome)
        show.console.print(f"  {len(found)}/{len(trials)}  {_said(outcome, goal)}", markup=False)
    _summary(found, goal, folder)


def _watching(trials: "list[Trial]") -> "Callable[[Trial, int], AbstractContextManager[Listener]]":
    def watch(trial: "Trial", sites: int) -> AbstractContextManager[Listener]:
        settings = trial.config.federation
        title = f"{trials.index(trial) + 1}/{len(trials)} {trial.name}, seed {trial.seed}"
        return show.quiet_rounds(title, sites, settings.per_round or sites, settings.rounds)

    return watch


def _said(outcome: "Outcome", goal: "Goal") -> str:
    from polypfed.report.comparison import results

    scores = "  ".join(f"{r.strategy} {r.final:.3f}" for r in results([outcome], goal) if r.final is not None)
    return f"seed {outcome.seed}  {scores or f'{outcome.strategy} {outcome.status}: {outcome.reason}'}"


def _summary(found: "list[Outcome]", goal: "Goal", folder: Path) -> None:
    from polypfed.report import comparison_files as files

    lines: list[Line] = files.write_comparison(found, goal, folder)
    show.cells(*files.table(lines, goal), f"{goal.title} after the last round")
    show.cells(*files.site_table(lines), f"{goal.title} by site")
    for line in lines:
        for reason in line.reasons:
            show.console.print(f"  {reason}", markup=False)
    show.console.print(f"Table and plot: {(folder / 'comparison').resolve()}.md, .csv, .jsonl, .svg", markup=False)
