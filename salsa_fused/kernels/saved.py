"""Where a search saves the weights that it moves, and no others: one after the other."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16  # elements, so that every row of the saved weights starts a vector


@dataclass(frozen=True, slots=True)
class Room:
    """The rows that are saved, and where each begins; in elements."""

    missing: list[bool] | None  # the rows without a gradient that it was made for
    rows: list[int]
    starts: array[int]  # of all rows; 0 where there is nothing saved
    size: int


def room_for(rows: list[int], sizes: Sequence[int], missing: list[bool] | None) -> Room:
    """Room for these rows of all those that have these sizes."""
    starts, size = array("q", bytes(8 * len(sizes))), 0
    for row in rows:
        starts[row] = size
        size += -(-sizes[row] // ALIGNMENT) * ALIGNMENT
    return Room(missing, rows, starts, size)


NO_ROOM = room_for([], [], None)
