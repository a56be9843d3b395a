"""The exception tree. Every message is one line: where, what is wrong, and the way out.

PolypfedError
|-- ConfigError         a setting is missing, unknown, of the wrong type or out of range
|-- DataError           a folder, image, label or annotation cannot be used
|-- MissingExtraError   an optional dependency is not installed (also an ImportError)
|-- LayoutError         arrays or vectors do not fit a ModelSpec
|-- MessageError        bytes are not one of our messages
|-- Refused             the gate refused an update; `.reason` is one of `gate.REASONS`
|-- StateError          a site's kept state does not match what the server remembers
|-- QuorumError         a round ended with too few accepted updates; the run can be resumed
|-- CheckpointError     a checkpoint is missing, damaged or belongs to another run
|-- AuditError          an audit log is damaged, or is to hold what it must not
`-- BackendError        the engine that carries messages does not start, or was lost; the run can be resumed
"""


class PolypfedError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: what is wrong, without a final full stop.
        where: the file, field or site it is about.
        remedy: what the user can do about it.
    """

    def __init__(self, problem: str, *, where: object = "", remedy: str = "") -> None:
        self.problem, self.where, self.remedy = problem, str(where), remedy
        super().__init__(problem)

    def __str__(self) -> str:
        head = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{head}. {self.remedy}" if self.remedy else head


class ConfigError(PolypfedError, ValueError):
    """A setting is missing, unknown, of the wrong type or out of range."""


class DataError(PolypfedError, ValueError):
    """A folder, image, label or annotation cannot be used."""


class MissingExtraError(PolypfedError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class LayoutError(PolypfedError, ValueError):
    """Arrays or vectors do not fit a ModelSpec (names, shapes, dtypes)."""


class MessageError(PolypfedError, ValueError):
    """Bytes are not one of our messages."""


class StateError(PolypfedError):
    """A site's kept state does not match what the server remembers of it."""


class QuorumError(PolypfedError):
    """A round ended with fewer accepted updates than the quorum; the run can be resumed."""


class CheckpointError(PolypfedError):
    """A checkpoint is missing, damaged or belongs to another run."""


class AuditError(PolypfedError):
    """An audit log is damaged or incomplete, or was to hold what it must not."""


class BackendError(PolypfedError):
    """The engine that carries messages does not start, or was lost under way; the run can be resumed."""


class Refused(PolypfedError):
    """The gate refused an update. `reason` is one word of `polypfed.core.gate.REASONS`."""

    def __init__(self, reason: str, problem: str, *, where: object = "") -> None:
        super().__init__(problem, where=where)
        self.reason = reason
