"""How a client gives way to the detector of its machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this system does not share between sessions")
def test_training_gives_way_to_the_detector_of_another_session() -> None:
    ask = "import os; from polypfed.clients.on_device import _give_way as give_way; give_way(7); "
    ask += f"print(os.nice(0), open('{AUTOGROUP}').read().split()[-1])"
    told = subprocess.check_output([sys.executable, "-c", ask], start_new_session=True, text=True)
    assert told.split() == [str(max(7, os.nice(0))), "7"]
