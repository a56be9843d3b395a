"""The page of the live view: a frame, and the parts in it that change while a run goes on."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from polypfed.report.figures import ALL, by_site, kept
from polypfed.report.html import Markup, el, join, raw
from polypfed.report.plots import LinePlot, stylesheet
from polypfed.report.scale import duration, number, percent, size
from polypfed.report.watch.state import Now, SiteNow

_MOST_REFUSED = 100
_WORDS = {
    "waiting": "○ waiting for the first event",
    "running": "▶ running",
    "complete": "✓ complete",
    "stopped": "■ stopped: no process works in this folder; it goes on with --resume",
    "failed": "✗ ended by an error",
}
PARTS = ("status", "tiles", "sites", "charts", "refused")
_TITLES = {"sites": "Sites", "charts": "Curves", "refused": "Refused updates"}


def script() -> str:
    """The page's own script."""
    return files("polypfed.report.watch").joinpath("watch.js").read_text(encoding="utf-8")


def policy() -> str:
    """What a browser may do with the page: run its one script, ask this server, nothing else."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def page(now: Now, clock: float) -> Markup:
    """The whole document, with what is known already; it can be read without the script."""
    shown = parts(now)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{now.run.name} – polypfed watch"),
        el("style", raw(stylesheet() + files("polypfed.report.watch").joinpath("watch.css").read_text("utf-8"))),
    )
    header = el(
        "header",
        el("h1", now.run.name),
        el("div", shown["status"], id="status", role="status"),
        el("p", "", id="link", class_="bad", role="alert"),
    )
    tiles = el("dl", shown["tiles"], id="tiles", class_="tiles", aria_label="The run so far")
    sections = [
        el("section", el("h2", title, id=f"{id}-title"), el("div", shown[id], id=id), aria_labelledby=f"{id}-title")
        for id, title in _TITLES.items()
    ]
    footer = el("footer", el("p", "Research use only. Not a medical device. This view only reads the run's folder."))
    body = el(
        "body", header, el("main", tiles, *sections), footer, el("script", raw(script())), data_now=f"{clock:.3f}"
    )
    return join(raw("<!doctype html>\n"), el("html", head, body, lang="en"), "\n")


def parts(now: Now) -> dict[str, Markup]:
    """HTML by id. It changes only when the run does: ages and remaining times are worked out in the browser."""
    return {
        "status": _status(now),
        "tiles": _tiles(now),
        "sites": _sites(now),
        "charts": _charts(now),
        "refused": _refused(now),
    }


def _status(now: Now) -> Markup:
    words = _WORDS[now.status] + (f": {now.detail}" if now.detail else "")
    where = f"round {now.round}" + (f" of {now.rounds}" if now.rounds is not None else "")
    where += f", {now.phase}" if now.phase else ""
    done = max(now.run.rounds, default=0)
    bar = el("progress", value=done, max=now.rounds, aria_label="rounds done") if now.rounds else raw("")
    tone = "bad" if now.status in ("stopped", "failed") else "good" if now.status == "complete" else None
    return el("p", el("strong", words, class_=tone), " · ", where, " ", bar)


def _tiles(now: Now) -> Markup:
    run = now.run
    quality = run.series("map50")
    best = max(quality, key=lambda r: (quality[r], -r)) if quality else None
    down, up = (sum(run.series(m).values()) for m in ("bytes_down", "bytes_up"))
    counts = kept(run).values()
    chosen, seen = sum(k for k, _ in counts), sum(n for _, n in counts)
    paces = list(run.series("round_s").values())
    peak = f"best {number(quality[best])} in round {best}" if best is not None else ""
    found = [
        _tile("mAP50, all sites", number(run.last("map50")), peak),
        _tile("Images kept", percent(chosen / seen if seen else None), f"{chosen:,} of {seen:,} looked at"),
        _tile("Traffic", size(down + up), f"{size(down)} down, {size(up)} up"),
        _tile("Time to finish", _until(now), f"{duration(paces[-1])} the last round" if paces else ""),
        _tile("Refused or failed", str(len(now.refused)), "updates and evaluations"),
    ]
    if now.epsilon is not None:
        budget = "no budget set" if now.budget is None else f"of a budget of {number(now.budget, 2)}"
        found.append(_tile("Privacy spent, ε", number(now.epsilon, 2), budget))
    return join(*found)


def _tile(label: str, big: object, small: str) -> Markup:
    figure = el("dd", el("div", big, class_="big"), el("div", small, class_="small"))
    return el("div", el("dt", label), figure, class_="tile")


def _until(now: Now) -> Markup:
    if now.due is None:
        return el("span", "–")
    return el("time", "", data_due=f"{now.due:.0f}")


def _sites(now: Now) -> Markup:
    if not now.sites:
        return el("p", "No site has been heard yet.", class_="soft")
    heads = ("site", "state", "last heard", "images kept", "loss", "mAP50", "refused")
    head = el("thead", el("tr", *(el("th", text, scope="col") for text in heads)))
    rows = [_site(site) for site in now.sites]
    return _scroll(el("table", head, el("tbody", *rows), class_="live"), "Table of sites")


def _site(site: SiteNow) -> Markup:
    mark = {True: "✓ ", False: "✗ ", None: "… "}[site.good]
    tone = {True: "good", False: "bad", None: None}[site.good]
    heard = el("time", "", data_heard=f"{site.heard:.0f}") if site.heard is not None else "–"
    share = "–" if site.kept is None else f"{site.kept:,}" + (f" / {site.images:,}" if site.images is not None else "")
    return el(
        "tr",
        el("th", site.name, scope="row"),
        el("td", mark + site.doing, class_=f"state {tone or ''}".strip()),
        *(el("td", text) for text in (heard, share, number(site.loss), number(site.map50), site.refused)),
    )


def _charts(now: Now) -> Markup:
    run, plots = now.run, []
    counts = kept(run)
    shares: dict[str, dict[int, float]] = {}
    for (site, r), (chosen, seen) in counts.items():
        if seen:
            shares.setdefault(site, {})[r] = 100 * chosen / seen
    traffic = {name: _mega(run.series(f"bytes_{name}")) for name in ("down", "up")}
    for title, lines, label in (
        ("mAP50", by_site(run, "map50"), "mAP50"),
        ("Training loss", by_site(run, "loss"), "loss"),
        ("Images kept", shares, "% kept"),
        ("Traffic of a round", {k: v for k, v in traffic.items() if v}, "MB"),
        ("Privacy spent", {"ε": run.series("epsilon")} if run.series("epsilon") else {}, "ε"),
    ):
        if lines:
            plot = LinePlot(f"{title} by round", lines, label, emphasis=ALL, low=0.0)
            plots.append(el("div", el("h3", title), plot.svg(), _numbers(title, lines)))
    return el("div", *plots, class_="pair") if plots else el("p", "No round is complete yet.", class_="soft")


def _mega(series: Mapping[int, float]) -> dict[int, float]:
    return {r: v / 1e6 for r, v in series.items()}


def _numbers(title: str, lines: Mapping[str, Mapping[int, float]]) -> Markup:
    rounds = sorted({r for points in lines.values() for r in points})
    head = el("thead", el("tr", *(el("th", text, scope="col") for text in ("round", *lines))))
    rows = [
        el("tr", el("th", r, scope="row"), *(el("td", number(points.get(r))) for points in lines.values()))
        for r in rounds
    ]
    table = el("table", head, el("tbody", *rows))
    return el("details", el("summary", f"The numbers: {title}"), _scroll(table, f"{title}, numbers"))


def _refused(now: Now) -> Markup:
    if not now.refused:
        return el("p", "None: every update counted.", class_="soft")
    shown = list(now.refused)[-_MOST_REFUSED:][::-1]
    keys = ("round", "client", "reason", "detail")
    head = el("thead", el("tr", *(el("th", text, scope="col") for text in ("round", "site", "reason", "in words"))))
    rows = [el("tr", *(el("td", line.get(key, "")) for key in keys)) for line in shown]
    note = el("p", f"The last {len(shown)} of {len(now.refused)}, newest first.", class_="note")
    return join(_scroll(el("table", head, el("tbody", *rows), class_="words"), "Table of refused updates"), note)


def _scroll(table: Markup, label: str) -> Markup:
    """A part that scrolls can be reached and scrolled with the keyboard."""
    return el("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)
