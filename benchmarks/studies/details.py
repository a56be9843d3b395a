"""The second table of a study: by round, what was forgotten, losses and early stopping, and figures by confidence.

Rows of before these were recorded show blanks.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from studies.study import Study

Row = dict[str, Any]
Cells = Mapping[str, Sequence[Row]]
PATIENCE = 3  # epochs without a better mAP50, after which early stopping ends a training
_OPERATING = ("0.25", "0.50", "0.70")


def tables(study: Study, cells: Cells) -> list[str]:
    """Lines of Markdown, each table behind an empty line."""
    return [line for name in study.details for line in _KINDS[name](cells)]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["", _line(head), "|---|" + "---:|" * (len(head) - 1), *map(_line, body)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rounds(cells: Cells) -> list[str]:
    """Images kept, mAP50, mean confidence and minutes after each round; confidence is that on images with a polyp."""
    last = max(len(r["curve"]) for rows in cells.values() for r in rows)
    body: list[list[str]] = []
    for name, rows in cells.items():
        whole = all("by_round" in r for r in rows)
        kept = _mean(rows, lambda r: r["by_round"]["kept"]) if whole else []
        minutes = _mean(rows, lambda r: r["by_round"]["minutes"]) if whole else []
        sure = _mean(rows, lambda r: r["confidence"]) if whole else []
        scores = _mean(rows, lambda r: r["curve"])
        for what, values, form in (
            ("images kept", [None, *kept], ".0f"),
            ("mAP50", scores, ".3f"),
            ("confidence", sure, ".3f"),
            ("minutes", [None, *minutes], ".2f"),
        ):
            filled = ["" if v is None else f"{v:{form}}" for v in values]
            body.append([f"{name}: {what}", *filled, *[""] * (last - len(filled))])
    return _table(["by round", *map(str, range(last))], body)


def easy(cells: Cells) -> list[str]:
    """Of validation images that an earlier model found surely, what the last one finds."""
    head = "forgetting|easy images|still found|still at 0.7|easy after the first model with any|still found".split("|")
    body = []
    for name, rows in cells.items():
        found = [r["easy"] for r in rows if "easy" in r]
        if not found:
            body.append([name, *[""] * 5])
            continue
        images, first = (str(sum(e[k] for e in found)) for k in ("images", "first"))
        share = [still(found, k, of) for k, of in (("found", "images"), ("sure", "images"), ("first_found", "first"))]
        body.append([name, images, *share[:2], first, share[2]])
    note = (
        "Easy: a validation image with polyps all of which a model of an earlier round found at a confidence of at "
        "least 0.7. Still found: by the last model at 0.25 or more. FPS are a device's: `polypfed bench edge`."
    )
    return [*_table(head, body), "", note]


def still(found: Sequence[Mapping[str, int]], what: str, of: str) -> str:
    """A share of the easy images of all seeds, as words; "" without any."""
    whole = sum(e[of] for e in found)
    return f"{sum(e[what] for e in found) / whole:.1%}" if whole else ""


def losses(cells: Cells) -> list[str]:
    """Losses at the first and the last epoch, the best epoch, and where early stopping would have ended."""
    head = "losses|training, first|training, last|validation, first|lowest|last|best epoch|mAP50 there".split("|")
    head += [f"patience of {PATIENCE} stops after", "mAP50 kept"]
    body = []
    for name, rows in cells.items():
        curve, epochs = _mean(rows, lambda r: r["curve"]), int(rows[0]["settings"]["train"]["epochs"])
        best, (end, kept) = max(range(len(curve)), key=curve.__getitem__), stopped(curve)
        told = [str(epochs * best), f"{curve[best]:.3f}", str(epochs * end), f"{curve[kept]:.3f}"]
        if all("by_round" in r for r in rows):
            train, val = _mean(rows, lambda r: r["by_round"]["loss"]), _mean(rows, lambda r: r["val_loss"])
            body.append([name, *[f"{v:.2f}" for v in (train[0], train[-1], val[1], min(val[1:]), val[-1])], *told])
        else:
            body.append([name, *[""] * 5, *told])
    return _table(head, body)


def stopped(curve: Sequence[float], patience: int = PATIENCE) -> tuple[int, int]:
    """(where early stopping ends the training, the round it keeps); curve[0] is the model before any training.

    A round does not depend on those after it, so this is what a training that stops early comes to, to the bit.

    >>> stopped([0.0, 0.5, 0.4, 0.4, 0.4, 0.9])
    (4, 1)
    >>> stopped([0.0, 0.5, 0.6])
    (2, 2)
    """
    best = 0
    for number, value in enumerate(curve):
        if value > curve[best]:
            best = number
        elif number - best >= patience:
            return number, best
    return len(curve) - 1, best


def levels(cells: Cells) -> list[str]:
    """P, R and F1 at three confidences, the best F1, and images with a polyp by their best confidence."""
    head = ["by confidence", *[f"{m} at {c}" for c in _OPERATING for m in ("P", "R", "F1")], "best F1", "at"]
    head += ["images below 0.3", "0.3 to 0.7", "0.7 and above"]
    body = []
    for name, rows in cells.items():
        if not all("levels" in r for r in rows):
            body.append([name, *[""] * (len(head) - 1)])
            continue
        found = {m: _mean(rows, lambda r, m=m: r["levels"][m]) for m in ("precision", "recall", "f1")}  # type: ignore[misc]
        cut = [round(float(c) * 20) - 1 for c in _OPERATING]
        line = [f"{found[m][i]:.3f}" for i in cut for m in ("precision", "recall", "f1")]
        top = max(range(19), key=found["f1"].__getitem__)
        counts = _mean(rows, lambda r: r["histogram"]["polyp"])
        shares = [sum(counts[a:b]) / max(sum(counts), 1) for a, b in ((0, 3), (3, 7), (7, 10))]
        body.append([name, *line, f"{found['f1'][top]:.3f}", f"{(top + 1) / 20:.2f}", *[f"{s:.0%}" for s in shares]])
    return _table(head, body)


def _mean(rows: Sequence[Row], pick: Callable[..., Sequence[float]]) -> list[float]:
    """Over the seeds, place by place."""
    return [mean(values) for values in zip(*map(pick, rows), strict=True)]


_KINDS: dict[str, Callable[[Cells], list[str]]] = {"rounds": rounds, "easy": easy, "losses": losses, "levels": levels}
