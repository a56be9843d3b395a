"""What the privacy room refuses, each with a reason and a way out.

ConfigError
`-- IncompatiblePrivacy   stages, reducer and sites that cannot work together; raised when a federation is built
Refused
`-- FrameRefused          a frame, share or sum; `.reason` is one word of FRAME_REASONS
PolypfedError
|-- BudgetExhausted       one more release would cost more privacy than was granted
`-- KeyRefused            a key file or a wrapped key cannot be used
"""

from polypfed.core.errors import ConfigError, PolypfedError, Refused

FRAME_REASONS = (
    "size header signature body wrong-key wrong-parameters wrong-job stale-round unknown-site duplicate "
    "frames too-many-sites count share incomplete".split()
)
"""Why a frame, a share or a sum is refused."""


class IncompatiblePrivacy(ConfigError):
    """Stages, reducer and sites cannot work together; raised when the federation is built."""


class FrameRefused(Refused):
    """A frame, share or sum was refused. `reason` is one word of FRAME_REASONS."""


class BudgetExhausted(PolypfedError):
    """One more release would cost more privacy than was granted."""


class KeyRefused(PolypfedError):
    """A key file or a wrapped key cannot be used."""
