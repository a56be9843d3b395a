"""The hostile updates that every engine is driven with, written once: what a site sends, and why it is refused.

One site of four runs a changed program: in round k it answers with case k, signed with its own good key unless the case
says otherwise. Behind the last case it is honest again. An engine's test only says how the answer is put on its wire.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from polypfed import Federation, History, Task, Update
from polypfed.core.messages import Reply
from polypfed.core.model import Vector
from polypfed.core.signing import statement
from polypfed.privacy.keyring import own_signer
from polypfed.strategies import FedAdam, FedAvg, Scaffold
from tests.problems import Scripted, absent, bits, sites

BAD = "site-01"
STRATEGIES = {"fedavg": FedAvg(), "fedadam": FedAdam(), "scaffold": Scaffold(eta=0.7)}


@dataclass(frozen=True)
class Case:
    """One hostile update.

    Attributes:
        name, reason: what it is, and what it is refused for.
        spoil: of the honest update, and the honest one of the round before, makes the hostile one.
        sign: by whom: the site itself, before or after it was spoilt, or nobody.
        head: spoils the bytes of the header.
        on: another reason where an envelope cannot even hold this: it is refused before the gate.
    """

    name: str
    reason: str
    spoil: Callable[[Update, Update], Update] = lambda update, last: update
    sign: str = "after"
    head: Callable[[bytes], bytes] = lambda head: head
    on: Mapping[str, str] = field(default_factory=dict)

    def expected(self, engine: str) -> str:
        return self.on.get(engine, self.reason)


def every(change: Callable[[Vector], Any]) -> Callable[[Update, Update], Update]:
    """All vectors changed."""
    return lambda u, _: replace(u, vectors={name: change(v) for name, v in u.vectors.items()})


def last(change: Callable[[Vector], Any]) -> Callable[[Update, Update], Update]:
    """Only the last vector changed, so that the first ones would be in a careless sum already."""

    def spoil(update: Update, _: Update) -> Update:
        name = sorted(update.vectors)[-1]
        return replace(update, vectors={**update.vectors, name: change(update.vectors[name])})

    return spoil


def at(index: int, value: float) -> Callable[[Vector], Vector]:
    def change(vector: Vector) -> Vector:
        changed = vector.copy()
        changed[index] = value
        return changed

    return change


def fields(**changed: Any) -> Callable[[Update, Update], Update]:
    return lambda u, _: replace(u, **changed)


CASES = [
    Case("NaN in the first value", "non-finite", every(at(0, math.nan))),
    Case("NaN in the last value of the last vector", "non-finite", last(at(-1, math.nan))),
    Case("infinity", "non-finite", every(at(1, -math.inf))),
    Case("a million times itself", "norm", every(lambda v: v * np.float32(1e6))),
    Case("the largest numbers there are", "norm", every(lambda v: np.full_like(v, 3.4e38))),
    Case("too short", "shape", every(lambda v: v[:-1])),
    Case("the last vector too long", "shape", last(lambda v: np.append(v, v))),
    Case("broadcastable (1,)", "shape", every(lambda v: v[:1])),
    Case("broadcastable (1, P)", "shape", every(lambda v: v.reshape(1, -1))),
    Case("int8", "dtype", every(lambda v: v.astype(np.int8))),
    Case("float64", "dtype", every(lambda v: v.astype(np.float64))),
    # Complex numbers have no word in our messages, nor among the arrays that are read off Flower's.
    Case("complex", "dtype", every(lambda v: v.astype(np.complex64)), on={"local": "header", "flower": "header"}),
    Case("a vector missing", "keys", fields(vectors={})),
    Case("a vector more", "keys", lambda u, _: replace(u, vectors={**u.vectors, "extra": u.vectors["delta"]})),
    Case("oversized", "size", every(lambda v: np.zeros(1 << 19, np.float32))),
    Case("weight below zero", "weight", fields(weight=-399)),
    Case("weight of a million hospitals", "weight", fields(weight=10**18)),
    Case("weight NaN", "header", fields(weight=math.nan), sign="nobody"),  # JSON has no NaN
    Case("a metric of markup", "metrics", fields(metrics={"<script>": 1.0})),
    Case("the update of the round before", "stale-round", lambda u, before: before, sign="nobody"),
    Case("a future round", "stale-round", lambda u, _: replace(u, round=u.round + 9)),
    Case("another run", "wrong-run", fields(run="0123456789abcdef")),
    Case("another site's name", "unknown-client", fields(client="site-00")),
    Case("not signed", "signature", fields(signature=""), sign="nobody"),
    Case("changed behind the signature", "signature", every(lambda v: v + np.float32(0.5)), sign="before"),
    Case("trained from another model", "wrong-base", fields(base="0" * 64)),
    Case("rubbish", "header", head=lambda head: b"\xff" * 500),
]
ROUNDS = len(CASES) + 1
"""One round per case, and one in which all are honest."""


def header(update: Update) -> bytes:
    """The update's header as a site may write it that does not ask whether it may."""
    kept = {n: getattr(update, n) for n in ("client", "round", "weight", "run", "base", "signature")}
    told = {"type": "Update", **kept, "metrics": dict(update.metrics)}
    head = json.dumps({k: v for k, v in told.items() if v != "" or k not in ("base", "signature")}).encode()
    head += b" " * (-(9 + len(head)) % 8)
    return b"PFED\x01" + struct.pack("<I", len(head)) + head


NO_VECTORS = safetensors.numpy.save({})
"""What follows the header where an envelope carries the vectors beside it."""


class Hostile:
    """The changed program of site BAD.

    Args:
        keys: its own folder of keys.
    """

    def __init__(self, keys: Path) -> None:
        self._signer: Any = None
        self._keys, self._before = keys, dict[int, Update]()

    def answer(self, update: Update) -> tuple[Update, bytes]:
        """What it sends in place of its honest, signed update, and the bytes of that one's header."""
        case = CASES[update.round - 1] if update.round <= len(CASES) else Case("honest", "", sign="nobody")
        self._before[update.round] = update
        spoilt = case.spoil(update, self._before.get(update.round - 1, update))
        if case.sign == "after":
            self._signer = self._signer or own_signer(self._keys)
            spoilt = replace(spoilt, signature=self._signer.sign(statement(spoilt)).hex())
        return spoilt, case.head(header(spoilt))


def federation(strategy: str, **settings: Any) -> Federation:
    """Whoever asks all four is content with three."""
    return Federation(strategy=STRATEGIES[strategy], quorum=3, evaluate="off", deadline=60.0, **settings)


@cache
def honest_only(strategy: str) -> bytes:
    """The model that comes out if BAD does not answer while it would be hostile."""

    def script(name: str, task: Task, reply: Reply) -> Iterator[Reply]:
        yield absent(name, task) if name == BAD and task.round <= len(CASES) else reply

    return bits(federation(strategy, clients=sites()).run(ROUNDS, Scripted(script)))


def check(history: History, strategy: str, engine: str) -> None:
    """Every case refused for its own reason, nobody else, and the model is the honest one."""
    found = [(f.client, f.round, f.reason) for f in history.failures]
    wanted = [(BAD, number, case.expected(engine)) for number, case in enumerate(CASES, 1)]
    assert found == wanted, [(CASES[w[1] - 1].name, f, w) for f, w in zip(found, wanted, strict=False) if f != w]
    assert history.values("accepted") == {n: 3 + (n == ROUNDS) for n in range(1, ROUNDS + 1)}
    assert bits(history) == honest_only(strategy)
