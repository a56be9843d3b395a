import hashlib
import subprocess
import sys

import numpy as np

from polypfed.core.seeds import derive, generator


def test_a_seed_is_the_start_of_a_blake2b_of_its_parts() -> None:
    digest = hashlib.blake2b(b"7\x1fclient\x1f3\x1fsite-a", digest_size=8).digest()
    assert derive(7, "client", 3, "site-a") == int.from_bytes(digest, "little") // 2


def test_seeds_are_63_bits_and_differ_in_every_part() -> None:
    seeds = [derive(s, p, r, c) for s in (0, 1) for p in ("fit", "order") for r in (1, 2) for c in ("a", "b")]
    assert len(set(seeds)) == 16
    assert all(0 <= s < 2**63 for s in seeds)


def test_parts_do_not_run_together() -> None:
    assert derive(1, "a", 11, "b") != derive(1, "a", 1, "1b")
    assert derive(11, "a") != derive(1, "1a")


def test_another_process_derives_the_same() -> None:
    code = "from polypfed.core.seeds import derive; print(derive(5, 'x', 'y'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == derive(5, "x", "y")


def test_a_generator_repeats_itself_and_leaves_the_global_one_alone() -> None:
    before = np.random.get_state()[1].tobytes()  # type: ignore[union-attr,index]  # noqa: NPY002
    assert generator(1, "x").random() == generator(1, "x").random()
    assert generator(1, "x").random() != generator(1, "y").random()
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[union-attr,index]  # noqa: NPY002
