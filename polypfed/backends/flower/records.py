"""Our messages as Flower's records, so that Flower's own tools see arrays as arrays and metrics as metrics.

| record    | kind         | holds                                                                              |
|-----------|--------------|------------------------------------------------------------------------------------|
| `arrays`  | ArrayRecord  | one flat array per named vector, in Flower's own numpy format                      |
| `metrics` | MetricRecord | the metrics and `num-examples`                                                     |
| `config`  | ConfigRecord | `server-round`, `site`, `deadline`, and as bytes in `polypfed` the rest of the message |

A reply is read by the same gate as everywhere: its size before anything is parsed, then its header, then its arrays.
"""

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

from polypfed.core.errors import MessageError
from polypfed.core.gate import receive
from polypfed.core.messages import Evaluation, Failure, Reply, Task, Update, decode, encode
from polypfed.core.model import Vector, fixed

ARRAYS, METRICS, CONFIG, HEADER, EXAMPLES = "arrays", "metrics", "config", "polypfed", "num-examples"
_NUMPY = "numpy.ndarray"
_DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int32", "int64")
_HEADER_MOST = 1024  # bytes of an array's own header; numpy writes 128


def arrays(vectors: Mapping[str, Vector]) -> ArrayRecord:
    """One flat array per vector."""
    return ArrayRecord({name: Array(np.ascontiguousarray(v)) for name, v in vectors.items()})


def pack_task(task: Task, site: str, deadline: float, carried: ArrayRecord | None = None) -> RecordDict:
    """A task for `site`.

    Args:
        deadline: seconds the site has for it.
        carried: `arrays(task.vectors)`, where several sites get the same.

    Raises:
        MessageError: the task's config is not plain JSON.
    """
    head: dict[str, Any] = {HEADER: encode(replace(task, vectors={}))}
    head |= {"server-round": task.round, "site": site, "deadline": deadline}
    return RecordDict({ARRAYS: carried or arrays(task.vectors), CONFIG: ConfigRecord(head)})


def unpack_task(content: RecordDict) -> tuple[Task, str, float]:
    """The task, the site it is meant for, and the seconds it may take.

    Raises:
        MessageError: it is not a task as `pack_task` makes it.
    """
    config = content.config_records.get(CONFIG, ConfigRecord())
    header, site, deadline = config.get(HEADER), config.get("site"), config.get("deadline")
    if not isinstance(header, bytes) or not isinstance(site, str) or not isinstance(deadline, float):
        raise MessageError("not a task of a polypfed server", where=CONFIG)
    task = decode(header)
    if not isinstance(task, Task):
        raise MessageError(f"{type(task).__name__}, not a Task", where=CONFIG)
    return replace(task, vectors=unpack_arrays(content)), site, deadline


def pack_reply(reply: Reply) -> RecordDict:
    """An update, an evaluation or a failure; what cannot be written becomes a Failure."""
    try:
        return _packed(reply)
    except (MessageError, TypeError, ValueError, AttributeError) as error:
        detail = f"the reply cannot be written ({error})"
        return _packed(Failure(reply.client, reply.round, "header", detail, reply.run))


def _packed(reply: Reply) -> RecordDict:
    content = RecordDict()
    bare: Reply = reply
    if not isinstance(reply, Failure):
        metrics = {**reply.metrics, EXAMPLES: reply.weight}
        content[METRICS] = MetricRecord({k: _as_number(v) for k, v in metrics.items()})
        bare = replace(reply, metrics={})
    if isinstance(bare, Update):
        content[ARRAYS] = _numeric(arrays(bare.vectors))
        bare = replace(bare, vectors={})
    content[CONFIG] = ConfigRecord({HEADER: encode(bare)})
    return content


def _as_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _numeric(record: ArrayRecord) -> ArrayRecord:
    if odd := sorted({a.dtype for a in record.values()} - set(_DTYPES)):
        raise MessageError(f"dtype {odd[0]} is not known", where="vectors")
    return record


def unpack_reply(content: RecordDict, client: str, task: Task) -> Reply:
    """What `client` answered to `task`; records that are no answer become a Failure, never an exception."""
    try:
        return _reply(content, client, task)
    except MessageError as error:
        return Failure(client, task.round, "header", str(error), task.run)


def _reply(content: RecordDict, client: str, task: Task) -> Reply:
    header = content.config_records.get(CONFIG, ConfigRecord()).get(HEADER)
    if not isinstance(header, bytes):
        raise MessageError("not a reply of a polypfed site", where=CONFIG)
    size = sum(len(a.data) for record in content.array_records.values() for a in record.values()) + len(header)
    limit = task.config.get("reply_bytes")
    if limit is not None and size > int(limit):
        return Failure(client, task.round, "size", f"{size} bytes, more than the {limit} this model needs", task.run)
    reply = receive(header, client, task)
    if isinstance(reply, Failure):
        return reply
    metrics: dict[str, Any] = dict(content.metric_records.get(METRICS, {}))
    metrics.pop(EXAMPLES, None)  # for Flower's tools; what counts is the weight in the header
    if isinstance(reply, Evaluation):
        return replace(reply, metrics=metrics)
    return replace(reply, metrics=metrics, vectors=unpack_arrays(content))


def unpack_arrays(content: RecordDict) -> dict[str, Vector]:
    """The vectors of a message, read-only and without a copy.

    Raises:
        MessageError: an array is not what it says it is.
    """
    return {name: read_array(name, a) for name, a in content.array_records.get(ARRAYS, {}).items()}


def read_array(name: str, array: Array) -> NDArray[Any]:
    """One array: its own header must agree with the record's, and its bytes with both.

    Raises:
        MessageError: they do not, or it is of a kind that is never sent.
    """
    data = array.data
    if array.stype != _NUMPY or array.dtype not in _DTYPES:
        raise MessageError(f"an array of {array.dtype} as {array.stype} is not known", where=name)
    file = io.BytesIO(data[:_HEADER_MOST])
    try:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise MessageError(f"numpy format {version} is not known", where=name)
        shape, fortran, dtype = npy.read_array_header_1_0(file, max_header_size=_HEADER_MOST)
        count = int(np.prod(shape, dtype=object))
        if dtype != np.dtype(array.dtype) or shape != tuple(array.shape) or (fortran and len(shape) > 1):
            raise MessageError("its two headers disagree", where=name)
        if len(data) != file.tell() + count * dtype.itemsize:
            raise MessageError(f"{len(data)} bytes do not hold {count} of {dtype}", where=name)
        return fixed(np.frombuffer(data, dtype, offset=file.tell()).reshape(shape))
    except MessageError:
        raise
    except Exception as error:  # noqa: BLE001 - numpy's header parser raises SyntaxError, TokenError, EOFError and more
        raise MessageError(f"cannot be read ({type(error).__name__})", where=name) from None
