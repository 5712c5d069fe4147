"""FusedSaLSa: Adam's direction, and a step size that a fused line search finds by itself.

>>> from salsa_fused import FusedSaLSa
>>> optimizer = FusedSaLSa(model.parameters(), module=model)
>>> loss = optimizer.step(lambda: loss_function(model(inputs), targets))
"""

from . import schedules, settings, units
from ._version import __version__
from .line_search import SearchResult
from .optimizer import FusedSaLSa

__all__ = ["FusedSaLSa", "SearchResult", "__version__", "schedules", "settings", "units"]
