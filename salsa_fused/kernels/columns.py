"""Columns: one tensor of every row, looked at all at once.

A plain step reads a few attributes of every tensor.  In Python each takes 50 ns: those of 150
tensors take as long as the kernel.  The compiled module reads them in C++, by DLPack's C exchange
API; without that module Python reads.  :data:`look` is the one that reads.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import is_
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from .._torch import dlpack_exchange_api, objects_of
from .compiled import module
from .memory import NO_MEMORY
from .rows import Row

LINE = 64  # bytes
TENSOR_LINES = 4  # that torch's own object takes, about

Tensors = list[Tensor] | list[Tensor | None]
State = MutableMapping[Tensor, dict[str, Any]]
STEP = "step"  # t, the updates of the moments so far: an int


class Column:
    """One tensor of every row, or None: where each begins in memory, and how it lies there.

    ``what``: how messages call a row's tensor, with the row's label in place of ``{}``.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.tensors: list[Tensor | None] = []
        self.layouts: bytes | list[Any] | None = None  # None: not known
        self.addresses = array("q")

    def remember_layouts(self, tensors: Tensors) -> None:
        """Note shapes, strides, dtypes and devices, and which of them are None."""
        self.layouts = look.layouts(tensors)

    def addresses_of(self, tensors: Tensors) -> array[int] | None:
        """Return where they begin if they lie as remembered; None where they do not."""
        found = array("q", bytes(8 * len(tensors)))
        known = self.layouts is not None and look.addresses_in(tensors, self.layouts, found)
        return found if known else None

    def lies_as_before(self) -> bool:
        """Tell whether nothing moved: ``.data =`` and ``t_()`` change a tensor in place."""
        return self.addresses_of(self.tensors) == self.addresses

    def expect_memory(self, found: array[int], tensors: Tensors, rows: Iterable[Row]) -> None:
        """Raise RuntimeError where a tensor's memory was freed."""
        for address, tensor, row in zip(found, tensors, rows):
            if address == 0 and tensor is not None:
                raise RuntimeError(NO_MEMORY.format(self.what.format(row.label)))


def addresses(tensors: Tensors) -> array[int]:
    """Return where the elements of each tensor begin; 0 for None."""
    found = array("q", bytes(8 * len(tensors)))
    if not look.addresses(tensors, found):  # one is sparse, or has no memory
        InPython.addresses(tensors, found)
    return found


# -- who looks --------------------------------------------------------------------------------


class InPython:
    """Everything that the compiled module does, for where there is none."""

    @staticmethod
    def addresses(tensors: Tensors, to: array[int]) -> bool:
        """Write where the elements of each tensor begin, 0 for None; return whether it could."""
        to[:] = array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors])
        return True

    @staticmethod
    def layouts(tensors: Tensors) -> Any:
        """Return all but the addresses, to compare with; None where a tensor has no layout."""
        with suppress(RuntimeError):
            return [t if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors]
        return None

    @classmethod
    def addresses_in(cls, tensors: Tensors, layouts: Any, to: array[int]) -> bool:
        """Write the addresses; return whether the tensors have these layouts."""
        return cls.layouts(tensors) == layouts and cls.addresses(tensors, to)

    @staticmethod
    def unchanged(columns: Sequence[tuple[Tensors, Any, array[int]]]) -> bool:
        """Tell whether all tensors lie as and where they did; False where nobody looks quickly.

        ``columns``: tensors, with their layouts and addresses.
        """
        return False

    @staticmethod
    def common_step(
        entries: list[Any], moments: Sequence[Tensors], names: tuple[str, ...]
    ) -> int | None:
        """Return the one step count of all entries of the state, if they hold these moments.

        ``names``: "step" and those of the moments.  None where anything differs, or where nobody
        looks quickly.
        """
        return None

    @staticmethod
    def set_in_all(entries: list[Any], name: str, value: Any) -> None:
        """Enter the same value into all entries of the state."""
        for entry in entries:
            entry[name] = value

    @classmethod
    def same_items(cls, state: Mapping[Any, Any], known: list[Any]) -> bool:
        """Tell whether the state's keys, and then its values, are these very objects."""
        return cls.same_objects([[*state, *state.values()]], known)

    @staticmethod
    def same_objects(lists: list[list[Any]], known: list[Any]) -> bool:
        """Tell whether these lists, one after the other, hold these very objects."""
        objects = list(chain.from_iterable(lists))
        return len(objects) == len(known) and all(map(is_, objects, known))

    @staticmethod
    def prefetch(lines: array[int]) -> None:
        """Ask the processor for lines of memory, where it can be asked."""


def _in_cpp() -> Any:
    """Return the same functions of the compiled module, or None where it cannot look."""
    if module is None:
        return None
    try:
        reader = module.TensorReader(dlpack_exchange_api)
    except (RuntimeError, ValueError):  # a torch without that API, or with another
        return None
    of_reader = ("addresses", "layouts", "addresses_in", "unchanged")
    of_module = ("common_step", "set_in_all", "same_items", "same_objects", "prefetch")
    functions = {name: getattr(reader, name) for name in of_reader}
    return SimpleNamespace(**functions, **{name: getattr(module, name) for name in of_module})


look: Any = _in_cpp() or InPython()


# -- the optimizer's state -------------------------------------------------------------------


def enter(entry: MutableMapping[str, Any], values: dict[str, Any]) -> None:
    """Enter these values into an entry: all at once, where nobody wants to see each of them."""
    if type(entry) is dict:
        entry.update(values)
        return
    for name, value in values.items():
        entry[name] = value


# -- caches of the processor ------------------------------------------------------------------


def lines_of(tensors: Iterable[Tensor | None], others: Iterable[object]) -> array[int]:
    """Return the addresses of the cache lines that describe tensors, not of their elements.

    After a forward and a backward they are in no cache, and every tensor is a chain of misses:
    Python's object, torch's tensor, its storage.  The processor waits for one chain at a time;
    asked beforehand (``look.prefetch``), it follows a dozen at once.  Only a hint: an address that
    is no longer a tensor's does no harm.  Empty where nobody would ask, or torch does not tell.
    """
    lines = array("q")
    if isinstance(look, InPython):
        return lines
    lines.extend(map(id, others))
    for tensor in tensors:
        if tensor is not None and (objects := objects_of(tensor)):
            described, storage = objects
            lines.extend((id(tensor), storage))
            lines.extend(range(described, described + TENSOR_LINES * LINE, LINE))
    return lines
