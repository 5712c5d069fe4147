"""Checks that trials evaluate the function whose gradient the search goes along, twice in a run.

They run on the first search, and once more after the first steps, when weights that began equal (a
momentum encoder's) have come apart.  Each finding is a warning that names likely causes, once.

A trial runs the forward again, so whatever it counts or averages on the way is counted once more:
BatchNorm's running statistics, a momentum encoder, a codebook.  ``module=`` replays buffers; the
rest the user has to know of.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ._torch import versions_of
from .kernels.storage import HALVES
from .line_search import FLAT_ULPS, LineSearch
from .look_back import FIRST_STEPS
from .loss_parts import autocasts_now
from .trials import Trials
from .warning import first_of
from .wrappers import broadcasts_buffers

ANOTHER_LOSS = 1.5  # a ratio of losses that no other dropout mask explains
SLOPE_STEP = 0.01  # of the accepted step size: there the loss is still as good as linear
LONGEST_SLOPE_STEP = 0.1
LINEAR = 0.1  # a difference between ratios at two step sizes
LARGEST_DECREASE = 0.01  # of the loss, in the smallest step that it resolves
RESOLVED = 1000  # rounding errors of the loss that the expected decrease has to exceed
EXACT = (torch.float32, torch.float64)  # others lose small steps in the weights' rounding
SLIGHT, SAME_RATIO = 0.8, 0.02  # a ratio that is little off, and how well it has to be known
SLOPE_RATIOS = (0.95, 1.25)  # observed to expected decrease; 0.99 to 1.0 where all is right
ROUNDED_RATIOS = (0.4, 2.5)  # where a forward rounds weights to 16 bits; 0.59 to 1.49 was seen

SILENCE = "check_replay=False silences this"

COARSE_LOSS = (
    "the loss is {dtype}, whose numbers are {share:.2g} % apart: most searches will find no "
    "difference between losses, and keep the step size. Return it in fp32, "
    "loss_function(outputs.float(), targets), or load the model in fp32 and use autocast. "
    f"{SILENCE}."
)

WRAPPER = (
    "the closure calls a DistributedDataParallel, and module= is not it but a module inside: its "
    "ranks' buffers would come apart between steps. Pass module=, or set optimizer.module to, the "
    f"model that the closure calls. {SILENCE}."
)


class Called:
    """The modules whose forward ran, and whether one of them computed in 16 bits."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.in_16_bits = False

    def note(self, module: nn.Module, arguments: Any) -> None:
        """Note a forward; under autocast, or given 16-bit tensors, it computes in 16 bits."""
        self.modules.append(module)
        self.in_16_bits = (
            self.in_16_bits
            or any(enabled for _, _, enabled, _ in autocasts_now())
            or any(isinstance(each, Tensor) and each.dtype in HALVES for each in arguments)
        )


@contextmanager
def called_modules() -> Iterator[Called]:
    """Find the modules whose forward runs inside: hooks on all modules tell, and are removed."""
    found = Called()
    handle = register_module_forward_pre_hook(found.note)
    try:
        with warnings.catch_warnings():  # torch tells users of such hooks; these are ours
            warnings.filterwarnings("ignore", "Using `torch.compile")
            yield found
    finally:
        handle.remove()


class SideEffects:
    """``SideEffects(modules, ...)`` between two evaluations; afterwards what the second changed.

    ``trained``: ids of the tensors that the optimizer moves.  ``replayed``: the module whose
    buffers are put back, if there is one.
    """

    def __init__(
        self, modules: list[nn.Module], trained: Collection[int], replayed: nn.Module | None
    ) -> None:
        known = {*trained}
        if replayed is not None:
            known |= {id(buffer) for buffer in replayed.buffers()}
        owners = {id(owner): owner for module in modules for owner in module.modules()}
        self._seen: list[tuple[str, bool, Tensor, list[int]]] = []
        for owner in owners.values():
            for is_buffer, tensors in ((True, owner._buffers), (False, owner._parameters)):
                for name, tensor in tensors.items():
                    if tensor is not None and id(tensor) not in known:
                        known.add(id(tensor))
                        label = f"{name!r} of {type(owner).__name__}"
                        self._seen.append((label, is_buffer, tensor, versions_of([tensor])))

    def changed(self) -> tuple[list[str], list[str]]:
        """Name the buffers, and the parameters, that were written to since."""
        names: dict[bool, list[str]] = {True: [], False: []}
        for label, is_buffer, tensor, version in self._seen:
            if versions_of([tensor]) != version:
                names[is_buffer].append(label)
        return names[True], names[False]


class Consistency:
    """The checks of one search, after so many steps.

    ``replayed``: the module whose buffers are put back, if there is one.
    """

    def __init__(self, trials: Trials, replayed: nn.Module | None, steps: int) -> None:
        self._trials = trials
        self._habits = trials.habits
        self._parameters = trials.evaluation.parameters
        self._replayed = replayed
        self._warm = steps >= FIRST_STEPS
        self._effects: SideEffects | None = None

    def is_due(self, made: int) -> bool:
        """Return whether to check: on the first search, and once more after the first steps."""
        return made < 1 + self._warm

    # -- the same function --------------------------------------------------------------------

    def evaluate_again(self, loss: Tensor) -> bool:
        """Evaluate at the unmoved weights, and compare with the first evaluation.

        Where a trial without a graph gives another loss and one with a graph the first one's,
        trials have a graph from now on: some modules take other ways under ``no_grad``.

        Returns:
            Whether anything could be compared: it needs a finite loss.
        """
        trials, habits = self._trials, self._habits
        sign = trials.evaluation.sign
        first = sign * loss.item()
        if not math.isfinite(first):
            return False
        eps = torch.finfo(loss.dtype).eps
        tolerance = FLAT_ULPS * eps
        if loss.dtype in HALVES:
            self._habits.once.say("coarse", COARSE_LOSS.format(dtype=loss.dtype, share=100.0 * eps))
        with called_modules() as called:
            again = trials.loss()
        habits.in_16_bits = habits.in_16_bits or called.in_16_bits
        self._look_at_wrapper(called.modules)
        trained = set(map(id, self._parameters))
        self._effects = SideEffects(called.modules, trained, self._replayed)
        expected = first if trials.repeat_first else again
        if not trials.repeat_first and not trials.with_graph:
            expected = trials.loss_with_graph()
        if not trials.with_graph and not _close(again, expected, tolerance):
            with_graph = trials.loss_with_graph()
            if _close(with_graph, expected, tolerance):
                habits.needs_graph = True
                again = with_graph
        if trials.repeat_first:
            habits.losses_agree = _close(again, first, tolerance)
        else:
            habits.losses_agree = 1.0 / ANOTHER_LOSS < _ratio(again, first) < ANOTHER_LOSS
        if not habits.losses_agree:
            self._say_that_losses_differ(sign * first, sign * again)  # as the closure returned them
        habits.scale = max(habits.scale, abs(first))
        return True

    def look_for_a_missing_graph(self, eps: float) -> None:
        """Find out, after a search without success, whether trials need a graph from now on.

        That may begin at any time, with ``model.eval()`` for example.
        """
        if self._trials.with_graph:
            return
        without = self._trials.loss()
        with_graph = self._trials.loss_with_graph()
        tolerance = FLAT_ULPS * eps
        if not _close(without, with_graph, tolerance):
            self._habits.needs_graph = _close(without, self._trials.loss(), tolerance)

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
        if not self._trials.evaluation.called:
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
        self._habits.once.say(
            "losses",
            f"{found}. A line search compares losses of one mini-batch: {causes}. {SILENCE}.",
        )

    def _look_at_wrapper(self, modules: Sequence[nn.Module]) -> None:
        """Warn where DDP is called around the module whose buffers are put back."""
        if self._replayed is None:
            return
        known = set(map(id, self._replayed.modules()))
        if any(broadcasts_buffers(each) for each in modules if id(each) not in known):
            self._habits.once.say("wrapper", WRAPPER)

    # -- side effects -------------------------------------------------------------------------

    def look_at_side_effects(self) -> None:
        """Warn where a further evaluation has changed what the step does not put back."""
        effects, self._effects = self._effects, None
        if effects is None:
            return
        buffers, parameters = effects.changed()
        if buffers:
            which = "another module of it" if self._replayed is not None else "the model"
            self._habits.once.say(
                "buffers",
                f"a forward changes buffers ({first_of(buffers)}), and every trial of the line "
                f"search changes them once more: pass module=model to the constructor. (It was "
                f"found by looking at the modules that the closure called: module= has to "
                f"hold {which}; for several models nn.ModuleList([a, b]).) " + SILENCE,
            )
        if parameters:
            self._habits.once.say(
                "parameters",
                f"a forward changes parameters that this optimizer does not train "
                f"({first_of(parameters)}; a momentum encoder?), and every trial of the line "
                "search changes them once more: update them after the step, or in the forward "
                "only `if not optimizer.in_trial`. " + SILENCE,
            )

    # -- the slope ----------------------------------------------------------------------------

    def compare_slope(
        self, search: LineSearch, eps: float, move_by: Callable[[float], object]
    ) -> bool:
        """Warn where the loss falls by another amount than the gradients promise.

        ``move_by`` moves the weights to a trial with a step size.

        Returns:
            Whether anything could be compared.
        """
        if not (self._trials.repeat_first and self._habits.losses_agree):
            return False  # the gradients are of another function: of other dropout masks, for one
        trained = [p for p in self._parameters if p.requires_grad and p.numel() > 0]
        if any(parameter.dtype not in EXACT for parameter in trained):
            return False

        def ratio_at(step_size: float) -> float:
            move_by(step_size)
            return (search.loss - self._trials.loss()) / (step_size * search.slope)

        ratio = self._observed_to_expected(search, eps, ratio_at)
        if ratio is None:
            return False
        low, high = self._slope_ratios
        if not low <= ratio <= high:
            self._habits.once.say("slope", _wrong_slope(ratio, too_small=ratio > high))
        return True

    @property
    def _slope_ratios(self) -> tuple[float, float]:
        return ROUNDED_RATIOS if self._habits.in_16_bits else SLOPE_RATIOS

    def _observed_to_expected(
        self, search: LineSearch, eps: float, ratio_at: Callable[[float], float]
    ) -> float | None:
        """Return the ratio at a hundredth of the step size, where the loss is almost linear.

        Where the loss does not resolve so little, or nothing was accepted: at the smallest step
        that it resolves.  What is not as it should be is looked at twice, at half the step, too:
        both tell what it would be at no step at all.  A loss that is not linear there, or is mostly
        rounding, tells nothing.
        """
        # what is rounded is of the size of the loss at first, however small it is now
        smallest = RESOLVED * eps * max(abs(search.loss), self._habits.scale)
        if not 0.0 < smallest <= LARGEST_DECREASE * abs(search.loss):
            return None
        step_size = max(SLOPE_STEP * search.step_size, smallest / search.slope)
        if search.outcome != "accepted" or step_size > LONGEST_SLOPE_STEP * search.step_size:
            step_size = 2.0 * smallest / search.slope
        low, high = self._slope_ratios
        whole = ratio_at(step_size)
        if low <= whole <= high:
            return whole
        half = ratio_at(0.5 * step_size)
        if abs(whole - half) > LINEAR * max(1.0, abs(half)):
            return None
        found = 2.0 * half - whole
        if not SLIGHT <= found <= high:
            return found
        finer = 2.0 * ratio_at(0.25 * step_size) - half  # little is wrong: the curve may be it
        return finer if abs(finer - found) <= SAME_RATIO else None


def _wrong_slope(ratio: float, *, too_small: bool) -> str:
    causes = (
        "gradients that were clipped before the step: give max_grad_norm= to the constructor, or "
        "call optimizer.clip_grad_norm_() in place of torch's; or a loss that is a sum over "
        "micro-batches or ranks, where the gradients are a mean"
        if too_small
        else "a model that is stale at trials (called outside of the closure, or with weights "
        "that were copied, cached or gathered before they moved); gradients that are not only "
        "this loss' (accumulated, summed over ranks); or a loss that is a mean where the "
        "gradients are a sum (over ranks: loss_reduction='sum')"
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
    """Return the ratio of two losses; 1 where they have none."""
    return again / first if first != 0.0 and math.isfinite(again) else 1.0
