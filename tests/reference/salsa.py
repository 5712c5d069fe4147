"""Adam + SaLSa in float64, in the paper's symbols. To be read beside the paper, not to be fast.

f0, g     loss and gradient at the weights w     eta    step size
d, slope  direction tried, -<g, d>               h, s   smoothed loss decrease and slope
c         Armijo's constant                      L      a search runs every L steps
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .look_back import Array, LookBack

LossAndGrads = Callable[[list[Array]], tuple[float, list[Array | None]]]
LossAt = Callable[[list[Array]], float]

DEFAULTS: dict[str, Any] = {
    "beta3": 0.99,
    "c": 0.5,
    "backtrack": 0.7,
    "growth": 2 ** (1 / 20),
    "growth_per": "search",
    "init_step_size": 1.0,
    "schedule": "doubling",
    "search_period": (1, 10),
    "max_trials": 10,
    "look_back": None,
    "total_steps": None,
}
PAPER: dict[str, Any] = {
    **DEFAULTS,
    "c": 0.3,
    "backtrack": 0.9,
    "growth": 2 ** (1 / 500),
    "growth_per": "step",
    "init_step_size": 0.1,
    "schedule": "rate",
    "look_back": False,
}
GROUP = {"lr": 1.0, "weight_decay": 0.0, "eps": 1e-8, "betas": (0.9, 0.999)}

FIRST_STEPS = 10  # all of these search
FIRST_REJECTIONS = 100  # allowed until a search has been accepted once
MAX_DOUBLINGS = 60
MAX_FLAT = 10  # flat searches in a row; then the next one locates
MAX_GROWTH = 60  # between two searches, in doublings
MAX_FIRST_TRIAL = 1e38
MIN_KEPT = 1e-12  # of the last accepted step size, after exhausted searches
MIN_EPS = 2.0**-126
CLIP_EPS = 1e-6  # torch's


class Trial(NamedTuple):
    eta: float
    f1: float
    lhs: float  # h'
    rhs: float  # c eta s'


@dataclass
class Record:
    """What one step did. `searched`: a search was due, even if it ended before a trial."""

    searched: bool
    outcome: str | None  # accepted, flat, exhausted, non_finite; None on a plain step
    loss: float
    step_size: float  # eta after the step
    skipped: bool = False
    slope: float | None = None  # None where no search was due
    trial_loss: float | None = None  # the accepted trial's
    trials: list[Trial] = field(default_factory=list)
    unit: int | None = None  # the unit searched; None: all together, or no search (`units.py`)


class ReferenceSaLSa:
    """`look_back` None: as `looks_back` says, but False where there is no search.

    `max_grad_norm` clips the gradients as torch does, before anything else is made of them; the
    slope alone is that of the gradients as they were, along the direction of the clipped ones.
    """

    looks_back = True

    def __init__(
        self,
        params: list[Array],
        groups: list[dict[str, Any]] | None = None,
        *,
        beta3: float = DEFAULTS["beta3"],
        c: float = DEFAULTS["c"],
        backtrack: float = DEFAULTS["backtrack"],
        growth: float = DEFAULTS["growth"],
        growth_per: str = DEFAULTS["growth_per"],
        init_step_size: float = DEFAULTS["init_step_size"],
        schedule: str = DEFAULTS["schedule"],
        search_period: tuple[int, int] | int | None = DEFAULTS["search_period"],
        max_trials: int = DEFAULTS["max_trials"],
        look_back: bool | None = None,
        total_steps: int | None = DEFAULTS["total_steps"],
        max_grad_norm: float | None = None,
    ) -> None:
        self.params = [np.array(w, dtype=np.float64) for w in params]
        groups = [{"params": range(len(params))}] if groups is None else groups
        self.groups = [{**GROUP, **group} for group in groups]
        assert sorted(i for group in self.groups for i in group["params"]) == [*range(len(params))]
        assert growth_per in ("search", "step") and schedule in ("doubling", "rate")
        self.beta3, self.c = beta3, c
        self.backtrack, self.growth, self.growth_per = backtrack, growth, growth_per
        self.init_step_size, self.schedule = init_step_size, schedule
        self.max_trials = max_trials
        self.total_steps, self.max_grad_norm = total_steps, max_grad_norm
        if look_back is None:
            look_back = self.looks_back and search_period is not None
        assert not (look_back and search_period is None)
        self.look_back = look_back
        if isinstance(search_period, int):
            search_period = (search_period, search_period)
        self.search_period = search_period
        self.L_min, self.L_max = search_period or (1, 1)

        self.largest_ratio = 1.0  # what a direction may scale the decay with (`lamb.py`)
        self.m = [np.zeros_like(w) for w in self.params]
        self.v = [np.zeros_like(w) for w in self.params]
        self.t = [0 for _ in self.params]

        self.eta = init_step_size
        self.eta_accepted = init_step_size  # the last accepted one
        self.looks = LookBack(init_step_size, len(self.params))  # where look_back is True
        self.looks.shortens = total_steps is None
        self.h = 0.0
        self.s = 0.0
        self.L = self.L_min
        self.E_fast = 1e-8  # a = 0.9
        self.E_slow = 1e-8  # a = 0.99
        self.accepted_once = False
        self.located = False  # False again after an exhausted search
        self.flats = 0  # searches in a row that ended flat, those of slope 0 not counted
        self.steps = 0
        self.since_search = 0  # steps taken since the last search, the present one not counted
        self.skipped_steps = 0
        self.warned = False

    # -- one step -------------------------------------------------------------------------------

    def step(
        self, loss_and_grads: LossAndGrads, loss_at: LossAt, resolution: float = 8 * 2**-52
    ) -> Record:
        f0, grads = loss_and_grads([w.copy() for w in self.params])
        f0 = float(f0)
        g = [None if gi is None else np.array(gi, dtype=np.float64) for gi in grads]
        if all(gi is None for gi in g):
            return Record(False, None, f0, self.eta)
        g, clip = self._clipped(g)
        if not self.search_due:
            if not math.isfinite(f0):
                return self._skip(Record(False, "non_finite", f0, self.eta))
            if self.look_back:
                self.looks.plain_step(self.steps + 1, self.params, g)
            self._final_write(g)
            self._count(searched=False)
            return Record(False, None, f0, self.eta)
        d, slope = self._direction(g)
        slope /= clip
        record = Record(True, None, f0, self.eta, slope=slope)
        if not (math.isfinite(f0) and math.isfinite(slope)):
            record.outcome = "non_finite"
            return self._skip(record)
        self._search(record, d, slope, loss_at, resolution)
        if record.skipped:
            return self._skip(record)
        if self.look_back:
            self.looks.search(self.steps + 1, self.eta, self.params, g)
        self._final_write(g)
        self._count(searched=True)
        record.step_size = self.eta
        return record

    @property
    def max_lr(self) -> float:
        return max(group["lr"] for group in self.groups)

    @property
    def search_due(self) -> bool:
        if self.search_period is None or self.max_lr == 0:
            return False
        return self.steps < FIRST_STEPS or self.since_search + 1 >= self.L

    def _clipped(self, g: list[Array | None]) -> tuple[list[Array | None], float]:
        """The gradients with a norm of `max_grad_norm` at most, and what they were scaled by."""
        if self.max_grad_norm is None:
            return g, 1.0
        norm = math.sqrt(sum(float(np.sum(gi * gi)) for gi in g if gi is not None))
        clip = min(1.0, self.max_grad_norm / (norm + CLIP_EPS))
        return [None if gi is None else clip * gi for gi in g], clip

    def _count(self, searched: bool) -> None:
        self.steps += 1
        self.since_search = 0 if searched else self.since_search + 1

    def _skip(self, record: Record) -> Record:
        self.skipped_steps += 1
        record.skipped = True
        record.step_size = self.eta
        return record

    # -- the direction: Adam's; `sgd.py` and `lamb.py` have their own -----------------------------

    def _moments(self, i: int, gi: Array, betas: tuple[float, float]) -> tuple[Array, Array]:
        beta1, beta2 = betas
        m = beta1 * self.m[i] + (1 - beta1) * gi
        v = beta2 * self.v[i] + (1 - beta2) * gi * gi
        return m, v

    @staticmethod
    def _preconditioned(x: Array, v: Array, t: int, group: dict[str, Any]) -> Array:
        """Adam's denominator under x, a gradient or m_hat."""
        v_hat = v / (1 - group["betas"][1] ** t)
        return x / (np.sqrt(v_hat) + max(group["eps"], MIN_EPS))

    def _descent(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        """(3): -d of one tensor, beta1 = 0, with v_hat as it will be after this step."""
        _, v = self._moments(i, gi, group["betas"])
        return self._preconditioned(gi, v, self.t[i] + 1, group)

    def _update(self, i: int, gi: Array, group: dict[str, Any]) -> Array:
        """(2): -d of one tensor in the final write, without the decay; m, v, t change."""
        self.t[i] += 1
        self.m[i], self.v[i] = self._moments(i, gi, group["betas"])
        m_hat = self.m[i] / (1 - group["betas"][0] ** self.t[i])
        return self._preconditioned(m_hat, self.v[i], self.t[i], group)

    def _bracket(self, i: int, gi: Array, group: dict[str, Any], decay: float) -> Array:
        """What the final write subtracts, for a step size of 1."""
        return self._update(i, gi, group) + decay * self.params[i]

    def _decay(self, group: dict[str, Any], eta: float) -> float:
        """Lambda; where x = lr eta lambda >= 1 so much less that w loses x / (1 + x): no flip."""
        x = group["lr"] * eta * group["weight_decay"] * self.largest_ratio
        return group["weight_decay"] / (1 + x if x >= 1 else 1)

    def _direction(self, g: list[Array | None]) -> tuple[list[Array | None], float]:
        """What is tried, and its slope; lr relative to the largest."""
        d: list[Array | None] = [None] * len(g)
        slope = 0.0
        for group in self.groups:
            factor = group["lr"] / self.max_lr
            for i in group["params"]:
                gi = g[i]
                if gi is None:
                    continue
                with np.errstate(invalid="ignore"):  # inf / inf: the step will be skipped
                    di = -factor * self._descent(i, gi, group)
                    slope -= float(np.sum(gi * di))
                d[i] = di
        return d, slope

    def _final_write(self, g: list[Array | None]) -> None:
        """With the step size applied; the only place where w, m, v and t change."""
        for k, group in enumerate(self.groups):
            eta = self._applied(k)
            decay = self._decay(group, eta)
            for i in group["params"]:
                gi = g[i]
                if gi is None:
                    continue
                bracket = self._bracket(i, gi, group, decay)
                self.params[i] = self.params[i] - group["lr"] * eta * bracket

    def _applied(self, k: int) -> float:
        """What this step applies to group k, but for lr."""
        eta = self.looks.a if self.look_back else self._eta_of(k)
        return eta * self._share_of_total()

    def _share_of_total(self) -> float:
        """Of `total_steps` the second half cools down, linearly to one step's share."""
        if self.total_steps is None:
            return 1.0
        N, t = self.total_steps, self.steps + 1
        return min(1.0, max(N - t + 1, 1) / max(N - N // 2, 1))

    def _eta_of(self, k: int) -> float:
        """The step size found for group k."""
        return self.eta

    # -- the search -----------------------------------------------------------------------------

    def _search(
        self,
        record: Record,
        d: list[Array | None],
        slope: float,
        loss_at: LossAt,
        resolution: float,
    ) -> None:
        f0 = record.loss
        if slope == 0:
            record.outcome = "flat"
            return
        s1 = self.beta3 * self.s + (1 - self.beta3) * slope

        def attempt(eta: float) -> str:
            moved = [
                w.copy() if di is None else w + eta * di
                for w, di in zip(self.params, d, strict=True)
            ]
            f1 = float(loss_at(moved))
            h1 = self.beta3 * self.h + (1 - self.beta3) * (f0 - f1)
            trial = Trial(eta, f1, h1, self.c * eta * s1)
            record.trials.append(trial)
            if not math.isfinite(f1):
                return "rejected"
            if max(self.c * eta * slope, abs(f0 - f1)) < resolution * abs(f0):
                return "flat"
            return "accepted" if trial.lhs >= trial.rhs else "rejected"

        locating = self.locating
        shrink = min(self.backtrack, 0.5) if locating else self.backtrack
        eta = self._first_trial()
        verdict = attempt(eta)
        if locating and verdict != "rejected":
            verdict = self._double(record, verdict, attempt, s1)
            if record.outcome is not None:
                return
            eta = record.trials[-1].eta  # flat, then rejected: back-track from there

        limit = self.max_trials if self.accepted_once else FIRST_REJECTIONS
        rejections = 0
        while verdict == "rejected":
            rejections += 1
            if rejections >= limit:
                self._exhausted(record, shrink)
                return
            eta *= shrink
            verdict = attempt(eta)
        if verdict == "accepted":
            self._accepted(record, record.trials[-1], s1, rejections)
        else:
            self._flat(record)
            self.eta = min(self.eta, eta)  # never a larger one, which nothing has tested

    @property
    def locating(self) -> bool:
        return not self.located or self.flats == MAX_FLAT

    def _first_trial(self) -> float:
        """The step size with its growth; when locating again, at most what one rejection takes."""
        exponent = 1 if self.growth_per == "search" else self.since_search + 1
        too_much = exponent * math.log2(self.growth) > MAX_GROWTH
        growth = 2.0**MAX_GROWTH if too_much else self.growth**exponent
        if self.accepted_once and self.locating:
            growth = min(growth, 1 / self.backtrack)
        return min(self.eta * growth, MAX_FIRST_TRIAL)

    def _double(
        self, record: Record, verdict: str, attempt: Callable[[float], str], s1: float
    ) -> str:
        last_accepted = record.trials[-1] if verdict == "accepted" else None
        for _ in range(MAX_DOUBLINGS):
            verdict = attempt(2 * record.trials[-1].eta)
            if verdict == "rejected":
                break
            if verdict == "accepted":
                last_accepted = record.trials[-1]
        if last_accepted is not None:
            self._accepted(record, last_accepted, s1, rejections=1)
        elif verdict == "flat":
            self._flat(record)
        return verdict

    def _accepted(self, record: Record, trial: Trial, s1: float, rejections: int) -> None:
        record.outcome = "accepted"
        record.trial_loss = trial.f1
        self.eta = self.eta_accepted = trial.eta
        self.h, self.s = trial.lhs, s1
        self.accepted_once = self.located = True
        self.flats = 0
        self._update_period(rejections)

    def _flat(self, record: Record) -> None:
        """After the tenth in a row locate, so that a step size too small to be felt cannot stay."""
        record.outcome = "flat"
        self.flats = 1 if self.flats == MAX_FLAT else self.flats + 1

    def _exhausted(self, record: Record, shrink: float) -> None:
        """No step that was rejected is ever taken."""
        any_finite = any(math.isfinite(trial.f1) for trial in record.trials)
        record.outcome = "exhausted" if any_finite else "non_finite"
        record.skipped = True
        self.flats = 0
        smallest = min(trial.eta for trial in record.trials)
        if self.accepted_once:
            self.eta = max(smallest * shrink, MIN_KEPT * self.eta_accepted)
            self.located = False
        elif not self.warned:
            self.warned = True
            warnings.warn(
                f"no step down to the size {smallest:.1e} lowered the loss: "
                "is the closure a function of the weights alone?",
                stacklevel=4,
            )

    def _update_period(self, rejections: int) -> None:
        L_min, L_max = self.L_min, self.L_max
        if self.schedule == "doubling":
            if rejections == 0:
                self.L = min(L_max, 2 * self.L)
            elif rejections <= 2:
                self.L = max(L_min, self.L // 2)
            else:
                self.L = L_min
            return
        self.E_fast = 0.9 * self.E_fast + (1 - 0.9) * self.eta
        self.E_slow = 0.99 * self.E_slow + (1 - 0.99) * self.eta
        r = self.E_fast / self.E_slow
        r = 1 / r if r < 1 else r
        self.L = L_max if r == 1 else min(max(round(1 / (r - 1)), L_min), L_max)
