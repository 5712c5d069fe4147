"""The kernels' room: tensors in, tensors out.  :class:`Table` is its only door."""

from .choice import BACKENDS, choose_backend
from .interface import AdamClass, Backend, Direction
from .launch import Launch
from .table import Table

__all__ = ["BACKENDS", "AdamClass", "Backend", "Direction", "Launch", "Table", "choose_backend"]
