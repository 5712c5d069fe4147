"""Cutting rows into chunks: the pieces of work for threads, and for programs on a GPU."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .rows import Row

CHUNK_FIELDS = 3  # row, start, end: int64, as `Chunk` in csrc/rows.h


@dataclass(frozen=True, slots=True)
class Chunks:
    """``raw``: the chunks, one after the other, ``CHUNK_FIELDS`` numbers each.

    The first ``n_vector`` are aligned in all tensors and counted in vectors, the rest in elements.
    """

    raw: array[int]
    n_vector: int
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.raw) // CHUNK_FIELDS)

    def of_rows(self, wanted: Callable[[int], bool]) -> Chunks:
        """Return the chunks of some rows, in the same order."""
        found, n_vector = array("q"), 0
        for start in range(0, len(self.raw), CHUNK_FIELDS):
            if wanted(self.raw[start]):
                found.extend(self.raw[start : start + CHUNK_FIELDS])
                n_vector += start < self.n_vector * CHUNK_FIELDS
        return Chunks(found, n_vector)

    def ranges_of_rows(self, n_rows: int) -> array[int]:
        """Return where the vector chunks of each row begin and end, and its other chunks."""
        rows = self.raw[::CHUNK_FIELDS]
        vectors, others = rows[: self.n_vector], rows[self.n_vector :]  # sorted
        ranges = array("q")
        for row in range(n_rows):
            ranges.extend((bisect_left(vectors, row), bisect_right(vectors, row)))
            first, end = bisect_left(others, row), bisect_right(others, row)
            ranges.extend((self.n_vector + first, self.n_vector + end))
        return ranges


def cut(sizes: Sequence[int], aligned: Sequence[bool], length: int, most: int) -> Chunks:
    """Cut rows of these sizes into chunks of at most ``most`` elements.

    ``aligned``: the rows that can be read in vectors of ``length`` elements.
    """
    vectors, elements = array("q"), array("q")
    for row, size in enumerate(sizes):
        whole = size // length if aligned[row] else 0
        for start, end in _pieces(0, whole, most // max(length, 1)):
            vectors.extend((row, start, end))
        for start, end in _pieces(whole * length, size, most):
            elements.extend((row, start, end))
    return Chunks(vectors + elements, len(vectors) // CHUNK_FIELDS)


def _pieces(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    while start < end:
        yield start, min(start + most, end)
        start += most


class Selection:
    """The chunks of a bucket: of all rows, of one unit's (a parameter group), or of all others."""

    def __init__(self) -> None:
        self.all = Chunks(array("q"), 0)
        self.version = 0  # counts how often the rows were cut
        self._groups: list[int] = []  # of each row
        self._parts: dict[tuple[int, bool], Chunks] = {}
        self.aligned: list[bool] | None = None  # the rows that are cut into vectors

    def cut(self, rows: Sequence[Row], aligned: list[bool], length: int, most: int) -> None:
        """Cut the rows (see :func:`cut`)."""
        self.all = cut([row.size for row in rows], aligned, length, most)
        self._groups = [row.group for row in rows]
        self._parts = {}
        self.version += 1
        self.aligned = aligned  # last: what is half made is made again

    def holds(self, row: int, unit: int | None, *, others: bool = False) -> bool:
        """Tell whether a row is the unit's, or (``others``) another's; None: every row is."""
        return unit is None or (self._groups[row] == unit) != others

    def of(self, unit: int, *, others: bool = False) -> Chunks:
        """Return the chunks of a unit's rows, or of all others."""
        if (unit, others) not in self._parts:
            wanted = self.all.of_rows(lambda row: self.holds(row, unit, others=others))
            self._parts[unit, others] = wanted
        return self._parts[unit, others]
