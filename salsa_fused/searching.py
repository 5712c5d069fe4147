"""One search of the optimizer: the trials between the first evaluation and the final write."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from . import turns
from .consistency import Consistency
from .decided import Decided
from .evaluation import Evaluation
from .given_loss import Clipped
from .interrupts import Undo
from .line_search import LineSearch
from .measures import Measures
from .pending import Pending
from .trials import Trials
from .trouble import Trouble


class Searching(Measures):
    """What a step with a search does, and no other."""

    line_search_class: type[LineSearch]
    module: nn.Module | None
    check_replay: bool
    _in_trial: bool
    _replay_checks: int
    _slope_checks: int
    _pending: Pending
    _clipped: Clipped
    _trouble: Trouble

    def _search(self, f0: Tensor, evaluation: Evaluation, changes: list[Undo]) -> Decided:
        """Try step sizes until one is accepted; the weights are left at the last trial point."""
        groups, kernels, first = self.param_groups, self._kernels, self.param_groups[0]
        search = turns.begin(groups, self.line_search_class)
        trials = Trials(evaluation, self._ranks, self.module)
        changes.append(trials.end)
        trials.begin()
        self._in_trial = True
        consistency = Consistency(trials, self.module, first["steps"])
        if self.check_replay and consistency.is_due(self._replay_checks):
            self._replay_checks += consistency.evaluate_again(f0)
        look, first_move = [], 0.0
        if turns.looks_back(first):
            if first["window_begin"] > 0:
                look = self._look()
            elif first["first_move"] == 0.0:
                first_move = self._first_move()
        changes.append(kernels.restore)
        slopes = kernels.first_trial(groups, search.first_trial(), search.unit)
        loss, parts, looks, skips = self._pending.read(f0, slopes, look, self._clipped.factor)
        slope = self._slope_of(parts)
        search.add_skipped(skips)
        eps = torch.finfo(f0.dtype).eps
        search.start_from(evaluation.sign * loss, slope, eps)
        while search.trying:
            trial_loss = trials.loss()
            search.report(trial_loss)
            if search.is_the_first_loss(trial_loss) and self._stands_still():
                search.unchanged += 1
            consistency.look_at_side_effects()
            if search.trying:
                kernels.next_trial(groups, search.step_size)
        if self._trouble.goes_on(search):
            consistency.look_for_a_missing_graph(eps)
        if search.trials > 0 and self.check_replay and consistency.is_due(self._slope_checks):
            move_by = partial(kernels.next_trial, groups)
            self._slope_checks += consistency.compare_slope(search, eps, move_by)
        self._ranks.end()
        trials.end()
        self._in_trial = False
        window = turns.window_after(groups, search, looks, first_move)
        return Decided(search.skipped, search, window)

    def _stands_still(self) -> bool:
        """Return whether the trial has changed no weight, on any rank."""
        still = self._kernels.stands_still()
        if self._ranks.several:
            (share,) = self._ranks.mean("a trial", float(still))
            still = share == 1.0
        return still
