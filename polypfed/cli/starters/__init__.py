"""Starters that `polypfed init` writes."""
