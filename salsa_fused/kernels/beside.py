"""What the optimizer's state keeps of the rows of a bucket: moments, and masters (storage.py).

Every kind is a column.  A plain step compares whole columns (bucket.py), and comes here only where
something is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

from torch import Tensor

from . import columns
from .columns import STEP, Column, State, enter
from .directions import Direction
from .rows import MASTER_AT, MOMENTS, Row
from .storage import MASTER, Storage, tensor_beside

Entries = Sequence[dict[str, Any] | None]
Gradients = Sequence[Tensor | None]


class Beside:
    """The columns, and which of their tensors the state has."""

    def __init__(self, direction: Direction, storage: Storage) -> None:
        self.storage, self.code = storage, storage.code
        self.numbers: list[int] = []  # of the rows' parameters, among all of the optimizer
        self.columns = [Column(f"`{name}` of {{}}") for name in storage.names]
        self.tensors = [column.tensors for column in self.columns]
        n_moments = len(direction.moments)
        self.moments = self.tensors[:n_moments]
        self.masters = self.tensors[n_moments] if storage.masters else None
        self.fields = [*range(MOMENTS, MOMENTS + n_moments), MASTER_AT]  # of a row: where they are
        self.new: set[int] = set()  # rows with moments that no step has written yet
        self.current = False  # the state's entries hold these very tensors

    def add_row(self, number: int) -> None:
        self.numbers.append(number)
        for column in self.columns:
            column.addresses.append(-1)  # not known
            column.tensors.append(None)

    def found_in(
        self, entries: Entries, gradients: Gradients
    ) -> tuple[list[int], list[list[Tensor | None]]]:
        """Return the step counts and the tensors of all rows, as the state has them.

        A row without a count has 0 and None; rows without a gradient have the tensors they had.
        """
        nothing: dict[str, Any] = {STEP: 0, **dict.fromkeys(self.storage.names)}
        kept = [entry if entry and STEP in entry else nothing for entry in entries]
        counts = [int(entry[STEP]) for entry in kept]
        found = [
            [entry.get(name) if name == MASTER else entry[name] for entry in kept]
            for name in self.storage.names
        ]
        for row, gradient in enumerate(gradients):
            if gradient is None:
                for tensors, known in zip(found, self.tensors):
                    tensors[row] = known[row]
        return counts, found

    def are(self, found: list[list[Tensor | None]], entries: Entries, gradients: Gradients) -> bool:
        """Tell whether these are those that are known, and no row with a gradient lacks one."""
        rows = zip(gradients, entries, *self.tensors)
        return all(all(map(is_, *pair)) for pair in zip(found, self.tensors)) and all(
            gradient is None or (entry and None not in tensors)
            for gradient, entry, *tensors in rows
        )

    def replace(
        self,
        found: list[list[Tensor | None]],
        rows: Sequence[Row],
        weights: Sequence[Tensor],
        gradients: Gradients,
        entries: Entries,
    ) -> None:
        """Take these, laid out as their weights are, and make what is not there.

        Raises:
            RuntimeError: one has another shape than its weight, or no memory.
        """
        for row, gradient in enumerate(gradients):
            if gradient is None:
                continue
            entry = entries[row]
            new = not (entry and STEP in entry)
            if new and row in self.new:
                continue
            pairs = zip(self.tensors, found, self.storage.names, self.storage.dtypes)
            for tensors, in_state, name, dtype in pairs:
                value = None if new else in_state[row]
                tensors[row] = tensor_beside(weights[row], name, dtype, value)
            if new:
                self.new.add(row)
        for column in self.columns:
            addresses = columns.addresses(column.tensors)
            column.expect_memory(addresses, column.tensors, rows)
            column.addresses = addresses
            column.remember_layouts(column.tensors)

    def enter(
        self,
        state: State,
        weights: Sequence[Tensor],
        gradients: Gradients,
        entries: Sequence[Mapping[str, Any] | None],
        counts: Sequence[int],
    ) -> None:
        """Enter them, and the counts after this step, for the rows with a gradient."""
        self.new.clear()
        in_order = sorted(zip(self.storage.names, self.tensors))  # torch's
        for row, (weight, gradient) in enumerate(zip(weights, gradients)):
            if gradient is None:
                continue
            if self.current:
                entries[row][STEP] = counts[row]  # type: ignore[index]
            else:
                named = {name: tensors[row] for name, tensors in in_order}
                enter(state.setdefault(weight, {}), {STEP: counts[row], **named})

    def release(self) -> None:
        """Hold no moments of no step: those of rows whose step did not come to its end."""
        for row in self.new:
            for tensors in self.tensors:
                tensors[row] = None
        self.new.clear()
