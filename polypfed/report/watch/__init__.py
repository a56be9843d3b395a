"""The live view of a run: what it has recorded so far, as a page of this machine and as values for a terminal."""

from polypfed.report.watch.locks import is_open
from polypfed.report.watch.place import place_of
from polypfed.report.watch.server import WatchServer
from polypfed.report.watch.state import Now, SiteNow, look

__all__ = ["Now", "SiteNow", "WatchServer", "is_open", "look", "place_of"]
