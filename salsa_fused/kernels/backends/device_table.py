"""Rows and chunks of a bucket in the memory of its device, for kernels that run there.

Nothing here waits, neither host nor device.  What is sent goes through pinned memory of torch's
caching allocator, which guards every block with an event and hands it out again only when the
copy is through.  On the device nothing is ever overwritten: a changed table is a new tensor, and
the one before goes back to the allocator, which reuses it behind the launches that still read it.
That holds on one stream, so a table that was sent on another stream is sent again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..work import Work

WORDS = {"q": torch.int64, "f": torch.float32}


def _on_device(work: Work, what: Any, version: Any, numbers: Callable[[], array[Any]]) -> Tensor:
    """Return these numbers on the work's device; they are sent where the version is new."""
    sent = work.kept.get(what)
    if sent is None or sent[0] != version:
        sent = work.kept[what] = version, send(numbers(), work.device)
    tensor: Tensor = sent[1]
    return tensor


def table_on_device(work: Work, stream: Any) -> tuple[Tensor, Tensor]:
    """Return (rows, chunks) of a kernel's work: int64, on its device.

    ``stream``: the current one there; what is returned is for launches on it.
    """
    rows = _on_device(work, "rows", (work.rows_version, stream), lambda: work.rows)
    part, version = ("chunks", work.chunks_of), (work.chunks_version, stream)
    return rows, _on_device(work, part, version, lambda: work.chunks.raw)


def chunk_ranges_on_device(work: Work) -> Tensor:
    """Return ``Chunks.ranges_of_rows``, for launches on the current stream."""

    def ranges() -> array[int]:
        return work.all_chunks.ranges_of_rows(len(work.weights))

    with on_device(work.device) as stream:
        return _on_device(work, "chunk ranges", (work.chunks_version, stream), ranges)


def window_starts_on_device(work: Work) -> Tensor:
    """Return where each row's weights are as the window began; 0: nowhere."""
    window = work.window
    with on_device(work.device) as stream:
        return _on_device(work, "window", (window.version, stream), lambda: window.addresses)


def send(numbers: array[Any], device: torch.device) -> Tensor:
    """Return a copy of these numbers on the device, made in the order of its current stream."""
    host = torch.frombuffer(numbers, dtype=WORDS[numbers.typecode])
    if device.type == "cpu":
        return host.clone()
    return host.pin_memory().to(device, non_blocking=True)


@contextmanager
def on_device(device: torch.device) -> Iterator[int | None]:
    """Make the device the current one, and give its current stream; None on the CPU."""
    if device.type == "cpu":
        yield None
    else:
        with torch.cuda.device(device):
            yield torch.cuda.current_stream().cuda_stream
