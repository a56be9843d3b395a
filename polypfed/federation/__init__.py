"""The round engine, and the one protocol between it and whatever carries its messages."""

from polypfed.federation.api import Federation
from polypfed.federation.protocol import Backend, Event, Host, Listener
from polypfed.federation.recorded import recorded

__all__ = ["Backend", "Event", "Federation", "Host", "Listener", "recorded"]
