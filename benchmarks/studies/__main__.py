"""python -m studies NAME [--budget small|paper]: run what is missing, then write the table and the plot."""

import argparse
import sys
from pathlib import Path

from polypfed.core.errors import PolypfedError
from studies import engine, show, study

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    options = argparse.ArgumentParser(prog="studies", description=__doc__)
    options.add_argument("name", choices=study.names())
    options.add_argument("--budget", default="small", help="small: two cores, within an hour or so; paper: days")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--work", type=Path, default=Path("runs/studies"))
    options.add_argument("--cells", nargs="*", help="only these; by default all")
    options.add_argument("--seeds", nargs="*", type=int, help="only these; by default all")
    options.add_argument("--show", action="store_true", help="run nothing; table and plot from the rows there are")
    given = options.parse_args()
    try:
        one = study.load(given.name, given.budget)
        path = given.results / given.name / "rows.jsonl"
        if not given.show:
            from studies.cell import outcome  # torch is not needed to show, or to say what is wrong

            some = study.only(one, given.cells, given.seeds)
            for row in engine.complete(some, path, given.work, outcome):
                print(
                    f"{row['cell']}, seed {row['seed']}: mAP50 {row['map50']:.3f}, {row['cpu_s']:.0f} CPU s", flush=True
                )
        print(show.write(one, engine.rows(one, path), path.parent))
    except PolypfedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
