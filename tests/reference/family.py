"""Every direction with every kind of unit."""

from .lamb import ReferenceLAMB
from .salsa import ReferenceSaLSa
from .sgd import ReferenceSGD
from .units import ReferencePLASLS, UnitSearch


class ReferenceSGDUnits(UnitSearch, ReferenceSGD):
    """PLASLS along SGD's direction."""


class ReferenceLAMBUnits(UnitSearch, ReferenceLAMB):
    """PLASLS along LAMB's direction."""


CLASSES = {
    ("adam", "all"): ReferenceSaLSa,
    ("adam", "groups"): ReferencePLASLS,
    ("sgd", "all"): ReferenceSGD,
    ("sgd", "groups"): ReferenceSGDUnits,
    ("lamb", "all"): ReferenceLAMB,
    ("lamb", "groups"): ReferenceLAMBUnits,
}


def reference_class(direction: str = "adam", units: str = "all") -> type[ReferenceSaLSa]:
    """The reference of FusedSaLSa(..., direction=direction, units=units)."""
    return CLASSES[direction, units]
