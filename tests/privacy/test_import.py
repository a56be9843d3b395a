import json
import subprocess
import sys

MODULES = "disclosure frames he intake keys ledger masked masks pipeline quantise roster seal secagg".split()


def test_importing_every_block_loads_nothing_heavy():
    code = "import importlib, json, sys\n"
    code += (
        f"[importlib.import_module('polypfed.privacy.' + m) for m in {MODULES}]\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & {"tenseal", "cryptography", "dp_accounting", "scipy", "torch", "nvflare", "flwr"}


def test_the_public_names_are_there():
    from polypfed import privacy

    assert len(privacy.__all__) == 18
    assert all(hasattr(privacy, name) for name in privacy.__all__)
