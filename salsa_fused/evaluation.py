"""Calling the user's closure: the first evaluation with gradients, then trials that repeat it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import scaling
from ._torch import forget_cached_weights
from .arguments import check_loss
from .interrupts import Interrupts
from .line_search import FLAT_ULPS
from .replay import Replay
from .warning import warn

Closure = Callable[[], Any]

NEEDS_GRAPH = r"requires?[ _]grad"  # what torch's errors say of tensors without a graph


class Evaluations:
    """All evaluations of the closure in one step, and what they leave behind.

    While trials run the gradients are off the parameters, so that a closure that clears or frees
    gradients cannot touch those that the kernels read.
    """

    def __init__(
        self,
        closure: Closure | None,
        parameters: list[Tensor],
        replay: Replay | None,
        interrupts: Interrupts,
        needs_graph: bool = False,
    ) -> None:
        self._interrupts = interrupts
        self.needs_graph = needs_graph  # trials fail without; known from an earlier step
        self._closure = closure
        self._parameters = parameters
        self._replay = replay
        self._called_first = False
        self._closure_calls_backward = False
        self._gradients: list[tuple[Tensor, Tensor]] | None = None

    @property
    def knows_first(self) -> bool:
        """Whether a trial can repeat the first evaluation's random numbers and buffers."""
        return self._replay is not None and self._replay.knows_first

    def first(self, trials_follow: bool) -> Any:
        """The loss at the weights, detached, and its gradients on the parameters.

        The closure returns the loss and leaves ``backward`` to the optimizer, or calls
        ``zero_grad`` and ``backward`` itself (the convention of ``torch.optim.LBFGS``): that is
        recognised by the gradients that it leaves.  Where nothing requires a gradient, whatever
        the closure returns.
        """
        assert self._closure is not None
        self._clear_gradients()
        self._called_first = True
        with torch.enable_grad(), self._interrupts.heard():
            with scaling.refused():
                loss = self._closure()
            if any(parameter.grad is not None for parameter in self._parameters):
                self._closure_calls_backward = True
                if trials_follow:
                    self._own_gradients()
            elif not any(parameter.requires_grad for parameter in self._parameters):
                return loss
            check_loss(loss, "closure()")
            if not self._closure_calls_backward:
                if not loss.requires_grad:
                    raise RuntimeError(
                        "the loss that the closure returned does not depend on any parameter "
                        "through autograd (it has no grad_fn): compute it from the model without "
                        ".item(), .detach(), torch.no_grad() or torch.inference_mode(), and "
                        "return it"
                    )
                loss.backward()
        return loss.detach()

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
        """The loss at the weights as they stand now, everything else as at first."""
        try:
            return self._trial(with_graph=self._closure_calls_backward or self.needs_graph)
        except RuntimeError as error:
            if self.needs_graph or not re.search(NEEDS_GRAPH, str(error)):
                raise
            self.needs_graph = True  # the closure itself differentiates, as with a gradient penalty
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
            self._clear_gradients()
            if left and not self._closure_calls_backward:
                raise RuntimeError(
                    "the closure called backward() at a trial point, but not at first. With "
                    "step(closure, loss=loss) the closure only computes and returns the loss: "
                    "leave zero_grad() and backward() outside it"
                )
        return loss.item()

    def check_replay(self, loss: Tensor, module: nn.Module | None) -> bool:
        """Evaluate once more at the same weights and warn where that gives another loss.

        Returns whether the check was made: it needs a finite loss whose random numbers are known.
        """
        if not (self.knows_first and math.isfinite(first := loss.item())):
            return False
        again = self.trial()
        if not abs(again - first) <= FLAT_ULPS * torch.finfo(loss.dtype).eps * abs(first):
            hint = "" if module else ", and pass module=model if a forward changes buffers"
            warn(
                f"the closure returned the loss {first:.9g}, and {again:.9g} when it was called "
                "again for the same weights and random numbers. A line search compares losses of "
                "one mini-batch: draw the data (next(loader), augmentation) before the closure, "
                f"not in it{hint}. check_replay=False silences this."
            )
        return True

    def warn_that_nothing_lowers_the_loss(self, smallest_tried: float) -> None:
        cause = "is the closure a function of the weights alone?"
        if not self.knows_first:
            cause = (
                "trials did not repeat the evaluation of `loss`: put `with "
                "optimizer.first_evaluation():` around it"
            )
        warn(
            f"no step size down to {smallest_tried:.1e} lowered the loss, and the step was "
            f"skipped: {cause}"
        )

    def end_trials(self) -> None:
        """Gradients back on the parameters, random streams and buffers as after the first."""
        if self._gradients is None:
            return
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._gradients = None
        if self._replay is not None:
            self._replay.resume()

    def undo(self) -> None:
        """For a step that is skipped: random streams and buffers as before the first evaluation."""
        self.end_trials()
        if self._replay is not None:
            self._replay.rewind()

    def abandon(self) -> None:
        """For a step that an exception leaves: all as it was when the step was entered."""
        self.end_trials()
        if self._called_first:
            self._clear_gradients()
            self.undo()

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _own_gradients(self) -> None:
        """Copies: the closure's next backward may write into the memory of these."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
