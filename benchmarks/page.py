"""Writes benchmarks/README.md, and the answers in the README, from the rows there are: python benchmarks/page.py"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from studies import engine, show, study

from polypfed.core.errors import PolypfedError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README, BEGIN, END = HERE.parent / "README.md", "<!-- answers: benchmarks/page.py -->", "<!-- end of answers -->"
ORDER = ("gap", "longer", "communication", "fewer-rounds", "active", "federated-sim", "generalise", "central")
HEAD = """# Benchmarks

Each question below has one command. It runs what is missing, keeps what it has (a cell that was killed goes on from its
last round), and writes the whole table and the plots. Rates, budgets and cells are in `benchmarks/studies/*.toml`; what
every run came to is in `results/NAME/rows.jsonl`. Points are of mAP50, over the seeds that both cells have.

    polypfed bench NAME                  # or, in this folder: python -m studies NAME
    polypfed bench NAME --budget paper   # more rounds, larger images, three seeds: days without a GPU
    python benchmarks/page.py            # this page, from the rows

"""
TABLES = (  # what is no study but has a table and a plot here: results' folder, question, how it is done
    (
        "federated-real",
        "Do two sites of different centres gain from each other over a real deployment, and should the backbone train?",
        "Like the seed's two machines: `polypfed deploy` on Flower and on NVFlare, TLS, a key or certificate per site.",
    ),
    (
        "peers",
        "What do others spend on the same work?",
        "UltraFlwr's partial averaging over stock Flower, and the simulations of Flower, NVFlare and pfl-research.",
    ),
    ("scale", "What does the engine itself cost as sites, model and rounds grow?", ""),
)
SCRIPTS = (  # question, command, folder of results
    ("What does a round cost beside plain training?", "polypfed bench rounds --quick", "scripts/rounds.md"),
    ("And if the clients train together?", "polypfed bench rounds --backend vmap", "scripts/vectorised.md"),
    ("What does a call into a detector's `fit` cost?", "polypfed bench fit_cost", "scripts/fit_cost.md"),
    ("How fast are mean, median and Krum beside the peers'?", "polypfed bench kernels", "scripts/kernels.md"),
    ("How many rounds does each strategy need on sorted labels?", "polypfed bench strategies", "scripts/strategies.md"),
    ("Which strategy for four real centres?", "polypfed compare examples/strategies.toml", ""),
    ("What does privacy cost in bytes and time?", "polypfed bench privacy --quick", "scripts/privacy.md"),
    ("How close are the synthetic frames to real ones?", "polypfed bench synth", "scripts/synth.md"),
    ("What does a device manage?", "polypfed bench edge`, on it `polypfed bench latency FILE.tflite", "edge"),
    ("What does training cost a board's detector?", "polypfed bench edge_loop --beside", "edge"),
    ("What does our adapter add to Flower's own cost?", "polypfed bench flower --live", "scripts/flower.md"),
    ("What does our adapter add to NVFlare's own cost?", "polypfed bench nvflare", "scripts/nvflare.md"),
    ("How do selectors compare over seeds?", "polypfed bench study polypfed/demo.toml --seeds 0 1 2", ""),
    ("What does one malicious site of five cost?", "polypfed bench attacks", "attacks"),
    ("Does a model tell who was trained on?", "polypfed bench membership", "membership"),
    ("What do kills at random moments cost?", "polypfed bench kills", "faults/kills.jsonl"),
    ("What do damaged connections cost?", "polypfed bench chaos flower`, `nvflare", "faults/chaos.jsonl"),
    ("Does a run of 200 rounds grow?", "polypfed bench soak", "soak"),
    ("Does any parser fall to spoilt input?", "polypfed bench fuzz --count 1000000", "faults"),
)


def recorded(name: str, question: str, how: str) -> Iterator[str]:
    """The first table and the plot that a script has left."""
    yield f"## {name}\n\n**{question}**\n"
    table = RESULTS / name / "table.md"
    yield f"`polypfed bench {name}`{_whole(name)}{'. ' * bool(how)}{how}\n"
    if not table.exists():
        yield "Nothing of it has been run yet.\n"
        return
    blocks = table.read_text(encoding="utf-8").split("\n\n")
    first = next(i for i, block in enumerate(blocks) if block.startswith("|"))
    yield "\n\n".join([*blocks[: first + 1], ""])
    if (RESULTS / name / "plot.svg").exists():
        yield f"![{question}](results/{name}/plot.svg)\n"


def _whole(name: str) -> str:
    found = (RESULTS / name / "table.md").exists()
    return f"; [the whole table](results/{name}/table.md)" if found else ""


def scripts() -> Iterator[str]:
    """The other commands, with what is recorded of them."""
    yield "## Scripts with a table of their own\n"
    yield "Those in `results/scripts` were run with `--out benchmarks/results/scripts/NAME.jsonl`.\n"
    yield "| question | command | recorded |\n|---|---|---|"
    for question, command, name in SCRIPTS:
        places = (RESULTS / name / "table.md", (RESULTS / name).parent / "table.md", RESULTS / name)
        found = [p for p in places if name and p.is_file()]
        link = f"[here]({found[0].relative_to(HERE).as_posix()})" if found else ""
        yield f"| {question} | `{command}` | {link} |"


def answers(budget: str, page: str = "") -> Iterator[str]:
    """Question and answer of each study, in a line; `page` is where its section is."""
    yield "| study | question | answer |\n|---|---|---|"
    for name in ORDER:
        one, rows = _study(name, budget)
        yield f"| [{name}]({page}#{name}) | {one.question} | {verdict(one, rows)} |"
    yield ""


def front(budget: str = "small") -> str:
    """The project's README with the answers of now."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return "\n".join([before + BEGIN, *answers(budget, "benchmarks/README.md"), END + after])


def _study(name: str, budget: str) -> tuple[study.Study, list[engine.Row]]:
    one = study.load(name, budget)
    return one, engine.rows(one, RESULTS / name / "rows.jsonl")


def section(name: str, budget: str) -> Iterator[str]:
    """One study: question, answer, plots, command, and of the table what answers the question."""
    one, rows = _study(name, budget)
    yield f"## {name}\n\n**{one.question}**\n"
    if rows:
        yield f"{verdict(one, rows)}\n"
        yield f"![{one.question}](results/{name}/plot.svg)\n"
        yield show.short(one, rows) + "\n"
    settings = f"settings: [studies/{name}.toml](studies/{name}.toml)"
    yield f"`polypfed bench {name}`; {settings}{_whole(name) if rows else ''}.\n"
    if rows:
        yield f"{show.caption(rows)}\n"
    if rows and (missing := show.missing(one, rows)):
        yield f"Not run yet: {', '.join(missing)}.\n"
    if (RESULTS / name / "details.svg").exists():
        yield f"![More of {name}](results/{name}/details.svg)\n"


def verdict(one: study.Study, rows: list[engine.Row]) -> str:
    """The answer the rows give, in words made from figures alone."""
    cells = show.by_cell(one, rows)
    if not rows:
        return "Not run yet."
    base = cells.get(one.against)
    if base is None:
        return f"The cell to compare with, {one.against}, is not done yet."
    apart = {name: found for name, some in cells.items() if (found := engine.points(some, base)) is not None}
    del apart[one.against]
    if not apart:
        return f"{one.against}: mAP50 {show.score(base):.3f}; nothing to compare with it yet."
    best = max(apart, key=apart.__getitem__)
    within = [name for name, found in apart.items() if found >= -one.points]
    near = f"Within {one.points:g} point{'s' * (one.points != 1)} of it: {', '.join(within) or 'none'}."
    lead = f"Best of the others: {best}, {apart[best]:+.1f} points ({seeds(cells[best], base)})."
    fewest = ""
    if within:
        fewest = fewest_bytes(one, rows, within) if one.plot == "bytes" else fewest_images(one, rows, within)
    return f"{one.against}: mAP50 {show.score(base):.3f}. {lead} {near}{fewest}{best_alone(apart)}"


def fewest_bytes(one: study.Study, rows: list[engine.Row], within: list[str]) -> str:
    """Which of the cells that are near enough takes the fewest bytes, and how many fewer they are."""
    cells = show.by_cell(one, rows)
    best = min(within, key=lambda name: show.in_all(cells[name]))
    ours, base = cells[best], cells[one.against]
    told = seeds(ours, base)
    whole, each = show.saved(ours, base, whole=True), show.saved(ours, base)
    return f" Fewest bytes of these: {best} ({told}), {whole:.1%} fewer in the whole run, {each:.1%} fewer in a round."


def seeds(some: list[engine.Row], base: list[engine.Row]) -> str:
    """How many seeds a difference rests on."""
    both = len({r["seed"] for r in some} & {r["seed"] for r in base})
    return f"{both} seed{'s' * (both != 1)}"


def best_alone(apart: Mapping[str, float]) -> str:
    """Where centres are trained alone: the best of them."""
    alone = {name: found for name, found in apart.items() if name.endswith("-alone")}
    best = max(alone, key=alone.__getitem__, default=None)
    return "" if best is None else f" Best centre alone: {best.removesuffix('-alone').upper()}, {alone[best]:+.1f}."


def fewest_images(one: study.Study, rows: list[engine.Row], within: list[str]) -> str:
    """Where selection is the question: which of the cells that are near enough trains on the fewest images."""
    if "easy" not in one.details:
        return ""
    cells = show.by_cell(one, rows)
    shares = {name: show.used(cells[name]) for name in within}
    best = min(shares, key=shares.__getitem__)
    told = seeds(cells[best], cells[one.against])
    return f" Fewest images a round of these: {best} ({told}), {shares[best]:.0%}."


def text(budget: str = "small") -> str:
    """The whole page."""
    parts = [*answers(budget), *(line for name in ORDER for line in section(name, budget))]
    parts += [line for entry in TABLES for line in recorded(*entry)]
    return HEAD + "\n".join([*parts, *scripts()]) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--budget", default="small")
    given = options.parse_args()
    try:
        (HERE / "README.md").write_text(text(given.budget), encoding="utf-8")
        README.write_text(front(given.budget), encoding="utf-8")
    except PolypfedError as error:  # the keys of the rows rest on the data and the weights that are found
        sys.exit(f"page: {error}")


if __name__ == "__main__":
    main()
