"""A site's dry run: everything is checked and done once, and nothing is sent."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from polypfed.backends.flower.records import pack_reply
from polypfed.backends.flower.roll import normal
from polypfed.backends.flower.site import node
from polypfed.backends.site_file import SiteFile
from polypfed.clients.base import Client, HasInitial
from polypfed.clients.site import Site
from polypfed.core.errors import BackendError, ConfigError
from polypfed.core.gate import norm_of
from polypfed.core.messages import Failure, Reply, Task, Update
from polypfed.strategies.base import Strategy
from polypfed.strategies.registry import Registry


@dataclass(frozen=True)
class Findings:
    """What a dry run saw.

    Attributes:
        days: until the certificate authority expires.
        replies: what would be sent, by kind of task; a Failure has its reason.
        sizes: bytes of each, as Flower would carry them.
    """

    site: str
    server: str
    days: int
    replies: Mapping[str, Reply]
    sizes: Mapping[str, int]

    def lines(self) -> list[str]:
        """The findings in words."""
        out = [f"site {self.site}, server {self.server}, certificate authority valid for {self.days} days"]
        for kind, reply in self.replies.items():
            if isinstance(reply, Failure):
                out.append(f"{kind}: would fail: {reply.reason}: {reply.detail}")
                continue
            out.append(f"{kind}: would send {self.sizes[kind]} bytes, weight {reply.weight}")
            if isinstance(reply, Update):
                out += [f"  vector {n}: {v.size} x {v.dtype}, norm {norm_of(v):.4g}" for n, v in reply.vectors.items()]
            out += [f"  metric {name}: {value:.6g}" for name, value in sorted(reply.metrics.items())]
        return [*out, "Nothing was sent."]

    @property
    def good(self) -> bool:
        """True if the site would answer every task."""
        return not any(isinstance(reply, Failure) for reply in self.replies.values())


def dry_run(path: str | Path, strategy: str = "fedavg") -> Findings:
    """Check `site.toml`, its key and certificate, train and evaluate once from the client's own initial model.

    While it runs this process cannot open a connection; what the client keeps goes to a folder that is removed.

    Raises:
        ConfigError: a setting, the key or the certificate is wrong, or the client proposes no initial model.
    """
    site = SiteFile.load(path)
    node(site, None)
    days = _days(site.place("certificate"))
    _check_key(site.place("key").with_suffix(".pub"))
    with sealed(), tempfile.TemporaryDirectory(prefix="pf-") as scratch:
        client = _writing_to(Path(scratch), site.open())
        open_ = replace(
            site.policy, approve=False, min_cohort=None, epsilon=None
        )  # nothing leaves, nobody else is there
        charter = replace(site.charter, policy=open_, audit=None)
        tasks = _tasks(client, Registry.build({"name": strategy}))
        shell = Site(client, Path(scratch), charter)
        replies = {kind: shell.perform(task) for kind, task in tasks.items()}
    sizes = {kind: _size(reply) for kind, reply in replies.items()}
    return Findings(site.name, str(site.engine["server"]), days, replies, sizes)


def _writing_to(folder: Path, client: Client) -> Client:
    """A client that writes files of its own into a `directory` is given another."""
    if getattr(client, "directory", None) is None or not is_dataclass(client):
        return client
    return replace(client, directory=folder)


def _tasks(client: Client, strategy: Strategy) -> dict[str, Task]:
    if not isinstance(client, HasInitial):
        raise ConfigError("has no initial model to try with", where=client.name)
    spec, x = client.initial()
    trainable = x[spec.trainable]
    vectors = {"model": x, **strategy.broadcast(trainable, strategy.init(trainable))}
    config: dict[str, Any] = {"run": "dry-run", "seed": 0, "strategy": Registry.describe(strategy)}
    return {"fit": Task(1, "fit", vectors, config), "evaluate": Task(1, "evaluate", {"model": x}, config)}


def _size(reply: Reply) -> int:
    content = pack_reply(reply)
    arrays = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    metrics = sum(record.count_bytes() for record in content.metric_records.values())
    return arrays + metrics + sum(record.count_bytes() for record in content.config_records.values())


def _days(certificate: Path) -> int:
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except ValueError as error:
        raise ConfigError(f"is no certificate ({error})", where=certificate) from None
    left = found.not_valid_after_utc - datetime.now(UTC)
    if left.total_seconds() <= 0:
        raise ConfigError("has expired", where=certificate, remedy="Ask the server's owner for the new one")
    return left.days


def _check_key(public: Path) -> None:
    if public.exists() and normal(public.read_bytes()) is None:
        raise ConfigError("is not the public key of an elliptic curve", where=public)


_sealed = 0


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if _sealed and event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
        raise BackendError("a dry run sends nothing, yet something tried to", where=event)


sys.addaudithook(_refuse)


@contextmanager
def sealed() -> Iterator[None]:
    """No connection can be opened by this process within the block."""
    global _sealed
    _sealed += 1
    try:
        yield
    finally:
        _sealed -= 1
