"""SIGKILL at random moments, of the server's process and of the clients': python benchmarks/kills.py --kills 100

The server's process runs a federation (four strategies in turn, state at the sites, sampling, a best model), is killed,
and takes the run up again until it is complete: no round that was saved may be lost, and the model, the best model and
all scores must be those of a run without a kill. Clients are worker processes of a federation that goes on: every round
ends by its deadline, and the model must be that of a run in which just the lost updates are missing.

Ends with code 1 if anything of this does not hold. A folder on a disk is slower than one in memory, as every round is
written through: TMPDIR=/dev/shm.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from _common import ONE_THREAD, about, append

ROOT = Path(__file__).parents[1]
MUST_BE_NONE = ("lost_rounds", "other_bits", "other_reasons", "beyond_deadline")


def struck(what: str, kills: int, seed: int) -> dict[str, Any]:
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
    begun = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.strikes", what, folder, str(kills), str(seed)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {"killed": what, **json.loads(done.stdout), "seconds": round(monotonic() - begun)}


def table(rows: list[dict[str, Any]]) -> str:
    names = ["killed", "kills", *MUST_BE_NONE]
    out = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*out, *("| " + " | ".join(str(row.get(n, "-")) for n in names) + " |" for row in rows)])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--kills", type=int, default=100)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", choices=["server", "clients"])
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    rows = []
    for what in [given.only] if given.only else ["server", "clients"]:
        rows.append(about("kills", seed=given.seed) | struck(what, given.kills, given.seed))
        print(json.dumps(rows[-1]), flush=True)
    if given.out:
        append(given.out, rows)
    print(table(rows))
    sys.exit(any(row.get(name, 0) for row in rows for name in MUST_BE_NONE))


if __name__ == "__main__":
    main()
