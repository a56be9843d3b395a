"""The sections of the page, in order: each gives its HTML, or None if the run holds nothing for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from polypfed.privacy import disclosure
from polypfed.report import pictures
from polypfed.report.figures import ALL as ALL_SITES
from polypfed.report.figures import (
    GLOBAL,
    MEAN,
    by_site,
    compared,
    federated,
    flat,
    kept,
    matrix,
    plain,
    privacy_mode,
    strategies,
)
from polypfed.report.html import Markup, el, join, raw
from polypfed.report.plots import LinePlot
from polypfed.report.read import Run
from polypfed.report.scale import duration, number, signed, size

_MOST_PICTURES, _MOST_FAILURES = 24, 200
_PERSONAL = {"ditto", "fedbn", "fedper"}
_QUALITY = (("map50", "mAP50"), ("map50_95", "mAP50-95"), ("own_map50", "mAP50 of each site's own model"))


@dataclass(frozen=True)
class Section:
    """A part of the page with its place in the navigation."""

    id: str
    title: str
    html: Markup


def _section(id: str, title: str, intro: object, *children: object) -> Section:
    heading = el("h2", title, id=f"{id}-title")
    html = el("section", heading, el("p", intro, class_="soft"), *children, id=id, aria_labelledby=f"{id}-title")
    return Section(id, title, html)


def quality(run: Run) -> Section | None:
    """mAP by round and site."""
    charts = []
    for metric, name in _QUALITY:
        lines = by_site(run, metric)
        if lines:
            plot = LinePlot(f"{name} by round and site", lines, name, emphasis=ALL_SITES, low=0.0)
            charts.append(el("div", el("h3", name), plot.svg(), _numbers(lines, number)))
    if not charts:
        return None
    whose = (
        "The global model" if federated(run) == GLOBAL else "The shared part of the model, with each site's own layers,"
    )
    intro = (
        f"{whose} on each site's validation images after every round; round 0 is the model at the "
        "start. mAP50 takes a box as right if it overlaps a true one by half (IoU 0.5); mAP50-95 averages over "
        "stricter overlaps."
    )
    return _section("quality", "Detection quality", intro, el("div", *charts, class_="pair"))


def cross_site(run: Run) -> Section | None:
    """The cross-site matrix."""
    heat = matrix(run)
    if heat is None:
        return None
    intro = (
        "mAP50 in the last round. Each row is a model: the one a site has after training on its own images in that "
        "round, and the global one. Each column is a site's validation images. Framed: a model on the images of its "
        "own site."
    )
    if federated(run) != GLOBAL:
        intro += " What a model does not share is always that of the site whose images these are."
    return _section("matrix", "Across sites", intro, el("div", heat.svg(), class_="scroll whole"))


def comparison(run: Run) -> Section | None:
    """The global model beside the baselines."""
    lines = compared(run)
    if not lines:
        return None
    named = federated(run)
    ours = next(line.overall for line in lines if line.name == named)
    top = max(*(line.overall for line in lines), 1e-9)
    sites = sorted({site for line in lines for site in line.sites})
    rows = [
        el(
            "tr",
            el("th", line.name, scope="row"),
            *(el("td", number(line.sites.get(site))) for site in sites),
            el("td", number(line.overall)),
            el("td", "" if line.name == named else signed(ours - line.overall), class_=_tone(ours - line.overall)),
            el("td", el("span", class_="bar", style=f"width:{200 * line.overall / top:.0f}px"), class_="track"),
            class_="main" if line.name == named else None,
        )
        for line in lines
    ]
    table = _table(["model", *sites, ALL_SITES if lines[0].weighted else MEAN, "federated gains", ""], rows)
    intro = (
        "mAP50 on every site's validation images at the last round. “Alone” is a model trained at one site only; a "
        "central one sees all images in one place, which a federation avoids."
    )
    return _section(
        "comparison", "Against training without a federation", intro, el("div", table, class_="scroll whole")
    )


def selection(run: Run) -> Section | None:
    """What the selectors kept."""
    counts = kept(run)
    if not counts:
        return None
    sites, rounds = sorted({s for s, _ in counts}), sorted({r for _, r in counts})
    shares = {
        s: {r: 100 * counts[s, r][0] / counts[s, r][1] for r in rounds if counts.get((s, r), (0, 0))[1]} for s in sites
    }
    totals = {r: [counts[s, r] for s in sites if (s, r) in counts] for r in rounds}
    whole = {r: (sum(k for k, _ in t), sum(n for _, n in t)) for r, t in totals.items()}
    shares[ALL_SITES] = {r: 100 * k / n for r, (k, n) in whole.items() if n}
    plot = LinePlot(
        "Share of images kept for training, by round and site", shares, "% kept", emphasis=ALL_SITES,
        low=0.0, high=100.0, write=lambda v: f"{v:.0f} %",
    )  # fmt: skip
    columns = [*((s, {r: counts[s, r] for r in rounds if (s, r) in counts}) for s in sites), (ALL_SITES, whole)]
    rows = [
        el("tr", el("th", r, scope="row"), *(el("td", _kept(cells.get(r))) for _, cells in columns)) for r in rounds
    ]
    table = _table(["round", *(name for name, _ in columns)], rows)
    intro = "In each round a site looks at its images with the current model and trains on those its selector keeps."
    body = el("div", el("div", plot.svg()), el("div", table, class_="scroll"), class_="pair")
    return _section("selection", "Images kept for training", intro, body)


def cost(run: Run) -> Section | None:
    """Time and bytes by round."""
    seconds = {}
    for site in run.sites:
        parts = run.series("train_s", site), run.series("select_s", site)
        seconds[site] = {r: parts[0].get(r, 0.0) + parts[1].get(r, 0.0) for r in sorted({*parts[0], *parts[1]})}
    seconds["whole round"] = run.series("round_s")
    volume = {name: _scaled(run.series(f"bytes_{name}"), 1e-6) for name in ("down", "up")}
    charts = []
    if any(seconds.values()):
        plot = LinePlot("Seconds by round", seconds, "seconds", emphasis="whole round", low=0.0, write=duration)
        charts.append(el("div", el("h3", "Time: the round, and each site's selecting and training"), plot.svg()))
    if any(volume.values()):
        plot = LinePlot("Megabytes by round", volume, "MB", low=0.0, write=lambda v: f"{v:.1f} MB")
        charts.append(el("div", el("h3", "Traffic: from the server (down) and to it (up)"), plot.svg()))
    if not charts:
        return None
    intro = "What a round took. The traffic is the size of the messages, whether or not they went over a wire."
    return _section("cost", "Time and traffic", intro, el("div", *charts, class_="pair"), _rounds(run))


def privacy(run: Run) -> Section:
    """Who could learn what, the run's own mode marked; and what noise has cost."""
    mode = privacy_mode(run)
    rows = [
        el(
            "tr",
            el("th", name, scope="row"),
            *(el("td", text) for text in texts),
            class_="main" if name == mode else None,
        )
        for name, *texts in (row.values() for row in disclosure.rows())
    ]
    table = _table(disclosure.HEADINGS.values(), rows, class_="words")
    spent = run.last("epsilon")
    cost = f" Noise has cost epsilon {spent:.3g}; the unit is one site's whole update." if spent else ""
    intro = f"This run's mode is {mode}, in bold. What each party could learn that keeps to the protocol.{cost}"
    notes = el("ul", *(el("li", note) for note in disclosure.NOTES), class_="note")
    return _section("privacy", "Who could learn what", intro, el("div", table, class_="scroll whole"), notes)


def troubles(run: Run) -> Section:
    """Refused and failed updates."""
    if not run.failures:
        count = int(sum(run.series("failed").values()))
        text = (
            f"{count} in all; the run recorded no reasons."
            if count
            else "None: every update passed the gate and counted."
        )
        return _section("troubles", "Refused and failed", text)
    keys = ("round", "client", "reason", "detail")
    rows = [el("tr", *(el("td", failure.get(key, "")) for key in keys)) for failure in run.failures[:_MOST_FAILURES]]
    intro = "A refusal or failure costs that site its part in the round; the others go on."
    more = len(run.failures) - len(rows)
    note = el("p", f"{more} more are in failures.jsonl.", class_="note") if more else ""
    table = _table(["round", "site", "reason", "detail"], rows, class_="words")
    return _section("troubles", "Refused and failed", intro, el("div", table, class_="scroll"), note)


def samples(run: Run) -> Section | None:
    """Images with their boxes."""
    if not run.pictures:
        return None
    shown = run.pictures[:_MOST_PICTURES]
    key = el(
        "p",
        el("span", class_="key true"),
        "true polyp",
        el("span", class_="key pred"),
        "detection, with its confidence",
    )
    whose = "each site's own model sees" if _PERSONAL & set(strategies(run)) else "the global model sees"
    note = f"Validation images as {whose} them; {len(shown)} of {len(run.pictures)} are shown."
    return _section("samples", "Samples", note, key, el("div", *map(pictures.figure, shown), class_="gallery"))


def settings(run: Run) -> Section | None:
    """Configuration, versions and machine."""
    parts = []
    if run.config:
        parts.append(el("div", el("h3", "Configuration"), el("pre", run.config, tabindex=0)))
    tables = [_facts(run.facts.get(key), title) for key, title in (("versions", "Versions"), ("machine", "Machine"))]
    loose = {k: plain(v) for k, v in flat(run.facts).items()}
    tables.append(_facts(loose, "Run"))
    if any(tables):
        parts.append(el("div", *tables))
    if not parts:
        return None
    return _section(
        "settings", "How it was made", "Everything needed to repeat the run.", el("div", *parts, class_="pair")
    )


ALL: Sequence[Callable[[Run], Section | None]] = (
    quality,
    cross_site,
    comparison,
    selection,
    cost,
    privacy,
    troubles,
    samples,
    settings,
)


def _table(heads: Iterable[object], rows: Iterable[Markup], class_: str | None = None) -> Markup:
    head = el("thead", el("tr", *(el("th", text, scope="col") if text else el("td") for text in heads)))
    return el("table", head, el("tbody", *rows), class_=class_)


def _numbers(lines: Mapping[str, Mapping[int, float]], write: Callable[[float | None], str]) -> Markup:
    """The table behind a chart."""
    rounds = sorted({r for points in lines.values() for r in points})
    rows = [
        el("tr", el("th", r, scope="row"), *(el("td", write(points.get(r))) for points in lines.values()))
        for r in rounds
    ]
    return el("details", el("summary", "The numbers"), el("div", _table(["round", *lines], rows), class_="scroll"))


def _rounds(run: Run) -> Markup:
    columns: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
        ("round_s", "time", duration),
        ("bytes_down", "down", size),
        ("bytes_up", "up", size),
        ("accepted", "accepted", lambda v: number(v, 0)),
        ("failed", "failed", lambda v: number(v, 0)),
    )
    series = [(title, write, run.series(metric)) for metric, title, write in columns]
    rounds = sorted({r for _, _, points in series for r in points})
    rows = [
        el("tr", el("th", r, scope="row"), *(el("td", write(points.get(r))) for _, write, points in series))
        for r in rounds
    ]
    table = _table(["round", *(title for title, _, _ in series)], rows)
    return el("details", el("summary", "Every round"), el("div", table, class_="scroll"))


def _facts(facts: object, title: str) -> Markup:
    if not isinstance(facts, Mapping) or not facts:
        return raw("")
    rows = [el("tr", el("th", key, scope="row"), el("td", value)) for key, value in facts.items()]
    return join(el("h3", title), el("table", el("tbody", *rows), class_="words"))


def _kept(cell: tuple[int, int] | None) -> str:
    return "–" if cell is None else f"{cell[0]:,} / {cell[1]:,}"


def _scaled(series: Mapping[int, float], factor: float) -> dict[int, float]:
    return {r: v * factor for r, v in series.items()}


def _tone(gain: float) -> str | None:
    return "good" if gain > 0.0005 else "bad" if gain < -0.0005 else None
