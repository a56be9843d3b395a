"""What a partition holds, hashed: file by file and as a whole."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from polypfed.core.errors import DataError
from polypfed.data.files import canonical_json, inside, list_folder, read_file, read_json, safe_name

FILE = "manifest.json"
HELD_OUT = "test"  # folder and split of centres that belong to no site
_SCHEMA = "polypfed.partition/1"


@dataclass(frozen=True)
class Entry:
    """One image of a partition: where it is, where it came from, and the SHA-256 of image and label file."""

    site: str  # "" for a held-out image
    split: str  # "train", "val" or "test"
    file: str  # name in images/
    source: str
    centre: str
    group: str
    original: str
    size: tuple[int, int]
    image_sha256: str
    label_sha256: str

    def paths(self, root: Path) -> tuple[Path, Path]:
        """Image and label file under `root`."""
        folder = root / self.site / self.split
        return folder / "images" / self.file, folder / "labels" / f"{self.file.rpartition('.')[0]}.txt"


@dataclass(frozen=True)
class Manifest:
    """A partition's contents.

    `digest` covers all but the skew figures, which follow from the rest. It depends on samples, mode, parameters and
    seed, and on nothing else: not on the machine, the order of files or the time.
    """

    mode: str
    seed: int
    parameters: Mapping[str, Any]
    entries: tuple[Entry, ...]
    skew: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON, as hexadecimal digits."""
        return hashlib.sha256(canonical_json(self._body())).hexdigest()

    def _body(self) -> dict[str, Any]:
        entries = [asdict(entry) for entry in self.entries]
        head = {"schema": _SCHEMA, "mode": self.mode, "seed": self.seed}
        return {**head, "parameters": dict(self.parameters), "entries": entries}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, sorted."""
        return tuple(sorted({entry.site for entry in self.entries} - {""}))

    def write(self, root: Path) -> None:
        """Write `manifest.json` into `root`."""
        whole = {**self._body(), "skew": dict(self.skew), "digest": self.digest}
        (root / FILE).write_bytes(canonical_json(whole))

    @classmethod
    def read(cls, root: Path) -> "Manifest":
        """The manifest of the partition in `root`.

        Raises:
            DataError: missing, malformed, or not what its digest says.
        """
        path = Path(root) / FILE
        found = read_json(inside(Path(root), path))
        try:
            entries = tuple(_entry(row) for row in found["entries"])
            manifest = cls(str(found["mode"]), int(found["seed"]), dict(found["parameters"]), entries, found["skew"])
            if found["schema"] != _SCHEMA or found["digest"] != manifest.digest:
                raise DataError("does not match its own digest or version", where=path, remedy="Partition again")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as fault:
            if isinstance(fault, DataError):
                raise
            raise DataError("not a manifest of this version", where=path, remedy="Partition again") from None
        return manifest

    def verify(self, root: Path) -> None:
        """Compare the files in `root` with the manifest.

        Raises:
            DataError: the first file that is missing, changed or not listed, or a group that is divided.
        """
        for fault in self.problems(root):
            raise fault

    def problems(self, root: Path) -> Iterator[DataError]:
        """All that `verify` would complain about."""
        yield from self._divided()
        for entry in self.entries:
            for path, wanted in zip(entry.paths(root), (entry.image_sha256, entry.label_sha256), strict=True):
                try:
                    if hashlib.sha256(read_file(inside(root, path))).hexdigest() != wanted:
                        yield DataError("changed since the partition was made", where=path, remedy="Partition again")
                except DataError as fault:
                    yield fault
        yield from self._strangers(root)

    def _divided(self) -> Iterator[DataError]:
        home: dict[tuple[str, str, str], Entry] = {}
        for entry in self.entries:
            first = home.setdefault((entry.source, entry.centre, entry.group), entry)
            if entry.group and (first.site, first.split) != (entry.site, entry.split):
                places = f"{first.site}/{first.split} and {entry.site}/{entry.split}"
                yield DataError(f"group '{entry.group}' is divided between {places}", where=FILE)

    def _strangers(self, root: Path) -> Iterator[DataError]:
        listed = {path for entry in self.entries for path in entry.paths(root)}
        for folder in sorted({path.parent for path in listed}):
            try:
                found = list_folder(inside(root, folder))
            except DataError as fault:
                yield fault
                continue
            for path in found:
                if path not in listed:
                    yield DataError("not in the manifest", where=path, remedy="Delete it or partition again")


def _entry(row: Mapping[str, Any]) -> Entry:
    """An entry whose names cannot lead anywhere but into its own folder."""
    if set(row) != {f.name for f in fields(Entry)}:
        raise ValueError("fields")
    width, height = row["size"]
    texts = {name: value for name, value in row.items() if name != "size"}
    safe = all(not row[key] or safe_name(row[key]) == row[key] for key in ("site", "file"))
    whole = all(isinstance(value, str) for value in texts.values()) and row["split"] in ("train", "val", HELD_OUT)
    if not (safe and whole and row["file"]) or bool(row["site"]) == (row["split"] == HELD_OUT):
        raise ValueError("names")
    return Entry(**texts, size=(int(width), int(height)))
