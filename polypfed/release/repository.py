"""The repository of releases: drafts that people sign, and what is published.

public/metadata   root, targets, snapshot, timestamp, as TUF has them; public/targets   the releases
draft/            the next targets metadata, while it lacks signatures
keys              are not in here: people keep theirs, the repository's signs snapshot and timestamp
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from polypfed.core.errors import ConfigError
from polypfed.core.files import write_atomic
from polypfed.core.settings import site_names, whole
from polypfed.release.bundle import read_bundle
from polypfed.release.errors import ReleaseRefused

EVERYBODY = "all"
_DAYS = {"root": 3650, "targets": 730, "snapshot": 90, "timestamp": 90}
"""A device that finds nothing newer for so long believes nothing more, and goes on with what it has."""


class Repository:
    """The folder of a repository.

    Args:
        folder: made by `init`.
        now: the time; for tests.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder, self._now = folder, now
        self.metadata, self.targets = folder / "public" / "metadata", folder / "public" / "targets"
        self._draft = folder / "draft" / "targets.json"

    def init(self, people: Mapping[str, CryptoSigner], own: CryptoSigner, threshold: int = 1) -> Path:
        """Begin a repository; the root that devices are given.

        Args:
            people: who signs releases and roots, by name.
            own: the repository's key.
            threshold: signatures of people that a release needs.

        Raises:
            ConfigError: the folder holds a repository, or the threshold is more than there are people.
        """
        if self.metadata.exists():
            raise ConfigError("holds a repository already", where=self.folder)
        whole("threshold", threshold, 1, len(people))
        root = Root(1, expires=self._until("root"), consistent_snapshot=True)
        for role in ("root", "targets"):
            for signer in people.values():
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = threshold
        for role in ("snapshot", "timestamp"):
            root.add_key(own.public_key, role)
        signed = Metadata(root)
        for signer in people.values():
            signed.sign(signer, append=True)
        path = self.metadata / "1.root.json"
        self._write(path, signed)
        first = Metadata(Targets(1, expires=self._until("targets")))
        for signer in people.values():
            first.sign(signer, append=True)
        self._publish(first, own)
        return path

    def create(self, bundle: bytes, groups: Sequence[str]) -> str:
        """Put a release into the draft, for the devices of these groups; its name.

        Raises:
            ReleaseRefused: the file is no release. ConfigError: its version is not above all others.
        """
        card, draft = read_bundle(bundle).card, self._drafted()
        newest = max((_about(t)["version"] for t in draft.signed.targets.values()), default=0)
        if card.version <= newest:
            raise ConfigError(f"version {card.version} is not above {newest}", where="version")
        name = f"release-{card.version:06d}.safetensors"
        target = TargetFile.from_data(name, bundle, ["sha256"])
        target.unrecognized_fields["custom"] = {"version": card.version, "groups": _groups(groups)}
        draft.signed.targets[name] = target
        write_atomic(self.targets / f"{target.hashes['sha256']}.{name}", bundle)
        self._keep(draft)
        return name

    def stage(self, version: int, groups: Sequence[str]) -> None:
        """Change for whom a release is: the next stage of a roll-out, or nobody any more. It needs signatures anew.

        Raises:
            ConfigError: there is no such release.
        """
        draft = self._drafted()
        found = [t for t in draft.signed.targets.values() if _about(t)["version"] == version]
        if not found:
            raise ConfigError(f"there is no release {version}", where=self.folder)
        found[0].unrecognized_fields["custom"] = {"version": version, "groups": _groups(groups)}
        self._keep(draft)

    def sign(self, signer: CryptoSigner) -> int:
        """A person signs the draft; how many signatures are still missing.

        Raises:
            ConfigError: there is no draft, or the key is none of the repository's people's.
        """
        draft, role = self._read(self._draft, Targets), self.root().signed.roles["targets"]
        if signer.public_key.keyid not in role.keyids:
            raise ConfigError("is not the key of a person who may sign releases", where="key")
        draft.sign(signer, append=True)
        self._write(self._draft, draft)
        return max(0, int(role.threshold) - len(draft.signatures))

    def publish(self, own: CryptoSigner) -> int:
        """Publish the draft if there is one, and say anew what is newest; the version of the targets metadata.

        Raises:
            ReleaseRefused: the draft lacks signatures.
        """
        if not self._draft.exists():
            self._publish(self._latest(), own)
            return int(self._latest().signed.version)
        draft = self._read(self._draft, Targets)
        try:
            self.root().verify_delegate("targets", draft)
        except (RepositoryError, ValueError) as error:
            raise ReleaseRefused(f"the draft lacks signatures ({error})", where=self.folder, remedy="Sign it") from None
        self._publish(draft, own)
        self._draft.unlink()
        return int(draft.signed.version)

    def releases(self) -> list[dict[str, Any]]:
        """The published releases: version, groups, SHA-256, bytes."""
        found = self._latest().signed.targets.values()
        return [_about(t) | {"sha256": t.hashes["sha256"], "bytes": t.length} for t in found]

    def root(self) -> "Metadata[Root]":
        """The newest root."""
        return self._read(self._newest("root"), Root)

    def _publish(self, targets: "Metadata[Targets]", own: CryptoSigner) -> None:
        """Each file before the one that names it, so that a reader finds what it is told of."""
        self._write(self.metadata / f"{targets.signed.version}.targets.json", targets)
        old = self._newest("snapshot")
        version = 1 + (self._read(old, Snapshot).signed.version if old.exists() else 0)
        data = targets.to_bytes()
        named = MetaFile.from_data(targets.signed.version, data, ["sha256"])
        snapshot = Metadata(Snapshot(version, expires=self._until("snapshot"), meta={"targets.json": named}))
        snapshot.sign(own)
        self._write(self.metadata / f"{version}.snapshot.json", snapshot)
        meta = MetaFile.from_data(version, snapshot.to_bytes(), ["sha256"])
        timestamp = Metadata(Timestamp(version, expires=self._until("timestamp"), snapshot_meta=meta))
        timestamp.sign(own)
        self._write(self.metadata / "timestamp.json", timestamp)

    def _drafted(self) -> "Metadata[Targets]":
        if self._draft.exists():
            return self._read(self._draft, Targets)
        latest = self._latest()
        latest.signed.version += 1
        return latest

    def _keep(self, draft: "Metadata[Targets]") -> None:
        """What has changed must be signed anew."""
        draft.signatures.clear()
        draft.signed.expires = self._until("targets")
        self._write(self._draft, draft)

    def _latest(self) -> "Metadata[Targets]":
        return self._read(self._newest("targets"), Targets)

    def _newest(self, role: str) -> Path:
        numbers = [int(p.name.split(".")[0]) for p in self.metadata.glob(f"*.{role}.json")]
        return self.metadata / f"{max(numbers, default=0)}.{role}.json"

    def _until(self, role: str) -> datetime:
        return self._now().replace(microsecond=0) + timedelta(days=_DAYS[role])

    def _read(self, path: Path, kind: type) -> "Metadata[Any]":
        try:
            found: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
        except (OSError, RepositoryError, ValueError) as error:
            raise ConfigError(f"cannot be read ({error})", where=path) from None
        if not isinstance(found.signed, kind):
            raise ConfigError(f"is no {kind.__name__}", where=path)
        return found

    def _write(self, path: Path, metadata: "Metadata[Any]") -> None:
        write_atomic(path, metadata.to_bytes())


def _about(target: TargetFile) -> dict[str, Any]:
    about = target.custom or {}
    return {"version": int(about["version"]), "groups": list(about["groups"])}


def _groups(groups: Sequence[str]) -> list[str]:
    site_names(groups)
    return sorted(groups)
