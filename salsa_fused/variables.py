"""The variables that a closure reads, as they were when it was called first.

A loop over micro-batches gives ``lambda: loss_function(model(x), y)`` another ``x`` and ``y`` until
the trials come, which would all evaluate the last micro-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

NOTHING = object()


class Variables:
    """Which values the variables of a function have now, local and global ones."""

    def __init__(self, function: Callable[..., Any]) -> None:
        while isinstance(function, functools.partial):
            function = function.func
        self._cells: list[tuple[Any, Any]] = []
        self._globals: dict[str, Any] = {}
        self._values: list[tuple[str, Any]] = []
        if isinstance(function, FunctionType):
            cells = [(cell, _contents(cell)) for cell in function.__closure__ or ()]
            self._cells = [(cell, value) for cell, value in cells if value is not NOTHING]
            self._globals = function.__globals__
            names = _names_in(function.__code__)
            self._values = [(n, self._globals[n]) for n in names if n in self._globals]

    @contextmanager
    def as_then(self) -> Iterator[None]:
        """Give those that have changed since their old values, for a while."""
        cells = [(cell, value) for cell, value in self._cells if _contents(cell) is not value]
        names = {
            n: value for n, value in self._values if self._globals.get(n, NOTHING) is not value
        }
        now = [(cell, _contents(cell)) for cell, _ in cells]
        there = {name: self._globals[name] for name in names if name in self._globals}
        try:
            for cell, value in cells:
                cell.cell_contents = value
            self._globals.update(names)
            yield
        finally:
            for cell, value in now:
                if value is NOTHING:
                    del cell.cell_contents
                else:
                    cell.cell_contents = value
            for name in names.keys() - there.keys():
                del self._globals[name]
            self._globals.update(there)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # deleted since
        return NOTHING


@functools.lru_cache(maxsize=256)
def _names_in(code: CodeType) -> frozenset[str]:
    """Return all names in a function that may be global variables, in functions within it, too."""
    within = [_names_in(part) for part in code.co_consts if isinstance(part, CodeType)]
    return frozenset(code.co_names).union(*within)
