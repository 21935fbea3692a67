"""Data sets: simulated counts with their truth, and codes that are known to leak."""

from ._simulated import simulated
from ._simulated_codes import simulated_codes

__all__ = ["simulated", "simulated_codes"]
