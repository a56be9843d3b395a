"""The same federated rounds in other engines, each in a process tree of its own: `python -m peers`, see run.py."""
