"""What one client does must not depend on which client, or what else, ran before it in the same process."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch

_ONE_AT_A_TIME = RLock()


@contextmanager
def isolated(seed: int, threads: int) -> Iterator[None]:
    """Seed the global generators and pin the threads for a block; afterwards all is as it was.

    Covers `random`, `numpy.random`, torch's CPU generator and thread count, and OpenCV's threads. Blocks of several
    Python threads take turns, since all of this, like a resident model, exists once per process.

    Args:
        seed: any non-negative integer.
        threads: of torch. Another number gives other bits in a convolution.
    """
    with _ONE_AT_A_TIME:
        python, legacy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        torch_threads = torch.get_num_threads()
        cv2 = sys.modules.get("cv2")
        cv2_threads = cv2.getNumThreads() if cv2 else 0
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that draw from the global generator
            torch.default_generator.manual_seed(seed)
            if torch_threads != threads:
                torch.set_num_threads(threads)
            if cv2:
                cv2.setNumThreads(0)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            torch.set_rng_state(torch_state)
            if torch_threads != threads:
                torch.set_num_threads(torch_threads)
            if cv2:
                cv2.setNumThreads(cv2_threads)
