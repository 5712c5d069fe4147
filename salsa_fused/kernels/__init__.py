"""The kernels' room: tensors in, tensors out.  :class:`Table` is its only door."""

from .choice import BACKENDS, choose_backend
from .interface import AdamClass, Backend, Launch, Row
from .table import Table

__all__ = ["BACKENDS", "AdamClass", "Backend", "Launch", "Row", "Table", "choose_backend"]
