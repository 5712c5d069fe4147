"""What a step asks of losses, weights and gradients, of all ranks: the same numbers on each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._torch import whole_of
from .conventions import Habits
from .evaluation import Evaluation
from .kernels import Kernels
from .kernels.directions import direction_of
from .look_back import FIRST_MOVE
from .pending import sum_of
from .ranks import Ranks

SAME_SLOPE = 0.01  # relative: what a device's order of sums may change
LITTLE = 1e-6  # of the slope: what that order alone may leave

OTHER_PARAMETERS = (
    "ranks train other parameters than others: pipeline and expert parallelism, where a part of "
    "the model is on some ranks only, are not supported by searches (search_period=None does "
    "without)"
)

OTHER_GRADIENTS = (
    "ranks have other gradients for the same parameters: call the model through "
    "DistributedDataParallel, give all of it to fully_shard, or average the gradients before the "
    "step. If that was missed in an earlier step, too (no_sync() around the last micro-batch), the "
    "weights have come apart: broadcast them, or load a checkpoint. (Pipeline parallelism is not "
    "supported by searches. Where each rank trains a model of its own: "
    "process_group=torch.distributed.new_subgroups(1)[0])"
)


class Measures(Optimizer):
    """Where several ranks train, each of these is a message between them (see ranks.py)."""

    _habits: Habits
    _kernels: Kernels
    _ranks: Ranks

    def _of_all_ranks(
        self, f0: Tensor, has_gradient: bool, search: Evaluation | None
    ) -> tuple[Tensor, bool]:
        """Return the loss of all ranks, and whether a search finds a gradient on any."""
        ranks, f0 = self._ranks, whole_of(f0)
        if search is None:  # without a search they have gradients alike
            return ranks.mean_loss_on_device("a plain step", f0), has_gradient
        mine = search.calls_backward or self._habits.needs_graph
        numbers = (has_gradient, mine, shapes_in_a_number(search.parameters))
        loss, found, with_graph, _ = ranks.mean_loss("a search", f0.item(), *numbers)
        if ranks.differ(3):
            raise RuntimeError(OTHER_PARAMETERS)
        if 0.0 < with_graph < 1.0:
            self._habits.needs_graph = True  # so that all ranks evaluate as often
        return f0.new_tensor(loss), found > 0.0

    def _slope_of(self, parts: Sequence[float]) -> float:
        """Return the slope of the whole model, the sum of its parts, those of all ranks.

        ``parts``: each moved bucket's.  All ranks have to have the same of weights that none of
        them has a part of.
        """
        if not self._ranks.several:
            return math.fsum(parts)
        moved = [bucket for bucket in self._kernels.buckets if bucket.moved]
        of_whole = [part for part, bucket in zip(parts, moved) if bucket.pieces == 1]
        slope, alike = self._ranks.mean("its slope", math.fsum(parts), math.fsum(of_whole))
        if abs(alike) > LITTLE * abs(slope) and self._ranks.differ(1, SAME_SLOPE):
            raise RuntimeError(OTHER_GRADIENTS)
        return slope

    def _look(self) -> list[Tensor]:
        """Return a look back on the window; none where no weight has been noted."""
        parts = self._kernels.alignment()
        if self.param_groups[0]["maximize"]:
            parts = [-part for part in parts]
        if self._ranks.several:  # of which one may have no part of any weight
            total = sum_of(parts) if parts else torch.zeros((), dtype=torch.float64)
            return [self._ranks.mean_on_device("a look back", total)]
        return [sum_of(parts)] if len(parts) > 1 else parts

    def _first_move(self) -> float:
        """Return the largest step size before the first window; -1 where weights of 0 set none."""
        first: dict[str, Any] = self.param_groups[0]
        if direction_of(first).scaled_by_ratios:  # by the weights' size
            return FIRST_MOVE
        norm, count = self._kernels.norm_and_count()
        if self._ranks.several:
            square, count = self._ranks.mean("a first move", norm * norm, count)
            norm = math.sqrt(square)
        return FIRST_MOVE * (norm / math.sqrt(max(count, 1))) or -1.0


def shapes_in_a_number(parameters: Sequence[Tensor]) -> int:
    """Return a number that tells other shapes, with near certainty; of DTensors those of all."""
    return crc32(repr([tuple(parameter.shape) for parameter in parameters]).encode())
