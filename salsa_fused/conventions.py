"""Whose gradients are they?  What closures do with them, and what was there before.

A closure returns the loss and leaves ``backward`` to the optimizer, or calls ``zero_grad`` and
``backward`` itself (the convention of ``torch.optim.LBFGS``), or means the gradients that are there
already (every other optimizer of torch).  Gradients tell which it is: those that it left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ._torch import versions_of
from .kernels.layout import has_memory
from .warning import Once

MARK = "_salsa_fused_left_it"  # on a gradient: its version as a step left it
MARKED = 32  # gradients are looked at, of however many: whoever accumulates changes nearly all
SAME_DIRECTION = 1e-6  # 1 - cos, below which two gradients are of one loss

ACCUMULATED = (
    "gradients were there before step(closure), and the closure's own take their place: what was "
    "accumulated is thrown away. To accumulate, run the micro-batches in `with "
    "optimizer.first_evaluation():`, call backward() on each, and then step(closure, loss=total), "
    "where the closure returns the loss of all of them. Where the gradients are another loss's (a "
    "GAN's), or were changed in place, call optimizer.zero_grad() before step(closure)"
)

FOR_SOMETHING_ELSE = (
    "the closure calls backward() for something other than the loss that it returns: that loss' "
    "own gradient is used, and what the closure left in .grad is not. torch.autograd.grad() in "
    "place of that backward() silences this. (If it was that loss' backward(retain_graph=True) and "
    "the gradients were changed since, leave out retain_graph)"
)


@dataclass
class Habits:
    """What earlier steps have shown of an optimizer's closures."""

    needs_graph: bool = False  # trials without a graph fail, or evaluate another function
    backward_is_for_the_loss: bool | None = None  # that a closure calls; None: not seen yet
    losses_agree: bool = True  # of evaluations at the same weights
    scale: float = 0.0  # the largest loss that was compared
    computes_loss: bool = False  # the last one did
    has_worked: bool = False  # one has
    zeroed: bool = False  # optimizer.zero_grad() was called
    marked: bool = False  # the gradients that the last step left
    once: Once = field(default_factory=Once)


class GradientsAround:
    """The gradients before and after a closure's first evaluation in a step."""

    def __init__(self, parameters: Sequence[Tensor], habits: Habits, trials_follow: bool) -> None:
        self._parameters = parameters
        self._habits = habits
        self._trials_follow = trials_follow
        self._accumulated = self._were_accumulated()
        self.foreign = self._now() if self._accumulated else []  # of somebody else's backward
        self._before: list[Tensor | None] = []
        if trials_follow or (habits.computes_loss and not self._accumulated):
            clear(parameters)
        else:  # the closure may mean them, or add to them
            self._before = self.foreign or self._now()
        self._versions = versions_of([g for g in self._before if g is not None])
        habits.zeroed = False

    def are_of(self, loss: Any) -> bool:
        """Whether the closure has left the gradients of the loss that it returned.

        A loss whose graph was freed was differentiated in the closure.  If the graph is there
        (the closure retained it, or called backward() for something else), its gradient tells;
        that is looked at once.
        """
        habits = self._habits
        if not self._were_left():
            return False
        if not has_graph(loss) or habits.backward_is_for_the_loss:
            return True
        if habits.backward_is_for_the_loss is None:
            if self._accumulated:  # in one sum with others: cannot be compared
                return True
            gradient = _gradient_of(loss, self._parameters)  # None: its graph was freed
            if gradient is not None and not any(map(_is_something, self._now())):
                return False  # only zeroed
            mine = (
                gradient is None
                or not all(g is None or is_readable(g) for g in self._now())
                or _are_parallel(gradient, self._now(), self._parameters)
            )
            habits.backward_is_for_the_loss = mine
        if not habits.backward_is_for_the_loss:
            habits.once.say("backward", FOR_SOMETHING_ELSE)
        return habits.backward_is_for_the_loss

    def are_meant_by(self, returned: Any) -> bool:
        """Whether a closure that returned no loss is no mistake.

        Before a search it is one, but where nothing can be trained, or where closures have worked
        before and there is no gradient (a batch that a trainer skips): then nothing is done.
        """
        if not any(parameter.requires_grad for parameter in self._parameters):
            return True
        if not (returned is None or isinstance(returned, (Real, Tensor))):
            return False
        if not self._trials_follow:
            return True
        skipped = returned is None or isinstance(returned, Tensor)
        return skipped and self._habits.has_worked and not self._accumulated

    def say_what_was_thrown_away(self, *, calls_backward: bool) -> None:
        """Warn where accumulated gradients were not used, unless the closure cleared them."""
        used = calls_backward and not self._trials_follow
        if self._accumulated and not used and not self._habits.zeroed:
            self._habits.once.say("accumulated", ACCUMULATED)

    def _were_accumulated(self) -> bool:
        """Whether somebody has called backward() since the last step(closure)."""
        if not self._habits.marked:
            return False
        present = _some_of(self._parameters)
        marks = [getattr(gradient, MARK, None) for gradient in present]
        changed = zip(present, marks, versions_of(present))
        return any(mark != version and _is_something(g) for g, mark, version in changed)

    def _were_left(self) -> bool:
        """Whether the closure has made or changed gradients, which means: called backward()."""
        if not self._versions:  # none was there
            return any(parameter.grad is not None for parameter in self._parameters)
        version_before = iter(self._versions)
        before = [None if g is None else (id(g), next(version_before)) for g in self._before]
        return any(
            gradient is not None and (id(gradient), *versions_of([gradient])) != old
            for gradient, old in zip(self._now(), before)
        )

    def _now(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self._parameters]


def mark_gradients(parameters: Sequence[Tensor]) -> None:
    """Note that a step leaves these gradients: at the next step(closure) others are foreign."""
    present = _some_of(parameters)
    for gradient, version in zip(present, versions_of(present)):
        setattr(gradient, MARK, version)


def clear(parameters: Sequence[Tensor]) -> None:
    """Take the gradients off."""
    for parameter in parameters:
        parameter.grad = None


def put_back(parameter: Tensor, gradient: Tensor | None) -> None:
    """Give a gradient back, unless the closure has replaced the weight by one it does not fit."""
    with suppress(RuntimeError, TypeError):
        parameter.grad = gradient


def has_graph(loss: Any) -> bool:
    """Whether it can be differentiated, or could be before its graph was freed."""
    return isinstance(loss, Tensor) and loss.requires_grad


def is_spent(loss: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether it was differentiated before, so that its graph is gone."""
    return _gradient_of(loss, parameters) is None


def is_readable(gradient: Tensor) -> bool:
    """Whether its memory is there: some free it and keep the tensor."""
    return gradient.layout != torch.strided or has_memory(gradient)


def _some_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    chosen = parameters[:: -(-len(parameters) // MARKED) or 1]
    return [gradient for parameter in chosen if (gradient := parameter.grad) is not None]


def _is_something(gradient: Tensor | None) -> bool:
    """Whether it is there, and not all zero; one whose memory was freed is nothing."""
    if gradient is None or not is_readable(gradient):
        return False
    return gradient.layout != torch.strided or bool(gradient.any())


def _gradient_of(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None] | None:
    """The loss' gradient, with its graph kept; None where it cannot be differentiated any more."""
    if loss.numel() != 1:
        return None
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        found = iter(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
    except RuntimeError:
        return None
    return [next(found) if parameter.requires_grad else None for parameter in parameters]


def _are_parallel(
    gradients: Sequence[Tensor | None],
    others: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
) -> bool:
    """Whether these are the same but for rounding and one factor, as clipping gives."""
    products = [0.0, 0.0, 0.0]
    for gradient, other, parameter in zip(gradients, others, parameters):
        if gradient is None and other is None:
            continue
        zero = torch.zeros_like(parameter)
        a, b = ((zero if g is None else g.to_dense()).double() for g in (gradient, other))
        for k, (x, y) in enumerate(((a, a), (b, b), (a, b))):
            products[k] += float((x * y).sum())
    aa, bb, ab = products
    return ab >= (1.0 - SAME_DIRECTION) * math.sqrt(aa * bb)
