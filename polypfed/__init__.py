"""polypfed: federated learning for colon-polyp detectors. Images never leave a site.

Importing this loads numpy and nothing heavier; torch, ultralytics and the transports load on first use.
"""

from polypfed import backends, clients, data, select, strategies
from polypfed.clients import Client, NumpyClient
from polypfed.core.errors import PolypfedError
from polypfed.core.history import History
from polypfed.core.messages import Evaluation, Failure, Task, Update
from polypfed.core.model import ModelSpec
from polypfed.core.reduce import Mean
from polypfed.core.robust import GeometricMedian, Krum, Median, MultiKrum, NormClip, TrimmedMean
from polypfed.federation import Federation

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Evaluation",
    "Failure",
    "Federation",
    "GeometricMedian",
    "History",
    "Krum",
    "Mean",
    "Median",
    "ModelSpec",
    "MultiKrum",
    "NormClip",
    "NumpyClient",
    "PolypfedError",
    "Task",
    "TrimmedMean",
    "Update",
    "backends",
    "clients",
    "data",
    "select",
    "strategies",
]
