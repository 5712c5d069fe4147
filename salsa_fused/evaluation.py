"""The first evaluation of a step: call the closure, and have its loss' gradients.

A closure returns the loss and leaves ``backward`` to the optimizer, or calls ``zero_grad`` and
``backward`` itself (the convention of ``torch.optim.LBFGS``), or means the gradients that are there
already (every other optimizer of torch).  The gradients that it leaves tell which it is.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from operator import is_
from threading import get_ident
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from . import conventions
from ._torch import set_grad_mode, versions_of
from .conventions import Habits
from .interrupts import Interrupts
from .line_search import SearchResult
from .replay import Replay

Closure = Callable[[], Any]

MARK = "_salsa_fused_left_it"  # on a gradient: its version as a step left it
MARKED = 32  # gradients are looked at, of however many: whoever accumulates changes nearly all


@dataclass(eq=False)
class Evaluation:
    """The closure of one step, its first evaluation, and what the step needs to repeat or undo it.

    ``sign`` turns the closure's loss into one to be lowered: -1 where it is maximized.
    """

    closure: Closure
    parameters: list[Tensor]
    replay: Replay
    interrupts: Interrupts
    habits: Habits
    sign: float
    loss_has_graph: bool = False  # that of the closure
    called: bool = False  # by this step; else the loss was given, and evaluated before
    calls_backward: bool = False  # the closure itself, on the loss that it returns
    _foreign: Sequence[Tensor | None] = ()  # gradients of somebody else's backward

    def first(self, trials_follow: bool) -> Any:
        """Evaluate the loss at the weights; its gradients are then on the parameters.

        Where no trials follow, a closure that returns no loss (None, a number, a tensor without
        graph) and leaves no gradients means those that were there.

        Returns:
            The loss, detached; or what the closure returned, if that is no loss.
        """
        habits, parameters = self.habits, self.parameters
        around = GradientsAround(parameters, habits, trials_follow)
        self._foreign = around.foreign
        self.called = True
        set_grad_mode(True)
        try:
            # signals are let through innermost: one that raises must not come between the others
            with refused(), self.interrupts.heard():
                loss = self.closure()
                self.loss_has_graph = has_graph(loss)
                if around.are_of(loss):
                    self.calls_backward = True
                elif not self.loss_has_graph or not _any_is_trained(parameters):
                    if around.are_meant_by(loss):
                        habits.computes_loss = False
                        return loss
                    check_loss(loss, "closure()")
                    raise RuntimeError(conventions.NO_GRAPH)
                if self.calls_backward and not trials_follow and not isinstance(loss, Tensor):
                    return loss  # nobody needs it
                check_loss(loss, "closure()")
                if not self.calls_backward:
                    added = around.foreign and not trials_follow
                    if added and conventions.gradient_of(loss, parameters) is None:
                        return loss.detach()  # the gradients that are there are its own
                    clear(parameters)
                    loss.backward()
        finally:
            set_grad_mode(False)
        used = self.calls_backward and not trials_follow
        if around.accumulated and not used and not habits.zeroed:  # unless the closure cleared them
            habits.once.say("accumulated", conventions.ACCUMULATED)
        if trials_follow and self.calls_backward:
            self._own_gradients()
        habits.computes_loss = habits.has_worked = True
        return loss.detach()

    def as_returned(self, result: SearchResult) -> SearchResult:
        """Return the result of a search with losses as the closure returns them."""
        return result._replace(
            loss=self.sign * result.loss, trial_loss=self.sign * result.trial_loss
        )

    def undo(self) -> None:
        """Put back random streams, buffers and gradients as before the first evaluation."""
        try:
            self.replay.rewind()
        finally:
            clear(self.parameters)
            for parameter, gradient in zip(self.parameters, self._foreign):
                put_back(parameter, gradient)

    def _own_gradients(self) -> None:
        """Copy the gradients: the closure's next backward may write into the memory of these."""
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is not None and conventions.is_readable(gradient):
                parameter.grad = gradient.clone()


class GradientsAround:
    """The gradients before and after a closure's first evaluation in a step."""

    def __init__(self, parameters: Sequence[Tensor], habits: Habits, trials_follow: bool) -> None:
        self._parameters = parameters
        self._habits = habits
        self._trials_follow = trials_follow
        self.accumulated = habits.marked and self._were_accumulated()
        self.foreign = self._now() if self.accumulated else []  # of somebody else's backward
        self._before: list[Tensor | None] = []
        self._versions: list[int] = []
        if trials_follow or (habits.computes_loss and not self.accumulated):
            clear(parameters)
        else:  # the closure may mean them, or add to them
            self._before = self.foreign or self._now()
            self._versions = versions_of([g for g in self._before if g is not None])
        habits.zeroed = False

    def are_of(self, loss: Any) -> bool:
        """Return whether the closure has left the gradients of the loss that it returned.

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
            if self.accumulated:  # in one sum with others: cannot be compared
                return True
            mine = conventions.differentiated(loss, self._parameters)
            if mine is None:
                return False  # only zeroed
            habits.backward_is_for_the_loss = mine
        if not habits.backward_is_for_the_loss:
            habits.once.say("backward", conventions.FOR_SOMETHING_ELSE)
        return habits.backward_is_for_the_loss

    def are_meant_by(self, returned: Any) -> bool:
        """Return whether a closure that returned no loss is no mistake.

        Before a search it is one, except where nothing can be trained, or where closures have
        worked before and there is no gradient (a batch that a trainer skips): then nothing is done.
        """
        if not _any_is_trained(self._parameters):
            return True
        if not (returned is None or isinstance(returned, (Real, Tensor))):
            return False
        if not self._trials_follow:
            return True
        skipped = returned is None or isinstance(returned, Tensor)
        return skipped and self._habits.has_worked and not self.accumulated

    def _were_accumulated(self) -> bool:
        """Return whether somebody has called backward() since the last step(closure)."""
        present = _some_of(self._parameters)
        changed = [g for g, v in zip(present, versions_of(present)) if getattr(g, MARK, None) != v]
        return any(map(conventions.is_something, changed))

    def _were_left(self) -> bool:
        """Return whether the closure has made or changed gradients: it has called backward()."""
        if not self._versions:  # none was there
            return any(parameter.grad is not None for parameter in self._parameters)
        now = self._now()
        if all(map(is_, now, self._before)):  # mostly: the same tensors
            return versions_of([g for g in now if g is not None]) != self._versions
        version_before = iter(self._versions)
        before = [None if g is None else (id(g), next(version_before)) for g in self._before]
        return any(
            gradient is not None and (id(gradient), *versions_of([gradient])) != old
            for gradient, old in zip(now, before)
        )

    def _now(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self._parameters]


# -- closures, losses and gradients -----------------------------------------------------------


def check_loss(loss: Any, source: str) -> Tensor:
    """Return the loss; raise TypeError or ValueError where it isn't one real number in a tensor."""
    if not isinstance(loss, Tensor):
        hint = ""
        if loss is None:
            hint = (
                ": does it lack `return loss`? (A search needs it, in Lightning's manual "
                "optimization, too: give step() a closure there)"
            )
        raise TypeError(
            f"{source} must be the loss, a tensor of one element, got {type(loss).__name__}{hint}"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"{source} must be a loss of one element, got a tensor of shape {tuple(loss.shape)}: "
            "reduce it with .mean() or .sum()"
        )
    if not loss.is_floating_point():
        raise TypeError(f"{source} must be a real floating-point loss, got {loss.dtype}")
    return loss


def check_call(closure: Any, loss: Any, searching: bool) -> None:
    """Raise where ``step(closure, loss=loss)`` cannot be carried out, before anything changes."""
    if loss is not None:
        check_loss(loss, "loss")
    if closure is not None and not callable(closure):
        raise TypeError(
            f"closure must be callable and return the loss, got {type(closure).__name__}; a loss "
            "that is computed already goes into step(closure, loss=loss)"
        )
    if searching and closure is None:
        raise RuntimeError(
            "a search is due at this step and needs a closure that computes the loss: call "
            "step(closure); or, where a trainer calls step(), loss = optimizer.evaluate(closure) "
            "before loss.backward(), or what salsa_fused.integrations has for the trainer; or ask "
            "optimizer.search_due beforehand; or build the optimizer with search_period=None for "
            "no search"
        )
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "step() cannot be captured in a CUDA graph: a search decides on the host. Capture "
            "forward and backward only"
        )


def has_graph(loss: Any) -> bool:
    """Return whether it can be differentiated, or could be before its graph was freed."""
    return isinstance(loss, Tensor) and loss.requires_grad


def mark_gradients(parameters: Sequence[Tensor]) -> None:
    """Mark the gradients that a step leaves: others at the next step(closure) were accumulated."""
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


def _some_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    chosen = parameters[:: -(-len(parameters) // MARKED) or 1]
    return [gradient for parameter in chosen if (gradient := parameter.grad) is not None]


def _any_is_trained(parameters: Sequence[Tensor]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


# -- a scaled loss ----------------------------------------------------------------------------

# The search compares losses, and tests their decrease against the gradients' slope: both have to be
# of one scale, and that of torch.amp.GradScaler changes from step to step.

_scaler_class: Any = getattr(torch.amp, "GradScaler", object)  # where there is none, nothing scales

# Every `refused()` that lasts, by its id, and its thread. One that an interrupt kept from ending is
# known by its death; no finalizer of Python's, which would swallow what a signal's handler raises.
_refusing: dict[int, tuple[ReferenceType[refused], int]] = {}
_lock = threading.RLock()  # re-entrant: a signal's handler may take a step in the midst of it

_own_scale: Callable[..., Any] | None = None  # what was found on the class at last
_watched_scale: Callable[..., Any] | None = None  # and what was put in its place


class refused:  # no generator: that would take twice as long, in every step
    """While this lasts, a GradScaler that scales in this thread is an error with the recipe.

    ``scale`` is watched only then, in all threads, and is torch's own again after the last of them.
    """

    __slots__ = ("__weakref__",)

    def __enter__(self) -> None:
        with _lock:
            if _refusing:
                _forget_the_dead()
            if not _refusing:
                _begin_to_watch()
            _refusing[id(self)] = (ref(self), get_ident())

    def __exit__(self, *details: object) -> None:
        with _lock:
            _refusing.pop(id(self), None)
            if not _refusing:
                _end_watching()


def _forget_the_dead() -> None:
    for key in [key for key, (reference, _) in _refusing.items() if reference() is None]:
        del _refusing[key]


def _begin_to_watch() -> None:
    global _own_scale, _watched_scale
    found = vars(_scaler_class).get("scale")
    if found is None or found is _watched_scale:
        return
    if found is not _own_scale:  # mostly it is the one of the step before
        _own_scale, _watched_scale = found, _watched(found)
    _scaler_class.scale = _watched_scale


def _end_watching() -> None:
    # not where somebody has put another one over it in the meantime
    if _watched_scale is not None and vars(_scaler_class).get("scale") is _watched_scale:
        _scaler_class.scale = _own_scale


def _watched(scale: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(scale)
    def watched(self: Any, outputs: Any) -> Any:
        with _lock:
            _forget_the_dead()
            refuses = any(thread == get_ident() for _, thread in _refusing.values())
        if refuses and self.is_enabled():
            raise RuntimeError(conventions.UNSCALED)
        return scale(self, outputs)

    return watched
