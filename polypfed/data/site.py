"""A federation's data on disk: one folder per site."""

import os
from dataclasses import dataclass
from pathlib import Path

from polypfed.core.errors import DataError
from polypfed.data.files import inside
from polypfed.data.manifest import HELD_OUT
from polypfed.data.sample import Sample
from polypfed.data.yolo import read_yolo


@dataclass(frozen=True)
class Site:
    """Where one site's data lies."""

    name: str
    path: Path

    @property
    def train(self) -> Path:
        """YOLO folder of the training part."""
        return self.path / "train"

    @property
    def val(self) -> Path:
        """YOLO folder of the validation part."""
        return self.path / "val"

    @property
    def data_yaml(self) -> Path:
        """The file that ultralytics trains from; its paths are relative to itself."""
        return self.path / "data.yaml"

    def samples(self, split: str) -> list[Sample]:
        """Samples of "train" or "val"; raises what `read_yolo` raises."""
        return read_yolo(self.path / split)


def open_partition(root: Path) -> dict[str, Site]:
    """The sites of a partition, by name (code point). Looks at folders only; `Site.samples` checks the files.

    Raises:
        DataError: no such folder, no site in it, or a site without images in `train` or `val`.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("no such folder", where=root, remedy="Make one with `polypfed data partition` or `data synth`")
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)
    sites = {p.name: Site(p.name, inside(root, p)) for p in folders if p.name != HELD_OUT}
    if not sites:
        raise DataError("holds no site", where=root, remedy="Expected: <site>/train and <site>/val")
    for site in sites.values():
        for part in (site.train, site.val):
            _filled(root, part)
    return sites


def _filled(root: Path, part: Path) -> None:
    for name in ("images", "labels"):
        if not inside(root, part / name).is_dir():
            remedy = "Every site needs train and val, each with images and labels"
            raise DataError("no such folder", where=part / name, remedy=remedy)
    with os.scandir(part / "images") as found:
        if not any(not item.name.startswith(".") for item in found):
            raise DataError("holds no image", where=part / "images", remedy="Add images or leave the site out")
