"""Looking at all tensors at once: how they lie, and what the optimizer's state has of them.

A plain step reads a few attributes of every tensor.  In Python each takes 50 ns: those of 150
tensors take as long as the kernel.  The compiled module reads them in C++, by DLPack's C exchange
API; without that module Python reads.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor

from .._torch import dlpack_exchange_api, objects_of
from .compiled import module

LINE = 64  # bytes
TENSOR_LINES = 4  # that torch's own object takes, about

Tensors = list[Tensor] | list[Tensor | None]

reader: Any = None
if module is not None:
    # a torch without that API, or with another
    with suppress(RuntimeError, ValueError):
        reader = module.TensorReader(dlpack_exchange_api)


# -- tensors ----------------------------------------------------------------------------------


def addresses(tensors: Tensors) -> array[int]:
    """Where the elements of each tensor begin; 0 for None."""
    found = array("q", bytes(8 * len(tensors)))
    if reader is not None and reader.addresses(tensors, found.buffer_info()[0]):
        return found
    return array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors])


class Layouts:
    """Shapes, strides, dtypes and devices of tensors, and which are None, as last remembered."""

    def __init__(self) -> None:
        self._known: bytes | list[Any] | None = None

    def remember(self, tensors: Tensors) -> None:
        self._known = _described(tensors) if reader is None else reader.layouts(tensors)

    def forget(self) -> None:
        self._known = None

    def addresses(self, tensors: Tensors) -> array[int] | None:
        """Where they lie, if all else is as remembered; None also where it is not known."""
        if self._known is None:
            return None
        if reader is None:
            return addresses(tensors) if _described(tensors) == self._known else None
        found = array("q", bytes(8 * len(tensors)))
        same = reader.addresses_in(tensors, self._known, found.buffer_info()[0])
        return found if same else None


def _described(tensors: Tensors) -> list[Any] | None:
    """Layouts in Python; None where there is a tensor that has none (a sparse one)."""
    with suppress(RuntimeError):
        return [t if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors]
    return None


def lines_of(tensors: Iterable[Tensor | None], others: Iterable[object]) -> array[int]:
    """Addresses of the cache lines that describe tensors, not of their elements, and of others.

    None of them where nobody would ask for them, or where torch does not say where they are.
    """
    lines = array("q")
    if module is None:
        return lines
    lines.extend(map(id, others))
    for tensor in tensors:
        if tensor is not None and (objects := objects_of(tensor)):
            described, storage = objects
            lines.extend((id(tensor), storage))
            lines.extend(range(described, described + TENSOR_LINES * LINE, LINE))
    return lines


def prefetch(lines: array[int]) -> None:
    """Ask for these lines of memory, all at once.

    After a forward and a backward they are in no cache, and every tensor is a chain of misses:
    Python's object, torch's tensor, its storage.  The processor waits for one chain at a time;
    asked beforehand, it follows a dozen at once.  Only a hint: an address that is no longer a
    tensor's does no harm.
    """
    if module is not None:
        module.prefetch(lines.buffer_info()[0], len(lines))


# -- the state --------------------------------------------------------------------------------


def common_step(entries: list[Any], exp_avgs: Tensors, exp_avg_sqs: Tensors) -> int | None:
    """The one step count of all entries of the state, if they hold these very moments.

    None where anything differs, or where nobody can look quickly.
    """
    if module is None:
        return None
    names = ("step", "exp_avg", "exp_avg_sq")
    t: int | None = module.common_step(entries, exp_avgs, exp_avg_sqs, *names)
    return t


def set_step(entries: list[Any], t: int) -> None:
    """Enter one and the same count into all entries of the state."""
    if module is not None:
        module.set_in_all(entries, "step", t)
        return
    for entry in entries:
        entry["step"] = t


def same_items(state: Mapping[Any, Any], known: list[Any]) -> bool:
    """Whether the state's keys, and then its values, are these very objects."""
    if module is not None:
        return bool(module.same_items(state, known))
    return same_objects([[*state, *state.values()]], known)


def same_objects(lists: list[list[Any]], known: list[Any]) -> bool:
    """Whether these lists, one after the other, hold these very objects."""
    if module is not None:
        return bool(module.same_objects(lists, known))
    objects = list(chain.from_iterable(lists))
    return len(objects) == len(known) and all(map(is_, objects, known))
