"""Names of architectures: "yolov5n" to "yolov5x", and narrower ones, "yolov5n-0.75" with 3/4 of its channels.

What the five sizes differ in is depth and width; a narrower one is the same architecture file with a smaller width.
"""

import re

from polypfed.core.errors import ConfigError

ARCHITECTURES = tuple(f"yolov5{size}" for size in "nsmlx")
_NAME = re.compile(r"(yolov5[nsmlx])(?:-(0\.[0-9]{1,2}))?")
_LEAST = 0.1


def parts(arch: str) -> tuple[str, float]:
    """The size and its share of channels.

    >>> parts("yolov5n-0.75")
    ('yolov5n', 0.75)

    Raises:
        ConfigError: unknown architecture.
    """
    found = _NAME.fullmatch(arch) if isinstance(arch, str) else None
    share = float(found[2] or 1) if found else 0.0
    if found is None or share < _LEAST:
        remedy = f"Known: {', '.join(ARCHITECTURES)}, and narrower ones such as yolov5n-0.75"
        raise ConfigError(f"unknown architecture {arch!r}", where="arch", remedy=remedy)
    return found[1], share


def narrower(arch: str, share: float) -> str:
    """The name of `arch` with a share of its channels.

    >>> narrower("yolov5n", 0.5), narrower("yolov5n", 1)
    ('yolov5n-0.5', 'yolov5n')
    """
    size, own = parts(arch)
    total = round(own * share, 2)
    if not _LEAST <= total <= 1:
        raise ConfigError(f"{share!r} is not from {_LEAST} to 1", where="width")
    return size if total == 1 else f"{size}-{total:g}"
