"""Two sites of different centres over a real Flower and a real NVFlare deployment, backbone frozen or not.

    polypfed bench federated-real                     # what is missing, then table and plot
    polypfed bench federated-real --engines flower    # local, flower, nvflare
    polypfed bench federated-real --show              # table and plot from the rows there are

Server and sites are processes of their own on loopback, made by `polypfed deploy` and started by its scripts: TLS, a
key or certificate per site, signed updates, a policy approved by the owner. The same study is run in this process
too ("local"): the models must be equal to the last bit. Settings: benchmarks/federated_real.toml. What was broken off
goes on from its last round.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from _common import about, append, lines, single_thread
from studies.draw import COLOURS
from studies.study import digest, flat

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "federated-real"
ENGINES = ("local", "flower", "nvflare")
PACKAGES = ("polypfed", "numpy", "torch", "ultralytics", "flwr", "nvflare")
ADMIN = "admin@polypfed.org"
BIN = Path(sys.executable).parent


def settings(budget: str) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Any]]]:
    """(what each site trains and validates on, the study of each cell as dotted settings)."""
    tables = tomllib.loads((ROOT / "benchmarks" / "federated_real.toml").read_text(encoding="utf-8"))
    if budget not in tables["budget"]:
        sys.exit(f"federated-real: no budget {budget!r}; it has: {', '.join(tables['budget'])}")
    shared = flat(tables["study"]) | flat(tables["budget"][budget])
    return tables["sites"], {name: shared | flat(changes) for name, changes in tables["cells"].items()}


def images() -> Path:
    """The real images, as tests find them."""
    for place in (os.environ.get("POLYPFED_DATA"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / "real").is_dir():
            return Path(place).resolve()
    sys.exit("federated-real: no images; set POLYPFED_DATA to a folder that holds real/polypgen_c1 and so on")


def lay_out(sites: dict[str, dict[str, str]], folder: Path) -> dict[str, Path]:
    """Each site's folder of train/ and val/, copied once."""
    for name, parts in sites.items():
        for part, source in parts.items():
            if not (folder / name / part).exists():
                shutil.copytree(images() / "real" / source, folder / name / part, copy_function=shutil.copyfile)
    return {name: (folder / name).resolve() for name in sites}


def study_file(study: dict[str, Any], path: Path) -> Path:
    """As TOML; what is divided on one machine is no concern of a deployment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"data.synth": {}, **study}
    path.write_text("".join(f"{k} = {toml(v)}\n" for k, v in told.items()))
    return path


def toml(value: Any) -> str:
    """Numbers, words and lists are written as in JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def local(study: Path, data: dict[str, Path], folder: Path) -> tuple[Path, dict[str, Any]]:
    """The federation that a deployment's server makes, over clients in this process."""
    from polypfed import remote
    from polypfed.backends import Local

    fed, rounds = remote.federation(sorted(data), study.parent, study.name)
    clients = []
    for name, place in data.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(study, folder / name / "study.toml")
        clients.append(remote.client(name, folder / name, data=str(place)))
    run, fed = folder / "run", replace(fed, clients=clients)
    begun = (run / "run.json").exists()
    history = fed.resume(run, rounds, Local(workers=2)) if begun else fed.run(rounds, Local(workers=2), run)
    assert history.model is not None
    return run, {"sha256": hashlib.sha256(history.model.tobytes()).hexdigest(), "tls": ""}


def flower(study: Path, data: dict[str, Path], folder: Path) -> tuple[Path, dict[str, Any]]:
    """SuperLink and SuperNodes."""
    from tests.live.loopback import free_ports

    made = deployed("flower", study, data, folder, ("--port",))
    for index, name in enumerate(sorted(data)):  # the fixed ports of sites on one machine may be taken here
        edit(made / "sites" / name / "site.toml", f"port = {9094 + index}", f"port = {free_ports(1)[0]}")
        approve(made / "sites" / name / "site.toml", made / "sites" / name / "study.toml")
    server = made / "server"
    port = int((server / "start.sh").read_text().rpartition("--port ")[2].split()[0])
    with processes([server, *(made / "sites" / n for n in sorted(data))]):
        seen = handshake("127.0.0.1", port, made / "ca" / "ca.crt")
        run(["./run.sh"], cwd=server)
    result = json.loads((server / "run" / "result.json").read_text())
    return server / "run", {"sha256": result["sha256"], "tls": seen}


def nvflare(study: Path, data: dict[str, Path], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Provisioned kits, mutual TLS."""
    made = deployed("nvflare", study, data, folder, ("--port", "--admin-port"))
    kits = made / "kits"
    # On a machine that does more than this, half a minute without a sign of a site means nothing.
    edit(kits / "localhost" / "local" / "polypfed.toml", "patience = 30 ", "patience = 300 ")
    for name in sorted(data):
        approve(kits / name / "local" / "polypfed.toml", kits / name / "local" / "study.toml")
    admin, server = kits / ADMIN, kits / "localhost"
    address = json.loads((server / "startup" / "fed_server.json").read_text())["servers"][0]["service"]["target"]
    with processes([server, *(kits / n for n in sorted(data))]):
        until_connected(admin, sorted(data))
        startup = kits / sorted(data)[0] / "startup"
        port, authority = int(address.rpartition(":")[2]), startup / "rootCA.pem"
        seen = handshake("localhost", port, authority, (startup / "client.crt", startup / "client.key"))
        polypfed("nvflare", "run", str(admin), "--name", "study", "--patience", "300")
    result = json.loads((server / "runs" / "study" / "result.json").read_text())
    return server / "runs" / "study", {"sha256": result["sha256"], "tls": seen}


def deployed(engine: str, study: Path, data: dict[str, Path], folder: Path, ports: Sequence[str]) -> Path:
    """`polypfed deploy`, unless an earlier attempt has written it."""
    from tests.live.loopback import free_ports

    made = folder / "fed"
    if not made.exists():
        words = [w for pair in zip(ports, map(str, free_ports(len(ports))), strict=True) for w in pair]
        for name, place in sorted(data.items()):
            words += ["--site", name, "--data", str(place)]
        polypfed("deploy", engine, str(made), "--study", str(study), *words)
    return made


def approve(site: Path, study: Path) -> None:
    """As the site's owner does, once he has read the study."""
    polypfed("policy", "approve", str(site), "--study", str(study))


def polypfed(*words: str) -> str:
    return run([str(BIN / "polypfed"), *words])


def run(command: list[str], cwd: Path | None = None) -> str:
    """What it prints; a failure ends the benchmark with its words."""
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"federated-real: {' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"POLYPFED_BIN": str(BIN), "PYTHONPATH": path, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return os.environ | own | {"CUDA_VISIBLE_DEVICES": "", "POLYPFED_HOST": "127.0.0.1", "POLYPFED_DATA": str(images())}


@contextmanager
def processes(places: Sequence[Path]) -> Iterator[None]:
    """`start.sh` of each place, ended with all that descends from it; what it says is in start.log beside it."""
    from tests.live.loopback import family, kill

    begun: list[subprocess.Popen[bytes]] = []
    try:
        for place in places:
            with open(place / "start.log", "ab") as log:
                begun.append(
                    subprocess.Popen(
                        ["./start.sh"],
                        cwd=place,
                        env=environment(),
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
        yield
    finally:
        below = [pid for one in begun for pid in family(one.pid)]
        for one in begun:
            one.terminate()
        for one in begun:
            with suppress(subprocess.TimeoutExpired):
                one.wait(20)
        for pid in below:
            kill(pid)
        for one in begun:
            one.wait()


def handshake(
    host: str, port: int, authority: Path, own: tuple[Path, Path] | None = None, patience: float = 120
) -> str:
    """Version and cipher of the server's TLS, its certificate checked against the deployment's own authority."""
    context = ssl.create_default_context(cafile=authority)
    if own:
        context.load_cert_chain(*own)
    end = time.monotonic() + patience
    while True:
        try:
            with (
                socket.create_connection((host, port), 5) as plain,
                context.wrap_socket(plain, server_hostname=host) as it,
            ):
                return f"{it.version()} {(it.cipher() or ('?',))[0]}"
        except ConnectionError:
            if time.monotonic() > end:
                sys.exit(f"federated-real: nobody answers at {host}:{port}")
            time.sleep(0.5)


def until_connected(admin: Path, names: list[str], patience: float = 300) -> None:
    end = time.monotonic() + patience
    while sorted(json.loads(polypfed("nvflare", "status", str(admin), "--patience", "300"))["sites"]) != names:
        if time.monotonic() > end:
            sys.exit(f"federated-real: not all of {names} have joined")
        time.sleep(1)


def edit(path: Path, old: str, new: str) -> None:
    """Once; a second time nothing is left to change."""
    path.write_text(path.read_text().replace(old, new))


def row(cell: str, engine: str, study: dict[str, Any], data: dict[str, Path], work: Path) -> dict[str, Any]:
    """Run one cell over one engine and say what came of it."""
    folder, begun, load = work / cell / engine, time.monotonic(), os.getloadavg()[0]
    kept, seen = RUN[engine](study_file(study, work / cell / "study.toml"), data, folder)
    history = [json.loads(line) for line in lines(str(kept / "history.jsonl"))]

    def of(metric: str, site: str = "") -> list[float]:
        return [r["value"] for r in history if r["metric"] == metric and r["site"] == site]

    last = max(r["round"] for r in history)
    end = [r for r in history if r["round"] == last]
    matrix: dict[str, dict[str, float]] = {}
    for r in end:
        if r["metric"] == "map50" or r["metric"].startswith("map50@"):
            model = r["metric"].removeprefix("map50").removeprefix("@") or "global"
            matrix.setdefault(model, {})[r["site"] or "all"] = round(r["value"], 4)
    found = about("federated-real", PACKAGES) | {"cell": cell, "engine": engine, "key": key(study, engine), **seen}
    found |= {
        "curve": [round(v, 4) for v in of("map50")],
        "matrix": matrix,
        "round_s": [round(v, 1) for v in of("round_s")],
    }
    found |= {m: round(sum(sum(of(m, site)) for site in data), 1) for m in ("cpu_s", "images", "kept")}
    found |= {m: round(sum(of(m)) / len(of(m)) / len(data) / 1e6, 3) for m in ("bytes_up", "bytes_down")}
    found |= {
        "failures": len(lines(str(kept / "failures.jsonl"))),
        "minutes": round((time.monotonic() - begun) / 60, 2),
    }
    return found | {"load": [round(load, 1), round(os.getloadavg()[0], 1)], "settings": study}


RUN = {"local": local, "flower": flower, "nvflare": nvflare}


def key(study: dict[str, Any], engine: str) -> str:
    """Of what decides the model, and of what carried it; where weights lie on this machine does not."""
    told = {k: v for k, v in study.items() if k != "model.warm_start"}
    return digest([told, engine])


def table(rows: list[dict[str, Any]], sites: dict[str, dict[str, str]], studies: dict[str, dict[str, Any]]) -> str:
    """Who scores what where, and whether the engines agree."""
    names = sorted(sites)
    at = [f"at {n} ({sites[n]['val'].removeprefix('polypgen_').upper()})" for n in names]
    out = [f"| cell | engine | mAP50 global | {' | '.join(at)} | s a round | CPU s | MB up / down | TLS | same bits |"]
    out.append("|---|---|---:|" + "---:|" * len(names) + "---:|---:|---:|---|---|")
    by = {(r["cell"], r["engine"]): r for r in rows}
    for (cell, engine), r in by.items():
        one, ours = by.get((cell, "local")), r["matrix"]["global"]
        same = "" if engine == "local" or one is None else "yes" if r["sha256"] == one["sha256"] else "**no**"
        pace = sorted(r["round_s"])[len(r["round_s"]) // 2]
        scores = " | ".join(f"{ours[n]:.3f}" for n in names)
        out.append(
            f"| {cell} | {engine} | **{ours['all']:.3f}** | {scores} | {pace:.0f} | {r['cpu_s']:.0f} "
            f"| {r['bytes_up']:.2f} / {r['bytes_down']:.2f} | {r['tls']} | {same} |"
        )
    for cell in studies:
        r = next((by[cell, e] for e in ENGINES if (cell, e) in by), None)
        if r is None:
            continue
        out += ["", f"| {cell}: mAP50 of the model of | {' | '.join(at)} |", "|---|" + "---:|" * len(names)]
        for model in sorted(r["matrix"], key=lambda m: (m == "global", m)):
            source = (
                f" (trained on {sites[model]['train'].removeprefix('polypgen_').upper()})" if model in sites else ""
            )
            scores = [f"{r['matrix'][model][n]:.3f}" for n in names]
            out.append(f"| {model}{source} | {' | '.join(scores)} |")
    return "\n".join([*out, "", caption(rows)]) + "\n"


def caption(rows: list[dict[str, Any]]) -> str:
    last, one = rows[-1], rows[-1]["settings"]
    loads = [v for r in rows for v in r["load"]]
    return (
        f"{one['model.arch']} at {one['model.image_size']} px, COCO weights, {one['federation.rounds']} rounds of "
        f"{one['train.epochs']} epochs, batch {one['train.batch']}; the sites' own models are those of the last round. "
        f"{last['date'][:10]}, {last['cpu']}, load {min(loads):.0f} to {max(loads):.0f}; "
        f"{', '.join(f'{k} {v}' for k, v in last['versions'].items())}. Images: PolypGen (CC BY 4.0)."
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The curves of the global models, and who scores what where in the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = list(dict.fromkeys(r["cell"] for r in rows))
    first = {c: next(r for r in rows if r["cell"] == c) for c in cells}
    with matplotlib.rc_context({"svg.hashsalt": "federated-real", "font.size": 8}):
        figure, (left, *rest) = plt.subplots(
            1, 1 + len(cells), figsize=(2.8 * (1 + len(cells)), 2.8), layout="constrained"
        )
        for color, cell in zip(COLOURS[1:], cells, strict=False):
            left.plot(range(len(first[cell]["curve"])), first[cell]["curve"], "o-", color=color, label=cell)
        left.set(xlabel="round", ylabel="mAP50 of the global model")
        left.legend()
        left.grid(alpha=0.3)
        for axes, cell in zip(rest, cells, strict=True):
            matrix = first[cell]["matrix"]
            models = sorted(matrix, key=lambda m: (m == "global", m))
            names = sorted(set(matrix["global"]) - {"all"})
            values = [[matrix[m][n] for n in names] for m in models]
            axes.imshow(values, vmin=0, vmax=0.8, cmap="cividis")
            for i, line in enumerate(values):
                for j, value in enumerate(line):
                    axes.text(j, i, f"{value:.3f}", ha="center", va="center", color="white" if value < 0.5 else "black")
            axes.set(xticks=range(len(names)), xticklabels=names, yticks=range(len(models)), yticklabels=models)
            axes.set(title=cell, xlabel="validated at", ylabel="model of")
        figure.suptitle("\n".join(textwrap.wrap(caption(rows), 150)), fontsize=5)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def show(budget: str, results: Path) -> str:
    """Table and plot from the rows there are."""
    sites, studies = settings(budget)
    known = {key(study, engine) for study in studies.values() for engine in ENGINES}
    stored = [json.loads(line) for line in lines(str(results / "runs.jsonl"))]
    order = {cell: number for number, cell in enumerate(studies)}
    rows = sorted(
        (r for r in stored if r["key"] in known), key=lambda r: (order[r["cell"]], ENGINES.index(r["engine"]))
    )
    if not rows:
        return "nothing of it has been run yet\n"
    text = table(rows, sites, studies)
    (results / "table.md").write_text(text, encoding="utf-8")
    plot(rows, results / "plot.svg")
    return text


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--budget", default="small")
    options.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options.add_argument("--cells", nargs="*", help="only these; by default all")
    options.add_argument("--work", type=Path, default=Path("runs/federated-real"))
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--show", action="store_true", help="run nothing; table and plot from the rows there are")
    given = options.parse_args()
    single_thread()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no server is left behind
    sys.path.append(str(ROOT))  # tests/live starts and ends processes too
    sites, studies = settings(given.budget)
    if unknown := sorted(set(given.cells or ()) - set(studies)):
        sys.exit(f"federated-real: no cell {unknown[0]!r}; it has: {', '.join(studies)}")
    work, path = given.work.absolute() / given.budget, given.results / "runs.jsonl"
    for cell in [] if given.show else given.cells or list(studies):
        for engine in given.engines:
            if key(studies[cell], engine) in {json.loads(line)["key"] for line in lines(str(path))}:
                continue
            found = row(cell, engine, studies[cell], lay_out(sites, work / "data"), work)
            append(path, [found])
            shutil.rmtree(work / cell / engine)
            print(f"{cell}, {engine}: mAP50 {found['curve'][-1]:.3f}, model {found['sha256'][:12]}", flush=True)
    print(show(given.budget, given.results))


if __name__ == "__main__":
    main()
