"""ultralytics without its network habits: every switch is set before its first import.

Left alone it resolves two public names on import, posts usage events, installs missing packages, downloads fonts and
weights, unpickles whole objects, and writes settings with a hash of the network card's address into the user's home.
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from typing import Any

import numpy as np

from polypfed.core.errors import ConfigError
from polypfed.core.extras import require

SWITCHES = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "1",
}
_PREFIX = "polypfed-yolo-"
_SERVICES = ("sync", "clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")


@lru_cache(maxsize=1)
def ultralytics() -> Any:
    """The ultralytics package, silenced.

    Raises:
        MissingExtraError: it is not installed (extra `yolo`).
        ConfigError: somebody imported it earlier in this process without `YOLO_OFFLINE`.
    """
    if "ultralytics" in sys.modules and os.environ.get("YOLO_OFFLINE") not in ("true", "1"):
        raise ConfigError(
            "ultralytics was imported before polypfed could switch its network use off",
            where="YOLO_OFFLINE",
            remedy="Import polypfed's detector first, or set YOLO_OFFLINE=true in the environment",
        )
    torch = require("torch", extra="yolo")
    os.environ.update(SWITCHES)
    os.environ["YOLO_CONFIG_DIR"] = _config_folder()
    with np.printoptions():  # its import changes how every array and tensor of the process is printed
        package = require("ultralytics", extra="yolo")
    torch.set_printoptions(profile="default")
    require("torchvision", extra="yolo")  # its mere presence in sys.modules decides which NMS ultralytics uses
    logging.getLogger("ultralytics").setLevel(logging.WARNING)
    settings = require("ultralytics.utils", extra="yolo").SETTINGS
    settings.update({name: False for name in _SERVICES if name in settings})
    return package


def _config_folder() -> str:
    """The user's own choice, else a folder of this process alone: workers that share one would race for its files."""
    chosen = os.environ.get("YOLO_CONFIG_DIR", "")
    if chosen and not os.path.basename(chosen).startswith(_PREFIX):
        return chosen
    folder, owner = tempfile.mkdtemp(prefix=_PREFIX), os.getpid()
    atexit.register(_remove, folder, owner)
    return folder


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not remove the folder its parent still uses
        shutil.rmtree(folder, ignore_errors=True)
