"""Names of architectures: "yolov5n" to "yolov5x", "yolov8n" to "yolov8x", "yolo11n" to "yolo11x"; and narrower YOLOv5,
"yolov5n-0.75" with 3/4 of its channels.

What the five sizes differ in is depth and width; a narrower one is the same architecture file with a smaller width.
"""

import re

from polypfed.core.errors import ConfigError

_LAYERS = {"yolov5": 24, "yolov8": 22, "yolo11": 23}  # before the detection head
ARCHITECTURES = tuple(f"{family}{size}" for family in _LAYERS for size in "nsmlx")
PATTERN = r"^(yolov5[nsmlx](-0\.[1-9][0-9]?)?|yolov8[nsmlx]|yolo11[nsmlx])$"
_NAME = re.compile(r"(yolov5[nsmlx]|yolov8[nsmlx]|yolo11[nsmlx])(?:(?<=yolov5.)-(0\.[0-9]{1,2}))?")
_LEAST = 0.1


def parts(arch: str) -> tuple[str, float]:
    """The size and its share of channels.

    >>> parts("yolov5n-0.75"), parts("yolo11s")
    (('yolov5n', 0.75), ('yolo11s', 1.0))

    Raises:
        ConfigError: unknown architecture.
    """
    found = _NAME.fullmatch(arch) if isinstance(arch, str) else None
    share = float(found[2] or 1) if found else 0.0
    if found is None or share < _LEAST:
        remedy = f"Known: {', '.join(ARCHITECTURES)}, and narrower ones such as yolov5n-0.75"
        raise ConfigError(f"unknown architecture {arch!r}", where="arch", remedy=remedy)
    return found[1], share


def before_head(arch: str) -> int:
    """How many layers lie before the detection head.

    >>> before_head("yolov5n-0.5"), before_head("yolov8x"), before_head("yolo11m")
    (24, 22, 23)

    Raises:
        ConfigError: unknown architecture.
    """
    return _LAYERS[parts(arch)[0][:-1]]


def for_devices(arch: str) -> None:
    """Raise a ConfigError unless boards take this architecture: templates and pruning know YOLOv5's layers only."""
    if not parts(arch)[0].startswith("yolov5"):
        raise ConfigError(
            f"{arch} trains here, but has no form for devices",
            where="arch",
            remedy="Boards take yolov5n to yolov5x; to write another one yourself, load its arrays into ultralytics",
        )


def narrower(arch: str, share: float) -> str:
    """The name of `arch` with a share of its channels.

    >>> narrower("yolov5n", 0.5), narrower("yolov5n", 1)
    ('yolov5n-0.5', 'yolov5n')
    """
    for_devices(arch)
    size, own = parts(arch)
    total = round(own * share, 2)
    if not _LEAST <= total <= 1:
        raise ConfigError(f"{share!r} is not from {_LEAST} to 1", where="width")
    return size if total == 1 else f"{size}-{total:g}"
