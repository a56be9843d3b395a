"""Ten thousand spoilt inputs to every parser: errors of ours only, and none takes a second of CPU time.

A million each: `python benchmarks/fuzz.py --count 1000000`.
"""

import io
import random
import resource
import warnings
import zipfile
from pathlib import Path
from time import process_time, sleep

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polypfed.detect.template import Template
from polypfed.detect.tflite import ModelFileError
from tests.fuzzing import CAP, fuzz, offered, parsers, spoilt

NAMES = [
    "message", "reply", "ciphertext frame", "signed frame", "frames", "levels", "roster", "site.toml", "study",
    "labels", "annotations", "manifest", "audit log", "checkpoint", "checkpoint, sum made anew", "model", "release",
    "template", "tflite", "warm start", "JPEG", "PNG", "TIFF", "BMP",
]  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return {parser.name: parser for parser in parsers(tmp_path_factory.mktemp("fuzz"))}


def test_every_parser_is_here(known: dict[str, object]) -> None:
    assert list(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_good_examples_are_taken(known, name: str) -> None:
    parser = known[name]
    if name != "manifest":  # whose digest is of real files
        for data in parser.good:
            parser.read(data)


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_examples_are_refused_in_a_line_or_read(known, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what is spoilt
        fuzz(known[name], 10_000, seed=0)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < CAP


@pytest.mark.parametrize("name", ["message", "signed frame", "checkpoint, sum made anew", "release", "site.toml"])
def test_hypothesis_finds_nothing_either(known, name: str) -> None:
    parser = known[name]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.one_of(st.binary(max_size=300), st.integers(0, 2**32).map(lambda n: mixed(n))))
    def attempt(data: bytes) -> None:
        offered(parser, data)

    def mixed(number: int) -> bytes:
        draw = random.Random(number)
        data = draw.choice(parser.good)
        for _ in range(draw.randrange(1, 12)):
            data = spoilt(data, draw)
        return data

    attempt()


def test_a_fault_would_be_found() -> None:
    from tests.fuzzing import Parser

    weak = Parser("weak", lambda data: data.decode(), [b"abc" * 20])
    with pytest.raises(AssertionError, match="UnicodeDecodeError"):
        fuzz(weak, 1000, seed=0)


def test_a_slow_parser_is_found_and_a_busy_machine_is_not_held_against_one() -> None:
    from tests.fuzzing import Parser

    def busy(_: bytes) -> None:
        begun = process_time()
        while process_time() - begun < 0.06:
            pass

    spent = offered(Parser("busy", busy, [b""]), b"")
    waited = offered(Parser("waiting", lambda _: sleep(0.06), [b""]), b"")
    assert spent >= 0.06
    assert waited < 0.03
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.fuzzing.SECOND", 0.03)
        fuzz(Parser("waiting", lambda _: sleep(0.06), [b"abc"]), 2, seed=0)
        with pytest.raises(AssertionError, match=r"busy: 0\.\d s for"):
            fuzz(Parser("busy", busy, [b"abc"]), 2, seed=0)


def test_files_of_a_fuzzed_folder_stay_in_it(known, tmp_path: Path) -> None:
    fuzz(known["site.toml"], 50, seed=1)
    assert not list(tmp_path.iterdir())


def test_a_zip_whose_directory_holds_a_name_that_is_no_utf8_is_refused() -> None:
    """Found by 200,000 inputs, not by 10,000: zipfile decodes all names before it is asked for one."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("fp32-é.tflite", b"")
    with pytest.raises(ModelFileError, match="is not a template"):
        Template(made.getvalue().replace("é".encode(), b"\xc3("))
