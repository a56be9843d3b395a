"""Tasks and replies as NVFlare's DXOs, so that a site's own privacy filters see the numbers.

A message is a COLLECTION: one child per vector (WEIGHTS for models, WEIGHT_DIFF for what is broadcast or sent back)
and "info", an APP_DEFINED child with our header. A vector's child holds one array per layer, by name, as filters such
as ExcludeVars need; `layout` gives the names and sizes. Bytes (ciphertext) travel in "info", where no filter looks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable

from polypfed.core.errors import MessageError
from polypfed.core.gate import receive
from polypfed.core.messages import Failure, Reply, Task, Update, decode, encode
from polypfed.core.model import Vector, fixed

Layout = Sequence[Sequence[Any]]
"""[name, size] of each layer, in the order of the flat vector; a vector may end at any layer."""

_INFO = "info"


@dataclass(frozen=True)
class Order:
    """A task as a site receives it: what to do, how the reply is divided, and the seconds it may take."""

    task: Task
    layout: Layout
    deadline: float


def task_to_shareable(task: Task, layout: Layout, deadline: float) -> Shareable:
    """What the server sends."""
    return _pack(task, task.vectors, layout, {"layout": [list(part) for part in layout], "deadline": deadline})


def task_from_shareable(data: Shareable) -> Order:
    """What the server sent.

    Raises:
        MessageError: it is not a task of ours.
    """
    children, info = _children(data)
    task = decode(info["header"])
    if not isinstance(task, Task):
        raise MessageError(f"{type(task).__name__}, not a Task")
    layout = info.get("layout", [])
    vectors = _vectors(children, info, layout, whole=True)
    return Order(replace(task, vectors=vectors), layout, float(info["deadline"]))


def reply_to_shareable(reply: Reply, layout: Layout) -> Shareable:
    """What a site sends."""
    vectors = reply.vectors if isinstance(reply, Update) else {}
    return _pack(reply, vectors, layout, {})


def reply_from_shareable(data: Shareable, client: str, task: Task, layout: Layout) -> Reply:
    """What `client` answered to `task`; whatever is wrong with it becomes a Failure, never an exception.

    Args:
        client: who sent it, as the engine knows by certificate; the reply must name itself so.
        layout: as it was sent with the task; what the reply says of it does not count.
    """
    code = data.get_return_code(ReturnCode.OK) if isinstance(data, Shareable) else "no Shareable"
    if code != ReturnCode.OK:
        return Failure(client, task.round, _WORDS.get(code, "engine"), f"NVFlare says {code}", task.run)
    try:
        children, info = _children(data)
        size = len(info["header"]) + sum(_nbytes(child) for child in children.values())
        size += sum(len(frame) for frame in _frames(info).values())
        limit = int(task.config.get("reply_bytes", size))
        if size > limit:
            detail = f"{size} bytes, more than the {limit} that this model needs"
            return Failure(client, task.round, "size", detail, task.run)
        reply = receive(info["header"], client, task)
        vectors = _vectors(children, info, layout, whole=False)
    except _Wrong as wrong:
        return Failure(client, task.round, wrong.reason, str(wrong), task.run)
    except Exception as error:  # noqa: BLE001 - anything may have been sent
        return Failure(client, task.round, "header", f"{type(error).__name__}: {error}", task.run)
    return replace(reply, vectors=vectors) if isinstance(reply, Update) else reply


class _Wrong(MessageError):
    def __init__(self, reason: str, problem: str, where: str) -> None:
        super().__init__(problem, where=where)
        self.reason = reason


_WORDS = {
    ReturnCode.EXECUTION_EXCEPTION: "crashed",
    ReturnCode.EXECUTION_RESULT_ERROR: "crashed",
    ReturnCode.TASK_ABORTED: "aborted",
    ReturnCode.TASK_DATA_FILTER_ERROR: "filter",
    ReturnCode.TASK_RESULT_FILTER_ERROR: "filter",
    ReturnCode.TASK_UNKNOWN: "policy",
}


def _pack(message: Task | Reply, vectors: Mapping[str, Vector], layout: Layout, more: Mapping[str, Any]) -> Shareable:
    bare = replace(message, vectors={}) if isinstance(message, Task | Update) else message
    frames = {name: vector.tobytes() for name, vector in vectors.items() if vector.dtype == np.uint8}
    lengths = {name: int(vector.size) for name, vector in vectors.items()}
    info = {"header": encode(bare), "frames": frames, "lengths": lengths, **more}
    children = {_INFO: DXO(DataKind.APP_DEFINED, data=info)}
    metrics = message.metrics if isinstance(message, Update) else {}
    meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: max(1, int(metrics.get("steps", 1)))}  # filters divide by it
    for name, vector in vectors.items():
        if name not in frames:
            kind = DataKind.WEIGHTS if name.partition("@")[0] == "model" else DataKind.WEIGHT_DIFF
            children[f"vector:{name}"] = DXO(kind, data=_divided(name, vector, layout), meta=dict(meta))
    return DXO(DataKind.COLLECTION, data=children).to_shareable()


def _divided(name: str, vector: Vector, layout: Layout) -> dict[str, Vector]:
    """The vector's layers; the vector itself under its own name where it does not end with a layer."""
    if vector.ndim != 1:
        return {name: vector}
    parts, start = dict[str, Vector](), 0
    for layer, size in layout:
        if start >= vector.size:
            break
        parts[layer] = vector[start : start + size]
        start += size
    return parts if start == vector.size and parts else {name: vector}


def _children(data: Shareable) -> tuple[dict[str, DXO], dict[str, Any]]:
    """The vectors' children by name, and "info"."""
    dxo = from_shareable(data)
    if dxo.data_kind != DataKind.COLLECTION or not isinstance(dxo.data, dict):
        raise MessageError(f"{dxo.data_kind}, not a COLLECTION")
    children = dict(dxo.data)
    info = children.pop(_INFO, None)
    if not isinstance(info, DXO) or not isinstance(info.data, dict) or not isinstance(info.data.get("header"), bytes):
        raise MessageError("there is no header")
    found = {}
    for key, child in children.items():
        if not key.startswith("vector:") or not isinstance(child, DXO) or not isinstance(child.data, dict):
            raise _Wrong("keys", "is no vector", str(key)[:80])
        found[key[7:]] = child
    return found, info.data


def _frames(info: Mapping[str, Any]) -> dict[str, bytes]:
    frames = info.get("frames", {})
    if not isinstance(frames, dict) or not all(isinstance(f, bytes) for f in frames.values()):
        raise _Wrong("keys", "are not bytes", "frames")
    return frames


def _nbytes(child: DXO) -> int:
    return sum(int(getattr(array, "nbytes", 0)) for array in child.data.values())


def _vectors(children: Mapping[str, DXO], info: Mapping[str, Any], layout: Layout, *, whole: bool) -> dict[str, Vector]:
    vectors: dict[str, Vector] = {}
    for name, child in children.items():
        partial = not whole and bool(child.get_filter_history())
        vectors[name] = _joined(name, child.data, layout, info.get("lengths", {}).get(name), partial)
    for name, frame in _frames(info).items():
        vectors[name] = fixed(np.frombuffer(frame, np.uint8))
    return vectors


def _joined(name: str, arrays: Mapping[str, Any], layout: Layout, length: Any, partial: bool) -> Vector:
    """One flat float32 vector from its layers; if `partial`, a layer that a filter has taken out is no change."""
    if set(arrays) == {name} and not any(name == layer for layer, _ in layout):
        vector = arrays[name]
        if not isinstance(vector, np.ndarray):
            raise _Wrong("dtype", f"is a {type(vector).__name__}", name)
        return vector
    sizes, total = _sizes(layout, length, name)
    if strange := set(arrays) - set(sizes):
        raise _Wrong("keys", f"layers {sorted(map(str, strange))[:5]} are not of this model", name)
    if set(arrays) != set(sizes) and not partial:
        raise _Wrong("keys", f"layers {sorted(set(sizes) - set(arrays))[:5]} are missing", name)
    out, start = np.zeros(total, np.float32), 0
    for layer, size in sizes.items():
        if layer in arrays:
            out[start : start + size] = _layer(arrays[layer], size, f"{name}.{layer}")
        start += size
    return out


def _sizes(layout: Layout, length: Any, name: str) -> tuple[dict[str, int], int]:
    """The layers that a vector of this length has."""
    sizes, total = dict[str, int](), 0
    for layer, size in layout:
        if total == length:
            break
        sizes[layer] = int(size)
        total += int(size)
    if total != length:
        raise _Wrong("shape", f"a length of {length!r} ends within a layer", name)
    return sizes, total


def _layer(array: Any, size: int, where: str) -> Vector:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise _Wrong("dtype", f"is {getattr(array, 'dtype', type(array).__name__)}, not float32", where)
    if array.shape != (size,):
        raise _Wrong("shape", f"has shape {array.shape}, not ({size},)", where)
    return array
