"""Calling the user's closure: the first evaluation with gradients, then trials that repeat it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import scaling
from ._torch import forget_cached_weights, versions_of
from .arguments import check_loss
from .interrupts import Interrupts
from .kernels.layout import has_memory
from .replay import Replay
from .warning import Once

Closure = Callable[[], Any]
Gradients = list[Tensor | None]

MARK = "_salsa_fused_left_it"  # on a gradient: its version as a step left it
MARKED = 32  # gradients are looked at, of however many: whoever accumulates changes nearly all

# What a closure raises that looks at a graph where there is none, and what torch says of it.
LACKS_A_GRAPH = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError)
NEEDS_GRAPH = r"requires?[ _]grad"
SAME_GRADIENT = 1e-3  # a relative difference, below which two gradients are of one loss

ACCUMULATED = (
    "gradients were there before step(closure), and the closure's own take their place: what was "
    "accumulated is thrown away. To accumulate, run the micro-batches in `with "
    "optimizer.first_evaluation():`, call backward() on each, and then step(closure, loss=total), "
    "where the closure returns the loss of all of them. Where the gradients are another loss's (a "
    "GAN's), call optimizer.zero_grad() before step(closure)"
)

FOR_SOMETHING_ELSE = (
    "the closure calls backward() for something other than the loss that it returns: that loss' "
    "own gradient is used, and what the closure left in .grad is not. torch.autograd.grad() in "
    "place of that backward() silences this"
)


@dataclass
class Habits:
    """What earlier steps have shown of an optimizer's closures."""

    needs_graph: bool = False  # trials without a graph fail, or evaluate another function
    backward_is_for_the_loss: bool | None = None  # that a closure calls; None: not seen yet
    losses_agree: bool = True  # of evaluations at the same weights
    computes_loss: bool = False  # the last one did
    has_worked: bool = False  # one has
    zeroed: bool = False  # optimizer.zero_grad() was called
    marked: bool = False  # the gradients that the last step left
    once: Once = field(default_factory=Once)


class Evaluations:
    """All evaluations of the closure in one step, and what they leave behind.

    While trials run the gradients are off the parameters, so that a closure that clears or frees
    gradients cannot touch those that the kernels read.
    """

    # defaults on the class: a step without a closure makes one of these, too
    has_loss = False  # one with a graph
    _called_first = False
    _calls_backward = False
    _accumulated: Gradients | None = None  # by somebody else, before the step
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
        return self._calls_backward or self.habits.needs_graph

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
        before = self._take_up_gradients(trials_follow)
        versions = versions_of([gradient for gradient in before if gradient is not None])
        self._called_first = True
        self.habits.zeroed = False
        # signals are heard innermost: one that raises must not come between the others' ends
        with torch.enable_grad(), scaling.refused(), self._interrupts.heard():
            loss = self._closure()
            self.has_loss = _has_graph(loss)
            if self._left_gradients(before, versions) and self._are_of(loss):
                self._calls_backward = True
            elif not self.has_loss or not any(p.requires_grad for p in self._parameters):
                if self._means_the_gradients_there(loss, trials_follow):
                    self.habits.computes_loss = False
                    return loss
                check_loss(loss, "closure()")
                raise RuntimeError(
                    "the loss that the closure returned does not depend on any parameter "
                    "through autograd (it has no grad_fn): compute it from the model without "
                    ".item(), .detach(), torch.no_grad() or torch.inference_mode(), and return it"
                )
            check_loss(loss, "closure()")
            if not self._calls_backward:
                self._clear_gradients()
                loss.backward()
        self._say_what_was_thrown_away(trials_follow)
        if trials_follow and self._calls_backward:
            self._own_gradients()
        self.habits.computes_loss = self.habits.has_worked = True
        return loss.detach()

    def _take_up_gradients(self, trials_follow: bool) -> Gradients:
        """Clear the gradients before the closure, or return those that it may mean or add to."""
        accumulated = self._were_accumulated()
        clear = trials_follow or (self.habits.computes_loss and not accumulated)
        there = self._gradients_there() if accumulated or not clear else []
        if accumulated:
            self._accumulated = there
        if clear:
            self._clear_gradients()
            return []
        return there

    def _were_accumulated(self) -> bool:
        """Whether somebody has called backward() since the last step(closure)."""
        if not self.habits.marked:
            return False
        present = _some_gradients(self._parameters)
        foreign = [
            gradient
            for gradient, version in zip(present, versions_of(present))
            if getattr(gradient, MARK, None) != version
        ]
        return any(g.layout != torch.strided or bool(g.any()) for g in foreign)

    def _left_gradients(self, before: Gradients, versions: list[int]) -> bool:
        """Whether the closure has made or changed gradients, which means: called backward()."""
        if not versions:  # none was there
            return any(parameter.grad is not None for parameter in self._parameters)
        now, version_before = self._gradients_there(), iter(versions)
        old_versions = [None if gradient is None else next(version_before) for gradient in before]
        return any(
            gradient is not None and (gradient is not old or versions_of([gradient]) != [version])
            for gradient, old, version in zip(now, before, old_versions)
        )

    def _gradients_there(self) -> Gradients:
        return [parameter.grad for parameter in self._parameters]

    def _are_of(self, loss: Any) -> bool:
        """Whether the gradients that the closure left are those of the loss that it returned.

        A loss whose graph was freed was differentiated in the closure.  If the graph is there
        (the closure retained it, or called backward() for something else), its gradient tells;
        that is looked at once.
        """
        habits = self.habits
        if not _has_graph(loss) or habits.backward_is_for_the_loss:
            return True
        if habits.backward_is_for_the_loss is None:
            if self._accumulated is not None:  # in one sum with others: cannot be compared
                return True
            left = self._gradients_there()
            if all(g is None or (g.layout == torch.strided and not g.any()) for g in left):
                return not _can_be_differentiated(loss, self._parameters)  # zeroed
            habits.backward_is_for_the_loss = _is_gradient_of(loss, self._parameters)
        if not habits.backward_is_for_the_loss:
            habits.once.say("backward", FOR_SOMETHING_ELSE)
        return habits.backward_is_for_the_loss

    def _means_the_gradients_there(self, returned: Any, trials_follow: bool) -> bool:
        """Whether a closure that returned no loss is no mistake.

        Before a search it is one, but where nothing can be trained, or where closures have worked
        before and there is no gradient (a batch that a trainer skips): then nothing is done.
        """
        if not any(parameter.requires_grad for parameter in self._parameters):
            return True
        if not (returned is None or isinstance(returned, (int, float, Tensor))):
            return False
        if not trials_follow:
            return True
        skipped = returned is None or isinstance(returned, Tensor)
        return skipped and self.habits.has_worked and self._accumulated is None

    def _say_what_was_thrown_away(self, trials_follow: bool) -> None:
        if self._accumulated is None or self.habits.zeroed:
            return
        if trials_follow or not self._calls_backward:
            self.habits.once.say("accumulated", ACCUMULATED)

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
            self._clear_gradients()
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
                _put_back(parameter, gradient)
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
            self._clear_gradients()
            for parameter, gradient in zip(self._parameters, self._accumulated or ()):
                _put_back(parameter, gradient)

    def mark_gradients(self) -> None:
        """Mark the gradients that this step leaves: others at the next were accumulated."""
        self.habits.marked = self._called_first
        if self._called_first:
            mark_gradients(self._parameters)

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _own_gradients(self) -> None:
        """Copies: the closure's next backward may write into the memory of these."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()


def mark_gradients(parameters: Sequence[Tensor]) -> None:
    """Note that a step leaves these gradients: at the next step(closure) others are foreign."""
    present = _some_gradients(parameters)
    for gradient, version in zip(present, versions_of(present)):
        setattr(gradient, MARK, version)


def _some_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    chosen = parameters[:: -(-len(parameters) // MARKED) or 1]
    return [gradient for parameter in chosen if (gradient := parameter.grad) is not None]


def _put_back(parameter: Tensor, gradient: Tensor | None) -> None:
    """Give a gradient back, unless the closure has replaced the weight by one it does not fit."""
    with suppress(RuntimeError, TypeError):
        parameter.grad = gradient


def _has_graph(loss: Any) -> bool:
    return isinstance(loss, Tensor) and loss.requires_grad


def _gradient_of(loss: Tensor, parameters: Sequence[Tensor]) -> Gradients | None:
    """The loss' gradient, with its graph kept; None where it cannot be differentiated any more."""
    if loss.numel() != 1:
        return None
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        found = iter(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
    except RuntimeError:
        return None
    return [next(found) if parameter.requires_grad else None for parameter in parameters]


def _can_be_differentiated(loss: Tensor, parameters: Sequence[Tensor]) -> bool:
    return _gradient_of(loss, parameters) is not None


def _is_gradient_of(loss: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether the gradients on the parameters are this loss'."""
    found = _gradient_of(loss, parameters)
    if found is None:
        return True
    difference = scale = 0.0
    for gradient, parameter in zip(found, parameters):
        there = parameter.grad
        if gradient is None and there is None:
            continue
        zero = torch.zeros_like(parameter)
        mine, left = (zero if g is None else g.to_dense() for g in (gradient, there))
        difference += float((mine - left).abs().sum())
        scale += float(mine.abs().sum())
    return not difference > SAME_GRADIENT * scale
