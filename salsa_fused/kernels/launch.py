"""The rows that one kernel launch serves, column by column.

A plain step looks at every weight and gradient; on a GPU that is what it costs.  So whole columns
are read and compared at once (see watch.py): mostly nothing has changed since the step before.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import is_, itemgetter, or_
from typing import Any

import torch
from torch import Tensor

from .._torch import copy_each
from .chunks import Chunks, cut
from .interface import AdamClass, Backend, Direction
from .layout import NO_MEMORY, has_memory, is_dense, moment_like, readable_gradient
from .saved import NO_ROOM, Room, room_for
from .watch import Layouts, addresses, common_step, lines_of, prefetch, set_step
from .window import WINDOW_START, NewWindow, can_be_kept, empty_like, start_in, start_like

# where the int64 fields of `Row` in csrc/adam.h stand
WEIGHT, GRADIENT, EXP_AVG, EXP_AVG_SQ, SAVED_AT, CLASS, ROW_FIELDS = range(7)

FIELDS_OF_ENTRY = itemgetter("step", "exp_avg", "exp_avg_sq")  # of an entry of the state
NO_ENTRY: dict[str, Any] = {"step": 0, "exp_avg": None, "exp_avg_sq": None}

is_neg = Tensor.is_neg

Part = tuple[int | None, bool]  # (unit, others) of a launch
ALL: Part = (None, False)

State = MutableMapping[Tensor, dict[str, Any]]


def _empty() -> array[int]:
    return array("q")


@dataclass(slots=True, eq=False)
class Launch:
    """Rows of one device, one pair of dtypes and one backend.

    ``raw_rows`` and ``chunks.raw`` are the same table as addresses and sizes, for backends that
    read it in C++ or on a device: int64, laid out as ``Row`` and ``Chunk`` in ``csrc/adam.h``.
    A row's gradient address is 0 in a step in which it has none.  For a backend without vectors no
    chunk is counted in them.
    """

    backend: Backend
    device: torch.device
    dtype: torch.dtype  # of the weights
    gradient_dtype: torch.dtype
    direction: Direction = "adam"

    # one entry a row
    weights: list[Tensor] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)  # indices of the parameter groups
    gradients: list[Tensor | None] = field(default_factory=list)  # held during a step only
    exp_avgs: list[Tensor | None] = field(default_factory=list)  # None until there is a gradient
    exp_avg_sqs: list[Tensor | None] = field(default_factory=list)
    entries: list[dict[str, Any] | None] = field(default_factory=list)  # of the optimizer's state
    steps: list[int] = field(default_factory=list)  # t: updates of the moments so far
    klass: list[int] = field(default_factory=list)  # indices into `classes`
    labels: list[str] = field(default_factory=list)  # what messages call them
    addresses: array[int] = field(default_factory=_empty)  # of the weights, as the rows have them
    shapes: list[torch.Size] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # elements
    elements: int = 0  # of all rows
    contiguous: list[bool] = field(default_factory=list)
    gradient_addresses: array[int] = field(default_factory=_empty)
    exp_avg_addresses: array[int] = field(default_factory=_empty)
    exp_avg_sq_addresses: array[int] = field(default_factory=_empty)
    strides: list[tuple[int, ...]] = field(default_factory=list)
    dense: list[bool] = field(default_factory=list)
    lines: array[int] | None = None  # of memory, which `take_up` reads (see watch.py)
    weight_layouts: Layouts = field(default_factory=Layouts)
    gradient_layouts: Layouts = field(default_factory=Layouts)
    exp_avg_layouts: Layouts = field(default_factory=Layouts)
    exp_avg_sq_layouts: Layouts = field(default_factory=Layouts)
    missing: list[bool] | None = None  # the rows without a gradient, if there are any
    settled: bool = False  # the state's entries hold these very moments
    new_moments: set[int] = field(default_factory=set)  # zeros that no step has written yet

    class_keys: list[tuple[int, int]] = field(default_factory=list)  # (group, t after this step)
    classes: list[AdamClass] = field(default_factory=list)
    raw_rows: array[int] = field(default_factory=_empty)
    chunks: Chunks = field(default_factory=lambda: Chunks(_empty(), 0))  # of what is selected
    unit: int | None = None  # the group whose weights a search moves; None: all
    others: bool = False  # the chunks are those of all but the unit
    parts: dict[Part, Chunks] = field(default_factory=dict)
    rows_version: int = 0  # counts the changes of `raw_rows`
    chunks_version: int = 0
    cut_for: int = -1  # the `rows_version` that `chunks` was made for
    aligned: list[bool] | None = None  # the rows that `chunks` cuts into vectors
    device_copy: Any = None  # what a backend keeps of this table on its device
    saved: Tensor | None = None  # the weights before the search, flat; only while one runs
    aside: Tensor | None = None  # the same, while those are made ready that it does not hold
    room: Room = NO_ROOM  # which rows it holds, and where
    rooms: dict[int | None, Room] = field(default_factory=dict)  # of each unit
    ratios: Tensor | None = None  # LAMB's, one for each row; only during a step
    skip: Tensor | None = None  # one fp32 on the device: not 0, and the step is not taken
    moved: bool = False  # `saved` holds the weights, which stand at a trial point
    # of each row that has a gradient, where the window began; only where `alignment` was asked for
    window_starts: list[Tensor | None] = field(default_factory=list)
    window_start_addresses: array[int] = field(default_factory=_empty)
    window_start_layouts: Layouts = field(default_factory=Layouts)
    window_version: int = 0  # counts the changes of these addresses
    new_window: NewWindow | None = None  # between `prepare_window` and `begin_window`

    # -- building -----------------------------------------------------------------------------

    def add(self, weight: Tensor, group: int, label: str) -> None:
        """Another row."""
        size, address = weight.numel(), weight.data_ptr()
        if address == 0 and weight.device.type != "meta":
            raise RuntimeError(NO_MEMORY.format(label))
        self.weights.append(weight)
        self.groups.append(group)
        self.gradients.append(None)
        self.exp_avgs.append(None)
        self.exp_avg_sqs.append(None)
        self.klass.append(0)
        self.labels.append(label)
        self.addresses.append(address)
        self.shapes.append(weight.shape)
        self.contiguous.append(weight.is_contiguous())
        self.sizes.append(size)
        self.elements += size
        self.strides.append(weight.stride())
        self.dense.append(is_dense(weight))
        self.raw_rows.extend([address, 0, 0, 0, 0, 0])

    def cut(self, aligned: list[bool]) -> None:
        """Cut the rows into chunks; ``aligned`` says which of them vectors may be read of."""
        length = self.backend.vector_bytes // self.dtype.itemsize
        self.parts = {ALL: cut(self.sizes, aligned, length, self.backend.chunk_size)}
        self.chunks_version += 1
        self.select(self.unit, others=self.others)
        self.aligned = aligned  # last: what is half made is made again

    def select(self, unit: int | None, *, others: bool = False) -> None:
        """Let kernels go over the rows of one group only, of all others, or (None) over all."""
        self.unit, self.others = unit, others
        if (unit, others) not in self.parts:
            self.parts[unit, others] = self.parts[ALL].of_rows(self.is_selected)
        self.chunks = self.parts[unit, others]

    def is_selected(self, row: int) -> bool:
        """Whether kernels go over this row."""
        return self.unit is None or (self.groups[row] == self.unit) != self.others

    @contextmanager
    def over_all(self) -> Iterator[None]:
        """Let kernels go over all rows for a while, whatever is selected."""
        unit, others = self.unit, self.others
        self.select(None)
        try:
            yield
        finally:
            self.select(unit, others=others)

    # -- in every step ------------------------------------------------------------------------

    def take_up(self, state: Mapping[Tensor, dict[str, Any]], *, same_entries: bool) -> bool:
        """Take up gradients, moments and counts; false where the rows fit no longer.

        ``same_entries``: the state's entries are the objects that they were at the step before.
        """
        if not self._take_weights() or not self._take_gradients():
            return False
        if not same_entries or len(self.entries) != len(self.weights):
            self.entries = [state.get(weight) for weight in self.weights]
        self._take_moments()
        self._classify()
        if self.cut_for != self.rows_version:
            self._cut_anew()
        return True

    def prefetch(self) -> None:
        """Ask for the memory that :meth:`take_up` will read."""
        if self.lines is not None:
            prefetch(self.lines)

    def follow(self) -> bool:
        """Take up where the weights lie now: the closure may have moved them; whether it has.

        Raises:
            RuntimeError: they have another shape, dtype, device or memory order.
        """
        version = self.rows_version
        if not self._take_weights():
            raise RuntimeError(
                "the closure replaced a weight by one of another shape, dtype, device or memory "
                "order between the first evaluation and a trial"
            )
        if self.direction != "sgd" and not self._moments_stay():
            raise RuntimeError(
                "the closure moved, resized or freed the optimizer's state between the first "
                "evaluation and a trial"
            )
        if self.rows_version == version:
            return False
        self._cut_anew()
        return True

    def _take_weights(self) -> bool:
        """Take up where the weights lie; false where the rows fit them no longer.

        ``lines`` stay: of a moved weight they lack the new storage, and are only hints.
        """
        found = self.weight_layouts.addresses(self.weights)
        if found is None:
            if not self._fit(self.weights):
                return False
            found = addresses(self.weights)
        if found != self.addresses:
            self._expect_memory(found, self.weights, "{}")
            self._set_column(WEIGHT, found)
            self.addresses = found
        return True

    def _cut_anew(self) -> None:
        """Cut the rows where what can be read in vectors has changed."""
        aligned = self._find_aligned()
        if aligned != self.aligned:
            self.cut(aligned)
        self.cut_for = self.rows_version

    def _fit(self, weights: list[Tensor]) -> bool:
        """Whether the weights have shapes, dtype, device and strides as the rows were built."""
        fit = (
            [weight.shape for weight in weights] == self.shapes
            and _all_are(self.dtype, [weight.dtype for weight in weights])
            and _all_are(self.device, [weight.device for weight in weights])
            and _all_are(torch.strided, [weight.layout for weight in weights])
            and self._laid_out(weights)
        )
        if fit:
            self.weight_layouts.remember(weights)
        return fit

    def _laid_out(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these lie in memory as the weights did when the rows were built."""
        return all(
            tensor is None or (tensor.is_contiguous() if contiguous else tensor.stride() == stride)
            for tensor, contiguous, stride in zip(tensors, self.contiguous, self.strides)
        )

    def _take_gradients(self) -> bool:
        gradients = [weight.grad for weight in self.weights]
        found = self.gradient_layouts.addresses(gradients)
        if found is None or self._any_is_negated(gradients):
            absent = [gradient is None for gradient in gradients]
            self.missing = absent if any(absent) else None
            if self._readable_as_they_lie(gradients):
                self.gradient_layouts.remember(gradients)
            else:
                self.gradient_layouts.forget()
                gradients = [
                    gradient if gradient is None else readable_gradient(gradient, weight, label)
                    for gradient, weight, label in zip(gradients, self.weights, self.labels)
                ]
                if any(g is not None and g.dtype != self.gradient_dtype for g in gradients):
                    return False
            found = addresses(gradients)
        self.gradients = gradients
        if found != self.gradient_addresses:
            self._expect_memory(found, gradients, "the gradient of {}")
            self._set_column(GRADIENT, found)
            self.gradient_addresses = found
        return True

    def _readable_as_they_lie(self, gradients: list[Tensor | None]) -> bool:
        return (
            all(
                gradient is None
                or (
                    gradient.layout == torch.strided
                    and gradient.dtype == self.gradient_dtype
                    and gradient.shape == shape  # torch looks only when it is assigned
                    and gradient.device == self.device
                )
                for gradient, shape in zip(gradients, self.shapes)
            )
            and not self._any_is_negated(gradients)
            and self._laid_out(gradients)
        )

    def _any_is_negated(self, gradients: list[Tensor | None]) -> bool:
        """Whether torch has a sign of them to be changed by whoever reads, as behind conj()."""
        present: Iterable[Any] = gradients
        if self.missing is not None:
            present = [gradient for gradient in gradients if gradient is not None]
        return any(map(is_neg, present))

    def _take_moments(self) -> None:
        if self.direction == "sgd":
            self._take_none()
            return
        t = common_step(self.entries, self.exp_avgs, self.exp_avg_sqs)
        if t is not None:
            self.steps = [t] * len(self.entries)
            exp_avgs, exp_avg_sqs, same = self.exp_avgs, self.exp_avg_sqs, True
        else:
            self.steps, exp_avgs, exp_avg_sqs = self._read_entries()
            same = (
                all(map(is_, exp_avgs, self.exp_avgs))
                and all(map(is_, exp_avg_sqs, self.exp_avg_sqs))
                and self._all_without_moments_are_missing()
            )
        self.settled = same and self._moments_stay()
        if self.settled:
            self._note_lines()
        else:
            self._replace_moments(exp_avgs, exp_avg_sqs)

    def _read_entries(self) -> tuple[list[int], list[Tensor | None], list[Tensor | None]]:
        """Counts and moments; for rows without gradient the moments that they had."""
        # SGD's entry has no moments, and may have a window
        entries = [entry if entry and "step" in entry else NO_ENTRY for entry in self.entries]
        steps, exp_avgs, exp_avg_sqs = map(list, zip(*map(FIELDS_OF_ENTRY, entries)))
        if self.missing is not None:
            for row, without in enumerate(self.missing):
                if without:
                    exp_avgs[row], exp_avg_sqs[row] = self.exp_avgs[row], self.exp_avg_sqs[row]
        return list(map(int, steps)), exp_avgs, exp_avg_sqs

    def _replace_moments(
        self, exp_avgs: list[Tensor | None], exp_avg_sqs: list[Tensor | None]
    ) -> None:
        self.lines = None
        for row, gradient in enumerate(self.gradients):
            if gradient is None:
                continue
            entry = self.entries[row]
            if entry and "step" in entry:
                self._set_moments(row, exp_avgs[row], exp_avg_sqs[row])
            elif row not in self.new_moments:
                self._set_moments(row, None, None)
                self.new_moments.add(row)
        found, found_sq = addresses(self.exp_avgs), addresses(self.exp_avg_sqs)
        self._expect_memory(found, self.exp_avgs, "`exp_avg` of {}")
        self._expect_memory(found_sq, self.exp_avg_sqs, "`exp_avg_sq` of {}")
        self.exp_avg_addresses, self.exp_avg_sq_addresses = found, found_sq
        self.exp_avg_layouts.remember(self.exp_avgs)
        self.exp_avg_sq_layouts.remember(self.exp_avg_sqs)
        self._set_column(EXP_AVG, self.exp_avg_addresses)
        self._set_column(EXP_AVG_SQ, self.exp_avg_sq_addresses)

    def _moments_stay(self) -> bool:
        """Whether they lie as they did: `share_memory_()`, `.data =` and `t_()` change a tensor."""
        return (
            self.exp_avg_layouts.addresses(self.exp_avgs) == self.exp_avg_addresses
            and self.exp_avg_sq_layouts.addresses(self.exp_avg_sqs) == self.exp_avg_sq_addresses
        )

    def _expect_memory(
        self, found: array[int], tensors: Sequence[Tensor | None], what: str
    ) -> None:
        if 0 in found:
            for address, tensor, label in zip(found, tensors, self.labels):
                if address == 0 and tensor is not None:
                    raise RuntimeError(NO_MEMORY.format(what.format(label)))

    def _take_none(self) -> None:
        """SGD remembers nothing: no moments, no counts."""
        if not self.settled:
            self.settled = True
            self.steps = [0] * len(self.weights)
            self.exp_avg_addresses = self.exp_avg_sq_addresses = addresses(self.exp_avgs)
        self._note_lines()

    def _note_lines(self) -> None:
        if self.lines is None:
            tensors = (*self.weights, *self.gradients, *self.exp_avgs, *self.exp_avg_sqs)
            self.lines = lines_of(tensors, self.entries)

    def _all_without_moments_are_missing(self) -> bool:
        return all(
            gradient is None or (entry and exp_avg is not None and exp_avg_sq is not None)
            for gradient, entry, exp_avg, exp_avg_sq in zip(
                self.gradients, self.entries, self.exp_avgs, self.exp_avg_sqs
            )
        )

    def _set_moments(self, row: int, exp_avg: Tensor | None, exp_avg_sq: Tensor | None) -> None:
        self.exp_avgs[row] = moment_like(self.weights[row], exp_avg)
        self.exp_avg_sqs[row] = moment_like(self.weights[row], exp_avg_sq)

    def _classify(self) -> None:
        """Rows of one group and one count share a class; mostly all rows of a group do."""
        if _all_are(self.groups[0], self.groups) and _all_are(self.steps[0], self.steps):
            self.class_keys = [(self.groups[0], self.steps[0] + 1)]
            klass = [0] * len(self.groups)
        else:
            keys = [(group, t + 1) for group, t in zip(self.groups, self.steps)]
            self.class_keys = list(dict.fromkeys(keys))
            index = {key: position for position, key in enumerate(self.class_keys)}
            klass = [index[key] for key in keys]
        if klass != self.klass:
            self._set_column(CLASS, array("q", klass))
            self.klass = klass

    def _set_column(self, which: int, column: array[int]) -> None:
        if column != self.raw_rows[which::ROW_FIELDS]:
            self.rows_version += 1
            self.raw_rows[which::ROW_FIELDS] = column

    def _find_aligned(self) -> list[bool]:
        """The rows whose tensors all begin where a vector may begin."""
        if not (vector := self.backend.vector_bytes):
            return [False] * len(self.weights)
        moments_stay = self.settled and self.aligned is not None and all(self.aligned)
        moved = (*self.addresses, *self.gradient_addresses)
        if moments_stay and reduce(or_, moved) % vector == 0:
            return [True] * len(self.weights)
        columns = (
            self.addresses,
            self.gradient_addresses,
            self.exp_avg_addresses,
            self.exp_avg_sq_addresses,
        )
        return [(w | g | m | v) % vector == 0 for w, g, m, v in zip(*columns)]

    def commit(self, state: State) -> None:
        """Enter this step's moments and counts into the optimizer's state."""
        if self.direction == "sgd":
            return
        if self.settled and self.missing is None and len(self.class_keys) == 1:
            set_step(self.entries, self.class_keys[0][1])
            return
        # one object for all counts of a class: the next step finds them in one place
        counts = [self.class_keys[klass][1] for klass in self.klass]
        self.new_moments.clear()
        for row, (gradient, entry) in enumerate(zip(self.gradients, self.entries)):
            if gradient is None:
                continue
            if self.settled:
                assert entry is not None
                entry["step"] = counts[row]
            else:
                moments = {"exp_avg": self.exp_avgs[row], "exp_avg_sq": self.exp_avg_sqs[row]}
                _enter(state.setdefault(self.weights[row], {}), {"step": counts[row], **moments})

    @property
    def has_gradients(self) -> bool:
        """Whether any row has one in this step."""
        return self.missing is None or not all(self.missing)

    @property
    def raw_classes(self) -> array[float]:
        """The classes as C++ and devices read them: fp32, each float64 scalar rounded once."""
        return array("f", [scalar for c in self.classes for scalar in c])

    @property
    def stepped(self) -> list[Tensor]:
        """The weights that have a gradient in this step."""
        if self.missing is None and self.unit is None:
            return self.weights
        return [
            weight
            for row, (weight, gradient) in enumerate(zip(self.weights, self.gradients))
            if gradient is not None and self.is_selected(row)
        ]

    def ready_to_write(self, *, made: bool) -> list[Callable[[], None]]:
        """The final write, ready to be made; ``made``: that of what a search moved is already.

        A search of one unit has saved that unit's weights only: the others' are written in place.
        """
        step = self.backend.sgd_step if self.direction == "sgd" else self.backend.adam_step
        writes = [] if made else [step(self)]
        if self.unit is not None:
            self.aside = self.saved
            self.saved = None
            self.select(self.unit, others=True)
            try:
                if self.chunks.count:
                    writes.append(step(self))
            finally:
                self.saved = self.aside
                self.select(self.unit)
        return writes

    # -- the saved weights --------------------------------------------------------------------

    def make_room(self) -> None:
        """Take memory for the weights that a search moves: none without a gradient in this step."""
        room = self.rooms.get(self.unit)
        if room is None or room.missing != self.missing:
            rows = [row for row, gradient in enumerate(self.gradients) if gradient is not None]
            if self.unit is not None:
                rows = [row for row in rows if self.is_selected(row)]
            room = self.rooms[self.unit] = room_for(rows, self.sizes, self.missing)
        self._set_column(SAVED_AT, room.starts)
        self.cut_for = self.rows_version  # the chunks are the same wherever these places are
        self.room = room
        self.saved = torch.empty(room.size, dtype=self.dtype, device=self.device)

    def saved_view(self, row: int) -> Tensor:
        """The saved weights of a row, shaped like it (in its memory order where it is dense)."""
        assert self.saved is not None
        shape, start = self.shapes[row], self.room.starts[row]
        if self.dense[row]:
            return self.saved.as_strided(shape, self.strides[row], start)
        return self.saved[start : start + self.sizes[row]].view(shape)

    def restore(self) -> list[str]:
        """Put the saved weights back; what those are called that could not be.

        torch's errors alone are caught: another one is a signal's, and asks for another call.
        """
        self.saved = self.aside if self.saved is None else self.saved
        lost = []
        for row in self.room.rows:
            reason = ""
            try:
                if self._is_in_place(row):
                    self.weights[row].copy_(self.saved_view(row))
                    continue
            except RuntimeError as error:
                reason = f" [{type(error).__name__}: {error}]"
            lost.append(self.labels[row] + reason)
        self.moved = False
        return lost

    def _is_in_place(self, row: int) -> bool:
        """Whether the saved weight fits into it: user code may have done anything to it."""
        weight = self.weights[row]
        return (
            weight.layout == torch.strided
            and weight.shape == self.shapes[row]
            and weight.dtype == self.dtype
            and weight.device == self.device
            and has_memory(weight)
        )

    # -- the window ---------------------------------------------------------------------------

    def take_window_starts(self) -> bool:
        """Take up where the window began; whether any row with a gradient has that."""
        starts = [start_in(entry) for entry in self.entries]
        if self.missing is not None:
            starts = [None if absent else x for absent, x in zip(self.missing, starts)]
        alignment = max(self.backend.vector_bytes, 1)
        found = self.window_start_layouts.addresses(starts)
        if found is None or reduce(or_, found) % alignment:
            starts = [
                None if start is None else start_like(weight, start, label, alignment)
                for weight, start, label in zip(self.weights, starts, self.labels)
            ]
            self.window_start_layouts.remember(starts)
            found = addresses(starts)
        if found != self.window_start_addresses:
            self._expect_memory(found, starts, f"`{WINDOW_START}` of {{}}")
            self.window_start_addresses = found
            self.window_version += 1
        self.window_starts = starts
        return any(found)

    def prepare_window(self, state: State, *, newcomers_only: bool = False) -> None:
        """Make ready what :meth:`begin_window` enters; nothing that anybody sees is written.

        What is missing is made here, and so are copies of the rows that no search has saved: the
        final write is about to move them.  ``newcomers_only``: of rows whose first step this is.
        """
        window, befores = NewWindow(), []
        saved = {*self.room.rows} if self.moved else set()
        for row, (weight, gradient) in enumerate(zip(self.weights, self.gradients)):
            if gradient is None or (newcomers_only and row not in self.new_moments):
                continue
            before = self.saved_view(row) if row in saved else weight
            start = start_in(state.get(weight))
            if row in saved and start is not None and can_be_kept(weight, start):
                window.kept.append(start)
                window.saved.append(before)
            else:
                window.entered.append((weight, empty_like(weight)))
                befores.append(before)
        if befores:
            copy_each([start for _, start in window.entered], befores)
        self.new_window = window

    def begin_window(self, state: State) -> None:
        """Let the weights before this step be where the window begins."""
        window, self.new_window = self.new_window, None
        if window is None:
            return
        if window.kept:
            copy_each(window.kept, window.saved)
        for weight, start in window.entered:
            _enter(state.setdefault(weight, {}), {WINDOW_START: start})

    def release(self) -> None:
        """Hold neither gradients nor saved weights between steps, nor moments of no step."""
        self.saved = self.aside = self.skip = self.ratios = self.new_window = None
        if self.window_starts:
            self.window_starts = []
        if self.unit is not None:
            self.select(None)
        self.gradients = [None] * len(self.weights)
        if self.new_moments:
            for row in self.new_moments:
                self.exp_avgs[row] = self.exp_avg_sqs[row] = None
            self.new_moments.clear()


def _enter(entry: MutableMapping[str, Any], values: dict[str, Any]) -> None:
    """Enter these into an entry of the state: all at once, where nobody wants to see each."""
    if type(entry) is dict:
        entry.update(values)
        return
    for name, value in values.items():
        entry[name] = value


def _all_are(wanted: Any, values: list[Any]) -> bool:
    return values.count(wanted) == len(values)
