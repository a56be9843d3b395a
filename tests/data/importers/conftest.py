import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polypfed.data import ImportSummary, Sample, import_dataset, read_yolo

Import = Callable[..., tuple[ImportSummary, dict[str, Sample]]]


@pytest.fixture
def take(tmp_path) -> Import:
    """take(src, name="auto", ...): import into a new folder; the summary and the samples by id."""

    def take(src: Path, name: str = "auto", **options: object) -> tuple[ImportSummary, dict[str, Sample]]:
        dst = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        summary = import_dataset(name, src, dst, **options)
        samples = {sample.id: sample for sample in read_yolo(dst)}
        assert summary.images == len(samples)
        assert summary.boxes == sum(len(sample.boxes) for sample in samples.values())
        assert summary.negatives == sum(sample.negative for sample in samples.values())
        return summary, samples

    return take


@pytest.fixture
def native(real_data) -> Path:
    return real_data / "native"


@pytest.fixture
def write_json() -> Callable[[Path, object], None]:
    def write_json(path: Path, value: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    return write_json
