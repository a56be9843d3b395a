"""The record of a selection: one line per image, so that nobody has to guess what a site trained on."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polypfed.core.errors import DataError
from polypfed.core.files import write_atomic
from polypfed.select.rules import Mask, Score

_HEADER = ["image", "confidence", "kept"]


@dataclass(frozen=True)
class Decision:
    """One image of one round at one site."""

    site: str
    round: int
    image: str
    confidence: float
    kept: bool


def decisions(site: str, round: int, scores: Sequence[Score], kept: Mask) -> list[Decision]:
    """Join scores and mask, in the order given.

    >>> decisions("a", 1, [Score("img", 0.5)], np.array([True]))
    [Decision(site='a', round=1, image='img', confidence=0.5, kept=True)]
    """
    if len(scores) != len(kept):
        raise DataError(f"{len(scores)} scores, but a mask of {len(kept)}", where=site)
    return [Decision(site, round, s.image, s.confidence, bool(k)) for s, k in zip(scores, kept, strict=True)]


def write_decisions(rows: Sequence[Decision], directory: str | Path) -> list[Path]:
    """Write `directory`/selection/round-NNNN.csv for each round among `rows`, atomically.

    Args:
        rows: decisions of one site.
        directory: the site's folder, as RUN/sites/NAME; made if it is missing.
    """
    folder = Path(directory) / "selection"
    written = []
    for number in sorted({row.round for row in rows}):
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_HEADER)
        chosen = [row for row in rows if row.round == number]
        table.writerows([row.image, _text(row.confidence), int(row.kept)] for row in chosen)
        written.append(folder / f"round-{number:04d}.csv")
        write_atomic(written[-1], text.getvalue().encode())
    return written


def read_decisions(directory: str | Path, site: str = "") -> list[Decision]:
    """Everything recorded under `directory`/selection, by round, then in the order written.

    Raises:
        DataError: a file is not such a record.
    """
    rows = []
    for path in sorted((Path(directory) / "selection").glob("round-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        try:
            if lines[0] != _HEADER:
                raise ValueError
            number = int(path.stem.removeprefix("round-"))
            for image, confidence, kept in lines[1:]:
                rows.append(Decision(site, number, image, float(np.float32(confidence or "nan")), kept == "1"))
        except (ValueError, IndexError):
            raise DataError("this is not a record of a selection", where=path) from None
    return rows


def _text(confidence: float) -> str:
    """As few digits as give the float32 back; nothing where nobody looked."""
    return "" if math.isnan(confidence) else format(np.float32(confidence), ".9g")
