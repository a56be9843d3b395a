"""The process around Flower's SuperNode."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("flwr")

from tests.problems import ROOT

CODE = """
import threading, time
from polypfed.backends.flower import supernode

def flower_supernode():
    threading.Thread(target=time.sleep, args=(60,)).start()
    {ending}

supernode.flower_supernode = flower_supernode
supernode.main()
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [("raise OSError('bad record')", 1), ("raise SystemExit(7)", 7)],
)
def test_it_ends_with_its_work_whatever_threads_are_left(ending: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(ending=ending)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("OSError: bad record" in done.stderr) == ("OSError" in ending)
