"""Optional dependencies are imported where they are needed, and a missing one names its extra."""

import importlib
from typing import Any

from polypfed.core.errors import MissingExtraError


def require(module: str, *, extra: str) -> Any:
    """Import `module`, or say which extra of polypfed brings it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"the package '{missing.name}' is not installed",
            remedy=f"Install it with: pip install 'polypfed[{extra}]'",
        ) from None
