"""The health of a data set: everything `polypfed data check` would find, in short."""

from collections.abc import Iterator
from pathlib import Path

from polypfed.core.messages import one_line
from polypfed.data.check import check_dataset
from polypfed.doctor.finding import Finding, guarded, ok

_SHOWN = 3


def dataset(folder: Path) -> Iterator[Finding]:
    """Every file of a site's or a study's images and labels, each image decoded."""
    return guarded("data", lambda: _look(folder), "Name the folder that holds train/ and val/")


def _look(folder: Path) -> Iterator[Finding]:
    found = check_dataset(folder)
    errors = [f for f in found.findings if f.level == "error"]
    for number, finding in enumerate(errors[:_SHOWN], 1):
        remedy = finding.remedy or "Mend or remove the file"
        yield Finding(f"data, fault {number}", "error", one_line(f"{finding.where}: {finding.problem}"), remedy)
    summary = f"{found.images} images, {found.boxes} boxes, {found.negatives} without a polyp"
    if errors:
        detail = f"{summary}; {len(errors)} faults"
        yield Finding("data", "error", detail, f"See them all: polypfed data check {folder}")
    elif warnings := len(found.findings):
        yield Finding("data", "note", f"{summary}; {warnings} warnings", f"polypfed data check {folder}")
    else:
        yield ok("data", summary)
