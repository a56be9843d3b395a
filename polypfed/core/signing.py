"""What a site signs of its update: all of it, however it travels. Engines take messages apart; this does not notice."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping

from polypfed.core.audit import Verifier, sha256
from polypfed.core.errors import Refused
from polypfed.core.messages import Task, Update

DOMAIN = b"polypfed update 1"
_HASH = re.compile(r"[0-9a-f]{64}")


def base_of(task: Task) -> str:
    """SHA-256 of the model that a task carries, or that it says its sums lead to; "" if it does neither."""
    model, told = task.vectors.get("model"), task.config.get("base")
    if model is not None:
        return sha256(model.data)
    return told if isinstance(told, str) and _HASH.fullmatch(told) else ""


def statement(update: Update) -> bytes:
    """The bytes under the signature: every field, and the SHA-256 of every vector beside its dtype and shape."""
    vectors = {
        name: [str(vector.dtype), list(vector.shape), hashlib.sha256(vector.data).hexdigest()]
        for name, vector in update.vectors.items()
    }
    fields = {
        "client": update.client, "run": update.run, "round": update.round, "weight": update.weight,
        "metrics": dict(update.metrics), "base": update.base, "vectors": vectors,
    }  # fmt: skip
    return DOMAIN + json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def verifying(verifiers: Mapping[str, Verifier]) -> Callable[[Update], None] | None:
    """A check that an update is signed by its sender; None if there are no keys to check with."""
    return (lambda update: check_signature(update, verifiers)) if verifiers else None


def check_signature(update: Update, verifiers: Mapping[str, Verifier]) -> None:
    """See that the update is what its sender has signed.

    Raises:
        Refused: it is not signed, by another key, or has been changed since.
    """
    verifier = verifiers.get(update.client)
    if verifier is None or not update.signature:
        lacking = "is not signed" if verifier else "has no key in the roster"
        raise Refused("signature", lacking, where=update.client)
    try:
        verifier.verify(bytes.fromhex(update.signature), statement(update))
    except Exception as error:  # noqa: BLE001 - verifiers raise what they like
        problem = f"the signature is not its sender's ({type(error).__name__})"
        raise Refused("signature", problem, where=update.client) from None
