"""Spoilt inputs to everything that reads what others wrote: python benchmarks/fuzz.py --count 1000000

    python benchmarks/fuzz.py parsers --only message release   some of them
    python benchmarks/fuzz.py releases --count 10000           spoilt repositories, offered to a device
    python benchmarks/fuzz.py guided --only message            for --seconds, led by coverage; needs atheris

Prints a line per parser: inputs, the longest time of one, how far the process grew. Ends with code 1 at a
fault. "guided" ends as libFuzzer does, with its own report; inputs that take over two seconds are faults there.
"""

import argparse
import json
import resource
import sys
import tempfile
import warnings
from pathlib import Path
from time import process_time

from _common import about

sys.path.insert(0, str(Path(__file__).parents[1]))


def peak() -> float:
    """MB that this process has grown to."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def of_parsers(count: int, seed: int, only: list[str]) -> None:
    from tests.fuzzing import fuzz, parsers

    warnings.simplefilter("ignore")  # decoders warn of what is spoilt
    with tempfile.TemporaryDirectory() as folder:
        for parser in parsers(Path(folder)):
            if only and parser.name not in only:
                continue
            begun, before = process_time(), peak()
            slowest = fuzz(parser, count, seed)
            row = {"parser": parser.name, "inputs": count, "slowest_s": round(slowest, 4)}
            row |= {"grown_mb": round(peak() - before, 1), "cpu_s": round(process_time() - begun, 1)}
            print(json.dumps(row), flush=True)


def of_releases(count: int, seed: int) -> None:
    from tests.release.fleet import mutated

    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"releases": count, **mutated(Path(folder), count, seed), "another_loaded": 0}))


def guided(seconds: int, name: str) -> None:
    """Mutations that reach new branches of ours, from the good examples on; does not return."""
    import atheris

    with atheris.instrument_imports(include=["polypfed"]):
        from tests.fuzzing import offered, parsers
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        parser = next(p for p in parsers(Path(folder)) if p.name == name)
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(parser.good):
            (corpus / str(number)).write_bytes(data)
        flags = [f"-max_total_time={seconds}", "-timeout=2", "-rss_limit_mb=2048", f"-artifact_prefix={folder}/"]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda data: offered(parser, data))
        atheris.Fuzz()


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("what", nargs="?", choices=["parsers", "releases", "guided"], default="parsers")
    asked.add_argument("--count", type=int, default=10_000)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", nargs="*", default=[])
    asked.add_argument("--seconds", type=int, default=60)
    given = asked.parse_args()
    if given.what == "guided":
        if len(given.only) != 1:
            asked.error("guided: name one parser with --only")
        guided(given.seconds, given.only[0])
    print(json.dumps(about("fuzz", what=given.what, count=given.count, seed=given.seed)))
    try:
        of_parsers(given.count, given.seed, given.only) if given.what == "parsers" else of_releases(
            given.count, given.seed
        )
    except AssertionError as fault:
        sys.exit(str(fault))


if __name__ == "__main__":
    main()
