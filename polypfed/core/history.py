"""History: tidy rows (round, site, metric, value) and what can be read off them."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polypfed.core.messages import Failure
from polypfed.core.model import ModelSpec, Vector

Row = dict[str, Any]


def row(round: int, site: str, metric: str, value: float) -> Row:
    """One tidy row; site "" is the whole federation."""
    return {"round": round, "site": site, "metric": metric, "value": float(value)}


@dataclass
class History:
    """What a run did.

    Attributes:
        rows: `{"round", "site", "metric", "value"}`; site "" is the whole federation.
        failures: the clients that could not, or were refused, and why.
        spec, model: the layout and the last global model, (P,) float32.
        best, best_round: the global model with the best validation metric, and its round.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    spec: ModelSpec | None = None
    model: Vector | None = None
    best: Vector | None = None
    best_round: int = 0

    def values(self, metric: str, site: str = "") -> dict[int, float]:
        """One metric of one site by round."""
        return {r["round"]: r["value"] for r in self.rows if r["metric"] == metric and r["site"] == site}

    def table(self, metric: str) -> "Table":
        """One metric by round (rows) and site (columns); the column "all" is the whole federation."""
        return Table(metric, {(r["round"], r["site"]): r["value"] for r in self.rows if r["metric"] == metric})

    def json_lines(self) -> str:
        """The rows, one JSON object a line."""
        return "".join(json.dumps(r) + "\n" for r in self.rows)

    def csv(self) -> str:
        """The rows as CSV with a header."""
        out = io.StringIO()
        writer = csv.DictWriter(out, ["round", "site", "metric", "value"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()


@dataclass(frozen=True)
class Table:
    """A metric by round and site; `str(table)` is readable."""

    metric: str
    cells: Mapping[tuple[int, str], float]

    @property
    def rounds(self) -> list[int]:
        """The rounds in order."""
        return sorted({r for r, _ in self.cells})

    @property
    def sites(self) -> list[str]:
        """The sites in order, the whole federation ("") last."""
        return sorted({s for _, s in self.cells}, key=lambda s: (s == "", s))

    def __getitem__(self, key: tuple[int, str]) -> float:
        return self.cells[key]

    def __str__(self) -> str:
        head = ["round", *[s or "all" for s in self.sites]]
        body = [[str(r), *[_cell(self.cells.get((r, s))) for s in self.sites]] for r in self.rounds]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in [head, *body]]
        return "\n".join([self.metric, *lines])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def mean_rows(round: int, evaluations: Iterable[tuple[Mapping[str, float], int]]) -> list[Row]:
    """The mean of each metric over sites, weighted by their validation examples, as rows of site ""."""
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    for metrics, weight in evaluations:
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + weight * value
            weights[name] = weights.get(name, 0) + weight
    return [row(round, "", name, sums[name] / weights[name]) for name in sorted(sums) if weights[name]]
