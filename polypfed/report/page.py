"""The report: one HTML file of a run that needs neither network nor script."""

from pathlib import Path

from polypfed.core.files import write_atomic
from polypfed.report import sections
from polypfed.report.figures import about, headline
from polypfed.report.html import Markup, el, join, raw
from polypfed.report.plots import stylesheet
from polypfed.report.read import Run, read_run

# No script, no connection, no font or image from anywhere: the browser is told so, too.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_WARNING = "Research use only. This is not a medical device and must not guide diagnosis or treatment."
_LICENCE = (
    "Made with polypfed (Apache-2.0). The optional YOLO detector uses ultralytics, licensed under AGPL-3.0; see NOTICE."
)


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run directory as one self-contained HTML file, atomically.

    Needs RUN/history.jsonl; shows what else it finds of baselines.jsonl, failures.jsonl, run.json, config.toml,
    sites/*/selection and samples/. The same run gives the same bytes.

    Args:
        run: the run directory.
        out: the file to write; RUN/report.html by default.

    Raises:
        DataError: there is no history, or a file of the run is damaged; nothing is written then.
    """
    path = Path(run) / "report.html" if out is None else Path(out)
    write_atomic(path, page(read_run(run)).encode())
    return path


def page(run: Run) -> Markup:
    """The whole HTML document."""
    parts = [part for section in sections.ALL if (part := section(run))]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{run.name} – polypfed"),
        el("style", raw(stylesheet())),
    )
    links = [el("a", part.title, href=f"#{part.id}") for part in parts]
    body = el("body", _header(run, links), el("main", _tiles(run), *(part.html for part in parts)), _footer())
    return join(raw("<!doctype html>\n"), el("html", head, body, lang="en"), "\n")


def _header(run: Run, links: list[Markup]) -> Markup:
    return el(
        "header",
        el("h1", run.name),
        el("p", " · ".join(about(run)), class_="soft"),
        el("p", _WARNING, class_="warning", role="note"),
        el("nav", *links, aria_label="Sections"),
    )


def _tiles(run: Run) -> Markup:
    tiles = [
        el(
            "div",
            el("dt", t.label),
            el("dd", el("div", t.big, class_="big"), el("div", t.small, class_="small")),
            class_="tile",
        )
        for t in headline(run)
    ]
    return el("dl", *tiles, class_="tiles", aria_label="Headline figures")


def _footer() -> Markup:
    return el("footer", el("p", _LICENCE), el("p", _WARNING))
