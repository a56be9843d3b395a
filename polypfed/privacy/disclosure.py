"""Who could learn what, by mode: data for the report, for `polypfed run` and for the people who must sign."""

from dataclasses import asdict, dataclass

from polypfed.core.errors import ConfigError
from polypfed.privacy.pipeline import Mode


@dataclass(frozen=True)
class Disclosure:
    """One row: what each of these could learn who does not keep to the rules of secrecy, but runs the protocol."""

    mode: str
    server: str
    another_site: str
    leaked_site: str
    server_and_site: str
    cost: str


HEADINGS = {
    "mode": "mode",
    "server": "the server",
    "another_site": "another site",
    "leaked_site": "one site's key, leaked, and all recorded traffic",
    "server_and_site": "the server and one site together",
    "cost": "cost",
}

TABLE: tuple[Disclosure, ...] = (
    Disclosure("plain", "every update and the model", "the model", "the model", "everything", "none"),
    Disclosure(
        "dp",
        "noised updates and the model (noise at the site); every update (noise at the server)",
        "the noised model",
        "the noised model and this site's own update",
        "what the server alone does",
        "accuracy",
    ),
    Disclosure(
        "he",
        "who took part, when, and sizes; no update, no sum, no model",
        "the exact sum and the model",
        "every update of the key's lifetime",
        "everything",
        "about 0.4 times the bytes upwards, about 0.1 s of CPU per million values",
    ),
    Disclosure(
        "secagg",
        "the sum and the model; no single update",
        "the model",
        "the model and this site's own update",
        "the sum without that site, up to the threshold of colluding sites",
        "0.5 to 1 times the bytes, a millisecond per million values and peer, four more small messages",
    ),
    Disclosure(
        "hybrid",
        "who took part, when, and sizes; no update, no sum, no model",
        "the sum and the model",
        "sums and models of the key's lifetime; no other site's update",
        "the sum without that site, up to the threshold of colluding sites",
        "that of he and of secagg together",
    ),
)

NOTES = (
    "No mode hides who takes part, when, the size of the model, or metrics that a site sends in clear.",
    "The sum itself tells: with two sites each knows the other's update. Five sites or more are advised.",
    "Only dp limits what the model itself reveals; add it where the model is published.",
    "he, secagg and hybrid protect from a server that is curious; one that is hostile can still leave sites out.",
    "Under he, secagg and hybrid nobody can check a single update: a hostile site is bounded by the grid only.",
)


def rows(*, mode: Mode | None = None) -> list[dict[str, str]]:
    """The table as plain values, or the one row of a mode.

    Raises:
        ConfigError: no mode is called so.
    """
    found = [asdict(row) for row in TABLE if mode in (None, row.mode)]
    if not found:
        raise ConfigError(f"{mode!r} is not one of {', '.join(r.mode for r in TABLE)}", where="privacy")
    return found
