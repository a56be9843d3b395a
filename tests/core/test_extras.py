import sys
from pathlib import Path

import pytest

from polypfed.core.errors import MissingExtraError
from polypfed.core.extras import require


def test_what_is_there_is_imported() -> None:
    assert require("json", extra="none") is sys.modules["json"]
    assert require("os.path", extra="none") is sys.modules["os.path"]


def test_what_is_missing_names_its_extra() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="flower")
    assert str(caught.value) == (
        "the package 'no_such_package' is not installed. Install it with: pip install 'polypfed[flower]'"
    )
    assert isinstance(caught.value, ImportError)


def test_a_missing_dependency_of_the_package_is_not_blamed_on_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency") as caught:
        require("half_installed", extra="flower")
    assert not isinstance(caught.value, MissingExtraError)
