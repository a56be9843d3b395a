import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images for research tests; they never enter the repository."""
    if named := os.environ.get("POLYPFED_DATA"):
        if not (Path(named) / "real").is_dir():
            pytest.fail(f"POLYPFED_DATA={named} holds no folder real/")
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (beside / "real").is_dir():
        pytest.skip("real images not found: set POLYPFED_DATA or provide ../shared/data")
    return beside
