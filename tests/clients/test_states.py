from pathlib import Path

import pytest

from polypfed.clients.states import KEEP, States
from polypfed.core.errors import CheckpointError


@pytest.fixture(params=["disk", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "state" if request.param == "disk" else None


def test_states_come_back_by_round(where: Path | None) -> None:
    states = States(where)
    assert (len(states), 3 in states, states.get(3)) == (0, False, b"")
    states.add(3, b"three")
    states.add(5, b"")
    assert (len(states), 3 in states, 4 in states, 5 in states) == (2, True, False, True)
    assert (states.get(3), states.get(5), states.get(0)) == (b"three", b"", b"")
    states.add(5, b"again")
    assert (len(states), states.get(5)) == (2, b"again")


def test_later_ones_are_dropped(where: Path | None) -> None:
    states = States(where)
    states.add(3, b"three")
    states.add(5, b"five")
    states.drop_after(3)
    assert (len(states), states.get(3), states.get(5)) == (1, b"three", b"")
    states.drop_after(0)
    assert len(states) == 0


def test_old_ones_are_forgotten(tmp_path: Path) -> None:
    disk, memory = States(tmp_path), States(None)
    for number in range(1, 9):
        disk.add(number, b"x")
        memory.add(number, b"x")
    assert [n for n in range(10) if n in disk] == [5, 6, 7, 8]
    assert [n for n in range(10) if n in memory] == [7, 8]
    assert len(list(tmp_path.iterdir())) == KEEP


def test_disk_outlives_the_object(tmp_path: Path) -> None:
    States(tmp_path).add(1_234_567, b"kept")
    (tmp_path / "notes.txt").write_text("x")
    again = States(tmp_path)
    assert (len(again), again.get(1_234_567)) == (1, b"kept")


def test_a_client_that_keeps_nothing_leaves_no_file(tmp_path: Path) -> None:
    states = States(tmp_path / "state")
    for number in (1, 2):
        states.add(number, b"")
    assert not (tmp_path / "state").exists()
    states.add(3, b"x")
    states.add(4, b"")
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_a_damaged_or_misplaced_file_is_found(tmp_path: Path) -> None:
    states = States(tmp_path)
    states.add(1, b"one")
    path = next(tmp_path.iterdir())
    path.rename(path.with_name("round-000002.bin"))
    with pytest.raises(CheckpointError, match="another round"):
        States(tmp_path).get(2)
    path.with_name("round-000002.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cut short"):
        States(tmp_path).get(2)
