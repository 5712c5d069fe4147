"""A launch's table in the memory of its device, for kernels that run there.

Nothing here waits, neither host nor device.  What is sent goes through pinned memory of torch's
caching allocator, which guards every block with an event and hands it out again only when the
copy is through.  On the device nothing is ever overwritten: a changed table is a new tensor, and
the one before goes back to the allocator, which reuses it behind the launches that still read it.
That holds on one stream, so a table that was sent on another stream is sent again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .launch import ALL, Launch, Part

WORDS = {"q": torch.int64, "f": torch.float32}


@dataclass(slots=True)
class DeviceCopy:
    """Rows and chunks on the device, and which versions and stream they are of."""

    rows: Tensor | None = None
    rows_of: tuple[int, Any] | None = None
    chunks: dict[Part, Tensor] = field(default_factory=dict)
    chunks_of: dict[Part, tuple[int, Any]] = field(default_factory=dict)
    places: Tensor | None = None  # where each row's chunks are
    places_of: tuple[int, Any] | None = None
    window_starts: Tensor | None = None
    window_starts_of: tuple[int, Any] | None = None


def table_on_device(launch: Launch, stream: Any) -> tuple[Tensor, Tensor]:
    """(rows, chunks) of a launch: int64, on its device.

    ``stream``: the current one there; what is returned is for launches on it.
    """
    copy = launch.device_copy = launch.device_copy or DeviceCopy()
    if copy.rows is None or copy.rows_of != (launch.rows_version, stream):
        copy.rows = send(launch.raw_rows, launch.device)
        copy.rows_of = (launch.rows_version, stream)
    part = launch.unit, launch.others
    if copy.chunks_of.get(part) != (launch.chunks_version, stream):
        copy.chunks[part] = send(launch.chunks.raw, launch.device)
        copy.chunks_of[part] = (launch.chunks_version, stream)
    return copy.rows, copy.chunks[part]


def places_on_device(launch: Launch) -> Tensor:
    """Where each row's chunks are, on the launch's device, for launches on the current stream."""
    copy = launch.device_copy = launch.device_copy or DeviceCopy()
    with on_device(launch.device) as stream:
        if copy.places is None or copy.places_of != (launch.chunks_version, stream):
            places = launch.parts[ALL].places_of_rows(len(launch.weights))
            copy.places = send(places, launch.device)
            copy.places_of = (launch.chunks_version, stream)
    return copy.places


def window_starts_on_device(launch: Launch) -> Tensor:
    """Where each row's weights are as the window began (0: nowhere), for the current stream."""
    copy = launch.device_copy = launch.device_copy or DeviceCopy()
    with on_device(launch.device) as stream:
        if copy.window_starts is None or copy.window_starts_of != (launch.window_version, stream):
            copy.window_starts = send(launch.window_start_addresses, launch.device)
            copy.window_starts_of = (launch.window_version, stream)
    return copy.window_starts


def send(numbers: array[Any], device: torch.device) -> Tensor:
    """A copy of these numbers on the device, in the order of its current stream."""
    host = torch.frombuffer(numbers, dtype=WORDS[numbers.typecode])
    if device.type == "cpu":
        return host.clone()
    return host.pin_memory().to(device, non_blocking=True)


@contextmanager
def on_device(device: torch.device) -> Iterator[int | None]:
    """The device as the current one, and its current stream; None for both on the CPU."""
    if device.type == "cpu":
        yield None
    else:
        with torch.cuda.device(device):
            yield torch.cuda.current_stream().cuda_stream
