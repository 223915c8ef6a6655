"""Measurements. Each module is a command: ``python -m benchmarks.peers`` and so on, from the root of the repository."""
