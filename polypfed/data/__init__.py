"""Data sets: samples, YOLO folders, importers for the public sets, and the partitioner.

The synthetic frames are in `polypfed.data.synth`.
"""

from polypfed.data.check import Check, Finding, check_dataset
from polypfed.data.groups import near_duplicates
from polypfed.data.images import image_size, open_image
from polypfed.data.importers import IMPORTERS, ImportSummary, MaskRules, import_dataset
from polypfed.data.manifest import Manifest
from polypfed.data.partition import partition
from polypfed.data.sample import Boxes, Sample
from polypfed.data.site import Site, open_partition
from polypfed.data.skew import skew
from polypfed.data.yolo import read_yolo, write_yolo

__all__ = [
    "IMPORTERS",
    "Boxes",
    "Check",
    "Finding",
    "ImportSummary",
    "Manifest",
    "MaskRules",
    "Sample",
    "Site",
    "check_dataset",
    "image_size",
    "import_dataset",
    "near_duplicates",
    "open_image",
    "open_partition",
    "partition",
    "read_yolo",
    "skew",
    "write_yolo",
]
