"""Doctest collection imports every module; those whose package is not installed are left out."""

from importlib.util import find_spec

_NEEDS = {
    "polypfed/backends/flower*": "flwr",
    "polypfed/backends/nvflare*": "nvflare",
    "polypfed/release/*": "tuf",
    "tests/release/*": "tuf",
    "tests/live/*flower*": "flwr",
    "tests/live/*nvflare*": "nvflare",
    "tests/detect/mini.py": "torch",
}
collect_ignore_glob = [pattern for pattern, module in _NEEDS.items() if find_spec(module) is None]
