"""CVC-ClinicDB: `Original/N.tif` and `Ground Truth/N.tif`, 612 frames of 29 sequences.

Bernal et al., Computerized Medical Imaging and Graphics 43, 2015. `polypfed.data.tiff` says what is odd about its
images. A random split leaks: 242 frames have a near twin in their sequence.
"""

from bisect import bisect_left

from polypfed.data.importers.numbered import numbered

_LAST = (
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408, 428, 447, 466, 478, 503,
    528, 546, 571, 591, 612,
)  # fmt: skip  # last frame of each sequence


def sequence(frame: int) -> str:
    """Sequence of a frame; "" for a number the set does not have.

    >>> sequence(25), sequence(26), sequence(612), sequence(613)
    ('seq-1', 'seq-2', 'seq-29', '')
    """
    return f"seq-{bisect_left(_LAST, frame) + 1}" if 1 <= frame <= _LAST[-1] else ""


CVC_CLINICDB = numbered("cvc_clinicdb", (384, 288), sequence)
