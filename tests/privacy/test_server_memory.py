"""The server as a process of its own: after a round its whole memory is searched for what it must not have."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polypfed.privacy.frames import Label, joined, split
from polypfed.privacy.he import open_sum, seal_update
from polypfed.privacy.keys import JobKey, job_id
from polypfed.privacy.params import HEParams
from polypfed.privacy.quantise import Codec, Grid
from polypfed.privacy.roster import Identity, Roster
from polypfed.privacy.seal import KeyHolder

pytest.importorskip("tenseal")
pytest.importorskip("cryptography.hazmat.primitives.hpke")

SERVER = """
import json, sys
from pathlib import Path
from polypfed.privacy.frames import Label, joined, split
from polypfed.privacy.he import Accumulator
from polypfed.privacy.params import HEParams
from polypfed.privacy.roster import Identity, Roster
folder = Path(sys.argv[1])
given = json.loads((folder / "public.json").read_text())
roster, params = Roster.from_json(given["roster"]), HEParams.for_sites(3)
label = Label(bytes.fromhex(given["job"]), 1, 0, bytes.fromhex(given["key"]), params.id, given["length"])
server = Accumulator(params, label, roster.verifiers)
for upload in sorted(folder.glob("*.upload")):
    for frame in split(upload.read_bytes()):
        server.add(frame)
(folder / "sum").write_bytes(joined(server.frames(Identity.load(folder / "server.key").signer)).tobytes())
assert "tenseal" not in sys.modules
print("done", flush=True)
sys.stdin.read()
"""


def memory_of(pid: int) -> list[np.ndarray]:
    """Everything writable in another process, as 8-byte words; pages of zeros left out."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, access, *_ = line.split()
            start, stop = (int(end, 16) for end in span.split("-"))
            if access.startswith("rw"):
                try:
                    memory.seek(start)
                    words = np.frombuffer(memory.read(stop - start), np.uint64).reshape(-1, 512)
                except (OSError, ValueError):  # the kernel's own pages
                    continue
                found.append(words[words.any(axis=1)].reshape(-1))
    return found


def holds(memory: list[np.ndarray], secret: bytes) -> bool:
    """Is one of 50 words of the secret there, at an address that is a multiple of four?"""
    usable = np.frombuffer(secret[: len(secret) // 8 * 8], np.uint64)
    wanted = usable[:: max(1, usable.size // 50)].copy()
    for words in memory:
        whole = words.view(np.uint32)
        for shifted in (words, whole[1:-1].view(np.uint64)):
            candidates = np.zeros(1 << 16, np.bool_)
            candidates[wanted.view(np.uint16)[::4]] = True
            if np.isin(wanted, shifted[candidates[shifted.view(np.uint16)[::4]]]).any():
                return True
    return False


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_the_servers_memory_holds_neither_key_nor_values(tmp_path):
    people = [Identity.create(n) for n in "abc"]
    serving = Identity.create("server")
    roster = Roster(tuple(p.public for p in people), serving.public)
    params = HEParams.for_sites(3)
    key = JobKey.create("run", params, roster)
    holder, codec = KeyHolder(params, key.secret), Codec(params.slots, Grid.flat(1.0, 30_000))
    label = Label(job_id("run"), 1, 0, key.id, params.id, codec.size)
    deltas = [np.random.default_rng(i).normal(0, 0.2, 30_000).astype(np.float32) for i in range(3)]
    slots = [codec.encode(d, 1, np.random.default_rng(9)).slots for d in deltas]
    for person, own in zip(people, slots, strict=True):
        frames = seal_update(holder, own, label, roster.number(person.name), person.signer)
        (tmp_path / f"{person.name}.upload").write_bytes(joined(frames).tobytes())
    serving.save(tmp_path / "server.key")
    public = {"roster": roster.to_json(), "job": label.job.hex(), "key": key.id.hex(), "length": codec.size}
    (tmp_path / "public.json").write_text(json.dumps(public))

    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"done\n"
        try:
            memory = memory_of(server.pid)
        except PermissionError:
            pytest.skip("this system does not let a process look into its child")
        finally:
            server.communicate(b"")
    found = open_sum(holder, split((tmp_path / "sum").read_bytes()), label, roster.server.verifier)
    mean = codec.decode(found.slots, expect=3).mean
    files = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert holds(memory, (tmp_path / "a.upload").read_bytes()[72:136])  # the search finds what is there: a seed
    for secret in (
        key.secret,
        key.seal,
        mean.tobytes(),
        found.slots.tobytes(),
        *(a.tobytes() for a in [*deltas, *slots]),
    ):
        assert not holds(memory, secret)
        assert not any(secret[i : i + 16] in files for i in range(0, len(secret) - 16, max(16, len(secret) // 50)))
