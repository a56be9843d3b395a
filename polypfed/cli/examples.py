"""What `--help` shows at its end: a command as people type it. A test parses every one of these lines."""

from collections.abc import Iterator

import typer

EXAMPLES = {
    "demo": "polypfed demo\npolypfed demo --seed 1 --directory runs/second",
    "run": "polypfed run study.toml\npolypfed run study.toml --resume\npolypfed run study.toml --privacy he --rounds 3",
    "report": "polypfed report runs/study",
    "watch": """polypfed watch runs/study               # a page at http://127.0.0.1:8502/
polypfed watch runs/study --terminal    # here; ends with the run
polypfed watch server/ --once           # one look, for scripts
polypfed watch --deployment fed         # of a folder that polypfed deploy has written
ssh -L 8502:127.0.0.1:8502 HOST polypfed watch runs/study""",
    "compare": """polypfed compare study.toml --seeds 3
polypfed compare study.toml --strategies fedavg,scaffold --target 0.5""",
    "doctor": """polypfed doctor                         # before the first run
polypfed doctor researcher study.toml   # the study, its data, its extras
polypfed doctor site site.toml          # certificate, key, clock, data
polypfed doctor server server/          # certificates, port, sites
polypfed doctor site fed/kits/north     # a start-up kit of NVFlare's
polypfed doctor device --delegate /usr/lib/libvx_delegate.so
polypfed doctor --json""",
    "export": """polypfed export yolov5n --image-size 320 --install-converter
polypfed export runs/study --precision int8 --frames frames/ -o polyp.tflite""",
    "detect": """polypfed detect video.mp4 -m polyp.tflite -o annotated.mp4
polypfed detect 0 -m polyp.tflite --live --smooth""",
    "device": "polypfed device 0 --template yolov5n-320.zip --models models/ --store samples/ --key samples.key",
    "init researcher": "polypfed init researcher my-study\npolypfed run my-study/study.toml",
    "init site": "polypfed init site here --name north --server fed.example.org:8443",
    "init server": "polypfed init server fed --site north --site south --host fed.example.org",
    "init device": "polypfed init device /opt/polypfed",
    "data import": "polypfed data import Kvasir-SEG/ sets/kvasir",
    "data check": "polypfed data check sets/kvasir",
    "data partition": "polypfed data partition sets/kvasir sets/etis --to sites",
    "data synth": "polypfed data synth made --sites 2 --train 16 --val 4 --size 64",
    "samples show": "polypfed samples show samples/ --key samples.key",
    "samples export": "polypfed samples export samples/ --key samples.key --to label-me --format label-studio",
    "samples import": 'polypfed samples import samples/ --key samples.key --from answers.json --by "Dr. Example"',
    "samples retain": "polypfed samples retain samples/ --key samples.key --days 90",
    "samples wipe": "polypfed samples wipe samples/ --key samples.key --yes",
    "bench named": """polypfed bench named gap                # or, shorter: polypfed bench gap
polypfed bench named privacy --quick""",
    "compress": "polypfed compress yolov5n --train sets/kvasir --val sets/etis --width 0.75 --out narrower",
    "bench latency": "polypfed bench latency polyp.tflite --threads 1 --threads 2",
    "keys create": "polypfed keys create north --to keys",
    "keys roster": "polypfed keys roster north.json south.json --server server.json --to roster.json",
    "keys wrap": "polypfed keys wrap runs/study --keys keys",
    "keys rotate": "polypfed keys rotate runs/study --keys keys",
    "keys inspect": "polypfed keys inspect keys/identity.key",
    "deploy flower": """polypfed deploy flower fed --study study.toml --site north --site south --host fed.example.org
polypfed deploy flower fed --study study.toml --join north.join.json --join south.join.json
polypfed deploy flower fed --site north --site south --client mine:client --federation mine:federation""",
    "deploy run": "polypfed deploy run server/",
    "deploy nvflare": "polypfed deploy nvflare fed --study study.toml --site north --site south",
    "site run": "polypfed site run site.toml",
    "site dry-run": "polypfed site dry-run site.toml\npolypfed site dry-run site.toml --approve",
    "nvflare fit": "polypfed nvflare fit kits/north",
    "nvflare run": "polypfed nvflare run kits/admin --name study --rounds 10",
    "nvflare status": "polypfed nvflare status kits/admin",
    "import-weights": "polypfed import-weights foreign.pt weights.safetensors",
    "sbom": "polypfed sbom --check\npolypfed sbom -o sbom.json",
    "bundle": """polypfed bundle wheelhouse --extra flower
polypfed bundle board --extra edge --extra release --platform aarch64""",
    "audit show": "polypfed audit show runs/study/audit.jsonl --last 20",
    "audit verify": "polypfed audit verify runs/study/audit.jsonl --roster keys/roster.json --name server",
    "audit export": "polypfed audit export runs/study/audit.jsonl --to audit.csv",
    "policy show": "polypfed policy show site.toml",
    "policy approve": "polypfed policy approve site.toml --study study.toml",
    "policy revoke": "polypfed policy revoke site.toml 3f9a2c",
    "release init": "polypfed release init repo --keys keys --person ann --person bob --threshold 2",
    "release create": "polypfed release create repo runs/study --template yolov5n-320.zip --version 1",
    "release sign": "polypfed release sign repo --key keys/ann.pem",
    "release stage": "polypfed release stage repo 1 --group pilot",
    "release publish": "polypfed release publish repo --key keys/repository.pem",
    "release device": "polypfed release device box 1.root.json --group pilot",
    "release install": "polypfed release install box public --reference frames/",
    "release boot": "polypfed release boot box --to models/",
    "release status": "polypfed release status box",
    "nvflare stop": "polypfed nvflare stop kits/admin",
}


def attach(app: typer.Typer, path: tuple[str, ...] = ()) -> None:
    """Give every command of `app` that has an example its epilogue."""
    for command, name in _commands(app):
        if text := EXAMPLES.get(" ".join((*path, name))):
            lines = "\n".join(f"  {line}" for line in text.splitlines())
            command.epilog = f"\b\nExamples:\n{lines}"
    for group in app.registered_groups:
        if group.typer_instance is not None and group.name:
            attach(group.typer_instance, (*path, group.name))


def _commands(app: typer.Typer) -> Iterator[tuple[typer.models.CommandInfo, str]]:
    for command in app.registered_commands:
        if command.callback is not None:
            yield command, command.name or command.callback.__name__.replace("_", "-")
