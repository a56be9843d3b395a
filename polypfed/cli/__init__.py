"""The command line: parses, calls, prints. A user's mistake is one line, never a traceback."""

import importlib.metadata
import logging
import sys

import typer

from polypfed.cli import (
    bench,
    compare,
    compress,
    data,
    deploy,
    deploy_nvflare,
    detect,
    device,
    doctor,
    export,
    keys,
    runs,
    samples,
    site,
)
from polypfed.cli.show import console
from polypfed.core.errors import PolypfedError, QuorumError

app = typer.Typer(
    name="polypfed",
    help="Federated learning for colon-polyp detectors. Images never leave a site.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(runs.demo)
app.command("run")(runs.run)
app.command("report")(runs.report)
app.command("compare")(compare.compare)
app.command("doctor")(doctor.doctor)
app.command("export")(export.export)
app.command("compress")(compress.compress)
app.command("detect")(detect.detect)
app.command("device")(device.device)
app.add_typer(data.app, name="data")
app.add_typer(samples.app, name="samples")
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")
app.add_typer(deploy.app, name="deploy")
app.add_typer(site.app, name="site")
deploy_nvflare.register(app, deploy.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"polypfed {importlib.metadata.version('polypfed')}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what the library does."),
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")


def main() -> None:
    """The `polypfed` command. Exit codes: 0 done, 1 error, 2 wrong usage, 3 quorum missed, 130 stopped."""
    try:
        app()
    except PolypfedError as error:
        print(f"polypfed: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, QuorumError) else 1)
    except KeyboardInterrupt:
        print("polypfed: stopped; a run goes on with --resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
