"""SaLSa's line search in plain numbers: losses and a slope in, step sizes and a decision out.

The method is that of "No learning rates needed: Introducing SALSA - Stable Armijo Line Search
Adaptation" (arXiv 2407.20650).  With the loss ``f0`` at the weights ``w``, the loss ``f1`` at
``w + eta d`` and ``slope = -<g, d>``, a step size ``eta`` is accepted when

    h' >= c eta s'      h' = beta3 h + (1 - beta3) (f0 - f1)      s' = beta3 s + (1 - beta3) slope

that is, Armijo's sufficient decrease with both sides smoothed over the searches before.

=============  ==========================================================================
``eta``        :attr:`SearchState.step_size`
``h``, ``s``   :attr:`SearchState.smoothed_decrease`, :attr:`SearchState.smoothed_slope`
``L``          :attr:`SearchState.period`
``c``          :attr:`SearchSettings.c`, the sufficient-decrease constant
``beta3``      :attr:`SearchSettings.beta3`
``delta``      :attr:`SearchSettings.backtrack`
``gamma``      :attr:`SearchSettings.growth`
=============  ==========================================================================

What is applied may follow more than the last search: see :mod:`salsa_fused.look_back`.

Nothing here knows of tensors, models or optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .search_settings import SearchSettings

Outcome = Literal["accepted", "flat", "exhausted", "non_finite"]

FIRST_REJECTIONS = 100  # allowed until a search has been accepted once
MAX_DOUBLINGS = 60  # enough to climb back from the smallest step size that is kept
FLAT_ULPS = 8  # a difference of so many rounding errors of the loss teaches nothing
FLATS_TO_LOCATE = 10  # flat searches in a row, after which the order of magnitude is looked for
SMALLEST_KEPT = 1e-12  # of the last accepted step size, after an exhausted search
LARGEST_GROWTH = 2.0**MAX_DOUBLINGS  # between two searches
LARGEST_STEP_SIZE = 1e38  # about the largest number of fp32


class SearchState(NamedTuple):
    """What the search remembers from step to step: plain numbers, fit for a checkpoint."""

    step_size: float
    smoothed_decrease: float = 0.0
    smoothed_slope: float = 0.0
    period: int = 1
    steps: int = 0  # taken; skipped ones are not counted
    steps_since_search: int = 0
    located: bool = False  # the step size's order of magnitude is known
    accepted_once: bool = False
    fast_mean: float = 1e-8  # of the accepted step sizes, equation (8)
    slow_mean: float = 1e-8
    skipped_steps: int = 0
    searches: int = 0
    total_trials: int = 0
    next_unit: int = 0  # whose turn it is, where units take turns (see turns.py)
    accepted_step_size: float = 1.0  # by the last accepted search; before it, where searches start
    flat_searches: int = 0  # in a row, those with slope 0 not counted
    unchanged_trials: int = 0  # that changed no weight: 16-bit ones may be too coarse for them

    @classmethod
    def fresh(cls, settings: SearchSettings) -> SearchState:
        """Return the state before the first step."""
        period = settings.search_period[0] if settings.search_period else 1
        start = settings.init_step_size
        return cls(step_size=start, accepted_step_size=start, period=period)

    @classmethod
    def read_from(cls, group: Mapping[str, Any]) -> SearchState:
        """Return the state that stands in a parameter group under these names."""
        return cls(*[group[name] for name in cls._fields])


class SearchResult(NamedTuple):
    """What the last search did (:attr:`FusedSaLSa.last_search`).

    ``trial_loss`` is the loss at the trial that ended the search (``nan`` without a trial),
    ``step_size`` the step size after it; ``unit`` the index of the parameter group that was
    searched, None for all of them together.  ``outcome``: *accepted*; *flat*, the losses differ by
    no more than rounding; *exhausted*, every trial was rejected and the step was skipped;
    *non_finite*, it was skipped because the loss, the slope or the loss of every trial was not
    finite.
    """

    trials: int
    outcome: Outcome
    loss: float
    trial_loss: float
    slope: float
    step_size: float
    unit: int | None = None


class LineSearch:
    """One search; :meth:`finish` returns the state after it.

    ::

        search = LineSearch(settings, state)
        move_weights_by(search.first_trial())
        search.start_from(loss, slope, eps)
        while search.trying:
            search.report(loss_at(search.step_size))
        state = search.finish()                 # unless search.skipped: write the step

    Of a search that moves one ``unit`` of several, ``state`` is that unit's.
    """

    def __init__(
        self, settings: SearchSettings, state: SearchState, unit: int | None = None
    ) -> None:
        self.settings = settings
        self.state = state
        self.unit = unit
        self.step_size = state.step_size
        self.trying = False
        self.skipped = False
        self.outcome: Outcome | None = None
        self.loss = self.slope = self.trial_loss = math.nan
        self.smallest_tried = math.inf
        self.trials = self.rejections = self.skipped_before = 0
        self.unchanged = 0  # trials that changed no weight
        self._after = state  # the state that finish() returns, counters apart
        self._last_finite_loss: float | None = None
        self._best: tuple[float, float, float] | None = None  # of the doublings: eta, h', f1

    # -- a search -----------------------------------------------------------------------------

    def add_skipped(self, count: int) -> None:
        """Count the steps that a device has skipped by itself since the last search."""
        self.skipped_before = count
        self.state = self.state._replace(skipped_steps=self.state.skipped_steps + count)
        self._after = self.state

    def first_trial(self) -> float:
        """Begin a search: the step size to try first, known before the slope is."""
        self.step_size = self.first_step_size()
        return self.step_size

    def start_from(self, loss: float, slope: float, eps: float) -> None:
        """Set loss f0 and slope -<g, d> at the weights; ``eps`` is that of the loss' dtype."""
        self.loss, self.slope = loss, slope
        self._resolution = FLAT_ULPS * eps * abs(loss)
        if not (math.isfinite(loss) and math.isfinite(slope)):
            self._end("non_finite", self.state)
        elif slope == 0.0:  # of no use for counting flat searches: there was no trial
            self._end("flat", self.state)
        else:
            self._smoothed_slope = self.smoothed(self.state.smoothed_slope, slope)
            self.trying = True

    def report(self, trial_loss: float) -> None:
        """Judge the trial at :attr:`step_size`; then :attr:`trying` says if there is another."""
        self.trials += 1
        self.smallest_tried = min(self.smallest_tried, self.step_size)
        self.trial_loss = trial_loss
        if math.isfinite(trial_loss):
            self._last_finite_loss = trial_loss
        verdict = self.verdict(trial_loss)
        if self._climbing and self._climb(verdict):
            return
        if verdict == "accepted":
            self._accept(self.step_size, self.decrease_at(trial_loss), self.rejections)
        elif verdict == "flat":
            self._end_flat()
        else:
            self.rejections += 1
            if self.rejections >= self.allowed_rejections():
                self._exhaust()
            else:
                self.step_size *= self.shrink_factor()

    def finish(self) -> SearchState:
        """Return the state after the search, which has ended."""
        if self.outcome is None or self.trying:
            raise RuntimeError("the search has not ended: report() until trying is false")
        after = self._after._replace(
            total_trials=self.state.total_trials + self.trials,
            unchanged_trials=self.state.unchanged_trials + self.unchanged,
        )
        if self.trials > 0 or not self.skipped:
            after = after._replace(searches=after.searches + 1)
        if self.skipped:
            return after._replace(skipped_steps=after.skipped_steps + 1)
        return after._replace(steps=after.steps + 1, steps_since_search=0)

    @property
    def result(self) -> SearchResult:
        if self.outcome is None:
            raise RuntimeError("no search has ended")
        step_size = self._after.step_size
        return SearchResult(
            self.trials, self.outcome, self.loss, self.trial_loss, self.slope, step_size, self.unit
        )

    def is_the_first_loss(self, trial_loss: float) -> bool:
        """Return whether a trial's loss is that before it, up to rounding: has a weight moved?"""
        return abs(self.loss - trial_loss) <= self._resolution

    @property
    def gave_up(self) -> bool:
        """Whether no step size has ever been accepted, however small: the closure is suspect."""
        return self.skipped and self.rejections > 0 and not self.state.accepted_once

    @property
    def accepted_a_rise(self) -> bool:
        """Whether the smoothed criterion held, though this loss rose as it was expected to fall."""
        rose = self.trial_loss - self.loss
        expected = self.settings.c * self._after.step_size * self.slope
        return self.outcome == "accepted" and rose > max(self._resolution, expected)

    # -- the rules ----------------------------------------------------------------------------

    def first_step_size(self) -> float:
        """Return eta_0: grown once per search, or once for every step since the last search.

        Where the order of magnitude is looked for again, it does not grow above what was rejected.
        """
        state, settings = self.state, self.settings
        times = 1 if settings.growth_per == "search" else state.steps_since_search + 1
        locates_again = state.accepted_once and self.locating
        most = 1.0 / settings.backtrack if locates_again else LARGEST_GROWTH
        # by logarithms: a power that is too large is an error in Python, not infinity
        fits = times * math.log(settings.growth) < math.log(most)
        growth = settings.growth**times if fits else most
        return min(state.step_size * growth, LARGEST_STEP_SIZE)

    def smoothed(self, before: float, now: float) -> float:
        """Compute equation (5), for the decrease and for the slope."""
        beta3 = self.settings.beta3
        return beta3 * before + (1.0 - beta3) * now

    def decrease_at(self, trial_loss: float) -> float:
        """Return what h' becomes if this trial is accepted."""
        return self.smoothed(self.state.smoothed_decrease, self.loss - trial_loss)

    def verdict(self, trial_loss: float) -> Literal["accepted", "flat", "rejected"]:
        if not math.isfinite(trial_loss):
            return "rejected"
        if self.is_flat(trial_loss):
            return "flat"
        return "accepted" if self.is_sufficient(trial_loss) else "rejected"

    def is_flat(self, trial_loss: float) -> bool:
        """Return whether expected and observed decrease are both within the loss' rounding."""
        expected = self.settings.c * self.step_size * self.slope
        return expected < self._resolution and abs(self.loss - trial_loss) < self._resolution

    def is_sufficient(self, trial_loss: float) -> bool:
        """Test SaLSa's criterion, equation (6): h' >= c eta s'."""
        required = self.settings.c * self.step_size * self._smoothed_slope
        return self.decrease_at(trial_loss) >= required

    @property
    def locating(self) -> bool:
        """Whether this search looks for the order of magnitude first."""
        return not self.state.located or self.state.flat_searches >= FLATS_TO_LOCATE

    def shrink_factor(self) -> float:
        backtrack = self.settings.backtrack
        return min(backtrack, 0.5) if self.locating else backtrack

    def allowed_rejections(self) -> int:
        return self.settings.max_trials if self.state.accepted_once else FIRST_REJECTIONS

    def next_period(self, step_size: float, rejections: int) -> int:
        """Return L after an accepted search; the "rate" schedule uses :meth:`moved_means`."""
        assert self.settings.search_period is not None
        shortest, longest = self.settings.search_period
        if self.settings.schedule == "rate":
            fast, slow = self.moved_means(step_size)
            rate = fast / slow
            rate = 1.0 / rate if rate < 1.0 else rate  # (9), (10)
            if rate == 1.0:
                return longest
            return int(min(longest, max(shortest, round(min(1.0 / (rate - 1.0), longest)))))  # (11)
        if rejections == 0:
            return min(longest, 2 * self.state.period)
        if rejections <= 2:
            return max(shortest, self.state.period // 2)
        return shortest

    def moved_means(self, step_size: float) -> tuple[float, float]:
        """Compute equation (8): means of the accepted step sizes, 0.9 the fast, 0.99 the slow."""

        def moved(mean: float, a: float) -> float:
            return a * mean + (1.0 - a) * step_size

        return moved(self.state.fast_mean, 0.9), moved(self.state.slow_mean, 0.99)

    # -- how a search ends --------------------------------------------------------------------

    @property
    def _climbing(self) -> bool:
        """Whether the step size doubles: the search locates, and nothing has been rejected yet."""
        return self.locating and self.rejections == 0

    def _climb(self, verdict: str) -> bool:
        """Double the step size, or end; return False where ordinary back-tracking takes over."""
        if verdict == "accepted":
            self._best = self.step_size, self.decrease_at(self.trial_loss), self.trial_loss
        if verdict != "rejected" and self.trials <= MAX_DOUBLINGS:
            self.step_size *= 2.0
            return True
        if self._best is not None:  # the last accepted trial counts; what ended it is one rejection
            step_size, decrease, self.trial_loss = self._best
            self._accept(step_size, decrease, rejections=1)
            return True
        if verdict == "flat":  # all doublings, and nothing learnt
            self._end_flat()
            return True
        return False

    def _accept(self, step_size: float, decrease: float, rejections: int) -> None:
        fast, slow = self.moved_means(step_size)
        after = self.state._replace(
            step_size=step_size,
            accepted_step_size=step_size,
            smoothed_decrease=decrease,
            smoothed_slope=self._smoothed_slope,
            period=self.next_period(step_size, rejections),
            located=True,
            accepted_once=True,
            flat_searches=0,
            fast_mean=fast,
            slow_mean=slow,
        )
        self._end("accepted", after)

    def _end_flat(self) -> None:
        """Keep no larger step size than before: nothing was learnt, so it was not tested.

        After ten such searches in a row the next one locates, and the count begins anew.
        """
        state = self.state
        before = 0 if state.flat_searches >= FLATS_TO_LOCATE else state.flat_searches
        step_size = min(self.step_size, state.step_size)
        self._end("flat", state._replace(step_size=step_size, flat_searches=before + 1))

    def _exhaust(self) -> None:
        """Skip the step: no step size that was rejected is ever applied."""
        state = self.state._replace(flat_searches=0)
        if state.accepted_once:
            smallest = SMALLEST_KEPT * state.accepted_step_size
            below = self.smallest_tried * self.shrink_factor()
            state = state._replace(step_size=max(below, smallest), located=False)
        last = self._last_finite_loss
        if last is not None:
            self.trial_loss = last
        self._end("non_finite" if last is None else "exhausted", state)

    def _end(self, outcome: Outcome, after: SearchState) -> None:
        self.outcome = outcome
        self.skipped = outcome in ("exhausted", "non_finite")
        self.trying = False
        self.step_size = after.step_size
        self._after = after
