"""flower-supernode in a process that ends when its work does: python -m polypfed.backends.flower.supernode OPTIONS

A TLS record that arrives damaged ends the SuperNode's loop, but not its process, whose server thread goes on; the site
would be deaf, and nobody would start it again.
"""

import logging
import os
import sys

from flwr.supernode.cli import flower_supernode

log = logging.getLogger(__name__)


def main() -> None:
    """Run Flower's command, then end the process, whatever threads it has left."""
    code = 1
    try:
        flower_supernode()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        log.exception("the SuperNode ended")
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
