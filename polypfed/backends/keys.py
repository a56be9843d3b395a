"""A deployment's keys for encrypted and masked runs: each machine has its own folder, and runs find it by a link.

A site's folder `keys` holds its private identity and the roster of all public keys; the server's holds an identity
that signs its sums. Neither the key that decrypts sums nor a site's identity is ever at the server.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from polypfed.core.errors import ConfigError
from polypfed.privacy.keyring import ROSTER, provision, read_roster

KEYS = "keys"
"""The folder of keys, beside the settings of a site or the server, and in the folder of a run."""


def issue(sites: Mapping[str, Path], server: Path) -> Mapping[str, str]:
    """Write an identity and the roster of all into each of these `keys` folders; each site's fingerprint.

    For those who hand out whole kits, private keys included. Sites that let nobody else make their keys use
    `polypfed keys create` and exchange public halves.
    """
    with tempfile.TemporaryDirectory(dir=server.parent) as scratch:
        root = Path(scratch)
        provision(list(sites), root)
        for name, folder in sites.items():
            shutil.move(root / "sites" / name / KEYS, folder)
        shutil.move(root / KEYS, server)
    return {member.name: member.fingerprint for member in read_roster(server / ROSTER).members}


def lend(keys: Path, place: Path) -> None:
    """Let what works in the folder `place` find the keys there, by a link: private keys are not copied.

    Raises:
        ConfigError: the folder cannot hold the link.
    """
    link = place / KEYS
    if not keys.is_dir() or (link.exists() and not link.is_symlink()):
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and os.readlink(link) != str(keys):
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(keys, target_is_directory=True)
    except OSError as error:
        raise ConfigError(f"cannot hold a link to the keys ({error.strerror})", where=place) from None
