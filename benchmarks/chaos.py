"""A proxy that makes trouble between the sites of a deployment and its server: python benchmarks/chaos.py flower

Three sites, TLS, a federation of two rounds per seed, all on the loopback interface; a share of the pieces of data is
delayed, cut off, cut short, repeated or displaced. Under TLS all but the delay break a connection. A seed ends with the
model of an undisturbed run ("same"), with that of a run in which just what the server's log calls missing is missing
("without"), or with a typed error ("failed"). Ends with code 1 at a hang, another model or an untyped error.

    python benchmarks/chaos.py flower --seeds 50 --rate 0.01
    python benchmarks/chaos.py nvflare --seeds 50 --rate 0.005
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from _common import about, append

ROOT = Path(__file__).parents[1]
PACKAGES = {"flower": "flwr", "nvflare": "nvflare"}
GOOD = {"same", "without", "failed"}


def seeds(engine: str, count: int, rate: float, first: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", f"tests.live.{engine}.troubled", str(count), str(rate), str(first)]
    rows = []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
            print(line, end="", flush=True)
    if process.returncode:
        sys.exit(f"ended with {process.returncode} after {len(rows)} seeds")
    return rows


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("engine", choices=list(PACKAGES))
    asked.add_argument("--seeds", type=int, default=50)
    asked.add_argument("--rate", type=float, default=0.01)
    asked.add_argument("--first", type=int, default=0)
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    rows = seeds(given.engine, given.seeds, given.rate, given.first)
    if given.out:
        where = about("chaos", ("polypfed", PACKAGES[given.engine]), engine=given.engine, rate=given.rate)
        append(given.out, [where | row for row in rows])
    ended = Counter(row["ended"] for row in rows)
    print("| ended | seeds |\n|---|---:|")
    print("\n".join(f"| {name} | {count} |" for name, count in sorted(ended.items())))
    sys.exit(bool(set(ended) - GOOD))


if __name__ == "__main__":
    main()
