"""The command line: parses, calls, prints. A user's mistake is one line, never a traceback."""

import importlib.metadata
import logging
import signal
import sys

import typer

from polypfed.cli import (
    audit,
    bench,
    bundle,
    compare,
    compress,
    data,
    deploy,
    deploy_nvflare,
    detect,
    device,
    doctor,
    examples,
    export,
    init,
    keys,
    policy,
    release,
    runs,
    samples,
    sbom,
    site,
    watch,
    weights,
)
from polypfed.cli.codes import Code, Terminated
from polypfed.cli.show import console
from polypfed.core.errors import PolypfedError

app = typer.Typer(
    name="polypfed",
    help="Federated learning for colon-polyp detectors. Images never leave a site.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(runs.demo)
app.command("run")(runs.run)
app.command("report")(runs.report)
app.command("watch")(watch.watch)
app.command("compare")(compare.compare)
app.command("doctor")(doctor.doctor)
app.command("export")(export.export)
app.command("compress")(compress.compress)
app.command("detect")(detect.detect)
app.command("device")(device.device)
app.command("import-weights")(weights.import_weights)
app.command("sbom")(sbom.sbom)
app.command("bundle")(bundle.bundle)
app.add_typer(init.app, name="init")
app.add_typer(data.app, name="data")
app.add_typer(samples.app, name="samples")
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(policy.app, name="policy")
app.add_typer(release.app, name="release")
app.add_typer(deploy.app, name="deploy")
app.add_typer(site.app, name="site")
deploy_nvflare.register(app, deploy.app)
examples.attach(app)


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


def _terminate(*_: object) -> None:
    raise Terminated


def main() -> None:
    """The `polypfed` command; how it ends is told by `Code`."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except PolypfedError as error:
        print(f"polypfed: {error}", file=sys.stderr)
        sys.exit(Code.of(error))
    except KeyboardInterrupt as stop:
        print("polypfed: stopped; a run goes on with --resume", file=sys.stderr)
        sys.exit(Code.of(stop))
    except BrokenPipeError:
        sys.exit(Code.ERROR)
