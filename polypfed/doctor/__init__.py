"""What would fail on this machine, found beforehand, each finding with its remedy. A topic a file, each check pure."""

from polypfed.doctor.finding import Finding
from polypfed.doctor.roles import ROLES, Asked, examine

__all__ = ["ROLES", "Asked", "Finding", "examine"]
