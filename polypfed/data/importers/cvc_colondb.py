"""CVC-ColonDB: `N.bmp` with masks `pN.bmp`, or the copies with `images/N.png` and `masks/N.png`.

Bernal et al., Pattern Recognition 45, 2012. Other masks than `p` are not of polyps. Not tried on the original files.
"""

from polypfed.data.importers.numbered import numbered

CVC_COLONDB = numbered("cvc_colondb", (574, 500))
