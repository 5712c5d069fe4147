"""Calling the user's closure: the first evaluation with gradients, then trials that repeat it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import scaling
from ._torch import forget_cached_weights
from .arguments import check_loss
from .conventions import (
    GradientsAround,
    Habits,
    clear,
    has_graph,
    is_readable,
    is_spent,
    mark_gradients,
    put_back,
)
from .interrupts import Interrupts
from .kernels.layout import has_memory
from .replay import Replay

Closure = Callable[[], Any]

# What a closure raises that looks at a graph where there is none, and what torch says of it.
LACKS_A_GRAPH = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError)
NEEDS_GRAPH = r"requires?[ _]grad"


class Evaluations:
    """All evaluations of the closure in one step, and what they leave behind.

    While trials run the gradients are off the parameters, so that a closure that clears or frees
    gradients cannot touch those that the kernels read.
    """

    # defaults on the class: a step without a closure makes one of these, too
    has_loss = False  # one with a graph
    _called_first = False
    calls_backward = False  # the closure itself, on the loss that it returns
    _around: GradientsAround | None = None
    _gradients: list[tuple[Tensor, Tensor]] | None = None

    def __init__(
        self,
        closure: Closure | None,
        parameters: list[Tensor],
        replay: Replay | None,
        interrupts: Interrupts,
        habits: Habits,
    ) -> None:
        self._interrupts = interrupts
        self.habits = habits
        self._closure = closure
        self._parameters = parameters
        self._replay = replay

    @property
    def knows_first(self) -> bool:
        """Whether a trial can repeat the first evaluation's random numbers and buffers."""
        return self._replay is not None and self._replay.knows_first

    @property
    def given_loss(self) -> bool:
        """Whether the first evaluation happened outside of the step."""
        return not self._called_first

    @property
    def with_graph(self) -> bool:
        """Whether trials run with gradients enabled."""
        return self.calls_backward or self.habits.needs_graph

    # -- the first evaluation -----------------------------------------------------------------

    def first(self, trials_follow: bool) -> Any:
        """Evaluate the loss at the weights; its gradients are then on the parameters.

        The closure returns the loss and leaves ``backward`` to the optimizer, or calls
        ``zero_grad`` and ``backward`` itself (the convention of ``torch.optim.LBFGS``): that is
        recognised by the gradients that it leaves.  Where no trials follow, a closure that
        returns no loss (None, a number, a tensor without graph) and leaves no gradients means
        those that were there, as with every optimizer of torch.

        Returns:
            The loss, detached; or what the closure returned, if that is no loss.
        """
        assert self._closure is not None
        around = self._around = GradientsAround(self._parameters, self.habits, trials_follow)
        self._called_first = True
        # signals are heard innermost: one that raises must not come between the others' ends
        with torch.enable_grad(), scaling.refused(), self._interrupts.heard():
            loss = self._closure()
            self.has_loss = has_graph(loss)
            if around.are_of(loss):
                self.calls_backward = True
            elif not self.has_loss or not any(p.requires_grad for p in self._parameters):
                if around.are_meant_by(loss):
                    self.habits.computes_loss = False
                    return loss
                check_loss(loss, "closure()")
                raise RuntimeError(
                    "the loss that the closure returned does not depend on any parameter "
                    "through autograd (it has no grad_fn): compute it from the model without "
                    ".item(), .detach(), torch.no_grad() or torch.inference_mode(), and return it"
                )
            if self.calls_backward and not trials_follow and not isinstance(loss, Tensor):
                return loss  # nobody needs it
            check_loss(loss, "closure()")
            if not self.calls_backward:
                if around.foreign and not trials_follow and is_spent(loss, self._parameters):
                    return loss.detach()  # the gradients that are there are its own
                clear(self._parameters)
                loss.backward()
        around.say_what_was_thrown_away(calls_backward=self.calls_backward)
        if trials_follow and self.calls_backward:
            self._own_gradients()
        self.habits.computes_loss = self.habits.has_worked = True
        return loss.detach()

    # -- trials -------------------------------------------------------------------------------

    def begin_trials(self) -> None:
        """Take the gradients off; the random streams stand where the first evaluation left them."""
        if self._replay is not None and self._replay.knows_first:
            self._replay.end_first()
        self._gradients = []
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is not None:
                self._gradients.append((parameter, gradient))
                parameter.grad = None

    def trial(self) -> float:
        """Return the loss at the weights as they stand now, everything else as at first."""
        if self.with_graph:
            return self._trial(with_graph=True)
        try:
            return self._trial(with_graph=False)
        except LACKS_A_GRAPH as error:
            loss = self._retried(error)
            self.habits.needs_graph = True
            return loss

    def _retried(self, error: Exception) -> float:
        """Evaluate the trial with a graph: the closure may look at it, as a gradient penalty does.

        Raises:
            Exception: ``error`` itself, where it was not the graph that was missing.
        """
        if isinstance(error, RuntimeError):
            if re.search(NEEDS_GRAPH, str(error)):
                return self._trial(with_graph=True)
            raise error
        if not all(has_memory(p) for p in self._parameters if p.requires_grad):
            raise error  # a forward would read what the closure has freed
        try:
            loss = self._trial(with_graph=True)
        except Exception:
            raise error from None
        try:
            self._trial(with_graph=False)
        except Exception:
            return loss
        raise error  # without a graph it works, too: the failure was one of that moment

    def trial_with_graph(self) -> float:
        """Return the loss of a trial with gradients enabled, as the first evaluation had them."""
        return self._trial(with_graph=True)

    def _trial(self, with_graph: bool) -> float:
        assert self._closure is not None
        if self._replay is not None:
            self._replay.rewind()
        forget_cached_weights()
        with torch.set_grad_enabled(with_graph), scaling.refused(), self._interrupts.heard():
            loss = check_loss(self._closure(), "closure() at a trial point")
        if with_graph:
            left = any(parameter.grad is not None for parameter in self._parameters)
            clear(self._parameters)
            if left and self.given_loss:
                raise RuntimeError(
                    "the closure called backward() at a trial point, but not at first. With "
                    "step(closure, loss=loss) the closure only computes and returns the loss: "
                    "leave zero_grad() and backward() outside it"
                )
        return loss.item()

    # -- the end ------------------------------------------------------------------------------

    def end_trials(self) -> None:
        """Put gradients back, random streams and buffers as after the first evaluation."""
        gradients, self._gradients = self._gradients, None
        if gradients is None:
            return
        try:
            for parameter, gradient in gradients:
                put_back(parameter, gradient)
        finally:
            if self._replay is not None:
                self._replay.resume()

    def undo(self) -> None:
        """For a step that is skipped: random streams and buffers as before the first evaluation."""
        try:
            self.end_trials()
        finally:
            if self._replay is not None:
                self._replay.rewind()

    def abandon(self) -> None:
        """For a step that an exception leaves: all as it was when the step was entered."""
        if not self._called_first:
            self.end_trials()
            return
        try:
            self.undo()
        finally:
            clear(self._parameters)
            foreign = self._around.foreign if self._around is not None else []
            for parameter, gradient in zip(self._parameters, foreign):
                put_back(parameter, gradient)

    def mark_gradients(self) -> None:
        """Mark the gradients that this step leaves: others at the next were accumulated."""
        self.habits.marked = True
        mark_gradients(self._parameters)

    def _own_gradients(self) -> None:
        """Copies: the closure's next backward may write into the memory of these."""
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is not None and is_readable(gradient):
                parameter.grad = gradient.clone()
