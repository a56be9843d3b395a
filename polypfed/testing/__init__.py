"""Tests that third parties can run over what they have written; polypfed runs them over all it brings itself."""

from polypfed.testing.stage import check_stage

__all__ = ["check_stage"]
