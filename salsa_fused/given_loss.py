"""What a training loop may do before ``step(closure, loss=loss)``, or before a bare ``step()``.

It may clip the gradients, which would mislead the search: it tests the decrease of the loss against
the slope ``<g, -d>``.  Clipping shrinks ``g``, and Adam's ``d`` hardly at all, so that the slope
seems smaller than it is and the search asks for too little.  Whoever clips here keeps the factor,
by which the slope is divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.optim import Optimizer

from ._torch import is_dtensor, not_compiled, whole_of
from .conventions import NO_GRAPH, Habits
from .dtensor_norms import clip_grad_norm_of_dtensors
from .evaluation import Closure, check_loss, has_graph, refused
from .kernels.parameters import check_gradients_have_memory
from .loss_parts import TWO_CLOSURES, Part, Parts
from .plain_numbers import check_bound, is_number
from .replay import Replay
from .wrappers import end_forward, sharded_modules

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
    _parts: Parts  # of the loss, of evaluate()

    if TYPE_CHECKING:

        @property
        def search_due(self) -> bool: ...

        def _parameters(self) -> list[Any]: ...
        def _refuse_in_a_step(self, what: str) -> None: ...

    @not_compiled
    def evaluate(self, closure: Closure, weight: float = 1.0) -> Tensor:
        """Evaluate the loss now, for a bare ``step()`` later: for loops that call no closure.

        ::

            loss = optimizer.evaluate(lambda: loss_function(model(inputs), targets))
            loss.backward()  # or accelerator.backward(loss), fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

        Several calls before a step add up (gradient accumulation); trials evaluate all of them
        again, each with the random streams and the autocast that it had.  Only those count whose
        loss had a ``backward``; ``zero_grad`` forgets them.

        Args:
            closure: computes the loss and returns it, without ``backward``.
            weight: what the loop multiplies this loss by before ``backward`` (1/4 for the mean of
                four micro-batches).  A GradScaler's scale is no part of it.

        Returns:
            The closure's loss, with its graph and without the weight.

        Raises:
            TypeError, ValueError: the closure returned something other than a loss; the weight is
                no number >= 0.
            RuntimeError: the loss has no graph.
        """
        optimizer = itself(self)
        optimizer._refuse_in_a_step("evaluate()")
        if not callable(closure):
            raise TypeError(
                f"closure must be callable and return the loss, got {type(closure).__name__}"
            )
        if not is_number(weight) or not 0.0 <= float(weight) < math.inf:
            raise ValueError(
                f"weight must be a number >= 0, what the loss is multiplied by, got {weight!r}"
            )
        with optimizer._evaluating(closure, float(weight)) as note:
            with refused():
                loss = check_loss(closure(), "closure()")
            if not has_graph(loss):
                raise RuntimeError(NO_GRAPH)
            note(loss)
        return loss

    @contextmanager
    def _evaluating(self, closure: Closure, weight: float = 1.0) -> Iterator[Callable[..., None]]:
        """Note an evaluation inside, whose loss goes into the function that this yields.

        ``closure`` evaluates it again.  A loss without graph has had its ``backward`` inside.
        """
        found: list[Tensor] = []
        parts = self._parts
        parts.forget_cleared(self._gradients_are_gone)
        with self._undone() as replay:
            yield found.append
        for loss in found:
            part = Part(closure, loss, replay, weight, differentiated=not loss.requires_grad)
            parts.append(part)
            self._clipped, self._habits.has_worked = NOT_CLIPPED, True
            if loss.requires_grad:
                begins = partial(parts.differentiate, part, self._gradients_are_gone)
                loss.register_hook(lambda gradient, begins=begins: begins())

    def _gradients_are_gone(self) -> bool:
        """Return whether somebody has cleared them, as ``model.zero_grad()`` does.

        FSDP2 keeps those that it has not reduced yet to itself: with it nobody can tell.
        """
        parameters = self._parameters()
        if any(parameter.grad is not None for parameter in parameters):
            return False
        if self.module is None:
            return not any(map(is_dtensor, parameters))
        return not sharded_modules(self.module)

    def _given(self, closure: Any, loss: Any) -> tuple[Closure, Tensor]:
        """Return the closure and the loss of a bare ``step()`` after :meth:`evaluate`."""
        if closure is not None or loss is not None:
            raise ValueError(TWO_CLOSURES)
        closure, loss, self._outer_replay = self._parts.together()
        return closure, loss

    @contextmanager
    def _undone(self) -> Iterator[Replay]:
        """Note random streams and buffers, and put them back where the code inside raises."""
        replay = Replay(self._parameters(), self.module, trials_follow=self.search_due)
        try:
            yield replay
        except BaseException:
            replay.rewind()
            end_forward(self.module)
            raise

    @contextmanager
    def first_evaluation(self) -> Iterator[None]:
        """Put this around the forward pass of ``loss`` before ``step(closure, loss=loss)``.

        It notes random streams and buffers, so that trials repeat this evaluation exactly, and
        puts them back where the forward raises.  It counts for the next step that is taken.
        Without it all trials of a step share one dropout mask, but not the mask of ``loss``.
        Only forward and backward passes belong inside, no data is drawn there.
        """
        optimizer = itself(self)
        optimizer._outer_replay, optimizer._clipped = None, NOT_CLIPPED
        with optimizer._undone() as replay:
            yield
        optimizer._outer_replay = replay

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
        self.note_clipping(norm, max_norm)
        return norm

    def note_clipping(self, norm: Tensor | float, max_norm: float) -> None:
        """Tell the next step that somebody else has clipped its gradients to a total norm.

        For trainers that clip by themselves; ``norm`` is what they return, from before clipping:
        ``optimizer.note_clipping(fabric.clip_gradients(..., max_norm=1.0), 1.0)``.
        """
        optimizer = itself(self)
        if not optimizer._in_trial:  # then they are of no step
            norm = norm.detach() if isinstance(norm, Tensor) else torch.tensor(float(norm))
            factor = (max_norm / (whole_of(norm) + EPS)).clamp(max=1.0)
            optimizer._clipped = optimizer._clipped.multiplied(factor)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as every optimizer of torch, and forget what was noted of them."""
        optimizer = itself(self)
        optimizer._habits.zeroed = True
        if not optimizer._stepping:
            optimizer._outer_replay, optimizer._clipped = None, NOT_CLIPPED
            optimizer._parts.forget_differentiated()
        super().zero_grad(set_to_none)


def itself(optimizer: Any) -> Any:
    """Return the optimizer that a wrapper stands for.

    Lightning's derive from its class, so that its methods run on the wrapper, which would keep to
    itself what they write.
    """
    while not is_itself(optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def is_itself(optimizer: Any) -> bool:
    """Return whether this is no wrapper."""
    return "_kernels" in vars(optimizer)
