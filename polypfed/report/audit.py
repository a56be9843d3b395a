"""An audit log in words, for a data protection officer: a page that stands alone, or a table."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from polypfed.core.audit import Entry, Findings
from polypfed.report.html import el, esc, join, raw

HEADS = ("line", "when (UTC)", "event", "who", "run", "round", "what it is about (SHA-256)", "details")

WORDS = {
    "begin": "A run began",
    "resume": "A run was taken up again",
    "anew": "The log began anew; lines before this one are lost",
    "round": "A round of training was asked for",
    "abandoned": "A round was given up: too few sites answered",
    "accept": "An update of a site was accepted",
    "failure": "A site could not take part, or its update was refused",
    "stopped": "The run stopped before its last round",
    "epsilon": "Privacy budget was charged",
    "commit": "A new model was made",
    "rejected": "A new model was put aside; the one before it stays",
    "fit": "This site trained, and its update left",
    "evaluate": "This site scored a model, and the scores left",
    "step": "A step of a protocol failed at this site",
    "head": "The server said where its own log ends",
}
_STYLE = """body{font:14px/1.5 sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}
td:nth-child(7){font-family:monospace;word-break:break-all;max-width:16em}.bad{color:#a00;font-weight:bold}"""
_WHAT = """Each line says who did what, when, with which model, on how many images, and what it cost of the privacy
budget. Models and updates are named by their SHA-256. The log holds no image, no file name, no key and no patient."""


def rows(entries: Sequence[Entry]) -> list[list[str]]:
    """One row per line of the log, in words."""
    return [_row(entry) for entry in entries]


def _row(entry: Entry) -> list[str]:
    number, event, facts = entry["n"] + 1, str(entry["event"]), sorted(entry["facts"].items())
    said = "; ".join(f"{key}: {value}" for key, value in facts)
    cells = (number, entry["utc"], WORDS.get(event, event), entry["actor"], entry["run"], entry["round"])
    return [*map(str, cells), str(entry["subject"]), said]


def as_csv(entries: Sequence[Entry], found: Findings) -> str:
    """The table as CSV, with what `verify` found as its last row."""
    out = io.StringIO()
    writer: Any = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADS)
    writer.writerows([[_harmless(cell) for cell in row] for row in rows(entries)])
    writer.writerow(["", "", verdict(found)])
    return out.getvalue()


def as_html(entries: Sequence[Entry], found: Findings) -> str:
    """The page."""
    head = el("tr", *(el("th", name) for name in HEADS))
    body = (el("tr", *(el("td", cell) for cell in row)) for row in rows(entries))
    page = el(
        "html",
        el("head", el("meta", charset="utf-8"), el("title", "Audit log"), el("style", raw(_STYLE))),
        el(
            "body", el("h1", "Audit log"), el("p", _WHAT),
            el("p", verdict(found), class_=None if found.good else "bad"), el("table", head, join(*body)),
        ),
        lang="en",
    )  # fmt: skip
    return f"<!doctype html>\n{esc(page)}\n"


def verdict(found: Findings) -> str:
    """What `verify` found, in a sentence."""
    if not found.good:
        return f"The log is NOT whole: line {found.line} {found.problem}."
    return f"The log is whole: {found.head.count} lines, the last with SHA-256 {found.head.hash}."


def _harmless(cell: str) -> str:
    """Spreadsheets take some first characters for a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell
