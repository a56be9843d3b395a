"""The page as a browser would take it."""

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from polypfed.report import write_report

MakeRun = Callable[..., Path]
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&"


class Page(HTMLParser):
    """Tags, attributes, ids and text; fails on a tag that is closed but not open."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def _page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_nothing_is_fetched_or_run(make_run: MakeRun) -> None:
    source = write_report(make_run()).read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "img"} & set(page.tags)
    assert all(h.startswith(("#", "data:image/jpeg;base64,")) for h in page.of("href"))
    assert not page.of("src")
    assert not re.search(r"url\(|@import|https?:", source)
    assert any("default-src 'none'" in content for content in page.of("content"))


def test_every_section_is_there_and_linked(make_run: MakeRun) -> None:
    page = _page(make_run())
    wanted = ["quality", "matrix", "comparison", "selection", "cost", "privacy", "troubles", "samples", "settings"]
    assert [h[1:] for h in page.of("href") if h.startswith("#")] == wanted
    ids = page.of("id")
    assert set(wanted) <= set(ids)
    assert len(set(ids)) == len(ids)
    assert set(page.of("aria-labelledby")) <= set(ids)
    assert "not a medical device" in " ".join(page.text)
    assert "AGPL-3.0" in " ".join(page.text)


@pytest.mark.parametrize(
    ("stages", "mode"), [([], "plain"), (["quantise", "mask", "encrypt"], "hybrid"), (["clip", "noise"], "dp")]
)
def test_the_runs_own_mode_of_privacy_is_marked(tmp_path: Path, stages: list[str], mode: str) -> None:
    rows = [{"round": 1, "site": "", "metric": m, "value": v} for m, v in (("map50", 0.5), ("epsilon", 3.25))]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"strategy": {"name": "fedavg"}, "stages": [{"name": name} for name in stages]}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    text = write_report(tmp_path).read_text()
    assert f'<tr class="main"><th scope="row">{mode}</th>' in text
    assert text.count('<tr class="main">') == 1
    assert "epsilon 3.25" in text


def test_it_can_be_read_without_seeing_it(make_run: MakeRun) -> None:
    page = _page(make_run())
    pictures = [(k, v) for tag, k, v in page.attributes if tag == "svg" and k in ("role", "aria-label")]
    assert sum(k == "role" and v == "img" for k, v in pictures) == page.tags["svg"] == 5 + 1 + 6
    labels = [v for k, v in pictures if k == "aria-label"]
    assert len(labels) == page.tags["svg"]
    assert "Image 0001 of north: 1 polyp, 2 detections with confidence 0.82, 0.31" in labels
    assert sum(tag == "th" and key == "scope" for tag, key, _ in page.attributes) == page.tags["th"]
    assert ("html", "lang", "en") in page.attributes


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    first = write_report(run, tmp_path / "elsewhere" / "a.html")
    assert first == tmp_path / "elsewhere" / "a.html"
    assert first.read_bytes() == write_report(run).read_bytes()
    assert sorted(p.name for p in first.parent.iterdir()) == ["a.html"], "no temporary file stays"


def test_what_a_stranger_wrote_stays_text(make_run: MakeRun) -> None:
    run = make_run(sites=("coast", EVIL))
    (run / "config.toml").write_text(f"name = '''</pre></style>{EVIL}'''\n")
    (run / "failures.jsonl").write_text(json.dumps({"round": EVIL, "client": EVIL, "reason": EVIL, "detail": EVIL}))
    facts = {"started": EVIL, "settings": {EVIL: EVIL, "strategy": {"name": EVIL}}, "versions": {EVIL: EVIL}}
    (run / "run.json").write_text(json.dumps(facts | {"machine": {EVIL: [EVIL, {EVIL: EVIL}]}}))
    page = _page(run)
    assert not {"script", "img"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert sum(EVIL in text for text in page.text) > 15, "it is shown, as text"


def test_a_history_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"round": 0, "site": "a", "metric": "loss", "value": 1.5}\n')
    page = _page(tmp_path)
    assert [h for h in page.of("href") if h.startswith("#")] == ["#privacy", "#troubles"]
    (tmp_path / "history.jsonl").write_text("")
    _page(tmp_path)


def test_many_sites_and_rounds_stay_readable(make_run: MakeRun) -> None:
    run = make_run(sites=tuple(f"hospital-{i:02d}" for i in range(20)), rounds=30, pictures=30)
    page = _page(run)
    assert page.tags["figure"] == 24, "pictures are capped"
    assert "24 of 30 are shown" in " ".join(page.text)
    assert "line main" in page.of("class")
    assert write_report(run).stat().st_size < 2_000_000
