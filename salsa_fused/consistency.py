"""Do trials evaluate the function whose gradient the search goes along?  Looked at twice a run.

On the first search, and once more after the first steps, when weights that began equal (a momentum
encoder's) have come apart.  Each finding is a warning that names likely causes, said once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from .evaluation import Evaluations
from .line_search import FLAT_ULPS, LineSearch
from .side_effects import SideEffects, called_modules
from .warning import first_of

ANOTHER_LOSS = 1.5  # a ratio of losses that no other dropout mask explains
SLOPE_STEP = 0.01  # of the accepted step size: there the loss is still as good as linear
LONGEST_SLOPE_STEP = 0.1
LINEAR = 0.1  # a difference between ratios at two step sizes
LARGEST_DECREASE = 0.01  # of the loss, in the smallest step that it resolves
RESOLVED = 1000  # rounding errors of the loss that the expected decrease has to exceed
SLOPE_RATIOS = (0.8, 1.25)  # observed to expected decrease; 0.95 to 1.0 where all is right

SILENCE = "check_replay=False silences this"


class Consistency:
    """The checks of one search; ``replayed`` and ``trained`` as for :class:`SideEffects`."""

    def __init__(
        self, calls: Evaluations, replayed: nn.Module | None, trained: Collection[int]
    ) -> None:
        self._calls = calls
        self._once = calls.habits.once
        self._replayed = replayed
        self._trained = trained
        self._effects: SideEffects | None = None

    # -- the same function --------------------------------------------------------------------

    def evaluate_again(self, loss: Tensor) -> bool:
        """Evaluate at the unmoved weights, and compare with the first evaluation.

        Where a trial without a graph gives another loss and one with a graph the first one's,
        trials have a graph from now on: some modules take other ways under ``no_grad``.

        Returns whether anything could be compared: it needs a finite loss.
        """
        calls = self._calls
        if not math.isfinite(first := loss.item()):
            return False
        tolerance = FLAT_ULPS * torch.finfo(loss.dtype).eps
        with called_modules() as modules:
            again = calls.trial()
        self._effects = SideEffects(modules, self._trained, self._replayed)
        expected = first if calls.knows_first else again
        if not calls.knows_first and not calls.with_graph:
            expected = calls.trial_with_graph()
        if not calls.with_graph and not _close(again, expected, tolerance):
            with_graph = calls.trial_with_graph()
            if _close(with_graph, expected, tolerance):
                calls.habits.needs_graph = True
                again = with_graph
        if calls.knows_first:
            calls.habits.losses_agree = _close(again, first, tolerance)
        else:
            calls.habits.losses_agree = 1.0 / ANOTHER_LOSS < _ratio(again, first) < ANOTHER_LOSS
        if not calls.habits.losses_agree:
            self._say_that_losses_differ(first, again)
        calls.habits.scale = max(calls.habits.scale, abs(first))
        return True

    def look_for_a_missing_graph(self, eps: float) -> None:
        """After a search without success: do trials evaluate another function without a graph?

        That may begin at any time, with ``model.eval()`` for example.
        """
        calls = self._calls
        without = calls.trial()
        with_graph = calls.trial_with_graph()
        tolerance = FLAT_ULPS * eps
        if not _close(without, with_graph, tolerance) and _close(without, calls.trial(), tolerance):
            calls.habits.needs_graph = True

    def _say_that_losses_differ(self, first: float, again: float) -> None:
        found = (
            f"the closure returned the loss {first:.9g}, and {again:.9g} when it was called "
            "again for the same weights and random numbers"
        )
        causes = (
            "draw the data (next(loader), augmentation) before the closure, not in it (nor in "
            "first_evaluation()), and leave no state in the model's attributes that the next call "
            "reads (only buffers are put back)"
        )
        if self._replayed is None:
            causes += ", and pass module=model if a forward changes buffers"
        if self._calls.given_loss:
            found = (
                f"`loss` is {first:.9g}, and the closure returns {again:.9g} for the same weights"
            )
            ratio = _ratio(again, first)
            if ratio > ANOTHER_LOSS or ratio < 1.0 / ANOTHER_LOSS:
                found += f", {ratio:.3g} times as much"
                causes = (
                    "is `loss` that of one micro-batch, and the closure's that of all? Both have "
                    "to be the same sum or mean over the same micro-batches, the one whose "
                    "gradients are there. Otherwise: " + causes
                )
        self._once.say(
            "losses",
            f"{found}. A line search compares losses of one mini-batch: {causes}. {SILENCE}.",
        )

    # -- side effects -------------------------------------------------------------------------

    def look_at_side_effects(self) -> None:
        """After a further evaluation: has it changed what the step does not put back?"""
        effects, self._effects = self._effects, None
        if effects is None:
            return
        buffers, parameters = effects.changed()
        if buffers:
            which = "another module of it" if self._replayed is not None else "the model"
            self._once.say(
                "buffers",
                f"a forward changes buffers ({first_of(buffers)}), and every trial of the line "
                f"search changes them once more: pass module=model to the constructor. (It was "
                f"found by looking at the modules that the closure called: module= has to "
                f"hold {which}; for several models nn.ModuleList([a, b]).) " + SILENCE,
            )
        if parameters:
            self._once.say(
                "parameters",
                f"a forward changes parameters that this optimizer does not train "
                f"({first_of(parameters)}; a momentum encoder?), and every trial of the line "
                "search changes them once more: update them after the step, or in the forward "
                "only `if not optimizer.in_trial`. " + SILENCE,
            )

    # -- the slope ----------------------------------------------------------------------------

    def compare_slope(
        self, search: LineSearch, eps: float, decrease_at: Callable[[float], float]
    ) -> bool:
        """Warn where the loss falls by another amount than the gradients promise.

        ``eps``: of the loss' dtype.  ``decrease_at``: moves the weights by a step size, and
        returns how much lower the loss is there.  Returns whether anything could be compared.
        """
        calls = self._calls
        if not (calls.knows_first and calls.habits.losses_agree):
            return False  # the gradients are of another function: of other dropout masks, for one
        ratio = self._observed_to_expected(search, eps, decrease_at)
        if ratio is None:
            return False
        low, high = SLOPE_RATIOS
        if not low <= ratio <= high:
            self._once.say("slope", _wrong_slope(ratio, too_small=ratio > high))
        return True

    def _observed_to_expected(
        self,
        search: LineSearch,
        eps: float,
        decrease_at: Callable[[float], float],
    ) -> float | None:
        """The ratio at a hundredth of the accepted step size, where the loss is nearly linear.

        Where the loss does not resolve so little, or nothing was accepted: at the smallest step
        that it resolves.  What is not as it should be is looked at twice, at half the step, too:
        a loss that is not linear there, or is mostly rounding, tells nothing.
        """
        # what is rounded is of the size of the loss at first, however small it is now
        smallest = RESOLVED * eps * max(abs(search.loss), self._calls.habits.scale)
        if not 0.0 < smallest <= LARGEST_DECREASE * abs(search.loss):
            return None

        def ratio_at(step_size: float) -> float:
            return decrease_at(step_size) / (step_size * search.slope)

        step_size = max(SLOPE_STEP * search.step_size, smallest / search.slope)
        if search.outcome != "accepted" or step_size > LONGEST_SLOPE_STEP * search.step_size:
            step_size = 2.0 * smallest / search.slope
        low, high = SLOPE_RATIOS
        whole = ratio_at(step_size)
        if low <= whole <= high:
            return whole
        half = ratio_at(0.5 * step_size)
        return half if abs(whole - half) <= LINEAR * max(1.0, abs(half)) else None


def _wrong_slope(ratio: float, *, too_small: bool) -> str:
    causes = (
        "gradients that were clipped before the step: give max_grad_norm= to the constructor, or "
        "call optimizer.clip_grad_norm_() in place of torch's; or a loss that is a sum over "
        "micro-batches or ranks, where the gradients are a mean"
        if too_small
        else "a model that is stale at trials (called outside of the closure, or with weights "
        "that were copied, cached or gathered before they moved); gradients that are not only "
        "this loss' (accumulated, summed over ranks); or a loss that is a mean where the "
        "gradients are a sum"
    )
    return (
        f"after a small step the loss fell by {ratio:.3g} times what the gradients promise: the "
        f"search tests a wrong slope, and the step size will be too "
        f"{'long' if too_small else 'short'}. Likely causes: {causes}; or gradients that are not "
        f"the loss' on purpose (straight-through, reversal, hooks). {SILENCE}."
    )


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * abs(b)


def _ratio(again: float, first: float) -> float:
    """How many times the loss was returned; 1 where losses have no ratio."""
    return again / first if first != 0.0 and math.isfinite(again) else 1.0
