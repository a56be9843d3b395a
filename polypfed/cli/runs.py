"""`polypfed demo`, `run` and `report`."""

import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from polypfed import config as configs
from polypfed.cli import show
from polypfed.config import Config
from polypfed.core.errors import ConfigError
from polypfed.core.files import write_atomic
from polypfed.core.history import History

Folder = Annotated[Path | None, typer.Option("--directory", "-d", help="Where the run is kept.")]


def demo(
    directory: Annotated[Path, typer.Option("--directory", "-d", help="Where the run is kept.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of the frames, the initial model and the training.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Delete an earlier demo in the folder first.")] = False,
) -> None:
    """Train one detector at four synthetic hospitals, compare it with each hospital alone, and write the report."""
    text = files("polypfed").joinpath("demo.toml").read_text(encoding="utf-8")
    if again and (directory / "run.json").exists():
        shutil.rmtree(directory)
    override = {"data.synth.seed": seed, "federation.seed": seed}
    _execute(configs.parse(text, Path("demo.toml"), override), _noted(text, override), directory, resume=True)


def run(
    config: Annotated[Path, typer.Argument(help="A TOML file, such as those in examples/.")],
    directory: Folder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Server rounds, instead of the file's.")] = None,
    backend: Annotated[str | None, typer.Option(help="Instead of the file's: local, flower or nvflare.")] = None,
    privacy: Annotated[
        str | None, typer.Option(help="plain, dp, he, secagg or hybrid; then each site's model is scored nowhere else.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the images, instead of data.root.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the federation, instead of the file's.")] = None,
) -> None:
    """Run the federation that CONFIG describes and write RUN/report.html."""
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    given = {"data.root": data, "federation.rounds": rounds, "backend.name": backend, "federation.seed": seed}
    given |= {"privacy.mode": privacy}
    if privacy not in (None, "plain"):  # whatever the file says, which may be meant for a plain run
        given["federation.evaluate"] = "global"
    override = {k: v for k, v in given.items() if v is not None}
    settings = configs.load(config, override)
    _execute(settings, _noted(text, override), directory or Path("runs") / config.stem, resume)


def report(directory: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Write RUN/report.html anew from what the run has recorded so far."""
    show.console.print(f"Report: {_report(directory)}", markup=False)


def _noted(text: str, override: Mapping[str, object]) -> str:
    """The file's text, with a comment on what the command line changed."""
    return text + "".join(f"# given on the command line: {key} = {value}\n" for key, value in override.items())


def _execute(config: Config, text: str, folder: Path, resume: bool) -> None:
    with show.console.status("loading PyTorch"):
        from polypfed import run as runs

    if not resume and (folder / "run.json").exists():
        raise ConfigError("holds a run already", where=folder, remedy="Continue it with --resume, or give --directory")
    with show.progress("making the sites' data") as tick:
        sites = runs.sites_of(config, folder, tick)
    write_atomic(folder / "config.toml", text.encode())
    asked = config.federation.per_round or len(sites)
    show.console.print(f"{len(sites)} sites: {', '.join(sites)}; {config.federation.rounds} rounds", markup=False)
    show.disclosure(config.privacy.mode)
    with show.rounds(len(sites), asked, config.federation.rounds) as listen:
        history, clients = runs.federate(config, sites, folder, resume=resume, listen=listen)
    learners = runs.learners(config, sites)
    with show.counted("training the baselines", len(learners) * config.federation.rounds) as listen:
        runs.compare(config, sites, history, folder, listen)
    with show.console.status("drawing samples"):
        runs.draw_samples(config, clients, history, folder)
    _summary(history, folder, config)


def _summary(history: History, folder: Path, config: Config) -> None:
    from polypfed.run import read_rows

    show.table(history.table("map50"), "mAP50 on each site's validation images")
    if (own := history.table("own_map50")).cells:
        show.table(own, "mAP50 of each site's own model")
    if config.evaluate != "off" and (rows := read_rows(folder / "baselines.jsonl")):
        means = {
            r["metric"].split("/")[1]: r["value"] for r in rows if not r["site"] and r["metric"].endswith("/map50")
        }
        for name, value in sorted(means.items(), key=lambda item: -item[1]):
            show.console.print(f"  {value:.3f}  {name}", markup=False)
    show.console.print(f"Report: {_report(folder)}", markup=False)


def _report(folder: Path) -> Path:
    from polypfed.report import write_report

    return write_report(folder).resolve()
