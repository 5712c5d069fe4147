"""Slow float64 reference of the optimizer, NumPy only, one rule after the other."""

from .salsa import DEFAULTS, PAPER, Record, ReferenceSaLSa, Trial

__all__ = ["DEFAULTS", "PAPER", "Record", "ReferenceSaLSa", "Trial"]
