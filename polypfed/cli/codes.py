"""The exit codes of `polypfed`, the same for every command."""

from enum import IntEnum

from polypfed.core.errors import QuorumError


class Terminated(KeyboardInterrupt):
    """SIGTERM came: like Ctrl-C it leaves every `with`, so workers end and the folder is free."""


class Code(IntEnum):
    """What a script may rely on.

    `site run` and `deploy run` hand on what their engine ended with where that is none of these.
    """

    DONE = 0
    """Done; for `doctor`, `data check` and `site dry-run`: nothing would fail."""
    ERROR = 1
    """An error, said on one line of standard error; or a check that found one."""
    USAGE = 2
    """Wrong usage: an unknown command, option or value."""
    QUORUM = 3
    """A round missed its quorum; the same command with --resume goes on."""
    UNCHECKED = 4
    """`audit verify` could not check the log: it, or what it was to be compared with, is missing or unreadable."""
    STOPPED = 130
    """Stopped by Ctrl-C; a run goes on with --resume."""
    TERMINATED = 143
    """Stopped by SIGTERM, as by a service manager; a run goes on with --resume."""

    @classmethod
    def of(cls, error: BaseException) -> "Code":
        """The code that an error ends with.

        >>> Code.of(QuorumError("too few")).value, Code.of(ValueError("x")).value
        (3, 1)
        """
        if isinstance(error, Terminated):
            return cls.TERMINATED
        if isinstance(error, KeyboardInterrupt):
            return cls.STOPPED
        return cls.QUORUM if isinstance(error, QuorumError) else cls.ERROR
