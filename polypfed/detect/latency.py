"""How long models take on this machine: candidates take turns, so that what else runs here hits all of them alike."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypfed.core.errors import ConfigError
from polypfed.detect.litert import LiteRTDetector
from polypfed.detect.runtime import Delegate, runtime
from polypfed.detect.tflite import TFLite

Pixels = NDArray[np.uint8]
USABLE = 20.0  # frames per second for an endoscope (DAVE Embedded Systems, ML-TN-009)
_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Row:
    """One candidate. Times in milliseconds; `invoke` and `frame` hold n, min, mean, p50, p90, p95, p99, max.

    Attributes:
        first_ms: the first inference, in which a delegate may compile. load_ms: reading and preparing.
        memory_mb: by which the process grew from before loading to after the first frame.
        watts: None unless measured or given; `watts_source` says which.
    """

    model: str
    precision: str
    npu: bool
    threads: int
    size_mb: float
    load_ms: float
    first_ms: float
    memory_mb: float
    invoke: dict[str, float] = field(repr=False)
    frame: dict[str, float] = field(repr=False)
    cpu_ms: float = 0.0
    watts: float | None = None
    watts_source: str | None = None

    @property
    def fps(self) -> float:
        """Inference only, from the mean: comparable with the published tables."""
        return 1000 / self.invoke["mean"]

    @property
    def frame_fps(self) -> float:
        """Whole frames, from the median."""
        return 1000 / self.frame["p50"]


def measure(
    models: Sequence[Path],
    threads: Sequence[int] = (1,),
    delegate: Delegate | None = None,
    frames: Sequence[Pixels] = (),
    runs: int = 50,
    watts: float | None = None,
    hwmon: str | None = None,
) -> list[Row]:
    """Measure each model with each number of threads.

    Args:
        frames: whole frames, any size; grey noise of 1280 x 1024 by default.
        runs: turns that count; a tenth as many go before.
        watts: what a meter shows while this runs. hwmon: name of a sensor to read instead.

    Raises:
        ConfigError: nothing to measure, or no such sensor. ModelFileError: a file that is no detector.
    """
    if not models or runs < 1 or any(t < 1 for t in threads):
        raise ConfigError("at least one model, one thread and one run are needed", where="latency")
    sensor = Sensor(hwmon) if hwmon else None
    some = list(frames) or [np.random.default_rng(0).integers(0, 256, (1024, 1280, 3), dtype=np.uint8)]
    candidates = [_Candidate(path, t, delegate, some[0]) for path in models for t in threads]
    for turn in range(runs + max(1, runs // 10)):
        for candidate in candidates:
            candidate.turn(some[turn % len(some)], turn >= max(1, runs // 10))
            if sensor is not None:
                candidate.watts.append(sensor.read())
    return [c.row(watts, sensor) for c in candidates]


class _Candidate:
    def __init__(self, path: Path, threads: int, delegate: Delegate | None, frame: Pixels) -> None:
        before, start = _resident(), time.perf_counter()
        self.detector = LiteRTDetector(path, threads, delegate)
        loaded = time.perf_counter()
        self.detector(frame)
        self.load_ms, self.first_ms = 1e3 * (loaded - start), 1e3 * self.detector.times["invoke"]
        self.memory_mb = (_resident() - before) / 1e6
        self.path, self.npu, self.threads = path, delegate is not None, threads
        self.invoke: list[float] = []
        self.frame: list[float] = []
        self.cpu: list[float] = []
        self.watts: list[float] = []

    def turn(self, frame: Pixels, counts: bool) -> None:
        cpu = time.process_time()
        self.detector(frame)
        if counts:
            times = self.detector.times
            self.cpu.append(time.process_time() - cpu)
            self.invoke.append(times["invoke"])
            self.frame.append(sum(times.values()))

    def row(self, watts: float | None, sensor: "Sensor | None") -> Row:
        source = "given" if watts is not None else None
        if sensor is not None and self.watts:
            watts, source = float(np.mean(self.watts)), sensor.name
        return Row(
            self.path.stem, precision_of(TFLite(self.path.read_bytes(), self.path)), self.npu, self.threads,
            self.path.stat().st_size / 1e6, self.load_ms, self.first_ms, self.memory_mb,
            _summary(self.invoke), _summary(self.frame), 1e3 * float(np.mean(self.cpu)), watts, source,
        )  # fmt: skip


def precision_of(graph: TFLite) -> str:
    """ "int8", "dynamic", "fp16" or "fp32", by a file's input and the weights of its first convolution."""
    if graph.tensors[graph.inputs[0]].type == 9:
        return "int8"
    cast = {o.outputs[0]: o.inputs[0] for o in graph.operators if o.name == "DEQUANTIZE"}
    first = next((o for o in graph.operators if o.name == "CONV_2D"), None)
    if first is None:
        return "fp32"
    weight = graph.tensors[cast.get(first.inputs[1], first.inputs[1])]
    return {9: "dynamic", 1: "fp16"}.get(weight.type, "fp32")


def _summary(seconds: list[float]) -> dict[str, float]:
    ms = 1e3 * np.array(seconds)
    out = {"n": float(len(ms)), "min": float(ms.min()), "mean": float(ms.mean()), "max": float(ms.max())}
    return out | {f"p{q}": float(np.percentile(ms, q)) for q in _PERCENTILES}


class Sensor:
    """A power sensor of the system, in watts.

    Args:
        name: as `/sys/class/hwmon/hwmon*/name` says, or the path of a file in microwatts.

    Raises:
        ConfigError: there is none; lists those there are.
    """

    def __init__(self, name: str, root: Path = Path("/sys/class/hwmon")) -> None:
        self.name, self._file = name, Path(name)
        if not self._file.is_file():
            found = {self._label(p): p for p in sorted(root.glob("hwmon*/power*_input"))}
            if name not in found:
                known = ", ".join(found) or "none"
                raise ConfigError("no such power sensor", where="--hwmon", remedy=f"This machine has: {known}")
            self._file = found[name]
        self.read()

    @staticmethod
    def _label(path: Path) -> str:
        try:
            return (path.parent / "name").read_text().strip()
        except OSError:
            return path.parent.name

    def read(self) -> float:
        """Watts now."""
        try:
            return int(self._file.read_text()) / 1e6
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be read ({error})", where=self._file) from None


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """What the JSON file holds."""
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "runtime": runtime()[1], "system": platform.platform()}
    listed = [asdict(r) | {"fps": r.fps, "frame_fps": r.frame_fps, "usable": r.frame_fps >= USABLE} for r in rows]
    return {"schema": 1, "machine": machine, "rows": listed}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware")))
    return next(found, platform.machine())


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
