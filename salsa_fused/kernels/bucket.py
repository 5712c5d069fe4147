"""A bucket: the rows of one device, one pair of dtypes and one backend, column by column.

A plain step looks at every weight and gradient; on a GPU that is what it costs.  So whole columns
are compared at once (see columns.py): mostly nothing has changed since the step before.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from itertools import chain
from operator import or_
from typing import Any

import torch
from torch import Tensor

from . import columns
from .backend import Backend
from .beside import Beside
from .chunks import Selection
from .columns import STEP, Column, State, Tensors
from .directions import Direction, Scalars
from .masters import Followers
from .memory import readable_gradient
from .rows import (
    GRADIENT,
    NUMBER_AT,
    ROW_FIELDS,
    SAVED_AT,
    SCALARS_AT,
    WEIGHT,
    Row,
    lie_like,
)
from .saved import Saved
from .storage import Formats, Storage
from .window import WindowStarts
from .work import Work

is_neg = Tensor.is_neg


class Bucket:
    """Weights that one kernel serves at once, with gradients, moments and numbers."""

    def __init__(
        self,
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,  # of the weights
        gradient_dtype: torch.dtype,
        direction: Direction,
        pieces: int = 1,  # that ranks have of these weights, one of them this rank
        storage: Storage | None = None,  # None: moments as the arithmetic has them, no masters
    ) -> None:
        self.backend, self.direction, self.pieces = backend, direction, pieces
        self.device, self.dtype, self.gradient_dtype = device, dtype, gradient_dtype
        self.rows: list[Row] = []
        self.weights: list[Tensor] = []
        self.groups: list[int] = []  # the parameter group of each row
        self.weight, self.gradient = Column("{}"), Column("the gradient of {}")
        self.storage = storage or Formats().of(dtype, direction)
        self.beside = Beside(direction, self.storage)
        self.gradients: list[Tensor | None] = []  # held during a step only
        self.missing: list[bool] | None = None  # the rows without a gradient, if there are any
        self.entries: list[dict[str, Any] | None] = []  # of the optimizer's state
        self.steps: int | list[int] = 0  # t: updates of the moments before this step; or each row's

        self.scalar_keys: list[tuple[int, int]] = []  # (group, t after this step)
        self.scalars: list[Scalars] = []
        self.scalars_of: list[int] = []  # the index of each row's scalars
        self._zeros = self.scalars_of
        self._in_one_group = True
        self.ratios: Tensor | None = None  # LAMB's, one for each row; only during a step
        self.skip: Tensor | None = None  # one fp32 on the device: not 0, and the step is not taken

        self.raw_rows = array("q")  # the same as addresses and numbers: see work.py
        self.rows_version = 0  # counts the changes of `raw_rows`
        self.selection = Selection()
        self.unit: int | None = None  # the group whose weights a search moves; None: all
        self.saved: Saved | None = None  # only while a search runs
        self.window = WindowStarts()
        self._cut_for = -1  # the `rows_version` that the rows were cut for
        self._lines: array[int] | None = None  # of memory, that `refresh` reads (see columns.py)
        self._kept: dict[str, Any] = {}  # what the backend keeps from one kernel to the next
        self._elements = 0
        self._names = (STEP, *self.storage.names)
        self.rounds = self.storage.rounds  # asked in every step
        self._followers = Followers() if self.storage.masters else None

    def add(self, weight: Tensor, group: int, label: str, number: int = 0) -> None:
        """Add a row; ``number``: the parameter's place among all of the optimizer.

        Raises:
            RuntimeError: the weight's memory was freed.
        """
        row = Row.of(weight, group, label)
        self.rows.append(row)
        self.weights.append(weight)
        self.groups.append(group)
        self.gradients.append(None)
        self._zeros.append(0)
        self._in_one_group = self.groups[0] == self.groups[-1]  # they come in order
        for column in (self.weight, self.gradient):
            column.addresses.append(-1)  # not known
        self.beside.add_row(number)
        self.raw_rows.extend([0] * ROW_FIELDS)
        self.raw_rows[NUMBER_AT - ROW_FIELDS] = number
        self._elements += row.size

    # -- in every step ------------------------------------------------------------------------

    def prefetch(self) -> None:
        """Ask for the memory that :meth:`refresh` will read."""
        if self._lines is not None:
            columns.look.prefetch(self._lines)

    def refresh(self, state: Mapping[Tensor, dict[str, Any]], *, same_entries: bool) -> bool:
        """Read gradients, moments and counts; return False where the rows fit no longer.

        ``same_entries``: the state's entries are the objects that they were at the step before.
        """
        gradients = [weight.grad for weight in self.weights]
        if not (same_entries and self._take_only_gradients(gradients) and self._take_common_step()):
            if not self._take_weights() or not self._take_gradients(gradients):
                return False
            if not same_entries or len(self.entries) != len(self.weights):
                self.entries = [state.get(weight) for weight in self.weights]
            self._take_beside()
        if self._followers is not None:
            self._followers.follow(self.weights, self.precise, self.weight.addresses)
        self._key_scalars()
        if self._cut_for != self.rows_version:
            self._cut_anew()
        return True

    def _take_only_gradients(self, gradients: list[Tensor | None]) -> bool:
        """Read the gradients if that is all that moved since the step before; else return False."""
        if not self.beside.current or self.gradient.layouts is None:
            return False
        seen: list[Any] = [(c.tensors, c.layouts, c.addresses) for c in self.beside.columns]
        seen.append((self.weights, self.weight.layouts, self.weight.addresses))
        if not columns.look.unchanged(seen):
            return False
        found = array("q", bytes(8 * len(gradients)))
        if not columns.look.addresses_in(gradients, self.gradient.layouts, found):
            return False
        if self._any_is_negated(gradients):
            return False
        self.gradients = gradients
        self._locate(self.gradient, found, gradients, GRADIENT)
        return True

    def _take_common_step(self) -> bool:
        """Read the one count of all entries; return False where they may differ."""
        t: int | None = 0
        if self.beside.columns:
            t = columns.look.common_step(self.entries, self.beside.tensors, self._names)
        if t is None:
            return False
        self.steps = t
        return True

    def relocate(self) -> bool:
        """Refresh the weights' addresses after user code ran; return whether any moved.

        Raises:
            RuntimeError: they have another shape, dtype, device or memory order.
        """
        version = self.rows_version
        if not self._take_weights():
            raise RuntimeError(
                "the closure replaced a weight by one of another shape, dtype, device or memory "
                "order between the first evaluation and a trial"
            )
        if not self._beside_stays():
            raise RuntimeError(
                "the closure moved, resized or freed the optimizer's state between the first "
                "evaluation and a trial"
            )
        if self.rows_version == version:
            return False
        self._cut_anew()
        return True

    def _take_weights(self) -> bool:
        """Read where the weights lie; return False where the rows fit them no longer.

        The lines to prefetch stay: of a moved weight they lack the new storage, and are only hints.
        """
        found = self.weight.addresses_of(self.weights)
        if found is None:
            if not lie_like(self.rows, self.weights, self.dtype, self.device):
                return False
            self.weight.remember_layouts(self.weights)
            found = columns.addresses(self.weights)
        self._locate(self.weight, found, self.weights, WEIGHT)
        return True

    def _take_gradients(self, gradients: list[Tensor | None]) -> bool:
        found = self.gradient.addresses_of(gradients)
        if found is None or self._any_is_negated(gradients):
            absent = [gradient is None for gradient in gradients]
            self.missing = absent if any(absent) else None
            as_they_lie = lie_like(self.rows, gradients, self.gradient_dtype, self.device)
            if as_they_lie and not self._any_is_negated(gradients):
                self.gradient.remember_layouts(gradients)
            else:
                self.gradient.layouts = None
                gradients = [
                    gradient if gradient is None else readable_gradient(gradient, weight, row.label)
                    for gradient, weight, row in zip(gradients, self.weights, self.rows)
                ]
                if any(g is not None and g.dtype != self.gradient_dtype for g in gradients):
                    return False
            found = columns.addresses(gradients)
        self.gradients = gradients
        self._locate(self.gradient, found, gradients, GRADIENT)
        return True

    def _any_is_negated(self, gradients: list[Tensor | None]) -> bool:
        """Tell whether whoever reads one has to change its sign, as behind conj()."""
        present: Iterable[Any] = gradients
        if self.missing is not None:
            present = [gradient for gradient in gradients if gradient is not None]
        return any(map(is_neg, present))

    def _locate(self, column: Column, found: array[int], tensors: Tensors, which: int) -> None:
        """Enter where a column's tensors lie into the rows."""
        if found != column.addresses:
            if 0 in found:
                column.expect_memory(found, tensors, self.rows)
            self._set_column(which, found)
            column.addresses = found

    def _set_column(self, which: int, values: array[int]) -> None:
        if values != self.raw_rows[which::ROW_FIELDS]:
            self.rows_version += 1
            self.raw_rows[which::ROW_FIELDS] = values

    # -- moments and masters ------------------------------------------------------------------

    @property
    def precise(self) -> list[Any]:
        """The weights as steps have them before they are rounded: masters, where there are any."""
        return self.weights if self.beside.masters is None else self.beside.masters

    def _take_beside(self) -> None:
        beside = self.beside
        found = [list(tensors) for tensors in beside.tensors]
        same = self._take_common_step()
        if not same:
            self.steps, found = beside.found_in(self.entries, self.gradients)
            same = beside.are(found, self.entries, self.gradients)
        beside.current = same and self._beside_stays()
        if not beside.current:
            self._lines = None
            self._followers = Followers() if beside.masters is not None else None  # compare anew
            beside.replace(found, self.rows, self.weights, self.gradients, self.entries)
            for column, field in zip(beside.columns, beside.fields):
                self._set_column(field, column.addresses)
        elif self._lines is None:
            tensors = chain(self.weights, self.gradients, *beside.tensors)
            self._lines = columns.lines_of(tensors, self.entries)

    def _beside_stays(self) -> bool:
        """Tell whether they lie as they did: `share_memory_()` and `.data =` move a tensor."""
        return all(column.lies_as_before() for column in self.beside.columns)

    def commit(self, state: State) -> None:
        """Enter this step's moments, masters and counts into the optimizer's state."""
        if not self.beside.columns:
            return
        if self._followers is not None:
            self._followers.note(self.weights, self.weight.addresses)
        if self.beside.current and self.missing is None and len(self.scalar_keys) == 1:
            columns.look.set_in_all(self.entries, STEP, self.scalar_keys[0][1])
            return
        # one object for all equal counts: the next step finds them in one place
        counts = [self.scalar_keys[index][1] for index in self.scalars_of]
        self.beside.enter(state, self.weights, self.gradients, self.entries, counts)

    # -- scalars and chunks -------------------------------------------------------------------

    def _key_scalars(self) -> None:
        """Rows of one group and one count share scalars; mostly all rows of a group do."""
        if isinstance(self.steps, int) and self._in_one_group:
            self.scalar_keys = [(self.groups[0], self.steps + 1)]
            if self.scalars_of is self._zeros:
                return
            scalars_of = self._zeros
        else:
            steps = [self.steps] * len(self.rows) if isinstance(self.steps, int) else self.steps
            keys = [(group, t + 1) for group, t in zip(self.groups, steps)]
            self.scalar_keys = list(dict.fromkeys(keys))
            index = {key: position for position, key in enumerate(self.scalar_keys)}
            scalars_of = [index[key] for key in keys]
        self._set_column(SCALARS_AT, array("q", scalars_of))
        self.scalars_of = scalars_of

    def _cut_anew(self) -> None:
        """Cut the rows into chunks where what can be read in vectors has changed."""
        aligned = self._find_aligned()
        if aligned != self.selection.aligned:
            length = self.backend.vector_bytes // self.dtype.itemsize
            self.selection.cut(self.rows, aligned, length, self.backend.chunk_size)
        self._cut_for = self.rows_version

    def _find_aligned(self) -> list[bool]:
        """Find the rows whose tensors all begin where a vector may begin."""
        vector, known = self.backend.vector_bytes, self.selection.aligned
        if not vector:
            return known or [False] * len(self.rows)
        # gradients move in every step; moments that have not moved are as they were cut
        beside = [] if self.beside.current and known and all(known) else self.beside.columns
        addresses = [column.addresses for column in (self.weight, self.gradient, *beside)]
        if reduce(or_, chain.from_iterable(addresses)) % vector == 0:  # mostly
            return [True] * len(self.rows)
        return [reduce(or_, of_row) % vector == 0 for of_row in zip(*addresses)]

    # -- kernels ------------------------------------------------------------------------------

    @property
    def has_gradients(self) -> bool:
        """Whether any row has a gradient in this step."""
        return self.missing is None or not all(self.missing)

    @property
    def moved(self) -> bool:
        """Whether the weights stand at a trial point, and ``saved`` holds them."""
        return self.saved is not None and self.saved.filled

    def stepped_rows(self, unit: int | None = None, *, others: bool = False) -> list[int]:
        """Return the rows of a unit, of all others, or (None) of all, that have a gradient."""
        return [
            row
            for row, gradient in enumerate(self.gradients)
            if gradient is not None and self.selection.holds(row, unit, others=others)
        ]

    def work(
        self, unit: int | None = None, *, others: bool = False, saved: Saved | None = None
    ) -> Work:
        """Return the work of a kernel on a unit's rows, on all others', or (None) on all."""
        stepped = self.weights
        if self.missing is not None or unit is not None:
            stepped = [self.weights[row] for row in self.stepped_rows(unit, others=others)]
        return Work(
            self.direction,
            self.beside,
            self.device,
            self.dtype,
            self._elements,
            self.weights,
            self.gradients,
            self.beside.moments,
            stepped,
            self.raw_rows,
            self.rows_version,
            self.selection.all if unit is None else self.selection.of(unit, others=others),
            (unit, others),
            self.selection.all,
            self.selection.version,
            self.scalars,
            self.scalars_of,
            array("f", chain.from_iterable(self.scalars)),
            saved,
            self.ratios,
            self.skip,
            self.window,
            self._kept,
        )

    def make_room(self, unit: int | None) -> None:
        """Take memory for the weights that a search moves: none without a gradient in this step."""
        self.unit = unit
        rows, masters = self.stepped_rows(unit), self.beside.masters
        self.saved = Saved(self.rows, rows, self.dtype, self.device, masters)
        self._set_column(SAVED_AT, self.saved.starts)
        self._cut_for = self.rows_version  # the chunks are the same wherever these places are

    def first_trial(self) -> Tensor:
        """Save the weights, move them to the first trial; return the slope, on the device."""
        return self.backend.first_trial(self.work(self.unit, saved=self.saved))

    def next_trial(self) -> None:
        """Move the weights to another trial along the same direction."""
        self.backend.next_trial(self.work(self.unit, saved=self.saved))

    def prepare_write(self, *, already_written: bool) -> list[Callable[[], None]]:
        """Prepare the final write.

        A search of one unit has saved that unit's weights only: the others' are written in place.
        ``already_written``: the trial left the searched rows at their final values; skip them.
        """
        unit = self.unit
        searched = self.work(unit, saved=self.saved if self.moved else None)
        writes = [] if already_written else [self.backend.step(searched)]
        if unit is not None:
            rest = self.work(unit, others=True)
            if rest.chunks.count:
                writes.append(self.backend.step(rest))
        return writes

    def restore(self) -> list[str]:
        """Put the saved weights back; return the labels of those that could not be."""
        lost = [] if self.saved is None else self.saved.put_back(self.weights)
        if self._followers is not None and not lost:
            self._followers.note(self.weights, self.weight.addresses)
        return lost

    def stands_still(self) -> bool:
        """Return whether the trial's weights are those before the search, all of them."""
        saved = self.saved
        return saved is None or all(
            torch.equal(self.weights[row], saved.view(row).to(self.dtype)) for row in saved.numbers
        )

    def find_window(self) -> bool:
        """Read where the window began; return whether any row with a gradient has a start."""
        entries = [None if g is None else e for g, e in zip(self.gradients, self.entries)]
        return self.window.find(self.precise, entries, self.rows, self.backend.vector_bytes or 1)

    def prepare_window(self, state: State, *, newcomers_only: bool = False) -> None:
        """Make ready where a window begins; ``newcomers_only``: of rows whose first step it is."""
        rows = self.stepped_rows()
        if newcomers_only:
            rows = [row for row in rows if row in self.beside.new]
        saved = self.saved if self.moved and self.beside.masters is None else None
        self.window.prepare(state, self.weights, self.precise, rows, saved)

    def release(self) -> None:
        """Hold neither gradients nor saved weights between steps, nor what no step has written."""
        self.saved = self.skip = self.ratios = self.unit = None
        if self.window.tensors or self.window.new:
            self.window.release()
        self.gradients = [None] * len(self.weights)
        if self.beside.new:
            self.beside.release()
