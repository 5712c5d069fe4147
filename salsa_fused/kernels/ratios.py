"""LAMB's trust ratios of weights that ranks have in parts: norms over all parts, in one message."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backends.reference import squared_norms
from .bucket import Bucket
from .memory import compute_dtype


def set_ratios_of_parts(
    buckets: Sequence[Bucket],
    parameters: Sequence[Tensor],
    mean_of_each: Callable[[Tensor], Tensor],
    clip: float,
) -> None:
    """Set ``ratios`` of the buckets with parts of weights.

    Every rank sends both norms of every parameter, of those whose part is empty here, too.  It is
    done in plain torch, row by row: slowly, beside the kernels.
    """
    place = {id(parameter): place for place, parameter in enumerate(parameters)}
    found = [bucket for bucket in buckets if bucket.pieces > 1]
    squares = torch.zeros(len(parameters), 2, dtype=torch.float64, device=parameters[0].device)
    places = [[place[id(weight)] for weight in bucket.weights] for bucket in found]
    for bucket, at in zip(found, places):
        squares[at] = (squared_norms(bucket.work()) * bucket.pieces).to(squares.device)
    squares = mean_of_each(squares)
    for bucket, at in zip(found, places):
        w_norm, u_norm = squares[at].to(bucket.device).sqrt().unbind(1)
        ratios = w_norm.div(u_norm).to(compute_dtype(bucket.dtype)).clamp(max=clip)
        bucket.ratios = torch.where((w_norm == 0.0) | (u_norm == 0.0), 1.0, ratios)
