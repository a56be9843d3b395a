"""Damaged run directories end in one line that names file and remedy, and no report is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polypfed.core.errors import DataError
from polypfed.report import write_report
from polypfed.report.read import read_run

MakeRun = Callable[..., Path]
ROW = '{"round": 1, "site": "a", "metric": "map50", "value": 0.5}\n'


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("history.jsonl", f"{ROW}oops\n{ROW}", "line 2 is not a JSON object"),
        ("history.jsonl", f"{ROW}[1]\n", "line 2 is not a JSON object"),
        ("history.jsonl", '{"round": 1, "site": "a", "metric": "map50"}\n', "line 1 is not a row"),
        ("history.jsonl", '{"round": "x", "site": "a", "metric": "m", "value": 1}\n', "line 1 is not a row"),
        ("baselines.jsonl", '{"round": 1}\n', "line 1 is not a row"),
        ("failures.jsonl", "{}\nnull\n", "line 2 is not a JSON object"),
        ("run.json", "[]", "not a JSON object"),
        ("config.toml", "a = ", "not TOML"),
        ("config.toml", b"\xff\xfe", "cannot be read as text"),
        ("samples/samples.json", "{", "not a list of samples"),
        ("samples/samples.json", "7", "not a list of samples"),
        ("samples/samples.json", '[{"site": "a"}]', "not a list of samples"),
        (
            "samples/samples.json",
            '[{"site": "a", "image": "0000.png", "true": [[1, 2, 3]], "pred": []}]',
            "list of samples",
        ),
        (
            "samples/samples.json",
            '[{"site": "a", "image": "0000.png", "true": [[1, 2, 3, NaN]], "pred": []}]',
            "list of samples",
        ),
        (
            "samples/samples.json",
            '[{"site": "a", "image": "../secret.png", "true": [], "pred": []}]',
            "not in this folder",
        ),
        ("samples/0000.png", b"\x89PNG\r\n\x1a\n", "truncated|damaged|cut short"),
        ("sites/a/selection/round-0001.csv", "image,what\n", "not a record of a selection"),
    ],
)
def test_damage_is_named(make_run: MakeRun, file: str, content: str | bytes, words: str) -> None:
    run = make_run()
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert Path(file).name in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_link_out_of_the_folder_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (run / "samples" / "0000.png").rename(tmp_path / "outside.png")
    (run / "samples" / "0000.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="not in this folder"):
        write_report(run)


def test_no_history(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no history\.jsonl.*Point to"):
        write_report(tmp_path)


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(ROW + ROW[:30])
    assert read_run(tmp_path).cells == {("map50", "a", 1): 0.5}


def test_the_last_row_of_a_kind_wins_and_what_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    rows = [("map50", 1, 0.1), ("map50", 1, 0.2), ("loss", 1, float("nan")), ("loss", 2, 3.0)]
    text = "".join(json.dumps({"round": r, "site": "", "metric": m, "value": v}) + "\n" for m, r, v in rows)
    (tmp_path / "history.jsonl").write_text(text)
    run = read_run(tmp_path)
    assert run.series("map50") == {1: 0.2}
    assert run.series("loss") == {2: 3.0}
    assert run.last("loss") == 3.0
    assert run.last("nothing") is None


def test_selection_records_are_read_by_site(make_run: MakeRun) -> None:
    run = make_run()
    folder = run / "sites" / "north" / "selection"
    folder.mkdir(parents=True)
    (folder / "round-0002.csv").write_text("image,confidence,kept\nx,0.25,1\ny,0.9,0\n")
    assert [(d.site, d.round, d.image, d.kept) for d in read_run(run).decisions] == [
        ("north", 2, "x", True),
        ("north", 2, "y", False),
    ]
