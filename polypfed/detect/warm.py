"""Warm start: weights from a NumPy archive or a safetensors file, read without unpickling anything.

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
import safetensors
import safetensors.numpy
from numpy.lib import format as npy
from numpy.typing import NDArray

from polypfed.core.errors import DataError

_LOG = logging.getLogger(__name__)
_FLOATS, _OTHERS = ("float16", "float32", "float64"), ("int64", "int32", "bool")
LIMIT = 2**30


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
    limit: int = LIMIT,
) -> WarmStart:
    """Overwrite those of `arrays` that the archive holds under the same name and shape.

    Args:
        arrays: name -> float32 array, written in place (views of a model or of its flat vector).
        path: `.npz` or safetensors; float16 and float64 become float32; integers (counters) are skipped.
        at_least: least share of the values of `arrays` that must be found.
        sha256: expected digest of the file, hex.
        limit: most bytes the archive may unpack to.

    Raises:
        DataError: missing file, other digest, not an archive of plain arrays, too large, a value that is not
            finite, or too small a share. `arrays` is untouched then.
    """
    file = Path(path)
    found = _read(file, sha256, limit)
    fits = _finite({n: a for n, a in found.items() if n in arrays and a.shape == arrays[n].shape}, file)
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


def weights_of(path: Path, limit: int = LIMIT) -> dict[str, NDArray[np.float32]]:
    """All floating-point arrays of such a file, as float32.

    Raises:
        DataError: see `warm_start`; or there is none.
    """
    found = _finite(_read(path, None, limit), path)
    if not found:
        raise DataError("holds no floating-point array", where=path)
    return found


def _finite(found: dict[str, NDArray[Any]], file: Path) -> dict[str, NDArray[np.float32]]:
    with np.errstate(over="ignore"):  # what overflows is infinite then, and refused below
        fits = {name: array.astype(np.float32) for name, array in found.items()}
    for name, array in fits.items():
        if not np.isfinite(array).all():
            raise DataError(f"the array {name!r} holds values that are not finite", where=file)
    return fits


def _read(file: Path, sha256: str | None, limit: int) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise DataError("no such file", where=file)
    if sha256 is not None and hashlib.sha256(file.read_bytes()).hexdigest() != sha256.lower():
        raise DataError("the SHA-256 is not the expected one", where=file)
    found = _tensors(file, limit) if file.suffix == ".safetensors" else _archive(file, limit)
    return {name: array for name, array in found.items() if array.dtype.name in _FLOATS}


def _tensors(file: Path, limit: int) -> dict[str, NDArray[Any]]:
    if file.stat().st_size > limit:
        raise DataError(f"is larger than {limit} bytes", where=file)
    try:
        return safetensors.numpy.load(file.read_bytes())
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:  # KeyError: a type numpy lacks
        raise DataError(f"this is no safetensors file ({error})", where=file) from None


def _archive(file: Path, limit: int) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # The directory's sizes bound what is unpacked: zipfile stops reading an entry there.
            if sum(e.file_size for e in entries) > limit:
                raise DataError(f"the archive unpacks to more than {limit} bytes", where=file)
            return {e.filename.removesuffix(".npy"): _array(archive, e, file) for e in entries}
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - numpy's header parser raises TokenError, SyntaxError and more
        raise DataError(f"this is not an archive of plain arrays ({error})", where=file) from None


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
