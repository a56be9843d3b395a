"""Secure aggregation: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017.

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)  mod m,   s_ij = HKDF(X25519(s_i, S_j))

    1 `keys`     site -> all      two public keys of this attempt and a commitment to b_i, signed
    2 `shares`   site -> site     t-of-n shares of b_i and s_i, sealed for one peer, relayed by the server
    3 `mask`     site -> server   y_i
    4 `confirm`  site -> site     a signature on the list of survivors; every site signs one list only
    5 `reveal`   site -> server   for each survivor the share of its b, for each lost site the share of its s; once

The server then removes PRG(b_i) of the survivors and the pair masks of the lost. A site's self-mask b_i and its pair
masks are never both revealed, so an update that comes late from a site declared lost stays hidden. With t > n/2 no two
lists of survivors can both be confirmed. The graph of pairs is complete, so groups are bounded.

Differs: a commitment to b_i rides with the keys, so that wrong shares are found and left out.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

from polypfed.core.errors import ConfigError, LayoutError
from polypfed.core.extras import require
from polypfed.privacy import shamir
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.group import (
    LEAST,
    Group,
    RoundKeys,
    derive,
    new_key,
    pair_seed,
    private,
    public,
    read_keys,
    verify,
)
from polypfed.privacy.roster import Identity
from polypfed.privacy.slots import Integers

_TRIES = 500  # subsets of shares tried when some are wrong


@dataclass(frozen=True)
class Reveal:
    """One site's shares after the sum: of the self-masks of survivors, of the pair keys of lost sites."""

    site: str
    self_masks: Mapping[str, int]
    pair_keys: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Shares as hex."""
        tables = {"self_masks": self.self_masks, "pair_keys": self.pair_keys}
        return {"site": self.site, **{k: {n: f"{s:x}" for n, s in t.items()} for k, t in tables.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Reveal":
        """The inverse of `to_json`.

        Raises:
            FrameRefused: share: the value is malformed.
        """
        try:
            tables = [{str(n): int(s, 16) for n, s in value[k].items()} for k in ("self_masks", "pair_keys")]
            return cls(str(value["site"]), *tables)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FrameRefused("share", f"is no reveal ({error})") from None


class MaskingSite:
    """One site's part in one attempt. Its secrets live in memory only and end with the object.

    Raises:
        FrameRefused: share or signature: a peer or the server did not keep to the protocol.
    """

    def __init__(self, group: Group, identity: Identity) -> None:
        if identity.name not in group.names:
            raise ConfigError("takes no part in this attempt", where=identity.name)
        self.group, self.identity, self.name = group, identity, identity.name
        self._seal, self._mask, self._self = new_key(), new_key(), os.urandom(32)
        self._keys: dict[str, RoundKeys] = {}
        self._shares: dict[str, tuple[int, int]] = {}
        self._confirmed: tuple[str, ...] | None = None
        self._revealed = False

    def keys(self) -> bytes:
        """Step 1."""
        body = public(self._seal) + public(self._mask) + hashlib.sha256(self._self).digest()
        return body + self.identity.signer.sign(self.group.context + b"keys" + body)

    def shares(self, advertised: Mapping[str, bytes]) -> dict[str, bytes]:
        """Step 2: for each peer that sent keys, this site's shares, sealed."""
        if self._keys:
            raise FrameRefused("duplicate", "has shared its keys in this attempt", where=self.name)
        self._keys = read_keys(self.group, advertised)
        if self.name not in self._keys or advertised[self.name][:96] != self.keys()[:96]:
            raise FrameRefused("share", "the relayed keys are not this site's own", where=self.name)
        points = {name: self.group.point(name) for name in self._keys}
        b, s = (
            shamir.split(int.from_bytes(secret, "little"), self.group.threshold, list(points.values()))
            for secret in (self._self, self._mask.private_bytes_raw())
        )
        self._shares[self.name] = b[points[self.name]], s[points[self.name]]
        return {n: self._seal_for(n, b[x], s[x]) for n, x in points.items() if n != self.name}

    def _seal_for(self, peer: str, b: int, s: int) -> bytes:
        plain = b.to_bytes(shamir.SHARE, "little") + s.to_bytes(shamir.SHARE, "little")
        return bytes(self._cipher(peer, self.name, peer).encrypt(bytes(12), plain, self.group.context))

    def _cipher(self, peer: str, sender: str, receiver: str) -> Any:
        """AES-GCM under a key of this attempt, pair and direction: it seals one message, so its nonce is fixed."""
        info = b"share" + self.group.context + f"\x1f{sender}\x1f{receiver}".encode()
        key = derive(self._seal, self._keys[peer].seal, info)
        return require("cryptography.hazmat.primitives.ciphers.aead", extra="he").AESGCM(key)

    def mask(self, slots: Integers, sealed: Mapping[str, bytes]) -> Integers:
        """Step 3: the slots, (length,), under masks with every peer whose shares came.

        Raises:
            FrameRefused: share: a share is damaged or not for this site; incomplete: too few came.
            LayoutError: the slots are not elements of the ring, or of another length.
        """
        if not self._keys or len(self._shares) > 1:
            raise FrameRefused("duplicate", "masks one vector per attempt, after its shares", where=self.name)
        if slots.shape != (self.group.length,) or not self.group.ring.holds(slots):
            raise LayoutError(f"{slots.shape} slots are not ({self.group.length},) below {self.group.ring.modulus}")
        opened = {peer: self._open(peer, data) for peer, data in sealed.items()}
        if len(opened) + 1 < max(LEAST, self.group.threshold):
            raise FrameRefused("incomplete", f"shares of {len(opened)} peers only", where=self.name)
        self._shares |= opened
        ring, out = self.group.ring, slots.astype(self.group.ring.dtype)
        ring.add(out, ring.mask(self._self, out.size))
        for peer in sorted(opened):
            mask = ring.mask(pair_seed(self.group, self._mask, self._keys[peer].mask, self.name, peer), out.size)
            (ring.add if self.name < peer else ring.subtract)(out, mask)
        return out

    def _open(self, peer: str, data: bytes) -> tuple[int, int]:
        invalid = require("cryptography.exceptions", extra="he").InvalidTag
        try:
            plain = self._cipher(peer, peer, self.name).decrypt(bytes(12), data, self.group.context)
        except (KeyError, invalid):
            raise FrameRefused("share", "a share is damaged or not for this site and attempt", where=peer) from None
        return int.from_bytes(plain[: shamir.SHARE], "little"), int.from_bytes(plain[shamir.SHARE :], "little")

    def confirm(self, survivors: Sequence[str]) -> bytes:
        """Step 4: this site's signature on the list of survivors.

        Raises:
            FrameRefused: it has signed another list, or the list is too short or holds strangers.
        """
        listed = tuple(sorted(set(survivors)))
        if self._confirmed not in (None, listed):
            raise FrameRefused("share", "has confirmed another list of survivors", where=self.name)
        if len(listed) < max(LEAST, self.group.threshold) or not set(listed) <= set(self._shares):
            raise FrameRefused("incomplete", f"{len(listed)} survivors of {len(self._shares)}", where=self.name)
        self._confirmed = listed
        return self.identity.signer.sign(self._statement(listed))

    def _statement(self, survivors: tuple[str, ...]) -> bytes:
        masked = sorted(self._shares)
        return self.group.context + b"survivors" + repr((masked, list(survivors))).encode()

    def reveal(self, confirmations: Mapping[str, bytes]) -> Reveal:
        """Step 5, once: of each peer either the share of its self-mask or that of its pair key.

        Args:
            confirmations: signatures of survivors on the list that this site confirmed.

        Raises:
            FrameRefused: fewer confirmations than the threshold, one is wrong, or it has revealed before.
        """
        if self._confirmed is None or self._revealed:
            raise FrameRefused("share", "reveals once, after it has confirmed", where=self.name)
        if len(set(confirmations) & set(self._confirmed)) < self.group.threshold:
            raise FrameRefused("incomplete", f"{len(confirmations)} confirmations", where=self.name)
        for name, signature in confirmations.items():
            verify(self.group, name, signature, self._statement(self._confirmed)[len(self.group.context) :])
        self._revealed = True
        survivors = set(self._confirmed)
        return Reveal(
            self.name,
            {n: b for n, (b, _) in self._shares.items() if n in survivors},
            {n: s for n, (_, s) in self._shares.items() if n not in survivors},
        )


@dataclass
class Unmasking:
    """What removes the masks from a sum: the server's in `secagg`, passed on to the key holders in `hybrid`.

    Attributes:
        self_masks: seeds b of the survivors.
        pair_keys: private keys s of the sites that were lost after they had sent their shares.
    """

    group: Group
    keys: Mapping[str, RoundKeys]
    self_masks: dict[str, bytes] = field(default_factory=dict)
    pair_keys: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def join(
        cls,
        group: Group,
        keys: Mapping[str, RoundKeys],
        reveals: Iterable[Reveal],
        survivors: Iterable[str],
        lost: Iterable[str],
    ) -> "Unmasking":
        """Put the shares together; a wrong share is found by the commitment or the public key, and left out.

        Args:
            survivors: the sites in the sum; lost: those that sent shares and are not in it.

        Raises:
            FrameRefused: incomplete: fewer answers than the threshold; share: too many of them are wrong.
        """
        given = {r.site: r for r in reveals}
        if len(given) < group.threshold:
            raise FrameRefused("incomplete", f"{len(given)} sites revealed shares, {group.threshold} are needed")
        out = cls(group, keys)
        for name in sorted(survivors):
            tables = {site: r.self_masks for site, r in given.items()}
            out.self_masks[name] = _joined(group, name, tables, keys[name].commits_to)
        for name in sorted(lost):
            tables = {site: r.pair_keys for site, r in given.items()}
            out.pair_keys[name] = _joined(group, name, tables, keys[name].belongs_to)
        return out

    def to_json(self) -> dict[str, Any]:
        """The seeds and keys as hex, for the key holders of a hybrid round."""
        return {
            "self_masks": {n: s.hex() for n, s in self.self_masks.items()},
            "pair_keys": {n: s.hex() for n, s in self.pair_keys.items()},
        }

    @classmethod
    def from_json(cls, group: Group, keys: Mapping[str, RoundKeys], value: Mapping[str, Any]) -> "Unmasking":
        """The inverse of `to_json`.

        Raises:
            FrameRefused: share: the value is malformed, or names a site without keys.
        """
        try:
            tables = [{str(n): bytes.fromhex(s) for n, s in value[k].items()} for k in ("self_masks", "pair_keys")]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FrameRefused("share", f"is no unmasking ({error})") from None
        if not (set(tables[0]) | set(tables[1])) <= set(keys) or {len(s) for t in tables for s in t.values()} - {32}:
            raise FrameRefused("share", "the unmasking does not fit the keys of this attempt")
        return cls(group, keys, *tables)

    def remove(self, total: Integers) -> Integers:
        """The sum of the survivors' slots, from the sum of what they sent.

        Raises:
            FrameRefused: a key that was revealed is not the one that was advertised.
        """
        ring, out = self.group.ring, total.astype(self.group.ring.dtype)
        for name, seed in self.self_masks.items():
            if not self.keys[name].commits_to(seed):
                raise FrameRefused("share", "a revealed self-mask is not the one committed to", where=name)
            ring.subtract(out, ring.mask(seed, out.size))
        for lost, secret in self.pair_keys.items():
            if not self.keys[lost].belongs_to(secret):
                raise FrameRefused("share", "a revealed key is not the one advertised", where=lost)
            own = private(secret)
            for name in self.self_masks:
                mask = ring.mask(pair_seed(self.group, own, self.keys[name].mask, lost, name), out.size)
                (ring.subtract if name < lost else ring.add)(out, mask)
        return out


def _joined(group: Group, name: str, tables: Mapping[str, Mapping[str, int]], fits: Callable[[bytes], bool]) -> bytes:
    shares = {group.point(site): table[name] for site, table in tables.items() if name in table}
    for chosen in islice(combinations(sorted(shares), group.threshold), _TRIES):
        secret = shamir.join({x: shares[x] for x in chosen})
        if secret < 1 << 256 and fits(secret.to_bytes(32, "little")):
            return secret.to_bytes(32, "little")
    raise FrameRefused("share", f"its secret cannot be had from {len(shares)} shares", where=name)
