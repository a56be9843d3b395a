"""ETIS-LaribPolypDB: `images/N.png` and `masks/N.png` or other types, 196 frames of 34 sequences.

Silva et al., International Journal of Computer Assisted Radiology and Surgery 9, 2014. Not tried on the original files.
"""

from polypfed.data.importers.numbered import numbered

ETIS = numbered("etis", (1225, 966))
