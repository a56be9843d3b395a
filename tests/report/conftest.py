"""A fabricated run directory, with every file a run can leave behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SITES = ("coast", "north", "valley")


def polyp(seed: int, width: int = 320, height: int = 240) -> tuple[np.ndarray, list[float]]:
    """A reddish field with one bright blob, and the blob's box in pixels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cx, cy, r = random.uniform(90, 230), random.uniform(70, 170), random.uniform(22, 50)
    blob = np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / (r * r)) ** 2))
    shade = 1 - 0.5 * np.hypot(x - width / 2, y - height / 2) / math.hypot(width / 2, height / 2)
    base = np.stack([150 + 70 * blob, 62 + 70 * blob, 55 + 50 * blob], -1) * shade[..., None]
    pixels = np.clip(base + random.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
    return pixels, [cx - r, cy - r, cx + r, cy + r]


def _rows(sites: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(round: int, site: str, **metrics: float) -> None:
        rows.extend({"round": round, "site": site, "metric": k, "value": v} for k, v in metrics.items())

    for number in range(rounds + 1):
        grown = 1 - math.exp(-number / 2.2)
        for i, site in enumerate(sites):
            add(number, site, map50=0.02 + (0.72 - 0.07 * i) * grown, map50_95=0.01 + (0.41 - 0.05 * i) * grown)
            if number:
                add(number, site, images=120 + 40 * i, kept=round((120 + 40 * i) * (0.9 - 0.55 * grown) - 3 * i))
                add(number, site, train_s=21.0 - 2 * number + 3 * i, select_s=2.1, weight=60, loss=1 / number)
                for j, model in enumerate(sites):
                    rows.append(
                        {
                            "round": number,
                            "site": site,
                            "metric": f"map50@{model}",
                            "value": 0.7 * grown - 0.18 * (i != j) - 0.03 * j,
                        }
                    )
        add(number, "", map50=0.02 + 0.655 * grown, map50_95=0.01 + 0.362 * grown, round_s=4.0 + 24 * (number > 0))
        if number:
            for model in sites:
                here = [r["value"] for r in rows if r["round"] == number and r["metric"] == f"map50@{model}"]
                add(number, "", **{f"map50@{model}": sum(here) / len(here)})
            add(number, "", bytes_down=3 * 10.71e6, bytes_up=3 * 10.71e6 - 1e5, accepted=len(sites), failed=0)
    for name, level in (("central", 0.70), *((f"local-{s}", 0.50 - 0.04 * i) for i, s in enumerate(sites))):
        for i, site in enumerate(sites):
            bonus = 0.15 if name == f"local-{site}" else 0.0
            rows.append(
                {
                    "round": rounds,
                    "site": site,
                    "metric": f"baseline/{name}/map50",
                    "value": level - 0.03 * i + bonus,
                }
            )
    return rows


def write_run(run: Path, sites: tuple[str, ...] = SITES, rounds: int = 6, pictures: int = 6) -> Path:
    (run / "samples").mkdir(parents=True)
    rows = _rows(sites, rounds)
    baselines = [r for r in rows if r["metric"].startswith("baseline/")]
    for name, part in (("history", [r for r in rows if r not in baselines]), ("baselines", baselines)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    events = [
        {"round": 2, "client": sites[0], "reason": "non-finite", "detail": "delta: 3 values"},
        {"round": 4, "client": sites[-1], "reason": "late", "detail": "no answer in 600 s"},
    ]
    (run / "failures.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (run / "config.toml").write_text(
        f'[run]\nrounds = {rounds}\nseed = 7\n\n[select]\nrule = "below"\nthreshold = 0.7\n'
    )
    facts = {
        "run": "0a1b2c",
        "started": "2026-01-31T12:00:00+00:00",
        "settings": {"strategy": {"name": "fedavg", "eta": 1.0}, "seed": 7, "sites": list(sites)},
        "config": {"select": {"name": "below", "threshold": 0.7}, "model": {"arch": "yolov5n", "image_size": 160}},
        "versions": {"polypfed": "0.1.0", "numpy": "2.4.6", "torch": "2.14.1"},
        "machine": {"system": "Linux", "python": "3.11.7"},
    }
    (run / "run.json").write_text(json.dumps(facts))
    entries = []
    for i in range(pictures):
        pixels, box = polyp(i)
        Image.fromarray(pixels).save(run / "samples" / f"{i:04d}.png")
        near = [v + 6 * (-1) ** i for v in box]
        found = [[*near, 0.93 - 0.11 * i]] + ([[4, 6, 40, 44, 0.31]] if i == 1 else [])
        entries.append(
            {
                "site": sites[i % len(sites)],
                "image": f"{i:04d}.png",
                "true": [box] if i != 4 else [],
                "pred": found if i != 3 else [],
            }
        )
    (run / "samples" / "samples.json").write_text(json.dumps(entries))
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    return lambda **options: write_run(tmp_path / "run", **options)
