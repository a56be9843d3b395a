"""Every test that docs/threat-model.md names is there."""

import re

import pytest

from tests.problems import ROOT

TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


def test_every_threat_has_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if re.match(r"\| T\d+ ", line)]
    assert [row.split()[1] for row in rows] == [f"T{i}" for i in range(1, 18)]
    assert all("::test_" in row for row in rows)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_exists(file: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
