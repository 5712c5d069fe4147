"""Slow float64 reference of the optimizer, NumPy only, one rule after the other."""

from .ademamix import ReferenceAdEMAMix
from .family import reference_class
from .lamb import ReferenceLAMB
from .lion import ReferenceLion
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
    "ReferenceAdEMAMix",
    "ReferenceLAMB",
    "ReferenceLion",
    "ReferencePLASLS",
    "ReferenceSGD",
    "ReferenceSaLSa",
    "Trial",
    "Unit",
    "UnitSearch",
    "distributed",
    "reference_class",
]
