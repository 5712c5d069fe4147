"""What a training loop may do before ``step(closure, loss=loss)``.

It may clip the gradients, which would mislead the search: it tests the decrease of the loss against
the slope ``<g, -d>``.  Clipping shrinks ``g``, and Adam's ``d`` hardly at all, so that the slope
seems smaller than it is and the search asks for too little.  Whoever clips here keeps the factor,
by which the slope is divided.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn import utils
from torch.optim import Optimizer

from ._torch import is_dtensor
from .conventions import Habits
from .dtensor_norms import clip_grad_norm_of_dtensors
from .kernels.parameters import check_gradients_have_memory
from .plain_numbers import check_bound
from .replay import Replay

EPS = 1e-6  # that torch adds to the norm


class Clipped(NamedTuple):
    """What the gradients that are there were multiplied by; None where they were not clipped."""

    factor: Tensor | None = None
    by_the_step: bool = False  # to max_grad_norm, which a step that is tried again need not repeat

    def multiplied(self, factor: Tensor) -> Clipped:
        """Return this with one more factor."""
        known = self.factor
        return self._replace(factor=factor if known is None else known * factor.to(known.device))


NOT_CLIPPED = Clipped()


class GivenLoss(Optimizer):
    """Notes that the next step uses: of an evaluation outside of it, and of clipped gradients."""

    module: nn.Module | None
    _habits: Habits
    _in_trial: bool
    _stepping: bool
    _outer_replay: Replay | None  # of first_evaluation()
    _clipped: Clipped  # the gradients that are there

    if TYPE_CHECKING:

        @property
        def search_due(self) -> bool: ...

        def _parameters(self) -> list[Any]: ...

    @contextmanager
    def first_evaluation(self) -> Iterator[None]:
        """Put this around the forward pass of ``loss`` before ``step(closure, loss=loss)``.

        It notes random streams and buffers, so that trials repeat this evaluation exactly, and
        puts them back where the forward raises.  It counts for the next step that is taken.
        Without it all trials of a step share one dropout mask, but not the mask of ``loss``.
        Only forward and backward passes belong inside, no data is drawn there.
        """
        self._outer_replay, self._clipped = None, NOT_CLIPPED
        replay = Replay(self._parameters(), self.module, trials_follow=self.search_due)
        try:
            yield
        except BaseException:
            replay.rewind()
            raise
        self._outer_replay = replay

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Clip the gradients that are there, before ``step(closure, loss=loss)``.

        This is ``torch.nn.utils.clip_grad_norm_`` for all parameters of this optimizer; but the
        next step knows the factor, and its search tests the slope of the gradients as they were.
        (After torch's own it tests a smaller slope, and accepts steps that are too long.)  A
        closure that calls ``backward`` itself may call it, too.

        Returns:
            The total norm before clipping.
        """
        check_bound("max_norm", max_norm, "no clipping")
        check_gradients_have_memory(self.param_groups)
        parameters: Any = self._parameters()
        if any(map(is_dtensor, parameters)):
            norm = clip_grad_norm_of_dtensors(parameters, max_norm, norm_type, error_if_nonfinite)
        else:
            norm = utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)
        if not self._in_trial:  # then they are of no step
            self._clipped = self._clipped.multiplied((max_norm / (norm + EPS)).clamp(max=1.0))
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as every optimizer of torch, and forget what was noted of them."""
        self._habits.zeroed = True
        if not self._stepping:
            self._outer_replay, self._clipped = None, NOT_CLIPPED
        super().zero_grad(set_to_none)
