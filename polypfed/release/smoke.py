"""The trial of a release in a process of its own, on the device's own reference images.

`python -m polypfed.release.smoke RELEASE FOLDER` prints what it found as JSON. Whatever the model file does to that
process, the device's own is untouched.
"""

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from polypfed.core.errors import DataError, PolypfedError
from polypfed.release.bundle import Card, Release, bundle_of
from polypfed.release.errors import ReleaseRefused

MEMORY = 8 << 30  # bytes of address space
PATIENCE = 120.0  # seconds


class Reference:
    """A trial on the images of a folder: YOLO's images/ and labels/, or images alone.

    Args:
        folder: the device's own; nothing of it leaves.
        patience: seconds for all of it.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.folder, self.patience = folder, patience

    def __call__(self, path: Path, release: Release) -> None:
        """Run it.

        Raises:
            ReleaseRefused: the process died, took too long, or the model falls short of its card.
        """
        command = [sys.executable, "-m", "polypfed.release.smoke", str(path), str(self.folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.patience, check=False)
        except subprocess.TimeoutExpired:
            raise ReleaseRefused(f"the trial took more than {self.patience:g} s", where=path) from None
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            said = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
            raise ReleaseRefused(f"the trial ended with code {done.returncode} ({said})", where=path)
        judge(json.loads(lines[-1]), release.card, path)


def judge(found: dict[str, Any], card: Card, where: object) -> None:
    """Compare what a trial found with the card.

    Raises:
        ReleaseRefused: it falls short.
    """
    if not found["finite"]:
        raise ReleaseRefused("finds boxes that are no numbers", where=where)
    if found["slowest"] > card.seconds:
        raise ReleaseRefused(f"took {found['slowest']:.2f} s for an image, not {card.seconds:g}", where=where)
    if found["boxes"] and found["found"] < card.recall * found["boxes"]:
        share = found["found"] / found["boxes"]
        raise ReleaseRefused(f"found {share:.2f} of the reference boxes, not {card.recall:g}", where=where)


def tried(path: Path, folder: Path) -> dict[str, Any]:
    """Run a release over a reference folder, in this process.

    Raises:
        ReleaseRefused, DataError, ModelFileError: it cannot be run.
    """
    from polypfed.data.images import open_image
    from polypfed.data.yolo import read_yolo
    from polypfed.detect.litert import LiteRTDetector
    from polypfed.detect.metrics import mistakes
    from polypfed.detect.patch import patch

    release = bundle_of(path)
    detector = LiteRTDetector(patch(release.template, release.spec.views(release.model), "fp32"))
    if (folder / "images").is_dir():
        pairs: list[tuple[Path, Any]] = [(sample.image, sample.boxes) for sample in read_yolo(folder)]
    else:
        pairs = [(p, ()) for p in sorted(folder.iterdir()) if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not pairs:
        raise DataError("holds no reference image", where=folder)
    detector(open_image(pairs[0][0]))  # the first frame is slower
    out = {"images": len(pairs), "boxes": 0, "found": 0, "slowest": 0.0, "finite": True}
    for image, boxes in pairs:
        pixels, begun = open_image(image), time.monotonic()
        got = detector(pixels)
        out["slowest"] = max(out["slowest"], time.monotonic() - begun)
        out["finite"] = out["finite"] and all(map(math.isfinite, [*got.xyxy.ravel(), *got.confidence]))
        out["boxes"] += len(boxes)
        out["found"] += len(boxes) - mistakes(got, boxes)[0]
    return out


def main() -> int:
    """The process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        print(json.dumps(tried(Path(sys.argv[1]), Path(sys.argv[2]))))  # noqa: T201 - it is what the parent reads
    except PolypfedError as error:
        print(error, file=sys.stderr)  # noqa: T201 - as above
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
