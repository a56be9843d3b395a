"""Which node serves which site: bound by the node's registered public key, never by what a node says of itself."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

from polypfed.core.errors import ConfigError
from polypfed.core.settings import site_names

log = logging.getLogger(__name__)


def read_keys(folder: Path) -> dict[str, bytes]:
    """Site name -> public key, from the files NAME.pub in `folder`.

    Raises:
        ConfigError: there is none, one is no public key, or two sites have the same.
    """
    files = sorted(folder.glob("*.pub"))
    if not files:
        raise ConfigError("holds no NAME.pub", where=folder, remedy="Put every site's public key there")
    site_names([f.stem for f in files])
    keys: dict[str, bytes] = {}
    for file in files:
        key = normal(file.read_bytes())
        if key is None:
            raise ConfigError("is not the public key of an elliptic curve", where=file)
        if twin := next((n for n, k in keys.items() if k == key), None):
            raise ConfigError(f"is the key of {twin} too", where=file, remedy="Give every site a key of its own")
        keys[file.stem] = key
    return keys


def normal(data: bytes) -> bytes | None:
    """An EC public key in one form, whatever the form it came in; None if it is none."""
    for load in (form.load_ssh_public_key, form.load_pem_public_key, form.load_der_public_key):
        try:
            key = load(data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        if isinstance(key, ec.EllipticCurvePublicKey):
            return key.public_bytes(form.Encoding.X962, form.PublicFormat.UncompressedPoint)
    return None


class Roll:
    """Calls the roll: which sites have a node online.

    Args:
        nodes: Flower's account of the nodes online, each with `node_id` and `public_key`.
        keys: site name -> public key.
        least: sites without which a round cannot count.
    """

    def __init__(self, nodes: Callable[[], Any], keys: Mapping[str, bytes], least: int = 1) -> None:
        self._nodes, self._least = nodes, least
        self._site_of = {key: name for name, key in keys.items()}
        self._strangers: set[int] = set()

    def __call__(self) -> dict[str, int]:
        """Site -> node id, of those online now."""
        found: dict[str, int] = {}
        for node in self._nodes():
            name = self._site_of.get(normal(bytes(node.public_key)) or b"")
            if name is not None:
                found[name] = int(node.node_id)
            elif node.node_id not in self._strangers:
                self._strangers.add(node.node_id)
                log.warning("node %d is online with a key of no site: it gets no task", node.node_id)
        return found

    def within(self, patience: float) -> dict[str, int]:
        """The same, after waiting up to `patience` seconds for `least` sites."""
        return self.wait(self._least, patience)

    def wait(self, count: int, patience: float) -> dict[str, int]:
        """The same, after waiting up to `patience` seconds for `count` sites."""
        end = monotonic() + patience
        while len(found := self()) < count and monotonic() < end:
            time.sleep(min(1.0, max(0.0, end - monotonic())))
        return found
