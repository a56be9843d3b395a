"""That the device extra installs on an aarch64 board without a compiler: every wheel that pip would take, listed.

    python benchmarks/aarch64_wheels.py [--python 3.11]

Asks pip to resolve the base dependencies and the extra `edge` for that platform, wheels only, installing nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34, 35)] + ["manylinux2014_aarch64"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.11")
    options = parser.parse_args()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["edge"]]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--ignore-installed",
            "--report",
            "-",
        ]
        command += ["--only-binary", ":all:", "--python-version", options.python, "--implementation", "cp"]
        done = subprocess.run(
            [*command, "--target", folder, *platforms, *wanted], capture_output=True, text=True, check=False
        )
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return 1
    for item in sorted(json.loads(done.stdout)["install"], key=lambda i: i["metadata"]["name"].lower()):
        about, file = item["metadata"], item["download_info"]["url"].split("/")[-1]
        print(f"{about['name']:<28} {about['version']:<14} {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
