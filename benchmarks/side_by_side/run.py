"""The same three tasks in polypfed, Flower and NVFlare: lines a user writes, commands a user types; and do they run?

    python benchmarks/side_by_side/run.py                count, and write the table of docs/side-by-side.md
    python benchmarks/side_by_side/run.py --run TASK     run the three programs of compare, algorithm or deploy

Counted are lines with code: no blank lines, comments, docstrings or continuations of a command. For `algorithm` only
lines that a working FedAvg program lacks. Problem, data and loss (problem.py) are nobody's.

`--run deploy` needs root: each deployment is given a network and process namespace of its own.
"""

import argparse
import ast
import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copytree

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "side-by-side.md"
ENGINES = ("polypfed", "flower", "nvflare")
TASKS = {
    "compare": "FedAvg, FedAdam and SCAFFOLD on one problem",
    "algorithm": "a new algorithm, with a server half and a client half, added to FedAvg",
    "deploy": "FedAvg of a torch model, a server and two sites, over TLS with registered sites",
}
BASES = {
    "signprox.py": "fedavg.py",
    "job_signprox.py": "job_fedavg.py",
    "client_signprox.py": "client_fedavg.py",
    "sign.py": "",
}
BEGIN, END = "<!-- counted by benchmarks/side_by_side/run.py -->", "<!-- end -->"


def code(path: Path) -> list[str]:
    """The lines of a file that do something."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                first = body[0]
                if isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                    lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    if path.suffix == ".sh":
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def written(task: str, engine: str) -> int:
    """Lines a user writes; for `algorithm`, beside the FedAvg program."""
    folder, total = HERE / task / f"with_{engine}", 0
    for path in sorted(folder.iterdir()):
        if path.suffix == ".sh" or path.name in BASES.values():
            continue
        if task == "algorithm":
            base = code(folder / BASES[path.name]) if BASES[path.name] else []
            total += sum(line.startswith("+ ") for line in difflib.ndiff(base, code(path)))
        else:
            total += len(code(path))
    return total


def typed(task: str, engine: str) -> int:
    """Commands a user types."""
    return len(code(HERE / task / f"with_{engine}" / "commands.sh"))


def table() -> str:
    """The table of the page."""
    rows = ["| task | | polypfed | Flower | NVFlare | ours / the shorter of theirs |", "|---|---|---|---|---|---|"]
    for task, words in TASKS.items():
        for what, count in (("lines written", written), ("commands typed", typed)):
            ours, *theirs = (count(task, engine) for engine in ENGINES)
            name = words if what == "lines written" else ""
            rows.append(f"| {name} | {what} | {ours} | {theirs[0]} | {theirs[1]} | {ours / min(theirs):.2f} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def run(task: str, engine: str, seconds: float = 500.0) -> dict[str, float]:
    """Do what `commands.sh` says, in a copy; the scores printed, by name.

    A person waits until a service is up before the next command; here that is a pause.
    """
    with tempfile.TemporaryDirectory(prefix="side-by-side-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "work"
        copytree(HERE / task / f"with_{engine}", folder)
        lines = [
            line + ("\nsleep 6" if re.search(r"(&|start\.sh)$", line) else "") for line in code(folder / "commands.sh")
        ]
        (folder / "commands.sh").write_text("set -e\n" + "\n".join(lines) + "\n")
        command = ["bash", "commands.sh"]
        if task == "deploy":
            inside = "ip link set lo up; exec bash commands.sh"
            command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", inside]
        path = [str(HERE), str(HERE.parents[1]), str(folder)]
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # it would ask an index, which the namespace has not
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with open(folder / "log", "wb") as log:
            done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=seconds)
        said = (folder / "log").read_text(errors="replace")
        if done.returncode:
            raise RuntimeError(f"{task} with {engine}:\n{said[-3000:]}")
        found = {name: float(value) for name, value in re.findall(r"^.*?\b([A-Z]\w+) (\d+\.\d+)$", said, re.MULTILINE)}
        if not found and engine != "polypfed":
            raise RuntimeError(f"{task} with {engine} gave no score:\n{said[-3000:]}")
        return found or _kept(folder)


def _kept(folder: Path) -> dict[str, float]:
    """The score of the model that our deployment keeps at its server."""
    sys.path.insert(0, str(HERE))
    from problem import score

    from polypfed.core.rundir import load_model

    return {"Final": score(load_model(folder / "fed" / "server" / "run" / "model.safetensors")[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=TASKS)
    parser.add_argument("--engine", choices=ENGINES, action="append")
    options = parser.parse_args()
    if options.run:
        for engine in options.engine or ENGINES:
            print(engine, run(options.run, engine), flush=True)
        return
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
