"""The usual stages of each mode of privacy."""

from typing import Literal, get_args

from polypfed.core.errors import ConfigError
from polypfed.privacy.params import Profile
from polypfed.privacy.pipeline import Mode
from polypfed.privacy.stage import Clip, Encrypt, Mask, Noise, Quantise, Stage


def stages(
    mode: Mode,
    *,
    bits: float | None = None,
    bound: float | None = None,
    cap: int | None = 4096,
    profile: Profile = "std",
    threshold: int | None = None,
    norm: float = 1.0,
    multiplier: float = 1.0,
    where: Literal["site", "server"] = "server",
) -> tuple[Stage, ...]:
    """The stages of a mode, for `Federation(stages=...)`.

    Args:
        mode: "plain", "dp" (clip and noise), "he" (encrypted sums), "secagg" (masked sums) or "hybrid" (both).
        bits: of a value, at least. None is 8 under he, secagg and hybrid; under plain and dp it leaves float32, and a
            number rounds, so that two to eight times fewer bytes travel (see `federation.packed`).
        bound: of the first round's values, as a share of the largest weight of their tensor; None:
            what suits the number of levels.
        cap: the most examples a site may have, near the largest number there is; None, if the strategy weighs all sites
            alike.
        profile: of the encryption: "std", "pq128" or "tc256".
        threshold: sites that must survive a masked round; None is two thirds.
        norm, multiplier, where: of the clip and the noise under dp.

    Raises:
        ConfigError: the mode is another word, or a setting is out of range.

    Examples:
        >>> [stage.kind for stage in stages("he")]
        ['compress', 'encrypt']
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"{mode!r} is not one of {', '.join(get_args(Mode))}", where="privacy")
    clip, quantise = Clip(norm=norm), Quantise(bits=8.0 if bits is None else bits, bound=bound, cap=cap)
    rounded = () if bits is None else (quantise,)
    usual: dict[Mode, tuple[Stage, ...]] = {
        "plain": rounded,
        "dp": (clip, Noise(multiplier=multiplier, where=where, clip=clip), *rounded),
        "he": (quantise, Encrypt(profile=profile)),
        "secagg": (quantise, Mask(threshold=threshold)),
        "hybrid": (quantise, Mask(threshold=threshold), Encrypt(profile=profile)),
    }
    return usual[mode]
