"""Spoilt inputs to everything that reads what others wrote: python benchmarks/fuzz.py --count 1000000

    python benchmarks/fuzz.py parsers --only message release   some of them
    python benchmarks/fuzz.py releases --count 10000           spoilt repositories, offered to a device
    python benchmarks/fuzz.py guided --only message            for --seconds, led by coverage; needs atheris

Each parser has a process of its own, and its files in TMPDIR (/dev/shm is twice as fast as a disk). Prints a line per
parser: inputs, the longest CPU time of one, how far the process grew, and the CPU seconds of all; with --out, adds it
to that file, and leaves out what the file has. Ends with code 1 at a fault: an error that is none of ours, a CPU second
for one input, or more than 400 MB. "guided" ends as libFuzzer does, with its own report; inputs that take over two
seconds are faults there.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

from _common import about, append, lines

sys.path.insert(0, str(Path(__file__).parents[1]))


def peak() -> float:
    """MB that this process has grown to."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def of_parsers(count: int, seed: int, only: Sequence[str], out: Path | None) -> None:
    """Each that is asked for and not in `out` yet.

    Raises:
        AssertionError: one has a fault, which its process has named.
    """
    from tests.fuzzing import parsers

    with tempfile.TemporaryDirectory() as folder:
        names = [parser.name for parser in parsers(Path(folder))]
    if unknown := set(only) - set(names):
        raise AssertionError(f"no parser is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    done = {(r["parser"], r["inputs"], r["seed"]) for r in map(json.loads, lines(str(out)) if out else ())}
    for name in only or names:
        if (name, count, seed) in done:
            continue
        command = [sys.executable, __file__, "one", "--only", name, "--count", str(count), "--seed", str(seed)]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        assert not found.returncode, f"{name}: see above"
        row = about("fuzz") | json.loads(found.stdout)
        print(json.dumps(row), flush=True)
        if out:
            append(out, [row])


def of_one(count: int, seed: int, name: str) -> dict[str, Any]:
    """That parser, in this process."""
    from tests.fuzzing import CAP, fuzz, parsers

    warnings.simplefilter("ignore")  # decoders warn of what is spoilt
    with tempfile.TemporaryDirectory() as folder:
        parser = next(p for p in parsers(Path(folder)) if p.name == name)
        begun, before = process_time(), peak()
        slowest = fuzz(parser, count, seed)
        cpu, grown = process_time() - begun, peak() - before
    assert grown * 2**20 < CAP, f"{name}: grew by {grown:.0f} MB"
    row = {"parser": name, "inputs": count, "seed": seed, "slowest_cpu_s": round(slowest, 4)}
    return row | {"grown_mb": round(grown, 1), "cpu_s": round(cpu, 1)}


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
    asked.add_argument("what", nargs="?", choices=["parsers", "one", "releases", "guided"], default="parsers")
    asked.add_argument("--count", type=int, default=10_000)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", nargs="*", default=[])
    asked.add_argument("--seconds", type=int, default=60)
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    if given.what in ("one", "guided") and len(given.only) != 1:
        asked.error(f"{given.what}: name one parser with --only")
    try:
        if given.what == "guided":
            guided(given.seconds, given.only[0])
        elif given.what == "one":
            print(json.dumps(of_one(given.count, given.seed, given.only[0])))
        elif given.what == "releases":
            of_releases(given.count, given.seed)
        else:
            of_parsers(given.count, given.seed, given.only, given.out)
    except AssertionError as fault:
        sys.exit(str(fault))


if __name__ == "__main__":
    main()
