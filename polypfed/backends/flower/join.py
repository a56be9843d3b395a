"""`NAME.join.json`: the public keys of a site that made its own, for the server's owner. Nothing in it is secret."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from polypfed.backends.flower.roll import normal
from polypfed.core.errors import ConfigError, MessageError
from polypfed.core.messages import strict_json
from polypfed.privacy.roster import Member


@dataclass(frozen=True)
class Join:
    """A site that asks to be let in.

    Attributes:
        member: its keys in the roster, which updates are signed with.
        node: the key that its SuperNode shows, as `site.pub` holds it.
    """

    member: Member
    node: bytes

    def __post_init__(self) -> None:
        if normal(self.node) is None:
            raise ConfigError("node: is not the public key of an elliptic curve", where=self.member.name)

    @property
    def name(self) -> str:
        """Of the site."""
        return self.member.name

    @property
    def digest(self) -> str:
        """SHA-256 of the file, which both ends compare by telephone."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def data(self) -> bytes:
        """The file."""
        member = self.member
        keys = {"signing": member.signing.hex(), "transport": member.transport.hex(), "node": self.node.decode()}
        return json.dumps({"name": member.name, **keys}, indent=1).encode() + b"\n"

    @classmethod
    def read(cls, path: Path) -> "Join":
        """The inverse of `data`.

        Raises:
            ConfigError: the file cannot be read, or is not what `polypfed init site` wrote.
        """
        try:
            table = strict_json(path.read_bytes())
            keys = bytes.fromhex(table["signing"]), bytes.fromhex(table["transport"])
            found = cls(Member(table["name"], *keys), table["node"].encode())
        except (OSError, MessageError, ConfigError, KeyError, TypeError, AttributeError, ValueError) as error:
            remedy = "Ask the site for NAME.join.json, which polypfed init site writes"
            raise ConfigError(f"is no site's join file ({error})", where=path, remedy=remedy) from None
        if found.data != path.read_bytes():
            raise ConfigError("holds more than a site's keys", where=path, remedy="Ask the site for it again")
        return found
