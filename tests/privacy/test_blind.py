import sys

import numpy as np
import pytest

from polypfed.core.errors import ConfigError
from polypfed.privacy.blind import BlindSite, accumulator, codec_of, label_for
from polypfed.privacy.errors import FrameRefused
from polypfed.privacy.frames import joined, split
from polypfed.privacy.keys import JobKey, job_id
from polypfed.privacy.masks import Ring
from polypfed.privacy.params import HEParams
from polypfed.privacy.pipeline import compose
from polypfed.privacy.roster import Identity, Roster
from polypfed.privacy.secagg import Group, MaskingSite, Unmasking, read_keys
from polypfed.privacy.stage import At, Clip, Encrypt, Mask, Quantise, TopK

pytest.importorskip("tenseal")
pytest.importorskip("cryptography.hazmat.primitives.hpke")
pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")

NAMES = ["lyon", "oslo", "rome", "wien"]
PEOPLE = {n: Identity.create(n) for n in NAMES}
SERVER = Identity.create("server")
ROSTER = Roster(tuple(p.public for p in PEOPLE.values()), SERVER.public)
LENGTH = 9000


def sites_of(line) -> dict[str, BlindSite]:
    key = JobKey.create("run", line.layout[1], ROSTER)
    return {n: BlindSite(line, "run", p, ROSTER, key, LENGTH) for n, p in PEOPLE.items()}


@pytest.mark.parametrize("hybrid", [False, True])
def test_rounds_with_all_stages_give_every_site_the_same_bits(hybrid):
    stages = [Clip(5.0), TopK(0.5), Quantise(bits=8, bound=0.5, cap=200), *([Mask()] if hybrid else []), Encrypt()]
    line = compose(stages, sites=4, weights="examples")
    sites, states, grids = sites_of(line), {n: {} for n in NAMES}, dict.fromkeys(NAMES)
    draw, reference, sent, wanted = np.random.default_rng(0), None, np.zeros(LENGTH), np.zeros(LENGTH)
    for number in range(1, 9):
        codec = codec_of(line, LENGTH, grids["lyon"])
        key = sites["lyon"].key
        label = label_for("run", number, 0, key.id, key.params, codec.size)
        server = accumulator(line, label, ROSTER, NAMES)
        masks, unmasking = dict.fromkeys(NAMES), None
        if hybrid:
            group = Group(job_id("run"), number, 0, ROSTER, tuple(NAMES), 3, Ring(codec.slots.modulus), codec.size)
            own = {n: MaskingSite(group, p) for n, p in PEOPLE.items()}
            advertised = {n: m.keys() for n, m in own.items()}
            sealed = {n: m.shares(advertised) for n, m in own.items()}
            masks = {n: (m, {p: s[n] for p, s in sealed.items() if p != n}) for n, m in own.items()}
        for n in NAMES:
            vector = draw.normal(0, 0.02, LENGTH).astype(np.float32)
            at = At(seed=5, round=number, site=n, reference=reference)
            out = sites[n].upload(vector, 100, states[n], at, grids[n], masks=masks[n])
            states[n], wanted = out.state, wanted + vector / 4
            for frame in split(out.data):
                server.add(frame)
        if hybrid:
            confirmed = {n: own[n].confirm(NAMES) for n in NAMES}
            reveals = [own[n].reveal(confirmed) for n in NAMES]
            unmasking = Unmasking.join(group, read_keys(group, advertised), reveals, NAMES, [])
        data = joined(server.frames(SERVER.signer))
        got = {
            n: sites[n].release(data, At(seed=5, round=number, reference=reference), grids[n], unmasking=unmasking)
            for n in NAMES
        }
        assert len({r.mean.tobytes() for r in got.values()}) == 1
        assert {r.weight for r in got.values()} == {400}
        assert {r.participants for r in got.values()} == {tuple(NAMES)}
        assert np.count_nonzero(got["oslo"].mean) <= LENGTH // 2
        grids = {n: r.grid for n, r in got.items()}
        assert len(set(grids.values())) == 1
        reference = got["lyon"].mean
        sent += reference
    kept = np.mean([s["1.residual"] for s in states.values()], axis=0)
    np.testing.assert_allclose(sent + kept, wanted, atol=1e-4)  # nothing is lost on the way


def test_what_does_not_fit_is_refused():
    line = compose([Quantise(), Encrypt()], sites=4)
    sites = sites_of(line)
    other = compose([Quantise(bits=12), Encrypt()], sites=4)
    with pytest.raises(ConfigError, match="Rotate"):
        BlindSite(other, "run", PEOPLE["oslo"], ROSTER, sites["oslo"].key, LENGTH)
    with pytest.raises(ConfigError, match="Quantise"):
        codec_of(compose([Clip()], sites=4), LENGTH, None)
    with pytest.raises(ConfigError, match="no grid"):
        codec_of(line, LENGTH, codec_of(line, LENGTH - 1, None).grid)
    label = label_for("run", 1, 0, bytes(8), HEParams.for_sites(4), 10)
    with pytest.raises(ConfigError, match="nothing is encrypted"):
        accumulator(compose([Quantise(), Mask()], sites=4), label, ROSTER, NAMES)
    at = At(seed=0, round=1, site="oslo")
    data = sites["oslo"].upload(np.zeros(LENGTH, np.float32), 1, {}, at).data
    key = sites["oslo"].key
    label = label_for("run", 1, 0, key.id, key.params, codec_of(line, LENGTH, None).size)
    server = accumulator(line, label, ROSTER, ["lyon", "wien"])
    with pytest.raises(FrameRefused) as caught:
        server.add(next(split(data)))
    assert caught.value.reason == "unknown-site"
