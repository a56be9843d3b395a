"""NVFlare's CKKS, the peer of privacy.py: its codec on one flat vector, and its real message of a model.

python benchmarks/_nvflare_ckks.py yolov5n prints what that message costs, in a process of its own: it takes 2 GB.
"""

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import single_thread


def tensors(arch: str) -> dict[str, np.ndarray]:
    """A detector's state dict, the counters of BatchNorm included."""
    from polypfed.detect import yolo

    return {name: t.numpy() for name, t in yolo.build(arch).state_dict().items()}


def least(repeats: int, **actions: Callable[[], Any]) -> dict[str, float]:
    """CPU milliseconds of each action, in turns, the least of the repeats; one round is dropped."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            begun = time.process_time()
            action()
            found[name].append(1000 * (time.process_time() - begun))
    return {name: min(times[1:]) for name, times in found.items()}


def _quiet(action: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return action()


def _context() -> Any:
    """As its provisioner writes it into a client's kit."""
    import tenseal as ts
    from nvflare.lighter.impl.he import HEBuilder

    builder = HEBuilder()
    builder.initialize(None, None)
    return ts.context_from(builder.get_serialized_context(is_client=True))


def once(values: int) -> Callable[[], Any]:
    """Encrypt and serialise so many values: takes turns with our own encryption, so both meet the same load."""
    import tenseal as ts

    context, vector = _context(), np.random.default_rng(0).normal(0, 0.01, values)
    return lambda: _quiet(lambda: ts.ckks_vector(context, vector)).serialize()


def codec(values: int, repeats: int) -> dict[str, Any]:
    """One flat vector: bytes and milliseconds per value, without the context that each message repeats."""
    import tenseal as ts

    context, vector = _context(), np.random.default_rng(0).normal(0, 0.01, values)
    kept: list[bytes] = [b""]

    def out() -> None:
        kept[0] = _quiet(lambda: ts.ckks_vector(context, vector)).serialize()

    ms = least(repeats, out=out)
    total = ts.ckks_vector_from(context, kept[0])
    ms |= least(repeats, server_per_site=lambda: total.add_(ts.ckks_vector_from(context, kept[0])))
    per = {k: v / values for k, v in ms.items()}
    return {"values": values, "bytes_per_value": len(kept[0]) / values, "ms_per_value": per}


def route(arch: str) -> dict[str, Any]:
    """Its message of a whole state dict; run it in a process of its own. Memory: the most before and during."""
    import logging

    from nvflare.apis.dxo import DXO, DataKind
    from nvflare.apis.fl_context import FLContext
    from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
    from nvflare.fuel.utils import fobs

    logging.disable(logging.CRITICAL)
    params = tensors(arch)
    lengths = [v.size for v in params.values()]
    encryptor = HEModelEncryptor(weigh_by_local_iter=False)
    encryptor.tenseal_context, encryptor.encrypt_layers = _context(), [True]
    before, begun = peak_mb(), time.process_time()
    made, _ = _quiet(lambda: encryptor.encryption(dict(params), FLContext()))
    encrypted = time.process_time()
    message = fobs.dumps(DXO(DataKind.WEIGHT_DIFF, data=made).to_shareable())
    dumped = time.process_time()
    one = made[max(params, key=lambda n: params[n].size)]
    context = len(one.context().serialize())
    per_row = len(one.serialize()) / math.ceil(max(lengths) / 4096)
    return {
        "route": arch, "tensors": len(lengths), "bytes": len(message), "context_bytes": context, "row_bytes": per_row,
        "ms": {"encrypt": 1000 * (encrypted - begun), "dumps": 1000 * (dumped - encrypted)},
        "computed_bytes": route_bytes(lengths, context, per_row), "memory_mb": peak_mb() - before,
    }  # fmt: skip


def route_bytes(lengths: list[int], context: float, per_row: float) -> float:
    """What the message of these tensors takes: the context again and again, and whole ciphertexts."""
    return sum(context + per_row * math.ceil(n / 4096) for n in lengths)


def peak_mb() -> float:
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) / 1024


if __name__ == "__main__":
    single_thread()
    print(json.dumps(route(sys.argv[1])))
