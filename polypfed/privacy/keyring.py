"""Where keys lie: a site's folder `keys` holds its identity and its own copy of the roster, the server's likewise."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from polypfed.core.errors import MessageError
from polypfed.core.files import write_atomic
from polypfed.core.messages import strict_json
from polypfed.privacy.errors import KeyRefused
from polypfed.privacy.frames import Signer, Verifier
from polypfed.privacy.roster import Identity, Member, Roster

IDENTITY, ROSTER = "identity.key", "roster.json"
SERVER_NAME = "server"


def write_roster(path: Path, roster: Roster) -> None:
    """Write the public keys as JSON; another roster that was there stays beside it, for what was made under it."""
    data = json.dumps(roster.to_json(), indent=1).encode() + b"\n"
    if path.exists() and path.read_bytes() != data:
        path.replace(path.with_name(f"{path.stem}-{read_roster(path).digest.hex()[:16]}.json"))
    write_atomic(path, data)


def read_roster(path: Path) -> Roster:
    """The inverse of `write_roster`.

    Raises:
        KeyRefused: the file is missing, or is no roster.
    """
    try:
        return Roster.from_json(strict_json(path.read_bytes()))
    except (OSError, MessageError) as error:
        raise KeyRefused(f"is no roster ({error})", where=path, remedy="Make it with polypfed keys") from None


def open_keys(folder: Path) -> tuple[Identity, Roster]:
    """The identity and roster in a `keys` folder.

    Raises:
        KeyRefused: one is missing, damaged or readable by others.
    """
    return Identity.load(folder / IDENTITY), read_roster(folder / ROSTER)


def rosters(folder: Path) -> list[Roster]:
    """The roster in a `keys` folder, and behind it the ones before it."""
    earlier = sorted(folder.glob(f"{Path(ROSTER).stem}-*.json"))
    return [read_roster(path) for path in (folder / ROSTER, *earlier)]


def own_signer(folder: str | Path) -> Signer:
    """What signs with the identity in a `keys` folder.

    Raises:
        KeyRefused: there is none that can be used.
    """
    return Identity.load(Path(folder) / IDENTITY).signer


def member_verifiers(folder: str | Path) -> dict[str, Verifier]:
    """By name, what checks the signatures of the roster's members.

    Raises:
        KeyRefused: there is no roster.
    """
    return {member.name: member.verifier for member in read_roster(Path(folder) / ROSTER).members}


def provision(
    names: Sequence[str],
    root: Path,
    *,
    sites: Mapping[str, Path] | None = None,
    server: Path | None = None,
    known: Mapping[str, Member] | None = None,
) -> None:
    """Identities for every site of a simulation and its server, and the roster of all, below `root`; kept if there.

    Args:
        sites, server: their `keys` folders, where those are elsewhere.
        known: public keys of sites that have an identity of their own; they get the roster alone.

    Real sites make their own identity and compare the roster by fingerprint: `polypfed keys`.
    """
    folders = dict(sites) if sites else {name: root / "sites" / name / "keys" for name in names}
    folders[SERVER_NAME if SERVER_NAME not in names else "server-"] = server or root / "keys"
    members = dict(known or {})
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        if name in members:
            continue
        if not (folder / IDENTITY).exists():
            Identity.create(name).save(folder / IDENTITY)
        members[name] = Identity.load(folder / IDENTITY).public
    roster = Roster(tuple(members[name] for name in names), next(m for n, m in members.items() if n not in names))
    for folder in folders.values():
        write_roster(folder / ROSTER, roster)
