"""Named vectors, and the state of something wrapped, as bytes: what a client keeps between rounds."""

from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from polypfed.core.model import Vector

_INNER = ":inner"  # no vector of a strategy is called so


def pack_state(kept: Mapping[str, Vector], inner: bytes = b"") -> bytes:
    """Named vectors as safetensors bytes, with the state of what is wrapped beside them; nothing is b""."""
    arrays = {name: np.ascontiguousarray(vector) for name, vector in kept.items()}
    if inner:
        arrays[_INNER] = np.frombuffer(inner, np.uint8)
    return safetensors.numpy.save(arrays) if arrays else b""


def unpack_state(state: bytes) -> dict[str, Vector]:
    """The vectors of `pack_state`."""
    return {name: vector for name, vector in _arrays(state).items() if name != _INNER}


def unpack_inner(state: bytes) -> bytes:
    """The inner state of `pack_state`."""
    inner = _arrays(state).get(_INNER)
    return b"" if inner is None else inner.tobytes()


def _arrays(state: bytes) -> dict[str, Vector]:
    return dict(safetensors.numpy.load(state)) if state else {}
