"""Each rule of the algorithm, broken once: the trajectory test must notice.

Every class below differs from the real one in a single rule.  `follow` compares it with the
independent reference; it passes for the classes as they are and has to fail for each of these.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from follow_reference import follow, follow_each
from noisy_problem import NoisyProblem

from salsa_fused import FusedSaLSa, settings, turns
from salsa_fused.kernels import Kernels
from salsa_fused.line_search import LineSearch
from salsa_fused.turns import plain_step

pytestmark = pytest.mark.slow

STEPS = 120


# -- of the search ----------------------------------------------------------------------------


class WrongSign(LineSearch):
    def decrease_at(self, trial_loss):
        return self.smoothed(self.state.smoothed_decrease, trial_loss - self.loss)


class DecreaseNotSmoothed(LineSearch):
    def decrease_at(self, trial_loss):
        return self.loss - trial_loss


class SlopeNotSmoothed(LineSearch):
    def start_from(self, loss, slope, eps):
        super().start_from(loss, slope, eps)
        self._smoothed_slope = slope


class DecreaseUpdatedOnRejection(LineSearch):
    def report(self, trial_loss):
        before = self.rejections
        decrease = self.decrease_at(trial_loss)
        super().report(trial_loss)
        if self.rejections > before and self.trying:
            self.state = self.state._replace(smoothed_decrease=decrease)


class NoGrowth(LineSearch):
    def first_step_size(self):
        return self.state.step_size


class FlatKeepsTheGrowth(LineSearch):
    def _end_flat(self):
        tried = self.step_size
        super()._end_flat()
        self._after = self._after._replace(step_size=tried)


class FlatIsJudgedLikeAnyOther(LineSearch):
    def is_flat(self, trial_loss):
        return False


def exhausted(change):
    """A search whose state after an exhausted one is changed: `change(search, after)`."""

    def _exhaust(self):
        super(type(self), self)._exhaust()
        if self.state.accepted_once:
            self._after = self._after._replace(**change(self, self._after))

    return _exhaust


class ExhaustedTakesTheStep(LineSearch):
    def _exhaust(self):
        super()._exhaust()
        self.skipped = not self.state.accepted_once


class ExhaustedHalvesTheStepSize(LineSearch):
    _exhaust = exhausted(lambda search, after: {"step_size": search.state.step_size / 2})


class ExhaustedKeepsTheSmallestTried(LineSearch):
    _exhaust = exhausted(lambda search, after: {"step_size": search.smallest_tried})


class ExhaustedWithoutAFloor(LineSearch):
    _exhaust = exhausted(
        lambda search, after: {"step_size": search.smallest_tried * search.shrink_factor()}
    )


class ExhaustedSmoothesTheSlope(LineSearch):
    _exhaust = exhausted(lambda search, after: {"smoothed_slope": search._smoothed_slope})


class ExhaustedSmoothesTheDecrease(LineSearch):
    _exhaust = exhausted(
        lambda search, after: {"smoothed_decrease": 0.99 * search.state.smoothed_decrease}
    )


class ExhaustedShortensThePeriod(LineSearch):
    _exhaust = exhausted(lambda search, after: {"period": 1})


class ExhaustedWaitsForTheNextPeriod(LineSearch):
    _exhaust = exhausted(lambda search, after: {"steps_since_search": 0})


class TheFloorIsTheFirstAccepted(LineSearch):
    def _accept(self, step_size, decrease, rejections):
        super()._accept(step_size, decrease, rejections)
        if self.state.accepted_once:
            first = self.state.accepted_step_size
            self._after = self._after._replace(accepted_step_size=first)


class TenFlatSearchesDoNotLocate(LineSearch):
    def _end_flat(self):
        super()._end_flat()
        self._after = self._after._replace(flat_searches=0)


class ElevenFlatSearchesLocate(LineSearch):
    @property
    def locating(self):
        return not self.state.located or self.state.flat_searches > 10


class FlatSearchesCountAcrossAccepted(LineSearch):
    def _accept(self, step_size, decrease, rejections):
        super()._accept(step_size, decrease, rejections)
        self._after = self._after._replace(flat_searches=self.state.flat_searches)


class ExhaustedDoesNotLocateAgain(LineSearch):
    def _exhaust(self):
        super()._exhaust()
        self._after = self._after._replace(located=True)


class NoDoubling(LineSearch):
    _climbing = False


class LocatesWithTheOrdinaryFactor(LineSearch):
    def shrink_factor(self):
        return self.settings.backtrack


class PeriodIgnoresRejections(LineSearch):
    def next_period(self, step_size, rejections):
        return super().next_period(step_size, 0)


class AcceptsOnEqualTermsWithTheUngrownStep(LineSearch):
    def is_sufficient(self, trial_loss):
        required = self.settings.c * self.state.step_size * self._smoothed_slope
        return self.decrease_at(trial_loss) >= required


BROKEN_SEARCHES = [cls for cls in LineSearch.__subclasses__() if cls.__module__ == __name__]


# -- of the optimizer and the kernels' arguments ----------------------------------------------


class KeepsTheTrialAsTheFinalWeights(Kernels):
    def final_write(self, groups, step_size, skip=None):
        (bucket,) = self.buckets
        trial = [weight.clone() for weight in bucket.weights]
        searched = bucket.moved
        super().final_write(groups, step_size, skip)
        if searched:
            for weight, at_trial in zip(bucket.weights, trial):
                weight.copy_(at_trial)


class StepsFromTheTrialPoint(Kernels):
    def final_write(self, groups, step_size, skip=None):
        for bucket in self.buckets:
            bucket.saved = None
        super().final_write(groups, step_size, skip)


class BiasCorrectionOneStepAhead(Kernels):
    def _set_scalars(self, groups, step_size, *, trial):
        for bucket in self.buckets:
            bucket.scalar_keys = [(group, t + 1) for group, t in bucket.scalar_keys]
        super()._set_scalars(groups, step_size, trial=trial)


class MomentumInTheTrials(Kernels):
    """beta1 stays 0.9 in the direction that is tried."""

    def first_trial(self, groups, step_size, unit=None):
        for bucket in self.buckets:
            bucket.gradients = [
                None if g is None else g * 0.1 + 0.9 * m
                for g, m in zip(bucket.gradients, bucket.beside.moments[1])
            ]
        return super().first_trial(groups, step_size, unit)


class TriesTheAbsoluteFactor(Kernels):
    def _set_scalars(self, groups, step_size, *, trial):
        super()._set_scalars(groups, step_size, trial=trial)
        for bucket in self.buckets:
            for k, (group, _) in enumerate(bucket.scalar_keys):
                bucket.scalars[k] = bucket.scalars[k]._replace(
                    size=step_size * groups[group]["lr"] * 0.5
                )


class SlopeWithoutTheFactor(Kernels):
    def _set_scalars(self, groups, step_size, *, trial):
        super()._set_scalars(groups, step_size, trial=trial)
        for bucket in self.buckets:
            bucket.scalars = [c._replace(slope_scale=1.0) for c in bucket.scalars]


class NoWeightDecay(Kernels):
    def _set_scalars(self, groups, step_size, *, trial):
        super()._set_scalars(groups, step_size, trial=trial)
        for bucket in self.buckets:
            bucket.scalars = [c._replace(weight_decay=0.0) for c in bucket.scalars]


class MomentsUpdatedByTrials(Kernels):
    def next_trial(self, groups, step_size):
        super().next_trial(groups, step_size)
        for bucket in self.buckets:
            for exp_avg_sq in bucket.beside.moments[0]:
                exp_avg_sq.mul_(0.999)


BROKEN_KERNELS = [cls for cls in Kernels.__subclasses__() if cls.__module__ == __name__]


def nothing():
    """Put nothing back."""


class NoReplay(FusedSaLSa):
    def _evaluate(self, *arguments):
        f0, evaluation = super()._evaluate(*arguments)
        evaluation.replay = SimpleNamespace(knows_first=False, rewind=nothing, resume=nothing)
        return f0, evaluation


class NoMomentum(FusedSaLSa):
    def _search(self, *arguments):
        search = super()._search(*arguments)
        for group in self.param_groups:
            group["betas"] = (0.0, group["betas"][1])
        return search


BROKEN_OPTIMIZERS = [NoReplay, NoMomentum]


def with_search(search_class):
    return type(f"With{search_class.__name__}", (FusedSaLSa,), {"line_search_class": search_class})


def with_kernels(kernels_class):
    return type(f"With{kernels_class.__name__}", (FusedSaLSa,), {"kernels_class": kernels_class})


class SameSearch(LineSearch):
    pass


class Same(Kernels):
    pass


@pytest.mark.parametrize("unbroken", [FusedSaLSa, with_search(SameSearch), with_kernels(Same)])
def test_the_real_ones_follow(unbroken):
    follow(NoisyProblem(), unbroken, steps=STEPS)


@pytest.mark.parametrize(
    "broken",
    [
        *map(with_search, BROKEN_SEARCHES),
        *map(with_kernels, BROKEN_KERNELS),
        *BROKEN_OPTIMIZERS,
    ],
    ids=lambda cls: cls.__name__,
)
def test_a_broken_rule_is_noticed(broken):
    problems = [NoisyProblem(long_flat=n) for n in (0, 10)]  # flat steps hide the warm start
    with pytest.raises(AssertionError, match=r"^step "):
        follow_each(problems, broken, steps=STEPS)


def grown(group):
    return {**plain_step(group), "step_size": group["step_size"] * group["growth"]}


BROKEN_TURNS = {
    "growth on plain steps": ("plain_step", grown),
    "no warm start": ("due", lambda group, waited: waited + 1 >= group["period"]),
    "period counted from the next step": (
        "due",
        lambda group, waited: group["steps"] < 10 or waited >= group["period"],
    ),
}


@pytest.mark.parametrize("rule", BROKEN_TURNS)
def test_a_broken_rule_of_steps_without_a_search_is_noticed(rule, monkeypatch):
    monkeypatch.setattr(turns, *BROKEN_TURNS[rule])
    problems = [NoisyProblem(long_flat=n) for n in (0, 10)]
    with pytest.raises(AssertionError, match=r"^step "):
        follow_each(problems, steps=STEPS)


class SlowMeanAsFastAsTheOther(LineSearch):
    def moved_means(self, step_size):
        fast, _ = super().moved_means(step_size)
        return fast, 0.95 * self.state.slow_mean + 0.05 * step_size


class GrowthPerSearchInsteadOfStep(LineSearch):
    def first_step_size(self):
        return self.state.step_size * self.settings.growth


@pytest.mark.parametrize("broken", [SlowMeanAsFastAsTheOther, GrowthPerSearchInsteadOfStep])
def test_a_broken_rule_of_the_paper_is_noticed(broken):
    with pytest.raises(AssertionError, match=r"^step "):
        follow(NoisyProblem(), with_search(broken), steps=STEPS, **settings.PAPER)


def test_the_noise_depends_on_the_replay():
    """Otherwise NoReplay would prove nothing."""
    problem = NoisyProblem()
    weights = [torch.tensor(w) for w in problem.start]
    first, second = (problem.loss(weights, 0).item() for _ in range(2))
    assert first != second
