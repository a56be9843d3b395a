"""The sample store of a device: frames worth labelling, encrypted at rest, and their way to a clinician and back."""

from polypfed.data.store.labelling import FORMATS, export_labels, import_labels
from polypfed.data.store.store import LABELS, Record, SampleStore
from polypfed.data.store.vault import Vault
from polypfed.data.store.writer import Writer

__all__ = ["FORMATS", "LABELS", "Record", "SampleStore", "Vault", "Writer", "export_labels", "import_labels"]
