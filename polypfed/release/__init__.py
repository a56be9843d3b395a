"""Signed models for devices: made and signed on a workstation, installed on a board with a way back.

The repository follows TUF (The Update Framework, python-tuf): people's keys sign what a release is, a key of the
repository signs what is newest and until when that may be believed. A device holds the first root and two slots.
"""
