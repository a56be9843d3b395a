"""Simulator, provisioning and deployment without a network but the loopback interface, as an ordinary user."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.problems import ROOT

pytestmark = [pytest.mark.live, pytest.mark.slow]
NOBODY = 65534

# In namespaces of its own. If the interpreter lies in a home that others may not enter, only it is shown there.
SETUP = """
set -eu
ip link set lo up
test "$(ip -o link | wc -l)" = 1
as="setpriv --reuid $1 --regid $1 --clear-groups --no-new-privs --inh-caps=-all"
if ! $as test -x "$2/bin/python3"; then
    hold=$(mktemp -d); home=/$(echo "$2" | cut -d/ -f2)
    mount --bind "$2" "$hold"
    mount -t tmpfs -o mode=755 none "$home"
    mkdir -p "$2"
    mount --bind "$hold" "$2"
fi
shift 2
exec $as "$@"
"""


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="polypfed-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="to become another user, and to have no network, takes root")
def test_nobody_without_a_network_simulates_provisions_and_deploys(home: Path) -> None:
    probe = subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine gives no namespaces")
    tests = ["test_deployment.py", "test_simulation.py"]
    inner = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(home / "made"),
        *(str(Path(__file__).with_name(name)) for name in tests),
        "-k", "hello_numpy or (test_deployment and bits_of_local and fedavg) or shut_down or without_a_certificate",
    ]  # fmt: skip
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", SETUP, "sh", str(NOBODY), sys.base_prefix, *inner],
        cwd=ROOT,
        env=os.environ | {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "4 passed" in done.stdout
    made = [path for path in (home / "made").rglob("*") if not path.is_symlink()]
    assert {path.stat().st_uid for path in made} == {NOBODY}
