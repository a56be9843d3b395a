"""Signed updates through the engine, and what the audit logs say of a run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypfed import Federation, History, Task, Update
from polypfed.backends import Local
from polypfed.core import audit
from polypfed.core.errors import AuditError
from polypfed.core.messages import Reply, decode, encode
from polypfed.privacy.keyring import member_verifiers, provision
from tests.problems import Scripted, bits, sites

BAD = "site-01"


class Signed(Scripted):
    """Sites with keys and folders, and a script between them and the server."""

    def host(self, clients: Any, directory: Path | None) -> None:
        super().host(clients, directory)
        from polypfed.backends.local import open_site

        self._sites = {c.name: open_site(c, directory) for c in clients}

    def exchange(self, tasks: Any, deadline: float) -> Iterator[Reply]:
        for name in sorted(tasks):
            yield from self.script(name, tasks[name], self._sites[name].perform(tasks[name]))


def federated(folder: Path, script: Any = None, **settings: Any) -> History:
    clients = sites()
    provision([c.name for c in clients], folder)
    fed = Federation(clients=clients, keys=folder / "keys", **settings)
    return fed.run(3, Signed(script or (lambda name, task, reply: iter([reply]))), folder)


def test_signed_updates_are_taken_and_give_the_same_bits(tmp_path: Path) -> None:
    history = federated(tmp_path)
    assert not history.failures
    assert bits(history) == bits(Federation(clients=sites()).run(3, Local()))


def test_an_update_survives_its_bytes_with_the_signature(tmp_path: Path) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield decode(encode(reply))  # type: ignore[misc]

    assert not federated(tmp_path, script).failures


def altered(reply: Update, **fields: Any) -> Update:
    return replace(reply, **fields)


CHANGES: dict[str, Any] = {
    "no signature": lambda u: altered(u, signature=""),
    "rubbish": lambda u: altered(u, signature="zz"),
    "another's": lambda u: altered(u, signature="00" * 64),
    "weight": lambda u: altered(u, weight=u.weight + 1),
    "metrics": lambda u: altered(u, metrics={**u.metrics, "loss": 1.0}),
    "one value": lambda u: altered(u, vectors={"delta": np.nextafter(u.vectors["delta"], np.float32(9))}),
    "base": lambda u: altered(u, base="0" * 64),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_under_way_is_refused(tmp_path: Path, change: Any) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield change(reply) if name == BAD and isinstance(reply, Update) else reply

    history = federated(tmp_path, script, evaluate="off")
    assert [(f.client, f.reason) for f in history.failures] == [(BAD, "signature")] * 3


def test_one_site_cannot_speak_for_another(tmp_path: Path) -> None:
    """A forged update does not take the place of the honest one that comes behind it."""

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD and isinstance(reply, Update):
            yield replace(reply, client="site-02")
        yield reply

    history = federated(tmp_path, script, evaluate="off")
    assert {f.reason for f in history.failures} == {"signature"}
    assert bits(history) == bits(Federation(clients=sites(), evaluate="off").run(3, Local()))


def test_signed_updates_of_other_rounds_runs_and_models_do_not_count(tmp_path: Path) -> None:
    """The site itself signs them, so that only the statement can give them away."""
    kept: list[Update] = []

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD and isinstance(reply, Update):
            yield from kept
            kept.append(reply)
        yield reply

    assert [f.reason for f in federated(tmp_path / "a", script, evaluate="off").failures] == ["stale-round"] * 3
    old = kept[0]

    def another(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield replace(old, run=task.run) if name == BAD and task.round == 1 else reply

    assert [f.reason for f in federated(tmp_path / "b", another, evaluate="off").failures] == ["signature"]


def test_an_update_of_another_model_is_refused_though_it_is_signed(tmp_path: Path) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        if name == BAD:
            wrong = replace(task, vectors={"model": task.vectors["model"] + np.float32(1)})
            reply = backend._sites[name].perform(wrong)
        yield reply

    clients = sites()
    provision([c.name for c in clients], tmp_path)
    backend = Signed(script)
    history = Federation(clients=clients, keys=tmp_path / "keys", evaluate="off").run(1, backend, tmp_path)
    assert [(f.client, f.reason) for f in history.failures] == [(BAD, "wrong-base")]


def test_a_site_that_is_not_in_the_roster_does_not_count(tmp_path: Path) -> None:
    clients = sites()
    provision([c.name for c in clients[:3]], tmp_path)
    history = Federation(clients=clients, keys=tmp_path / "keys", evaluate="off").run(
        1, Signed(lambda name, task, reply: iter([reply])), tmp_path
    )
    assert [(f.client, f.reason) for f in history.failures] == [("site-03", "signature")]


# ------------------------------------------------------------------------------------------------------- audit logs


def test_the_logs_of_server_and_sites_agree(tmp_path: Path) -> None:
    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield replace(reply, weight=-1) if name == BAD and isinstance(reply, Update) and task.round == 2 else reply

    history = federated(tmp_path, script)
    server = tmp_path / "audit.jsonl"
    events = [(e["event"], e["actor"], e["round"]) for e in audit.entries(server)]
    accepted = [(a, r) for event, a, r in events if event == "accept"]
    assert len(accepted) == 11
    assert (BAD, 2) not in accepted
    assert ("failure", BAD, 2) in events
    commits = [e for e in audit.entries(server) if e["event"] == "commit"]
    assert history.model is not None
    assert commits[-1]["subject"] == audit.sha256(history.model.data)
    site = tmp_path / "sites" / "site-02" / "audit.jsonl"
    verifier = member_verifiers(tmp_path / "keys")["site-02"]
    assert audit.verify(site, verifier=verifier).signed
    assert audit.verify(server, audit.heads_in(site)).good
    fits = [e for e in audit.entries(site) if e["event"] == "fit"]
    assert [(e["round"], e["facts"]["weight"]) for e in fits] == [(1, 33), (2, 33), (3, 33)]
    assert [e["subject"] for e in fits[1:]] == [c["subject"] for c in commits[:-1]]


def test_a_server_that_rewrites_its_log_is_found_out_by_a_sites(tmp_path: Path) -> None:
    federated(tmp_path)
    server, site = tmp_path / "audit.jsonl", tmp_path / "sites" / "site-02" / "audit.jsonl"
    kept = [e for e in audit.entries(server) if e["actor"] != BAD]
    server.unlink()
    server.with_name("audit.jsonl.head").unlink()
    log = audit.AuditLog(server)
    for e in kept:
        log.add(e["event"], e["actor"], run=e["run"], round=e["round"], subject=e["subject"], **e["facts"])
    log.seal()
    assert audit.verify(server).good
    assert not audit.verify(server, audit.heads_in(site)).good


def test_a_run_is_not_resumed_on_a_log_that_was_cut(tmp_path: Path) -> None:
    federated(tmp_path)
    path = tmp_path / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    fed = Federation(clients=sites(), evaluate="global")
    with pytest.raises(AuditError, match="its head says"):
        fed.resume(tmp_path, 4, Local())
    path.unlink()
    fed.resume(tmp_path, 4, Local())
    first = audit.entries(path)[0]
    assert (first["event"], first["facts"]["lost"]) == ("anew", whole.count(b"\n"))


def test_words_of_strangers_stay_out(tmp_path: Path) -> None:
    from polypfed import Failure

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield Failure("Jane Doe <b>", task.round, "DOE^JANE 1970", "/data/JANE.png", task.run)
        yield replace(reply, client="../x") if name == BAD and isinstance(reply, Update) else reply

    federated(tmp_path, script)
    text = (tmp_path / "audit.jsonl").read_text()
    assert "JANE" not in text.upper()
    assert "../x" not in text
    assert '"stranger"' in text
