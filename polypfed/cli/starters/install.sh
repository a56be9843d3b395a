#!/bin/sh
# Installs {name} from this folder alone. Nothing is asked of a network.
#
#     ./install.sh [FOLDER]      makes a Python environment in FOLDER, by default polypfed-env
#
# PYTHON names the interpreter, by default python{python}.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${{1:-polypfed-env}}
python=${{PYTHON:-python{python}}}

is=$("$python" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())')
if [ "$is" != "{python} {platform}" ]; then
    echo "This bundle is for Python {python} on {platform}; $python is Python $is." >&2
    exit 1
fi
(cd "$here" && sha256sum --check --quiet --strict SHA256SUMS)
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-index --find-links "$here/wheels" --only-binary :all: --require-hashes -r "$here/requirements.txt"
"$folder/bin/polypfed" --version
