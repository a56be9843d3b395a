"""What the release room refuses."""

from polypfed.core.errors import PolypfedError


class ReleaseRefused(PolypfedError):
    """A release is not signed, not whole, not newer, or does not do its work; what ran before goes on running."""
