"""Data sets: the simulated default, with its truth."""

from ._simulated import simulated

__all__ = ["simulated"]
