"""Say what keeps training from working, each thing once for every optimizer.

An optimizer that skips steps, or searches and learns nothing, looks like one that trains slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._torch import local_of
from .kernels.parameters import parameter_label
from .line_search import LineSearch
from .warning import Once, first_of, warn

Groups = Sequence[Mapping[str, Any]]

LOWEST_PLAUSIBLE_LR = 0.05  # below it, `lr` was probably meant as a learning rate
IN_A_ROW = 10  # steps or searches without success: no accident any more
LONGEST_WARM_UP = 10_000  # steps in which a warm-up would come to a plausible factor
CONSTANT = 3  # steps after which a factor that does not rise is no warm-up
LONGEST_EPOCH = 200  # the same where a scheduler may step once an epoch

FLAT = (
    f"{IN_A_ROW} searches in a row have found no difference between losses, though the gradients "
    "are not 0: trials do not reach the loss. Likely causes: the model is called outside of the "
    "closure (call it inside); the closure, or a buffer that shares a weight's memory, puts "
    "weights back; the loss is too coarse (bf16, fp16, or a large constant in fp32: return it in "
    "fp32, without the constant), or 16-bit weights are (metrics()['unchanged_trials'] counts the "
    "trials that changed none); or training has converged to the loss' last digit"
)

NO_SLOPE = (
    f"the gradients were exactly 0 in {IN_A_ROW} searches in a row: nothing is trained. Likely "
    "causes: the closure, or a hook, zeroes the gradients after backward(); the model is "
    "saturated or dead (a first step that was too long: warm up lr over the first 30 steps); the "
    "loss does not depend on the weights any more; or it is at its minimum"
)

RISING = (
    f"{IN_A_ROW} searches in a row have accepted a step that raised its own batch's loss: what "
    "earlier searches gained pays for it. Likely causes: gradients that point uphill (a sign, a "
    "reversal, a loss that is not the one that is differentiated), trials that are another "
    "function than the gradients' (see check_replay), or training that has converged"
)

NO_GRADIENT = (
    "the loss that the closure returned has a graph, but none of this optimizer's parameters got "
    "a gradient: nothing is trained. Is it the loss of another model, or were the model's "
    "parameters replaced after the optimizer was built (load_state_dict(assign=True), "
    "fully_shard, .to() of a module with swapped tensors)? Build the optimizer after that"
)

NOT_REPEATED = (
    "trials did not repeat the evaluation of `loss`: put `with optimizer.first_evaluation():` "
    "around it, and pass the loss of all micro-batches"
)

NO_FACTOR = (
    "stands in the parameter groups, written there by a scheduler or by the training loop. It is a "
    "factor on the step size that the search finds, 1 by default, and not a learning rate: nearly "
    "nothing is applied. Divide the schedule by its peak: "
    "salsa_fused.schedules.as_factor(scheduler), or "
    'group["lr"] = learning_rate / peak_learning_rate (max_lr=1.0 for OneCycleLR)'
)


class Trouble:
    """Counts of what did not work lately, and which warnings were given."""

    def __init__(self, once: Once) -> None:
        self._once = once
        self.skipped = self.flat = self.without_slope = self.rising = 0  # in a row
        self._small_lr = 0  # steps with one
        self._last_lr = 0.0
        self._lr_did_not_rise = 0
        self.lr_is_plausible = False  # it was, once
        self.loaded_a_small_lr = False

    def beyond_horizon(self, group: Mapping[str, Any]) -> None:
        """Warn that ``total_steps`` was too small: what follows hardly trains."""
        self._once.say(
            "horizon",
            f"step {group['steps']} is beyond total_steps={group['total_steps']}: steps stay as "
            "short as the last one of these, and hardly train. Give the number of optimizer steps "
            'of the whole run, or None; group["total_steps"] = N for every group changes it',
        )

    def goes_on(self, search: LineSearch) -> bool:
        """Return whether trials are, once more, not what the gradients promise."""
        if search.outcome == "exhausted":
            return self.skipped >= 1
        return search.accepted_a_rise and self.rising >= 2

    # -- steps --------------------------------------------------------------------------------

    def step_skipped(self, groups: Groups, loss: float, *, times: int = 1) -> None:
        """Note a step that was skipped, or several; warn where that does not end."""
        self.without_slope = self.flat = self.rising = 0
        self.skipped += times
        if self.skipped >= IN_A_ROW:
            self._once.say("skipped", _why_skipped(groups, loss, self.skipped))

    def searched(self, groups: Groups, search: LineSearch, *, replayed: bool) -> None:
        """Note a search that has ended; ``replayed``: trials had the dropout masks of the loss."""
        if search.gave_up:
            cause = "is the closure a function of the weights alone?" if replayed else NOT_REPEATED
            self._once.say(
                "gave up",
                f"no step size down to {search.smallest_tried:.1e} lowered the loss, and the step "
                f"was skipped: {cause}",
            )
        if search.outcome == "flat":
            if search.slope == 0.0:
                self.without_slope += 1
            else:
                self.without_slope, self.flat = 0, self.flat + 1
        else:
            self.without_slope = self.flat = 0
        self.rising = self.rising + 1 if search.accepted_a_rise else 0
        if self.rising >= IN_A_ROW:
            self._once.say("rising", RISING)
        if self.flat >= IN_A_ROW:
            self._once.say("flat", FLAT)
        if self.without_slope >= IN_A_ROW:
            self._once.say("no slope", NO_SLOPE)
        if search.skipped:
            self.step_skipped(groups, search.loss, times=1 + search.skipped_before)
        else:
            self.skipped = 0

    # -- learning rates -----------------------------------------------------------------------

    def look_at_first_lr(self, groups: Groups) -> None:
        """Warn of ``lr=1e-3`` at construction, which everybody swaps in at first."""
        largest = largest_lr(groups)
        if largest < LOWEST_PLAUSIBLE_LR and groups[0]["search_period"] is not None:
            warn(
                f"lr={largest:g} is a factor on the step size that the search finds, not a "
                "learning rate: pass lr=1.0 (the default). Schedulers and warm-ups scale it, and "
                "salsa_fused.schedules.as_factor makes factors of a schedule of learning rates"
            )
            self.lr_is_plausible = True  # said; not once more in a step

    def look_at_lr(self, groups: Groups) -> None:
        """Notice a learning rate that was written where a factor belongs, after construction.

        A warm-up begins small, too, but it rises, and comes to a plausible factor in time.
        """
        largest = largest_lr(groups)
        peaks = [float(group["max_lr"]) for group in groups if "max_lr" in group]
        if (
            max([largest, *peaks]) >= LOWEST_PLAUSIBLE_LR
            or groups[0]["search_period"] is None
            or (self._small_lr == 0 and self.loaded_a_small_lr)  # at the end of its schedule
        ):
            self.lr_is_plausible = True
        elif largest > 0.0:
            self._small_lr += 1
            rise = largest - self._last_lr
            self._lr_did_not_rise = 0 if rise > 0.0 else self._lr_did_not_rise + 1
            # OneCycleLR and CyclicLR say where they go to; other schedulers of torch begin with
            # the constructor's lr, and may step once an epoch
            scheduled = not peaks and any("initial_lr" in group for group in groups)
            patience = LONGEST_EPOCH if scheduled else CONSTANT
            missing = LOWEST_PLAUSIBLE_LR - largest
            never = self._small_lr >= IN_A_ROW and 0.0 < rise * LONGEST_WARM_UP < missing
            if peaks or never or self._lr_did_not_rise >= patience:
                self.lr_is_plausible = True  # do not look again
                self._once.say("lr", f"lr={largest:g} {NO_FACTOR}")
        self._last_lr = largest


def largest_lr(groups: Groups) -> float:
    """Return the largest factor of all groups."""
    return max([float(group["lr"]) for group in groups])


def _why_skipped(groups: Groups, loss: float, times: int) -> str:
    """Say why steps are skipped again and again, as far as it can be seen."""
    found = f"{times} steps in a row were skipped, and nothing was trained: "
    lost = _labels_of_not_finite(groups, lambda parameter: parameter)
    if lost:
        return found + (
            f"{lost} is not finite any more. Load the last good checkpoint, and warm up lr, lower "
            "it or lower weight_decay"
        )
    if not math.isfinite(loss):
        return found + (
            f"the loss is {loss}, though all weights are finite. Do the inputs hold NaN, or has "
            "the model left the domain of a log, a root or a division? Then no later step can "
            "come back: load an earlier checkpoint, and lower lr or bound that function's input"
        )
    lost = _labels_of_not_finite(groups, lambda parameter: parameter.grad)
    if lost:
        return found + f"the loss is finite, but the gradient of {lost} is not"
    return found + (
        "the loss fell at no step size that was tried. Is the closure a function of the weights "
        "alone, and are the gradients its loss' (see check_replay)?"
    )


def _labels_of_not_finite(groups: Groups, of: Callable[[Tensor], Any]) -> str:
    found = []
    for group in groups:
        for index, parameter in enumerate(group["params"]):
            tensor = local_of(of(parameter)) if parameter.requires_grad else None
            if tensor is None or tensor.layout != torch.strided:
                continue
            if not torch.isfinite(tensor).all():
                found.append(parameter_label(group, index))
    return first_of(found)
