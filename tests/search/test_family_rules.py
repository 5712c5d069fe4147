"""Each rule of the other systems, broken once: the trajectory test must notice (see test_rules)."""

from __future__ import annotations

import pytest
import torch
from follow_reference import follow, follow_each
from kernel_cases import backend_named
from noisy_problem import NoisyProblem

from salsa_fused import turns
from salsa_fused.kernels import DIRECTIONS, Kernels, kernels
from salsa_fused.kernels.bucket import Bucket

pytestmark = pytest.mark.slow

STEPS = 60
SGD = {"direction": "sgd"}
UNITS = {"units": "groups", "growth_per": "step", "growth": 1.02}
LAMB = {"direction": "lamb", "trust_clip": 0.3}
DECAYING = {  # so much that rule 5 alone would turn weights around
    "groups": [
        {"params": [0, 1], "weight_decay": 20.0},
        {"params": [2, 3, 4]},
    ]
}
UNCLIPPED = {"direction": "lamb", "trust_clip": None}


def wrapped(owner, name, change):
    """`change(real, *arguments)` in the place of what `owner` has under `name`."""

    def patch(monkeypatch):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: change(real, *a, **k))

    return patch


# -- SGD --------------------------------------------------------------------------------------


def sgd_scalars(**changes):
    def patch(monkeypatch):
        sgd = DIRECTIONS["sgd"]
        real = sgd.scalars

        def changed(facts):
            made = real(facts)
            return made._replace(**{name: f(made) for name, f in changes.items()})

        monkeypatch.setattr(sgd, "scalars", changed)

    return patch


def slope_not_squared(real, work):
    """As the authors' later code has it."""
    real(work)
    norms = [g.norm() for g in work.gradients if g is not None]
    return torch.stack(norms).sum()


BROKEN_SGD = {
    "slope not squared": wrapped(backend_named("reference"), "first_trial", slope_not_squared),
    "slope without the factor": sgd_scalars(slope_scale=lambda c: 1.0),
    "no decay": sgd_scalars(weight_decay=lambda c: 0.0),
    "decay in the trials": sgd_scalars(weight_decay=lambda c: 0.02),
    "always the trial": wrapped(kernels, "_stands_at_the_step", lambda real, one, _: one.moved),
}


# -- units ------------------------------------------------------------------------------------


def without(*names):
    """Not a unit's own."""
    kept = tuple(name for name in turns.OWN if name not in names)
    return lambda monkeypatch: monkeypatch.setattr(turns, "OWN", kept)


def only_the_unit_steps(real, groups, search, window):
    sizes = real(groups, search, window)
    if isinstance(sizes, list):
        sizes = [size if i == search.unit else 0.0 for i, size in enumerate(sizes)]
    return sizes


def moves_on_when_skipped(real, groups, search, window):
    real(groups, search, window)
    if search.skipped and search.unit is not None:
        for group in groups:
            group["next_unit"] = (search.unit + 1) % len(groups)


def stays_when_flat(real, groups, search, window):
    real(groups, search, window)
    if search.outcome == "flat" and search.unit is not None:
        for group in groups:
            group["next_unit"] = search.unit


def waits_by_its_own_steps(real, groups):
    group = groups[turns._turn(groups) or 0]
    return turns.due(group, group["steps_since_search"])


BROKEN_UNITS = {
    "h and s of the global search are kept": lambda monkeypatch: monkeypatch.setattr(
        turns, "UNSMOOTHED", {}
    ),
    "one step size": without("step_size"),
    "one h and s": without("smoothed_decrease", "smoothed_slope"),
    "one count of flat searches": without("flat_searches"),
    "one last accepted step size": without("accepted_step_size"),
    "trials move everything": wrapped(
        Kernels, "first_trial", lambda real, self, groups, size, unit=None: real(self, groups, size)
    ),
    "the searched unit's step size for all": wrapped(
        turns, "applied", lambda real, groups, search, window: search.step_size
    ),
    "the other units do not step": wrapped(turns, "applied", only_the_unit_steps),
    "the other units step from what was not saved": wrapped(
        Bucket,
        "prepare_write",
        lambda real, self, already_written: (
            [] if already_written else real(self, already_written=already_written)[:1]
        ),
    ),
    "the turn stays with the unit that is flat": wrapped(turns, "remember", stays_when_flat),
    "each unit waits for its own period": wrapped(turns, "is_due", waits_by_its_own_steps),
    "global for ever": wrapped(turns, "_turn", lambda real, groups: None),
    "never global": wrapped(turns, "_turn", lambda real, groups: groups[0]["next_unit"]),
}


# -- LAMB -------------------------------------------------------------------------------------


def ratios(change):
    return wrapped(backend_named("reference"), "trust_ratios", change)


def of_all_tensors(real, work, clip):
    return real(work, clip).mean().expand(len(work.weights)).clone()


def without_momentum(real, work, clip):
    exp_avg_sqs, exp_avgs = work.moments
    none = [m if m is None else m * 0 for m in exp_avgs]
    return real(work._replace(moments=[exp_avg_sqs, none]), clip)


def without_decay(real, work, clip):
    scalars = [c._replace(weight_decay=0.0) for c in work.scalars]
    return real(work._replace(scalars=scalars), clip)


def again_for_the_step(real, self, groups, size, skip=None):
    for bucket in self.buckets:
        bucket.ratios = None
    real(self, groups, size, skip)


BROKEN_LAMB = {
    "no clip": ratios(lambda real, work, clip: real(work, float("inf"))),
    "no ratio": ratios(lambda real, work, clip: real(work, clip) * 0 + 0.3),
    "one ratio for all": ratios(of_all_tensors),
    "of the direction without momentum": ratios(without_momentum),
    "made again at the trial point": wrapped(Kernels, "final_write", again_for_the_step),
}


@pytest.mark.parametrize(
    ("keywords", "break_it"),
    [
        *[pytest.param(SGD, f, id=f"SGD: {name}") for name, f in BROKEN_SGD.items()],
        *[pytest.param(UNITS, f, id=f"units: {name}") for name, f in BROKEN_UNITS.items()],
        *[pytest.param(LAMB, f, id=f"LAMB: {name}") for name, f in BROKEN_LAMB.items()],
        pytest.param(
            DECAYING,
            wrapped(kernels, "with_bounded_decay", lambda real, made, part: made),
            id="decay that changes signs",
        ),
        pytest.param(UNCLIPPED, ratios(without_decay), id="LAMB: of u without decay"),
    ],
)
def test_a_broken_rule_is_noticed(keywords, break_it, monkeypatch):
    break_it(monkeypatch)
    problems = [NoisyProblem(long_flat=n) for n in (0, 30)]  # each unit is flat ten times
    with pytest.raises(AssertionError, match=r"^step "):
        follow_each(problems, backend="reference", steps=STEPS, **keywords)


@pytest.mark.filterwarnings("ignore:lr . step size")
@pytest.mark.parametrize("keywords", [SGD, UNITS, LAMB, DECAYING])
def test_the_real_ones_follow(keywords):
    follow(NoisyProblem(), backend="reference", steps=STEPS, **keywords)
