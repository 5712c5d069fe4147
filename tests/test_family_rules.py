"""Each rule of the other systems, broken once: the trajectory test must notice (see test_rules)."""

from __future__ import annotations

import pytest
import torch
from problems import NoisyProblem, follow, follow_each

from salsa_fused import cycle
from salsa_fused.kernels import BACKENDS, Launch, Table, table

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


def sgd_class(**changes):
    def patch(monkeypatch):
        real = table.CLASSES["sgd"]

        def changed(*arguments):
            made = real(*arguments)
            return made._replace(**{name: f(made) for name, f in changes.items()})

        monkeypatch.setitem(table.CLASSES, "sgd", changed)

    return patch


def slope_not_squared(real, launch):
    """As the authors' later code has it."""
    real(launch)
    norms = [g.norm() for g in launch.gradients if g is not None]
    return torch.stack(norms).sum()


BROKEN_SGD = {
    "slope not squared": wrapped(BACKENDS["reference"], "first_trial", slope_not_squared),
    "slope without the factor": sgd_class(slope_scale=lambda c: 1.0),
    "no decay": sgd_class(weight_decay=lambda c: 0.0),
    "decay in the trials": sgd_class(weight_decay=lambda c: 0.02),
    "always the trial": wrapped(table, "_stands_at_the_step", lambda real, one, _: one.moved),
}


# -- units ------------------------------------------------------------------------------------


def without(*names):
    """Not a unit's own."""
    kept = tuple(name for name in cycle.OWN if name not in names)
    return lambda monkeypatch: monkeypatch.setattr(cycle, "OWN", kept)


def only_the_unit_steps(real, groups, search):
    sizes = real(groups, search)
    if isinstance(sizes, list):
        sizes = [size if i == search.unit else 0.0 for i, size in enumerate(sizes)]
    return sizes


def moves_on_when_skipped(real, groups, search):
    real(groups, search)
    if search.skipped and search.unit is not None:
        for group in groups:
            group["next_unit"] = (search.unit + 1) % len(groups)


def stays_when_flat(real, groups, search):
    real(groups, search)
    if search.outcome == "flat" and search.unit is not None:
        for group in groups:
            group["next_unit"] = search.unit


def waits_by_its_own_steps(real, groups, line_search_class):
    group = groups[cycle._turn(groups) or 0]
    return line_search_class.due(group, group["steps_since_search"])


BROKEN_UNITS = {
    "h and s of the global search are kept": lambda monkeypatch: monkeypatch.setattr(
        cycle, "UNSMOOTHED", {}
    ),
    "one step size": without("step_size"),
    "one h and s": without("smoothed_decrease", "smoothed_slope"),
    "one count of flat searches": without("flat_searches"),
    "one last accepted step size": without("accepted_step_size"),
    "trials move everything": wrapped(
        Table, "first_trial", lambda real, self, groups, size, unit=None: real(self, groups, size)
    ),
    "the searched unit's step size for all": wrapped(
        cycle, "applied", lambda real, groups, search: search.step_size
    ),
    "the other units do not step": wrapped(cycle, "applied", only_the_unit_steps),
    "the other units step from what was not saved": wrapped(
        Launch, "ready_to_write", lambda real, self, made: [] if made else real(self, made=made)[:1]
    ),
    "the turn stays with the unit that is flat": wrapped(cycle, "remember", stays_when_flat),
    "each unit waits for its own period": wrapped(cycle, "is_due", waits_by_its_own_steps),
    "global for ever": wrapped(cycle, "_turn", lambda real, groups: None),
    "never global": wrapped(cycle, "_turn", lambda real, groups: groups[0]["next_unit"]),
}


# -- LAMB -------------------------------------------------------------------------------------


def ratios(change):
    return wrapped(BACKENDS["reference"], "trust_ratios", change)


def of_all_tensors(real, launch, clip):
    return real(launch, clip).mean().expand(len(launch.weights)).clone()


def with_moments(launch, exp_avgs):
    kept = launch.exp_avgs
    launch.exp_avgs = exp_avgs
    return kept


def without_momentum(real, launch, clip):
    kept = with_moments(launch, [m and None if m is None else m * 0 for m in launch.exp_avgs])
    try:
        return real(launch, clip)
    finally:
        launch.exp_avgs = kept


def without_decay(real, launch, clip):
    kept = launch.classes
    launch.classes = [c._replace(weight_decay=0.0) for c in kept]
    try:
        return real(launch, clip)
    finally:
        launch.classes = kept


def again_for_the_step(real, self, groups, size, skip=None):
    for launch in self.launches:
        launch.ratios = None
    real(self, groups, size, skip)


BROKEN_LAMB = {
    "no clip": ratios(lambda real, launch, clip: real(launch, float("inf"))),
    "no ratio": ratios(lambda real, launch, clip: real(launch, clip) * 0 + 0.3),
    "one ratio for all": ratios(of_all_tensors),
    "of the direction without momentum": ratios(without_momentum),
    "made again at the trial point": wrapped(Table, "final_write", again_for_the_step),
}


@pytest.mark.parametrize(
    ("keywords", "break_it"),
    [
        *[pytest.param(SGD, f, id=f"SGD: {name}") for name, f in BROKEN_SGD.items()],
        *[pytest.param(UNITS, f, id=f"units: {name}") for name, f in BROKEN_UNITS.items()],
        *[pytest.param(LAMB, f, id=f"LAMB: {name}") for name, f in BROKEN_LAMB.items()],
        pytest.param(
            DECAYING,
            wrapped(table, "with_bounded_decay", lambda real, made, part: made),
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
