"""Every direction with every kind of unit."""

from .ademamix import ReferenceAdEMAMix
from .lamb import ReferenceLAMB
from .lion import ReferenceLion
from .salsa import ReferenceSaLSa
from .sgd import ReferenceSGD
from .units import ReferencePLASLS, UnitSearch

DIRECTIONS = {
    "adam": ReferenceSaLSa,
    "sgd": ReferenceSGD,
    "lamb": ReferenceLAMB,
    "lion": ReferenceLion,
    "ademamix": ReferenceAdEMAMix,
}


def reference_class(direction: str = "adam", units: str = "all") -> type[ReferenceSaLSa]:
    """The reference of FusedSaLSa(..., direction=direction, units=units)."""
    along = DIRECTIONS[direction]
    if units == "all":
        return along
    if direction == "adam":
        return ReferencePLASLS
    return type(f"{along.__name__}Units", (UnitSearch, along), {})
