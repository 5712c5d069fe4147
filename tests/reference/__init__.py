"""Slow float64 reference of the optimizer, NumPy only, one rule after the other."""

from .family import reference_class
from .lamb import ReferenceLAMB
from .look_back import LookBack
from .salsa import DEFAULTS, PAPER, Record, ReferenceSaLSa, Trial
from .settings import PUBLISHED_FACTORS, SGD_SALSA, SLS, distributed
from .sgd import ReferenceSGD
from .units import ReferencePLASLS, Unit, UnitSearch

__all__ = [
    "DEFAULTS",
    "PAPER",
    "PUBLISHED_FACTORS",
    "SGD_SALSA",
    "SLS",
    "LookBack",
    "Record",
    "ReferenceLAMB",
    "ReferencePLASLS",
    "ReferenceSGD",
    "ReferenceSaLSa",
    "Trial",
    "Unit",
    "UnitSearch",
    "distributed",
    "reference_class",
]
