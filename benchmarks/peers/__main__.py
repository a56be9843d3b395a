"""The peers beside polypfed, into results/peers: rows, table and plot.

polypfed bench peers                           # what is missing of both parts below
polypfed bench peers yolo --budget paper       # UltraFlwr's task: bytes of a round of YOLO against mAP50
polypfed bench peers engines --repeats 3       # CPU, memory and time of a round; each call adds repeats
polypfed bench peers --show                    # table and plot from the rows there are
"""

import argparse
import json
import os
import sys
from pathlib import Path

from _common import ONE_THREAD, lines

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_LOG_LEVEL": "ERROR"}
os.environ |= ONE_THREAD  # read when numpy is loaded, which is below

from polypfed.core.errors import PolypfedError
from polypfed.core.files import write_atomic

RESULTS = Path(__file__).parents[1] / "results" / "peers"


def main() -> int:
    options = argparse.ArgumentParser(
        prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("parts", nargs="*", help="yolo, engines; by default both")
    options.add_argument("--budget", default="small", help="of yolo: small or paper")
    options.add_argument("--models", default="cnn,big", help="of engines")
    options.add_argument("--repeats", type=int, default=1, help="of engines")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--work", type=Path, default=Path("runs/peers"))
    options.add_argument("--show", action="store_true", help="run nothing; table and plot from the rows there are")
    given = options.parse_args()
    if unknown := set(given.parts) - {"yolo", "engines"}:
        options.error(f"{min(unknown)!r} is neither yolo nor engines")
    parts = [] if given.show else given.parts or ["yolo", "engines"]
    if "engines" in parts and (given.parts or not lines(str(given.results / "engines.jsonl"))):
        from peers import run

        run.main(
            ["--models", given.models, "--repeats", str(given.repeats), "--out", str(given.results / "engines.jsonl")]
        )
    try:
        if "yolo" in parts:
            from peers import yolo

            for row in yolo.complete(given.budget, given.results / "yolo.jsonl", given.work):
                print(f"{row.get('engine', 'polypfed')}, {row['cell']}: mAP50 {row['map50']:.3f}", flush=True)
        print(show(given.budget, given.results))
    except PolypfedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def show(budget: str, results: Path) -> str:
    """Write table.md and plot.svg."""
    from peers import table, yolo

    engines = [json.loads(line) for line in lines(str(results / "engines.jsonl"))]
    found = [yolo.table(budget, results / "yolo.jsonl")]
    if engines:
        found.append(table.table(engines) + "\n\n" + table.caption(engines) + "\n")
    text = "\n".join(filter(None, found))
    if not text:
        return "nothing has been measured yet\n"
    results.mkdir(parents=True, exist_ok=True)
    write_atomic(results / "table.md", text.encode())
    if picture := yolo.plot(budget, results / "yolo.jsonl"):
        write_atomic(results / "plot.svg", picture)
    return text


if __name__ == "__main__":
    sys.exit(main())
