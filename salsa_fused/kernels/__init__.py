"""The kernels: tensors in, tensors out.  :class:`Kernels` serves an optimizer's parameters."""

from .directions import DIRECTIONS, Direction, direction_of
from .kernels import Kernels

__all__ = ["DIRECTIONS", "Direction", "Kernels", "direction_of"]
