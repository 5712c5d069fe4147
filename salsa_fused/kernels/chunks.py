"""Cutting rows into chunks: the pieces of work for threads, and for programs on a GPU."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

CHUNK_FIELDS = 3  # row, start, end: int64, as `Chunk` in csrc/adam.h


@dataclass(frozen=True, slots=True)
class Chunks:
    """``raw``: the chunks, one after the other, ``CHUNK_FIELDS`` numbers each.

    The first ``n_vector`` are aligned in all tensors and counted in vectors, the rest in elements.
    """

    raw: array[int]
    n_vector: int

    @property
    def count(self) -> int:
        return len(self.raw) // CHUNK_FIELDS

    def of_rows(self, wanted: Callable[[int], bool]) -> Chunks:
        """The chunks of some rows, in the same order."""
        found, n_vector = array("q"), 0
        for start in range(0, len(self.raw), CHUNK_FIELDS):
            if wanted(self.raw[start]):
                found.extend(self.raw[start : start + CHUNK_FIELDS])
                n_vector += start < self.n_vector * CHUNK_FIELDS
        return Chunks(found, n_vector)

    def places_of_rows(self, n_rows: int) -> array[int]:
        """Where the vector chunks of each row begin and end, and its other chunks."""
        rows = self.raw[::CHUNK_FIELDS]
        vectors, others = rows[: self.n_vector], rows[self.n_vector :]  # sorted
        places = array("q")
        for row in range(n_rows):
            places.extend((bisect_left(vectors, row), bisect_right(vectors, row)))
            first, end = bisect_left(others, row), bisect_right(others, row)
            places.extend((self.n_vector + first, self.n_vector + end))
        return places


def cut(sizes: Sequence[int], aligned: Sequence[bool], length: int, most: int) -> Chunks:
    """Chunks of at most ``most`` elements, for rows of these sizes.

    ``aligned``: the rows that vectors of ``length`` elements may be read of.
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
