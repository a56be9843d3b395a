"""The live view's state from the files of a run, its server's refusals, and its terminal."""

import fcntl
import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import polypfed as pf
from polypfed.cli import app
from polypfed.core.errors import ConfigError, DataError
from polypfed.core.journal import FILE, Journal
from polypfed.federation import Event
from polypfed.report.read import Run
from polypfed.report.watch import WatchServer, is_open, look, place_of
from polypfed.report.watch.state import now

TOKEN = "0123456789abcdef-secret"


def line(time: float, kind: str, **values: Any) -> dict[str, Any]:
    return {"time": time, "kind": kind, **values}


BEGIN = [line(100, "begin", rounds=4), line(100, "saved", round=0), line(110, "round", round=1)]
FIT = line(112, "fit", round=1, site="a", ok=True, metrics={"loss": 0.5, "kept": 7, "images": 9}, weight=7)
REFUSED = line(113, "fit", round=1, site="b", ok=False, reason="norm", detail="b: too long")


def run_of(cells: dict[tuple[str, str, int], float], **more: Any) -> Run:
    return Run("study", cells, facts={"settings": {"sites": ["a", "b", "c"], "per_round": None}}, **more)


def test_a_round_under_way() -> None:
    seen = now(run_of({("map50", "a", 0): 0.1}), [*BEGIN, FIT, REFUSED], True, 115.0)
    assert (seen.status, seen.round, seen.rounds, seen.phase) == ("running", 1, 4, "training")
    a, b, c = seen.sites
    assert (a.doing, a.good, a.heard, a.kept, a.images, a.loss) == ("trained round 1", True, 112, 7, 9, 0.5)
    assert (b.doing, b.good, b.refused) == ("update refused: norm", False, 1)
    assert (c.doing, c.good, c.heard) == ("training", None, None)
    assert [f["detail"] for f in seen.refused] == ["b: too long"]


def test_a_failure_that_is_recorded_counts_once() -> None:
    kept = {"client": "b", "round": 1, "reason": "norm", "detail": "b: too long", "run": "x"}
    seen = now(run_of({}, failures=(kept,)), [*BEGIN, FIT, REFUSED, line(120, "saved", round=1)], True, 121.0)
    assert seen.refused == (kept,)
    assert now(run_of({}, failures=(kept,)), [*BEGIN, FIT, REFUSED], True, 121.0).refused == (kept,)


def test_due_at_the_median_pace() -> None:
    """Rounds of 10, 12 and 50 s, and two of five to go, the first of which began at 200: 200 + 2 * 12."""
    cells = {("round_s", "", r): s for r, s in ((1, 10.0), (2, 12.0), (3, 50.0))}
    journal = [line(100, "begin", rounds=5), line(200, "round", round=4)]
    assert now(run_of(cells), journal, True, 205.0).due == 224.0
    assert now(run_of(cells), journal, True, 300.0).due == 300.0  # late already: any moment
    assert now(run_of({}), journal, True, 205.0).due is None


@pytest.mark.parametrize(
    ("more", "working", "status", "detail"),
    [
        ([], True, "running", ""),
        ([], None, "running", ""),
        ([], False, "stopped", ""),
        ([line(120, "end", ok=True, detail="")], False, "complete", ""),
        ([line(120, "end", ok=False, detail="no quorum")], False, "failed", "no quorum"),
        ([line(120, "end", ok=True, detail=""), *BEGIN], True, "running", ""),  # resumed
    ],
)
def test_how_a_run_stands(more: list[dict[str, Any]], working: bool | None, status: str, detail: str) -> None:
    seen = now(run_of({}), [*BEGIN, *more], working, 130.0)
    assert (seen.status, seen.detail) == (status, detail)


def test_without_a_journal_the_record_says_when_it_is_complete() -> None:
    config = "[federation]\nrounds = 2\n[privacy]\nepsilon = 4\n"
    cells = {("round_s", "", 2): 1.0, ("epsilon", "", 2): 1.5}
    seen = now(run_of(cells, config=config), [], False, 1.0)
    assert (seen.status, seen.round, seen.epsilon, seen.budget) == ("complete", 2, 1.5, 4.0)
    assert now(run_of({}, config=config), [], False, 1.0).status == "stopped"


def test_sites_that_may_not_be_drawn() -> None:
    run = Run("study", {}, facts={"settings": {"sites": ["a"], "per_round": 1}})
    assert now(run, BEGIN, True, 111.0).sites[0].doing == "training, or not drawn"


def test_an_empty_folder_waits(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert (seen.status, seen.sites, seen.rounds) == ("waiting", (), None)


def test_a_lock_is_seen_and_not_touched(tmp_path: Path) -> None:
    assert is_open(tmp_path) is False
    with open(tmp_path / ".lock", "ab") as file:
        assert is_open(tmp_path) is False
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_open(tmp_path) is True
    assert is_open(tmp_path) is False
    assert is_open(tmp_path, tmp_path / "no-such-file") is None


def test_journal_of_a_real_run(tmp_path: Path) -> None:
    sites = [pf.NumpyClient(name, lambda x: x - 1, [0.0]) for name in "ab"]
    with Journal(tmp_path, 1) as listen:
        pf.Federation(clients=sites).run(1, pf.backends.Local(), tmp_path, listen)
    kinds = [json.loads(text)["kind"] for text in (tmp_path / FILE).read_text().splitlines()]
    assert kinds == "begin evaluate evaluate saved round fit fit evaluate evaluate saved end".split()
    seen = look(tmp_path)
    assert (seen.status, seen.round, [s.name for s in seen.sites]) == ("complete", 1, ["a", "b"])


def test_a_journal_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with Journal(tmp_path, 1) as listen:
        listen(Event("round", 1))
    assert os.listdir(tmp_path / FILE) == []


def test_the_end_says_why(tmp_path: Path) -> None:
    def fail() -> None:
        with Journal(tmp_path, 1) as listen:
            listen(Event("round", 1))
            raise DataError("no such\nimage", where="x")

    with pytest.raises(DataError):
        fail()
    assert look(tmp_path).detail == "x: no such image"


def test_a_run_that_was_refused_its_folder_writes_no_journal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), Journal(tmp_path, 1):
        raise ConfigError("another process is working in this folder")
    assert not (tmp_path / FILE).exists()


# -------------------------------------------------------------------------------------------------------- server


def ask(server: WatchServer, path: str = "/", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return found


@pytest.fixture
def open_view(make_run: Callable[..., Path]) -> Iterator[WatchServer]:
    with WatchServer(make_run()) as server:
        yield server


def test_the_page_is_whole_without_its_script(open_view: WatchServer) -> None:
    code, headers, text = ask(open_view)
    assert code == 200
    for words in ("coast", "north", "valley", "mAP50, all sites", "non-finite", "delta: 3 values"):
        assert words in text
    assert "http" not in text.replace("http-equiv", "")  # nothing from anywhere
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_state_is_sent_when_it_has_changed(open_view: WatchServer) -> None:
    _, _, text = ask(open_view, "/state")
    seen = json.loads(text)["seen"]
    assert ask(open_view, f"/state?seen={seen}")[0] == 204
    with open(open_view.folder / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"round": 7, "site": "", "metric": "map50", "value": 0.9}) + "\n")
    assert ask(open_view, f"/state?seen={seen}")[0] == 200


def test_only_this_machine_by_name(open_view: WatchServer) -> None:
    assert ask(open_view, Host="evil.example:80")[0] == 403
    assert ask(open_view, Host="localhost:80")[0] == 200
    assert ask(open_view, "/../history.jsonl")[0] == 404


def test_what_comes_from_a_site_is_text(tmp_path: Path) -> None:
    hostile = {"round": 1, "client": "<b>a", "reason": "<script>x", "detail": "<img src=x>"}
    (tmp_path / "failures.jsonl").write_text(json.dumps(hostile) + "\n")
    with WatchServer(tmp_path) as server:
        text = ask(server)[2]
    assert "&lt;script&gt;x" in text
    assert "<img" not in text


def test_a_damaged_record_is_said_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("nonsense\n")
    with WatchServer(tmp_path) as server:
        code, _, text = ask(server, "/state")
    assert code == 500
    assert "line 1 is not a JSON object" in text


def test_another_address_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Give a token"):
        WatchServer(tmp_path, host="0.0.0.0")
    with pytest.raises(ConfigError, match="fewer than 16"):
        WatchServer(tmp_path, token="short")
    with WatchServer(tmp_path, host="0.0.0.0", token=TOKEN) as server:
        assert ask(server)[0] == 401
        assert ask(server, "/state")[0] == 401
        assert ask(server, "/?token=wrong")[0] == 401
        code, headers, _ = ask(server, f"/?token={TOKEN}")
        assert (code, headers["Location"]) == (303, "/")
        assert "HttpOnly; SameSite=Strict" in headers["Set-Cookie"]
        assert ask(server, Cookie=headers["Set-Cookie"].partition(";")[0])[0] == 200
        assert ask(server, "/state", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with WatchServer(tmp_path) as first, pytest.raises(ConfigError, match="cannot be used"):
        WatchServer(tmp_path, port=first.port)


def test_many_readers_at_once(open_view: WatchServer) -> None:
    codes: list[int] = []
    readers = [threading.Thread(target=lambda: codes.append(ask(open_view, "/state")[0])) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert codes == [200] * 8


# ------------------------------------------------------------------------------------------------------ terminal


def test_one_look_in_the_terminal(make_run: Callable[..., Path]) -> None:
    done = CliRunner().invoke(app, ["watch", str(make_run()), "--once"], env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    for words in ("coast", "round 6", "mAP50 0.632", "non-finite: delta: 3 values"):
        assert words in done.output


def test_following_ends_with_the_run(make_run: Callable[..., Path]) -> None:
    done = CliRunner().invoke(app, ["watch", str(make_run()), "--terminal"])
    assert done.exit_code == 0
    assert "stopped" in done.output


def test_a_deployment_on_flower_names_its_run(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "server.toml").write_text('directory = "kept"\n')
    assert place_of(tmp_path) == place_of(tmp_path / "server") == tmp_path / "server" / "kept"
    with pytest.raises(DataError, match="no such folder"):
        place_of(tmp_path / "absent")


def test_a_deployment_on_nvflare_names_its_latest_run(tmp_path: Path) -> None:
    kits = {name: tmp_path / "kits" / name / "local" for name in ("a-site", "server")}
    for name, key in (("a-site", "client"), ("server", "federation")):
        kits[name].mkdir(parents=True)
        (kits[name] / "polypfed.toml").write_text(f'{key} = "some:thing"\n')
    runs = kits["server"].parent / "runs"
    assert place_of(tmp_path) == place_of(kits["server"].parent) == runs / "study"
    for second, (run, name) in enumerate([("new", "run.json"), ("new", FILE), ("old", FILE), ("old", "run.json")]):
        (runs / run).mkdir(parents=True, exist_ok=True)
        (runs / run / name).write_text("")
        os.utime(runs / run / name, (second % 3, second % 3))  # the journal of "old" is the latest, its run.json is not
    assert place_of(tmp_path) == runs / "old"


def test_watch_wants_a_run_or_a_deployment(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "server.toml").write_text(f'directory = "{run}"\n')
    done = CliRunner().invoke(app, ["watch", "--deployment", str(tmp_path), "--once"], env={"COLUMNS": "140"})
    assert "round 6" in done.output
    for words in (["watch"], ["watch", str(run), "--deployment", str(tmp_path)]):
        assert CliRunner().invoke(app, words).exit_code == 2


def test_a_token_file_that_others_can_read_is_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    done = CliRunner().invoke(app, ["watch", str(make_run()), "--token-file", str(path)])
    assert "can be read by others" in str(done.exception)
