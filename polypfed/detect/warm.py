"""Warm start: weights from a NumPy archive or a model of polypfed's own, read without unpickling anything.

The user names the file; the library neither ships nor downloads weights. Weights trained on COCO come under a licence
of their own (YOLOv5: GPL-3.0, today AGPL-3.0).
"""

import hashlib
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from polypfed.core.errors import CheckpointError, DataError
from polypfed.core.rundir import load_model

_LOG = logging.getLogger(__name__)
_FLOATS, _OTHERS = ("float16", "float32", "float64"), ("int64", "int32", "bool")
_LIMIT = 2**30


@dataclass(frozen=True)
class WarmStart:
    """What a file brought. `share`: of the model's values that are now warm, 0 to 1."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} arrays matched ({self.share:.0%} of all values), "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        )


def warm_start(
    arrays: dict[str, NDArray[np.float32]],
    path: str | Path,
    at_least: float = 0.3,
    sha256: str | None = None,
    limit: int = _LIMIT,
) -> WarmStart:
    """Overwrite those of `arrays` that the archive holds under the same name and shape.

    Args:
        arrays: name -> float32 array, written in place (views of a model or of its flat vector).
        path: `.npz` file, float16 and float64 become float32, integers (counters) are skipped; or a `.safetensors` of
            a run or of `polypfed compress`.
        at_least: least share of the values of `arrays` that must be found.
        sha256: expected digest of the file, hex.
        limit: most bytes the archive may unpack to.

    Raises:
        DataError: missing file, other digest, not an archive of plain arrays, too large, a value that is not
            finite, or too small a share. `arrays` is untouched then.
    """
    file = Path(path)
    found = _read(file, sha256, limit)
    with np.errstate(over="ignore"):  # what overflows is infinite then, and refused below
        fits = {n: a.astype(np.float32) for n, a in found.items() if n in arrays and a.shape == arrays[n].shape}
    for name, array in fits.items():
        if not np.isfinite(array).all():
            raise DataError(f"the array {name!r} holds values that are not finite", where=file)
    total = sum(a.size for a in arrays.values())
    report = WarmStart(
        tuple(sorted(fits)),
        tuple(sorted(set(arrays) - set(fits))),
        tuple(sorted(set(found) - set(fits))),
        sum(a.size for a in fits.values()) / max(total, 1),
    )
    if report.share < at_least:
        raise DataError(f"{report}, but at least {at_least:.0%} must match", where=file, remedy="Is it another model?")
    for name, array in fits.items():
        arrays[name][...] = array
    _LOG.info("warm start from %s: %s", file, report)
    return report


def _read(file: Path, sha256: str | None, limit: int) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise DataError("no such file", where=file)
    if sha256 is not None and hashlib.sha256(file.read_bytes()).hexdigest() != sha256.lower():
        raise DataError("the SHA-256 is not the expected one", where=file)
    if file.suffix == ".safetensors":
        return _own(file, limit)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # The directory's sizes bound what is unpacked: zipfile stops reading an entry there.
            if sum(e.file_size for e in entries) > limit:
                raise DataError(f"the archive unpacks to more than {limit} bytes", where=file)
            arrays = {e.filename.removesuffix(".npy"): _array(archive, e, file) for e in entries}
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - numpy's header parser raises TokenError, SyntaxError and more
        raise DataError(f"this is not an archive of plain arrays ({error})", where=file) from None
    return {name: a for name, a in arrays.items() if a.dtype.name in _FLOATS}


def _own(file: Path, limit: int) -> dict[str, NDArray[Any]]:
    if file.stat().st_size > limit:
        raise DataError(f"the model is larger than {limit} bytes", where=file)
    try:
        spec, x = load_model(file)
    except CheckpointError as error:
        raise DataError(error.problem, where=file) from None
    return dict(spec.views(x))


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> NDArray[Any]:
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.name not in _FLOATS + _OTHERS:
            raise DataError(f"the array {entry.filename!r} is of type {dtype}", where=file)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        data = stream.read(entry.file_size)  # never more than the entry holds, whatever the header claims
    if len(data) != size:
        raise DataError(f"the array {entry.filename!r} is cut short", where=file)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
