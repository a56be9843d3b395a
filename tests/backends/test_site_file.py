from pathlib import Path
from typing import Any

import pytest

from polypfed import Task
from polypfed.backends.site_file import Later, SiteFile
from polypfed.core.errors import ConfigError
from tests.problems import sites

GOOD = """
name = "a"
client = "tests.backends.test_site_file:made"
[settings]
lr = 0.25
[flower]
server = "h:1"
key = "k"
"""


def made(name: str, base: Path, lr: float = 0.1) -> Any:
    client = sites(1)[0]
    client.name, client.lr = name, lr
    return client


def another(name: str, base: Path) -> Any:
    return sites(1)[0]


def written(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    return path


def test_it_makes_the_client_with_its_settings(tmp_path: Path) -> None:
    site = SiteFile.load(written(tmp_path, GOOD))
    assert (site.name, site.state, dict(site.engine)) == ("a", tmp_path / "state", {"server": "h:1", "key": "k"})
    client: Any = site.open()
    assert (client.name, client.lr) == ("a", 0.25)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("name", "nome"), "nome: there is no such setting"),
        (('name = "a"', ""), "name is missing"),
        (('"a"', "3"), "name: 3 is not of type str"),
        (('"a"', '"../a"'), "cannot name a site"),
        (("[settings]", "[settings"), "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SiteFile.load(written(tmp_path, GOOD.replace(*change)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("lr = ", "rate = "), "does not take the settings given"),
        ((":made", ":nothing"), "cannot be imported"),
        (("tests.backends.test_site_file:made", "no.such:made"), "cannot be imported"),
        (("tests.backends.test_site_file:made", ""), "cannot be imported"),
        ((':made"\n[settings]\nlr = 0.25', ':another"'), "gave no client called 'a'"),
    ],
)
def test_a_client_that_cannot_be_made_is_one_line(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SiteFile.load(written(tmp_path, GOOD.replace(*change))).open()


def test_a_missing_file_and_a_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site.toml: cannot be read \(No such file"):
        SiteFile.load(tmp_path / "site.toml")
    site = SiteFile.load(written(tmp_path, GOOD))
    for key, says in (("certificate", "certificate is missing"), ("key", "k does not exist")):
        with pytest.raises(ConfigError, match=says):
            site.place(key)


def test_the_client_is_made_when_it_is_first_used(tmp_path: Path) -> None:
    later = Later(SiteFile.load(written(tmp_path, GOOD.replace("0.25", "0.5"))))
    assert later._client is None
    model = sites(1)[0].initial()[1]
    delta = later.fit(Task(1, "fit", {"model": model})).vectors["delta"]
    expected = made("a", tmp_path, 0.5).fit(Task(1, "fit", {"model": model})).vectors["delta"]
    assert delta.tobytes() == expected.tobytes()
    assert later.evaluate(Task(1, "evaluate", {"model": model})).client == "a"
    later.restore(later.state())


def test_a_device_may_forget_by_age(tmp_path: Path) -> None:
    device = '[device]\nframes = "frames"\ntemplate = "t.zip"\n'
    store = 'store = "samples"\nkey = "samples.key"\n'

    def board(more: str) -> Any:
        return SiteFile.load(written(tmp_path, GOOD + device + more)).board()

    assert board(store + "keep_samples_days = 90\n").keep_samples_days == 90
    assert board(store).keep_samples_days == 0
    for more, words in (
        (store + "keep_samples_days = -1\n", "device.keep_samples_days"),
        (store + "keep_samples_days = 1.5\n", "device.keep_samples_days: 1.5 is of the wrong type"),
        ("keep_samples_days = 9\n", "device.keep_samples_days: needs a store"),
    ):
        with pytest.raises(ConfigError, match=words):
            board(more)
