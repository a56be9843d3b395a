import json
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polypfed.core import audit
from polypfed.core.audit import AuditLog, Head, verify
from polypfed.core.errors import AuditError


def written(path: Path, count: int = 12, **settings: object) -> AuditLog:
    log = AuditLog(path, **settings)  # type: ignore[arg-type]
    for i in range(count):
        log.add("accept", f"site-{i % 3}", run="abc", round=i // 3, subject="f" * 64, weight=10 + i, loss=0.25 * i)
    log.seal()
    return log


def test_a_whole_log_is_good_and_can_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    first = written(path)
    assert verify(path) == audit.Findings(first.head)
    written(path, 3)
    entries = audit.entries(path)
    assert [e["n"] for e in entries] == list(range(15))
    assert verify(path, [first.head]).good


def test_the_chain_is_what_the_docstring_says(tmp_path: Path) -> None:
    """By hand: SHA-256 of each line's bytes is in the next."""
    import hashlib

    path = tmp_path / "audit.jsonl"
    written(path, 3)
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["prev"] for line in lines] == [
        "0" * 64,
        *(hashlib.sha256(line).hexdigest() for line in lines[:-1]),
    ]


def edited(data: bytes, draw: random.Random) -> bytes:
    """One edit, deletion, repetition, reordering, insertion or truncation."""
    lines, at = data.splitlines(keepends=True), draw.randrange(len(data))
    i, j = draw.sample(range(len(lines)), 2)
    kind = draw.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]
    if kind == 1:
        return b"".join(lines[:i] + lines[i + 1 :])
    if kind == 2:
        return b"".join([*lines[:i], lines[j], *lines[i:]])
    if kind == 3:
        lines[i], lines[j] = lines[j], lines[i]
        return b"".join(lines)
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[at:]
    return b"".join(lines[: min(i, j) + 1])


def test_a_thousand_random_edits_are_all_found(tmp_path: Path) -> None:
    path, draw = tmp_path / "audit.jsonl", random.Random(8)
    written(path, 40)
    data = path.read_bytes()
    for number in range(1000):
        changed = edited(data, draw)
        if changed == data:
            continue
        path.write_bytes(changed)
        found = verify(path)
        assert not found.good, number
        assert found.line > 0


def rewritten(path: Path, count: int) -> None:
    """What somebody does who knows the format: a chain of its own, with a head that fits."""
    path.unlink()
    path.with_name(path.name + ".head").unlink()
    written(path, count)


def test_a_chain_made_anew_does_not_hold_the_heads_that_others_keep(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    head = written(path).head
    rewritten(path, 12)
    assert verify(path).good  # the file alone cannot tell
    assert not verify(path, [head]).good
    with pytest.raises(AuditError, match="12 lines is not in it"):
        AuditLog(path, pin=head)
    rewritten(path, 4)
    assert not verify(path, [head]).good


def test_without_the_key_no_head_can_be_made(tmp_path: Path) -> None:
    path, key = tmp_path / "audit.jsonl", Ed25519PrivateKey.generate()
    written(path, signer=key)
    assert verify(path, verifier=key.public_key()) == audit.Findings(verify(path).head, signed=True)
    rewritten(path, 12)
    assert "signature" in verify(path, verifier=key.public_key()).problem


def test_lines_at_the_end_and_the_head_cut_together_are_seen_by_whoever_kept_a_head(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = written(path)
    short = b"".join(path.read_bytes().splitlines(keepends=True)[:-2])
    path.write_bytes(short)
    assert verify(path).line == 11
    cut = Head(10, json.loads(audit.line_of(audit.entries(path)[-1]))["prev"], len(short))
    audit.write_head(path, cut)
    assert not verify(path).good  # that hash is of the line before
    assert not verify(path, [log.head]).good


def test_a_torn_last_line_is_cut_and_whole_lines_behind_the_head_stay(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, 2)
    log = AuditLog(path)
    log.add("round", "server", round=1)
    audit.append_lines(path, log._waiting)  # killed before the head
    with open(path, "ab") as file:
        file.write(b'{"actor":"serv')
    assert verify(path).problem == "is cut short"
    again = AuditLog(path)
    again.add("resume", "server")
    again.seal()
    assert [e["event"] for e in audit.entries(path)] == ["accept", "accept", "round", "resume"]
    assert verify(path).good


@pytest.mark.parametrize(
    "value", ["a/b.png", "IMG 0042", "frame.jpg", "x" * 129, "name\nline", float("nan"), b"x", [1], 1 << 60]
)
def test_only_words_and_numbers_are_kept(tmp_path: Path, value: object) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(AuditError):
        log.add("accept", fact=value)
    if isinstance(value, str):
        with pytest.raises(AuditError):
            log.add("accept", value)


def test_a_line_costs_less_than_a_millisecond(tmp_path: Path) -> None:
    from time import process_time

    log, begun = AuditLog(tmp_path / "audit.jsonl"), process_time()
    for i in range(500):
        log.add("accept", "site-1", run="abc", round=i, subject="f" * 64, weight=i)
    log.seal()
    assert (process_time() - begun) / 500 < 1e-3
