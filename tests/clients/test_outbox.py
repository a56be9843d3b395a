"""What a site keeps back between rounds."""

import numpy as np
import pytest

from polypfed import ModelSpec, Update
from polypfed.clients.outbox import Outbox, plan_of
from polypfed.privacy.quantise import Grid
from polypfed.privacy.stage import At, Encrypt, Quantise, RandomK, Stage, TopK
from polypfed.strategies import FedAvg

SPEC = ModelSpec.of({"w": np.zeros(4), "bn.running_mean": np.zeros(2)}, buffers=["bn.running_mean"])


@pytest.mark.parametrize("stages", [(Quantise(bits=12, cap=10),), (RandomK(share=0.5), Quantise(bits=12, cap=10))])
def test_what_is_lost_of_a_step_comes_later_and_of_a_level_never(stages: tuple[Stage, ...]) -> None:
    """A site wants its buffers at 5 and its weights 5 further, on a grid that ends at 1."""
    plan = plan_of(FedAvg(), SPEC, stages, 3)
    outbox, delta = Outbox(plan, FedAvg(), "a"), np.full(6, 5, np.float32)
    for number in (1, 2, 3):
        at = At(seed=0, round=number, site="a")
        vector, _ = outbox.flat(Update("a", number, {"delta": delta}, 10), at)
        outbox.slots(plan.codec(Grid.flat(1.0, plan.sent)), vector, 10, at)
    (kept,) = outbox.kept.values()
    assert kept[:4].sum() > 4 * 5
    assert kept[4:].tolist() == [0, 0]


@pytest.mark.parametrize(
    "stages",
    [[RandomK(share=0.25)], [TopK(share=0.25)], [RandomK(share=0.5), TopK(share=0.5)]],
    ids=["random", "top", "both"],
)
def test_levels_are_sent_whole_and_with_bounds_of_their_own_when_values_are_left_out(stages: list[Stage]) -> None:
    plan = plan_of(FedAvg(), SPEC, [*stages, Quantise(bits=12, cap=10, bound=0.02)], 3)
    assert plan.sizes == (1, 2)
    outbox, delta = Outbox(plan, FedAvg(), "a"), np.float32([1, 2, 3, 4, 50, 60])
    for number in (1, 2):
        at = At(seed=0, round=number, site="a", reference=np.ones(6, np.float32) if number == 2 else None)
        sent, _ = outbox.flat(Update("a", number, {"delta": delta}, 10), at)
        assert sent[1:].tolist() == [50, 60]
        dense = plan.pipeline.backward(sent, at, plan.length)
        assert dense[4:].tolist() == [50, 60]
        assert np.count_nonzero(dense[:4]) == 1
    assert plan.first_grid(np.float32([1, 2, 4, 3, 1, 1])).bounds[0] == pytest.approx(4 * 0.02)


@pytest.mark.parametrize("bits", [1.5, 3.0, 8.0, 15.0])
def test_a_first_grid_has_room_for_statistics_of_another_task(bits: float) -> None:
    """Weights move by a part of their size, statistics by several times theirs; few levels are spread less far."""
    arrays = {"w": np.full((60, 60), 2.0), "bn.running_mean": np.full(2, 1.0)}
    spec = ModelSpec.of(arrays, buffers=["bn.running_mean"])
    plan = plan_of(FedAvg(), spec, [Quantise(bits=bits, cap=10), Encrypt()], 3)
    weights, statistics = plan.first_grid(spec.pack(arrays)).bounds
    assert 2 * 0.08 < weights <= 2 * 0.08 * min(64, plan.codec().room(3600)) * (1 + 1e-6)
    assert statistics > 3 * 2.0


def test_a_first_round_of_sites_far_below_the_cap_keeps_its_values() -> None:
    """Two sites with a sixteenth of the cap; weights move as a detector's do, statistics by a third of theirs."""
    draw = np.random.default_rng(0)
    arrays = {"w": draw.normal(0, 0.1, 20_000), "bn.running_mean": draw.normal(0, 1, 64)}
    spec = ModelSpec.of(arrays, buffers=["bn.running_mean"])
    plan = plan_of(FedAvg(), spec, [Quantise(bits=8, cap=4096), Encrypt()], 2)
    codec = plan.codec(plan.first_grid(spec.pack(arrays)))
    deltas = [
        np.concatenate([draw.laplace(0, 0.005, 20_000), draw.normal(0, 0.3, 64)]).astype(np.float32) for _ in range(2)
    ]
    sent = [codec.encode(d, 256, np.random.default_rng(i), np.zeros_like(d)) for i, d in enumerate(deltas)]
    exact, found = np.mean(deltas, axis=0), codec.decode(sum(s.slots for s in sent), expect=2).mean

    def lost(part: slice) -> float:
        return float(np.square((found - exact)[part]).sum() / np.square(exact[part]).sum())

    assert lost(slice(0, 20_000)) < 0.1
    assert lost(slice(20_000, None)) < 0.001
