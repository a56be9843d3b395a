"""What a changed program sends from a site's process of NVFlare: a filter on results may send what it likes."""

from pathlib import Path

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from polypfed import Update
from polypfed.core.messages import decode
from polypfed.core.model import Vector
from tests import hostile


class HostileFilter(Filter):  # type: ignore[misc]  # nvflare has no types
    """Answers for site BAD with the cases of `tests.hostile`; leaves the other sites' results alone.

    Args:
        keys: folder of that site's keys.
    """

    def __init__(self, keys: str) -> None:
        super().__init__()
        self._bad = hostile.Hostile(Path(keys))

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """See Filter."""
        if fl_ctx.get_identity_name() != hostile.BAD:
            return shareable
        children = dict(from_shareable(shareable).data)
        honest = decode(children.pop("info").data["header"])
        assert isinstance(honest, Update)
        vectors = {key[7:]: np.concatenate(list(child.data.values())) for key, child in children.items()}
        update, head = self._bad.answer(Update(**{**vars(honest), "vectors": vectors}))
        return packed(update, head + hostile.NO_VECTORS)


def packed(update: Update, head: bytes) -> Shareable:
    """As `payload` packs an update, without a look at what it is."""
    lengths = {name: int(vector.size) for name, vector in update.vectors.items()}
    children = {f"vector:{name}": DXO(DataKind.WEIGHT_DIFF, data=layers(v)) for name, v in update.vectors.items()}
    info = DXO(DataKind.APP_DEFINED, data={"header": head, "frames": {}, "lengths": lengths})
    return DXO(DataKind.COLLECTION, data={"info": info, **children}).to_shareable()


def layers(vector: Vector) -> dict[str, Vector]:
    """The toy model has one layer."""
    return {"x": vector}
