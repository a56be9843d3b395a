"""Does an update point against all others, where these are of one mind?"""

from collections.abc import Sequence

import numpy as np

from polypfed.core import distances
from polypfed.core.model import Vector

LEAST = 5  # updates: two that agree are no majority to judge a third by


def opposed(rows: Sequence[Vector]) -> list[int]:
    """Indices of the rows, (P,) each, that point against each row of a camp which agrees in itself; mostly none.

        <D_i, D_j> > 0 for all i, j of the camp;   <D_i, D_k> < 0 for all i of it and all k outside

    The camp leaves out f rows at most, where 2f + 3 <= m as for Krum. Rows of zeros say nothing and are not judged.
    At the optimum of unlike sites honest updates point away from each other, so that there is no such camp.
    """
    judged = [i for i, row in enumerate(rows) if row.any()]
    count = len(judged)
    if count < LEAST:
        return []
    signs = np.sign(distances.cosines([rows[i] for i in judged]))
    camp = max((row > 0 for row in signs), key=np.count_nonzero)
    if np.count_nonzero(camp) < count - (count - 3) // 2 or (signs[camp] != np.where(camp, 1, -1)).any():
        return []
    return [i for i, inside in zip(judged, camp, strict=True) if not inside]
