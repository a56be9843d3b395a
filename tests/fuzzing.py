"""Everything that reads what somebody else wrote, good examples of it, and ways to spoil them.

A parser may refuse with an error of ours, or read on; anything else it raises is a fault.
"""

import gc
import hashlib
import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from PIL import Image

from polypfed import Evaluation, Failure, ModelSpec, Task, Update
from polypfed.backends.site_file import SiteFile
from polypfed.core import audit, checkpoint
from polypfed.core.checkpoint import Checkpoint
from polypfed.core.errors import PolypfedError
from polypfed.core.files import write_framed
from polypfed.core.gate import receive
from polypfed.core.messages import decode, encode
from polypfed.core.rundir import load_model, save_model
from polypfed.data.images import open_image
from polypfed.data.importers.coco import read_coco
from polypfed.data.labels import read_labels
from polypfed.data.manifest import Manifest
from polypfed.detect.template import Template
from polypfed.detect.tflite import TFLite
from polypfed.detect.warm import warm_start
from polypfed.privacy import deflate, frames
from polypfed.privacy.roster import Roster
from polypfed.privacy.slots import open_slots

SECOND = 1.0
CAP = 400 << 20  # bytes that a process may grow by; no input here is larger than 100 kB
_WORDS = [
    b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'"', b"\\u0000", b"\xff\xfe", b"\x00" * 8,
    b"\xff" * 8, b"9" * 40, b"[" * 60, b"../", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"=", b"\n",
    b"\x80\x04\x95",
]  # fmt: skip


_TOKEN = re.compile(rb'"[^"\n]{0,80}"|[0-9][0-9.]*|true|false|null')
_VALUES = [
    b"0", b"-1", b"7", b"0.5", b"1e999", b"-0.0", b"1e-400", b"123456789012345678901234567890", b"true", b"null",
    b'""', b'"x"', b"[]", b"{}", b"[1, 2]", b'"fedavg"', b'"../../x"', b'"a\\u0000b"', b'{ "name" = "krum" }',
    b"nan", b"inf", b"1979-05-27",
]  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """One parser: what it reads, and good bytes for it."""

    name: str
    read: Callable[[bytes], Any]
    good: Sequence[bytes]


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, words, pieces repeated, moved or cut."""
    if draw.random() < 0.5 and b"\0" not in data[:200] and (found := list(_TOKEN.finditer(data))):
        at = draw.choice(found)  # another value in the place of one, so that what is spoilt can be read at all
        data = data[: at.start()] + draw.choice(_VALUES) + data[at.end() :]
        if draw.random() < 0.7:
            return data
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        size, kind = len(out), draw.randrange(7)
        at = draw.randrange(size) if size else 0
        if kind == 0 and size:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and size:
            out[at] = draw.randrange(256)
        elif kind == 2:
            del out[at : at + draw.choice((1, 2, 8, 64, size))]
        elif kind == 3:
            out[at:at] = draw.choice(_WORDS)
        elif kind == 4:
            word = draw.choice(_WORDS)
            out[at : at + len(word)] = word
        elif kind == 5:
            out[at:at] = out[at : at + draw.randrange(1, 40)]
        elif size >= 8:
            at = min(at, size - 8)
            struct.pack_into("<Q", out, at, draw.choice((0, 1, 255, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)))
    return bytes(out)


def offered(parser: Parser, data: bytes) -> float:
    """Give it the bytes; the CPU seconds it took, which a busy machine does not lengthen.

    Raises:
        AssertionError: an error that is none of ours.
    """
    begun = process_time()
    try:
        parser.read(data)
    except PolypfedError as error:
        if "\n" in error.problem and parser.name != "study":  # which names all that is wrong, one a line
            raise AssertionError(f"{parser.name}: more than a line: {error!r}") from error
    except Exception as error:
        raise AssertionError(f"{parser.name}: {type(error).__name__}: {error} for {data[:200]!r}") from error
    return process_time() - begun


def fuzz(parser: Parser, count: int, seed: int) -> float:
    """Give it so many spoilt examples; the longest took so many CPU seconds.

    Raises:
        AssertionError: an error that is none of ours, or more than a CPU second for one.
    """
    draw, slowest = random.Random(f"{seed} {parser.name}"), 0.0
    for _ in range(count):
        data = spoilt(draw.choice(parser.good), draw)
        took = offered(parser, data)
        if took > SECOND:  # perhaps it was the collector's, for what others left
            gc.collect()
            took = offered(parser, data)
            assert took <= SECOND, f"{parser.name}: {took:.1f} s for {data[:200]!r}"
        slowest = max(slowest, took)
    return slowest


def parsers(folder: Path) -> list[Parser]:
    """All of them; what reads files reads them below `folder`."""
    return [*_wire(), *_files(folder), *_models(folder), *_pictures(folder)]


def _file(folder: Path, name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    path = folder / name

    def of(data: bytes) -> Any:
        path.write_bytes(data)
        return read(path)

    return of


X = np.arange(6, dtype=np.float32)
SPEC = ModelSpec.of({"w": X[:4].reshape(2, 2), "m": X[4:]}, buffers={"m"})


def _wire() -> list[Parser]:
    task = Task(
        3, "fit", {"model": X}, {"run": "ab", "accepted": 2, "reply_bytes": 1 << 20, "strategy": {"name": "fedavg"}}
    )
    update = Update("a", 3, {"delta": X, "dc": X[:4]}, 17, {"loss": 0.5, "images": 3}, "ab", "f" * 64, "e" * 128)
    replies = [update, Evaluation("a", 3, {"map50": 0.25}, 4, "ab"), Failure("a", 3, "crashed", "x", "ab")]
    messages = [encode(m) for m in (task, *replies)]
    mac = frames.Mac(bytes(32))
    label = frames.Label(bytes(16), 3, 0, bytes(8), bytes(8), 6)
    sealed = frames.Frame(label, "update", 1, 1, 0, 1, bytes(range(60))).seal(mac)

    def again(data: bytes) -> None:
        """A member with a key may send anything: the tag is good whatever the header says."""
        header, body = data[: frames._HEADER.size], data[frames._HEADER.size : -frames.TAG]
        frames.expect(frames.read(header + body + frames._tag(mac, header, body), {1: mac}), label, ("update",))

    lanes = open_slots(3, 8.2)
    roster = {"name": "a", "signing": "00" * 32, "transport": "11" * 32}
    other = {"name": "server", "signing": "22" * 32, "transport": "33" * 32}
    plain = json.dumps({"members": [roster], "server": other}).encode()
    return [
        Parser("message", decode, messages),
        Parser("reply", lambda d: receive(d, "a", task), messages),
        Parser("ciphertext frame", lambda d: frames.read(d, {1: mac}), [sealed]),
        Parser("signed frame", again, [sealed]),
        Parser("frames", lambda d: list(frames.split(d)), [sealed * 3]),
        Parser("levels", lambda d: deflate.inflate(d, 40, lanes), [deflate.deflate(np.arange(40) % 301, lanes)]),
        Parser("roster", lambda d: Roster.from_json(_json(d)), [plain]),
    ]


def _json(data: bytes) -> Any:
    from polypfed.core.messages import strict_json

    return strict_json(data)


SITE = b"""name = "a"
client = "polypfed.remote:client"
state = "state"
[settings]
data = "data"
[policy]
strategies = ["fedavg"]
epsilon = 8.0
approve = true
[flower]
port = 9094
"""
STUDY = b"""[data.synth]
sites = 2
[model]
arch = "yolov5n"
[strategy]
name = "keepbest"
inner = { name = "fedadam", eta = 0.1 }
[privacy]
mode = "dp"
epsilon = 3.0
[select]
name = "below"
threshold = 0.7
"""


def _files(folder: Path) -> list[Parser]:
    from polypfed import config

    log = audit.AuditLog(folder / "log.jsonl")
    for i in range(5):
        log.add("accept", "a", run="ab", round=i, subject="f" * 64, weight=i)
    log.seal()
    entry = {"name": "x", "site": "a", "split": "train", "group": "", "centre": "c", "source": "s",
             "image_sha256": "0" * 64, "label_sha256": "1" * 64, "boxes": 1, "size": [4, 4]}  # fmt: skip
    manifest = json.dumps(
        {"schema": 1, "mode": "iid", "seed": 0, "parameters": {}, "skew": {}, "digest": "", "entries": [entry]}
    )
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "polyp"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]}  # fmt: skip
    return [
        Parser("site.toml", _file(folder, "site.toml", SiteFile.load), [SITE]),
        Parser("study", lambda d: config.parse(d.decode("utf-8", "replace"), folder / "study.toml"), [STUDY]),
        Parser(
            "labels",
            _file(folder, "a.txt", lambda p: read_labels(p, (64, 48))),
            [b"0 0.5 0.5 0.1 0.2\n0 .3 .3 .1 .1\n"],
        ),
        Parser("annotations", _file(folder, "coco.json", read_coco), [json.dumps(coco).encode()]),
        Parser("manifest", _file(folder, "manifest.json", lambda p: Manifest.read(p.parent)), [manifest.encode()]),
        Parser("audit log", _file(folder, "log.jsonl", audit.verify), [(folder / "log.jsonl").read_bytes()]),
    ]


def _models(folder: Path) -> list[Parser]:
    from polypfed.release.bundle import Card, read_bundle, write_bundle

    kept = Checkpoint("ab", {"seed": 0}, 1, SPEC, X, {"m": X[:4], "t": 3}, {"a": 1}, best=X)
    path = checkpoint.save(folder / "points", kept)
    header, body = checkpoint.read_framed(path)
    head = json.dumps(header).encode()

    def good_sum(data: bytes) -> Any:
        """As if whoever spoilt it had made its SHA-256 anew."""
        from polypfed.core import files

        size, target = int.from_bytes(data[:4], "little"), folder / "round-000002.ckpt"
        start, rest = data[4 : 4 + size], data[4 + size :]
        length = struct.pack("<Q", len(start))
        total = hashlib.sha256(length + start + rest).digest()
        target.write_bytes(files._PREFIX.pack(files._MAGIC, total, len(start)) + start + rest)
        return checkpoint._read(target)

    write_framed(folder / "framed", {"a": 1}, b"body")
    save_model(folder / "m.safetensors", SPEC, X)
    template = (Path(__file__).parent / "detect" / "mini-64.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(template)) as archive:
        graph = archive.read("fp32.tflite")
    bundle = write_bundle(Card(1, metrics={"map50": 0.5}), SPEC, X, template)
    packed = io.BytesIO()
    np.savez(packed, w=X[:4].reshape(2, 2))

    def warm(place: Path) -> Any:
        return warm_start({"w": np.zeros((2, 2), np.float32)}, place, limit=1 << 20)

    return [
        Parser("checkpoint", _file(folder, "round-000001.ckpt", checkpoint._read), [path.read_bytes()]),
        Parser("checkpoint, sum made anew", good_sum, [len(head).to_bytes(4, "little") + head + body]),
        Parser("model", _file(folder, "m.safetensors", load_model), [(folder / "m.safetensors").read_bytes()]),
        Parser("release", read_bundle, [bundle]),
        Parser("template", Template, [template]),
        Parser("tflite", TFLite, [graph]),
        Parser("warm start", _file(folder, "w.npz", warm), [packed.getvalue()]),
    ]


def _pictures(folder: Path) -> list[Parser]:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    made: Mapping[str, str] = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF", "bmp": "BMP"}
    found = []
    for suffix, kind in made.items():
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind)
        found.append(Parser(kind, _file(folder, f"image.{suffix}", open_image), [out.getvalue()]))
    return found
