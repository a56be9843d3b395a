"""Two tasks for a site in one message: the model that it has just got is scored, then trained.

Flower takes seconds for a message, whatever its size. A second task rides in the message of the main one:

| record   | holds beside what `records` says                                                            |
|----------|---------------------------------------------------------------------------------------------|
| `arrays` | `first/NAME`: the vectors of the first task that the main one does not carry too             |
| `config` | `first`, as bytes: the first task, or its reply; `first-vectors`: the names of its vectors   |
"""

import json
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from polypfed.backends.flower.grid import Native, OverGrid
from polypfed.backends.flower.records import ARRAYS, CONFIG, pack_reply, unpack_task
from polypfed.core.errors import MessageError
from polypfed.core.gate import receive
from polypfed.core.messages import Failure, Reply, Task, decode, encode, strict_json
from polypfed.core.model import Vector

_FIRST, _NAMES, _APART = "first", "first-vectors", "first/"


class InPairs(OverGrid):
    """A backend over a Grid that carries two tasks for a site in one message."""

    def exchange_both(
        self, first: Mapping[str, Task], main: Mapping[str, Task], deadline: float
    ) -> Iterator[tuple[Task, Reply]]:
        """Like `exchange`, with each reply the task that it answers; every site of `first` must be in `main`.

        A site does both within one deadline. Where the message is lost, both tasks are answered by its failure.
        """
        codec, paired = _Both(first), copy(self)
        paired.codec = codec
        for reply in paired.exchange(main, deadline):
            task = first.get(reply.client)
            if task is not None:
                yield task, codec.found[reply.client] if reply.client in codec.found else _lost(task, reply)
            yield main[reply.client], reply


class _Both(Native):
    """Packs the first tasks into the messages of the main ones, and takes their replies out."""

    def __init__(self, first: Mapping[str, Task]) -> None:
        self._first, self.found = first, dict[str, Reply]()

    def pack(self, task: Task, site: str, deadline: float, carried: ArrayRecord) -> RecordDict:
        """Both tasks; equal vectors once."""
        first = self._first.get(site)
        if first is None:
            return super().pack(task, site, deadline, carried)
        own = {n: v for n, v in first.vectors.items() if not _same(v, task.vectors.get(n))}
        apart = {_APART + n: Array(np.ascontiguousarray(v)) for n, v in own.items()}
        content = super().pack(task, site, deadline, ArrayRecord({**carried, **apart}) if apart else carried)
        content.config_records[CONFIG][_FIRST] = encode(replace(first, vectors={}))
        content.config_records[CONFIG][_NAMES] = json.dumps({"names": sorted(first.vectors)}).encode()
        return content

    def unpack(self, content: RecordDict, site: str, task: Task) -> Reply:
        """The main reply; the first one goes to `found`."""
        first = self._first.get(site)
        answered = content.config_records.get(CONFIG, ConfigRecord()).get(_FIRST)
        if first is not None and isinstance(answered, bytes):
            self.found[site] = receive(answered, site, first)
        return super().unpack(content, site, task)


def _same(a: Vector, b: Vector | None) -> bool:
    return b is not None and (a is b or (a.dtype == b.dtype and np.array_equal(a, b)))


def _lost(task: Task, main: Reply) -> Failure:
    """The first task was not answered, as little as the main one, or although that was."""
    if isinstance(main, Failure):
        return replace(main, round=task.round)
    return Failure(main.client, task.round, "header", "the first of two tasks is not answered", task.run)


def unpack_tasks(content: RecordDict) -> tuple[list[Task], str, float]:
    """The tasks of a message in order, the site it is meant for, and the seconds that they may take together.

    Raises:
        MessageError: it is not what a polypfed server sends.
    """
    main, site, deadline = unpack_task(content)
    config = content.config_records[CONFIG]
    header, names = config.get(_FIRST), config.get(_NAMES)
    if header is None:
        return [main], site, deadline
    if not isinstance(header, bytes) or not isinstance(names, bytes):
        raise MessageError("not a task of a polypfed server", where=CONFIG)
    first, wanted = decode(header), strict_json(names).get("names")
    if not isinstance(first, Task):
        raise MessageError(f"{type(first).__name__}, not a Task", where=CONFIG)
    came = {**main.vectors, **{n.removeprefix(_APART): v for n, v in main.vectors.items() if n.startswith(_APART)}}
    if not isinstance(wanted, list) or not all(isinstance(n, str) and n in came for n in wanted):
        raise MessageError("a vector of the first task did not come", where=ARRAYS)
    vectors = {n: came[n] for n in wanted}
    own = {n: v for n, v in main.vectors.items() if not n.startswith(_APART)}
    return [replace(first, vectors=vectors), replace(main, vectors=own)], site, deadline


def pack_replies(replies: list[Reply]) -> RecordDict:
    """The replies to the tasks of a message, in their order."""
    content = pack_reply(replies[-1])
    if len(replies) > 1:
        content.config_records[CONFIG][_FIRST] = encode(replies[0])
    return content
