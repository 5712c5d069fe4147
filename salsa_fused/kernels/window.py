"""Where a window of steps began: the weights as they were some steps ago.

They stand in the optimizer's state, a tensor beside each weight; in fp32 where that has a master,
whose steps are too small for 16 bits.  No kernel but ``alignment`` reads
them, and only a step that asks looks for them: to all others they cost memory alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from .._torch import copy_each
from .columns import Column, State, addresses, enter
from .memory import has_memory, is_dense, same_layout
from .rows import Row
from .saved import Saved

WINDOW_START = "window_start"  # in an entry of the state


class WindowStarts:
    """The starts of the rows of one bucket."""

    def __init__(self) -> None:
        self.tensors: list[Tensor | None] = []  # of each row with a gradient; held in a step only
        self.addresses = array("q")
        self.version = 0  # counts the changes of `addresses`
        self.new: list[tuple[Tensor, Tensor, Tensor | None]] = []  # weight, start, what it is to be
        self._column = Column(f"`{WINDOW_START}` of {{}}")

    def find(
        self,
        weights: Sequence[Tensor],
        entries: Sequence[Mapping[str, Any] | None],
        rows: Sequence[Row],
        alignment: int,
    ) -> bool:
        """Read where the window began; return whether any row has a start.

        ``entries``: of the state, None for a row without a gradient.  ``alignment``: of the vectors
        that the backend reads, in bytes; 1 where it reads none.

        Raises:
            RuntimeError: a weight has another shape than its start, or a start has no memory.
        """
        starts = [None if entry is None else entry.get(WINDOW_START) for entry in entries]
        found = self._column.addresses_of(starts)
        if found is None or reduce(or_, found) % alignment:
            starts = [
                None if start is None else start_like(weight, start, row.label, alignment)
                for weight, start, row in zip(weights, starts, rows)
            ]
            self._column.remember_layouts(starts)
            found = addresses(starts)
        if found != self.addresses:
            self._column.expect_memory(found, starts, rows)
            self.addresses = found
            self.version += 1
        self.tensors = starts
        return any(found)

    def prepare(
        self,
        state: State,
        weights: Sequence[Tensor],
        precise: Sequence[Tensor],
        stepped: Sequence[int],
        saved: Saved | None,
    ) -> None:
        """Make ready what :meth:`begin` enters; nothing that anybody sees is written.

        What is missing is made here, and so are copies of the rows that no search has saved: the
        final write is about to move them.  ``precise``: the weights themselves, or their masters.
        ``stepped``: the rows whose window begins.
        """
        self.new, copies, befores = [], [], []
        moved = frozenset() if saved is None else frozenset(saved.numbers)
        for row in stepped:
            weight, own = weights[row], precise[row]
            before = saved.view(row) if saved is not None and row in moved else own
            start = state.get(weight, {}).get(WINDOW_START)
            if start is not None and row in moved and has_room(own, start):
                self.new.append((weight, start, before))
                continue
            copies.append(empty_like(own))
            befores.append(before)
            self.new.append((weight, copies[-1], None))
        if copies:
            copy_each(copies, befores)

    def begin(self, state: State) -> None:
        """Let the weights before this step be where the window begins."""
        new, self.new = self.new, []
        kept = [(start, before) for _, start, before in new if before is not None]
        if kept:
            copy_each(*map(list, zip(*kept)))
        for weight, start, before in new:
            if before is None:
                enter(state.setdefault(weight, {}), {WINDOW_START: start})

    def release(self) -> None:
        """Hold nothing between steps."""
        self.tensors, self.new = [], []


def start_like(weight: Tensor, start: Tensor, label: str, alignment: int) -> Tensor:
    """Return the start laid out like its weight and beginning where vectors do, or such a copy.

    ``alignment``: of these vectors, in bytes; 1 where there are none.

    Raises:
        RuntimeError: the weight has another shape now.
    """
    if start.shape != weight.shape:
        raise RuntimeError(
            f"{label} has shape {tuple(weight.shape)} now, and its `{WINDOW_START}` has "
            f"{tuple(start.shape)}: delete its entry, `del optimizer.state[parameter]`, after "
            "replacing a weight by one of another shape"
        )
    if lies_like(weight, start) and start.data_ptr() % alignment == 0:
        return start
    return empty_like(weight).copy_(start)


def lies_like(weight: Tensor, start: Tensor) -> bool:
    """Tell whether a start can be read, and written, as its weight is."""
    return (
        start.layout == torch.strided
        and start.shape == weight.shape
        and start.dtype == weight.dtype
        and start.device == weight.device
        and (same_layout(start, weight) or not is_dense(weight))
    )


def has_room(weight: Tensor, start: Tensor) -> bool:
    """Tell whether a start can take the weight as it is now, in place."""
    return lies_like(weight, start) and has_memory(start)


def empty_like(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return memory for a start; ``dtype``: another one than the weight's, as masters have."""
    return torch.empty_like(weight, dtype=dtype, requires_grad=False)
