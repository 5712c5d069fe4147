"""The references of the rest of the family against numbers worked by hand."""

import math

import numpy as np
import pytest
from noisy_problem import GROUPS, NoisyProblem
from reference import (
    DEFAULTS,
    PAPER,
    PUBLISHED_FACTORS,
    SGD_SALSA,
    SLS,
    ReferenceLAMB,
    ReferencePLASLS,
    ReferenceSaLSa,
    ReferenceSGD,
    distributed,
    reference_class,
)
from scripted_losses import given, make, never, script, watch, weights

approx = pytest.approx
NAN = math.nan


# SGD


def test_sgd_tries_and_writes_the_gradient():
    # d = -(2, 3), slope 4 + 9; eta 1: 0.5 < 0.5 * 13; eta 0.5: 4 >= 0.5 * 0.5 * 13 = 3.25
    opt = make(ReferenceSGD, 1.0, 5.0, backtrack=0.5, beta3=0.0)
    seen = []
    record = opt.step(given(10.0, 2.0, 3.0), watch(seen, 9.5, 6.0))
    assert record.slope == 13.0
    assert seen == [[-1.0, 2.0], [0.0, 3.5]]
    assert (record.outcome, opt.eta, opt.h, opt.s) == ("accepted", 0.5, 4.0, 13.0)
    assert weights(opt) == seen[-1]  # the accepted trial is the step
    assert not opt.m and not opt.v and not opt.t


def test_the_accepted_trial_is_the_step_bit_for_bit():
    random = np.random.default_rng(0)
    opt = ReferenceSGD([random.standard_normal(1000)])
    trials = []

    def loss_at(w):
        trials.append(w[0])
        return float(w[0] @ w[0])

    for _ in range(3):
        opt.step(lambda w: (float(w[0] @ w[0]), [2 * w[0]]), loss_at)
        # locating ends with a rejected trial, a later search with the accepted one
        assert any(np.array_equal(opt.params[0], trial) for trial in trials[-2:])


def test_sgd_lr_and_decay():
    groups = [{"lr": 0.5, "weight_decay": 0.1}, {"lr": 0.25}]
    opt = make(ReferenceSGD, 1.0, 1.0, groups=groups, c=0.0)
    seen = []
    record = opt.step(given(9.0, 2.0, 4.0), watch(seen, 1.0))
    assert record.slope == 4.0 + 0.5 * 16.0
    assert seen == [[-1.0, -1.0]]
    assert weights(opt) == approx([1.0 - 0.5 * (2.0 + 0.1), 1.0 - 0.25 * 4.0])


def test_sgd_decay_never_flips_a_weight():
    opt = make(
        ReferenceSGD, 1.0, groups=[{"weight_decay": 3.0}], search_period=None, init_step_size=1.0
    )
    opt.step(given(1.0, 2.0), never)
    assert weights(opt) == approx([0.25 - 2.0])


def test_sgd_without_a_search():
    opt = make(ReferenceSGD, 1.0, search_period=None, init_step_size=0.1)
    for _ in range(2):  # no momentum
        opt.step(given(1.0, 2.0), never)
    assert weights(opt) == approx([0.6])


# SLS


def test_sls_constants():
    assert (SLS["beta3"], SLS["c"], SLS["search_period"]) == (0.0, 0.1, (1, 1))
    same = {"backtrack", "growth", "growth_per", "init_step_size", "schedule", "max_trials"}
    assert {name: SLS[name] for name in same} == {name: PAPER[name] for name in same}
    assert SGD_SALSA == PAPER and set(SLS) == set(DEFAULTS)


def test_sls_is_armijo_on_every_step():
    opt = make(ReferenceSaLSa, 0.0, **{**SLS, "growth": 1.0})
    for step in range(12):
        # eta 0.1, slope |g| = 10 at the first step: at least 0.1 * 0.1 * 10 is asked for
        record = opt.step(given(1.0, 10.0), script(0.8))
        assert record.searched and len(record.trials) == 1, step
    assert record.trials[0].lhs == approx(0.2)
    opt = make(ReferenceSaLSa, 0.0, **{**SLS, "growth": 1.0})
    record = opt.step(given(1.0, 10.0), script(0.9001, 0.9099))
    assert [trial.eta for trial in record.trials] == approx([0.1, 0.09])
    assert [trial.rhs for trial in record.trials] == approx([0.1, 0.09])


# PLASLS


def test_first_search_is_global_and_hands_over_its_step_size():
    opt = make(ReferencePLASLS, 1.0, 1.0, found=False, init_step_size=0.4)
    seen = []
    record = opt.step(given(9.0, 2.0, 3.0), watch(seen, 9.0, 4.0, 1.0, 9.0))
    # signs are tried (Adam's first step): 0.4 rejected, then halved
    assert seen == [approx([0.6, 0.6]), approx([0.8, 0.8])]
    assert (record.unit, record.slope, record.step_size) == (None, approx(5.0), approx(0.2))
    assert opt.etas == approx([0.2, 0.2]) and opt.h == approx(0.05)
    assert [(unit.h, unit.s, unit.located) for unit in opt.units] == [(0.0, 0.0, True)] * 2
    assert [(unit.eta_accepted, unit.flats) for unit in opt.units] == [(approx(0.2), 0)] * 2
    assert opt.next_unit == 0 and weights(opt) == approx([0.8, 0.8])


def test_search_stays_global_until_one_is_accepted():
    opt = make(ReferencePLASLS, 1.0, 1.0, found=False)
    opt.units[1].flats = 5
    record = opt.step(given(1e60, 2.0, 3.0), script(1e60))
    assert (record.outcome, record.unit, opt.next_unit) == ("flat", None, 0)
    assert opt.flats == 1 and [unit.flats for unit in opt.units] == [0, 0]
    assert weights(opt) == approx([0.0, 0.0])
    seen = []
    record = opt.step(given(9.0, 2.0, 3.0), watch(seen, 1.0, 9.0))
    assert (record.outcome, record.unit) == ("accepted", None)
    assert seen == [approx([-1.0, -1.0]), approx([-2.0, -2.0])]  # both units move
    assert opt.step(given(9.0, 2.0, 3.0), script(1.0)).unit == 0


def test_one_unit_is_searched_in_turn():
    opt = make(ReferencePLASLS, 0.0, 0.0, backtrack=0.5, beta3=0.5)
    seen = []
    # unit 0: slope 2, eta 1: 0.5 * (9 - 8.8) < 0.5 * 1 * 1; eta 0.5: 0.5 * 1 >= 0.5 * 0.5 * 1
    record = opt.step(given(9.0, 2.0, 4.0), watch(seen, 8.8, 8.0))
    assert (record.unit, record.slope, record.step_size) == (0, approx(2.0), 0.5)
    assert seen == [approx([-1.0, 0.0]), approx([-0.5, 0.0])]  # unit 1 stays
    assert opt.etas == [0.5, 1.0]
    assert (opt.units[0].h, opt.units[0].s) == (approx(0.5), approx(1.0))
    assert (opt.units[1].h, opt.units[1].s) == (0.0, 0.0)
    assert weights(opt) == approx([-0.5, -1.0])  # both step, each with its own eta
    seen.clear()
    record = opt.step(given(9.0, 2.0, 4.0), watch(seen, 5.0))
    assert (record.unit, record.slope) == (1, approx(4.0))
    assert seen == [approx([-0.5, -2.0])]
    # h' = 0.5 * 4, s' = 0.5 * 4: nothing of unit 0
    assert (opt.units[1].h, opt.units[1].s) == (approx(2.0), approx(2.0))
    assert opt.etas == [0.5, 1.0] and opt.next_unit == 0


def test_final_write_has_momentum_and_every_units_own_step_size():
    groups = [{"lr": 0.5}, {"lr": 0.25, "weight_decay": 0.2}]
    opt = make(ReferencePLASLS, 1.0, 2.0, groups=groups, search_period=None)
    for unit, eta in zip(opt.units, (0.1, 0.3), strict=True):
        unit.eta = eta
    opt.step(given(1.0, 1.0, -1.0), never)
    first = [1.0 - 0.5 * 0.1, 2.0 + 0.25 * 0.3 * (1 - 0.4)]
    assert weights(opt) == approx(first)
    opt.step(given(1.0, 2.0, -1.0), never)
    m_hat, v_hat = 0.29 / 0.19, 0.004999 / 0.001999
    assert weights(opt)[0] == approx(first[0] - 0.5 * 0.1 * m_hat / math.sqrt(v_hat))


def test_unit_slope_is_relative_to_the_largest_lr_of_all():
    opt = make(ReferencePLASLS, 1.0, 1.0, groups=[{"lr": 0.2}, {"lr": 0.4}], c=0.0)
    seen = []
    record = opt.step(given(9.0, 2.0, 3.0), watch(seen, 1.0))
    assert record.slope == approx(0.5 * 2.0) and seen == [approx([0.5, 1.0])]


def units_searched(opt, loss_at, steps):
    records = [opt.step(given(1.0, *[1.0] * len(opt.units)), loss_at) for _ in range(steps)]
    return [(k, r.unit) for k, r in enumerate(records, 1) if r.searched]


def test_period_is_one_for_all_units():
    opt = make(ReferencePLASLS, 1.0, 1.0, 1.0, c=0.0, search_period=4)
    first = [(k, (k - 1) % 3) for k in range(1, 11)]
    assert units_searched(opt, script(0.0), 22) == [*first, (14, 1), (18, 2), (22, 0)]


def test_a_units_rejections_change_the_period_of_all():
    opt = make(ReferencePLASLS, 1.0, 1.0, c=0.0)
    for period in (2, 4, 8):
        opt.step(given(1.0, 1.0, 1.0), script(0.0))
        assert period == opt.L
    opt.step(given(1.0, 1.0, 1.0), script(2.0, 0.0))
    assert opt.L == 4


def test_growth_per_step_counts_from_the_units_own_search():
    keywords = {"growth": 2.0, "growth_per": "step", "c": 0.0, "search_period": 3}
    opt = make(ReferencePLASLS, 1.0, 1.0, found=False, init_step_size=0.25, **keywords)
    opt.steps = 10
    opt.since_search = 2
    opt.step(given(9.0, 1.0, 1.0), script(0.0, 9.5))  # global, 0.25 * 2^3 accepted
    tried = []
    for _ in range(9):
        record = opt.step(given(9.0, 1.0, 1.0), script(0.0))
        tried += [(record.unit, trial.eta) for trial in record.trials]
    assert tried == [(0, 16.0), (1, 128.0), (0, 1024.0)]  # 2^3, 2^6, 2^6
    assert [unit.since_search for unit in opt.units] == [0, 3]


def test_rate_schedule_has_means_of_its_own_in_each_unit():
    opt = make(ReferencePLASLS, 1.0, 1.0, schedule="rate", c=0.0, search_period=(2, 9))
    for unit, slow in zip(opt.units, (1.0, 1.25), strict=True):
        unit.E_fast, unit.E_slow = 1.0, slow
    opt.units[0].eta = 3.0
    opt.step(given(1.0, 1.0, 1.0), script(0.0))
    assert opt.L == 6  # 1.2 / 1.02
    opt.step(given(1.0, 1.0, 1.0), script(0.0))
    assert opt.L == 4  # 1 / 1.2475
    assert [(unit.E_fast, unit.E_slow) for unit in opt.units] == [
        (approx(1.2), approx(1.02)),
        (approx(1.0), approx(1.2475)),
    ]


@pytest.mark.parametrize("loss, outcome", [(2.0, "exhausted"), (NAN, "non_finite")])
def test_exhausted_unit(loss, outcome):
    opt = make(ReferencePLASLS, 0.0, 0.0, max_trials=3)
    opt.L, opt.since_search, opt.units[0].since_search = 5, 4, 9
    record = opt.step(given(1.0, 1.0, 1.0), script(loss))
    assert (record.outcome, record.unit, len(record.trials)) == (outcome, 0, 3)
    assert record.skipped and opt.skipped_steps == 1 and opt.steps == 0
    assert opt.etas == [approx(0.7**3), 1.0] and record.step_size == opt.etas[0]
    assert [unit.located for unit in opt.units] == [False, True]
    assert [unit.eta_accepted for unit in opt.units] == [1.0, 1.0]
    assert (opt.L, opt.since_search, opt.units[0].since_search) == (5, 4, 9)
    assert weights(opt) == [0.0, 0.0] and opt.t == [0, 0]
    record = opt.step(given(1.0, 1.0, 1.0), script(0.0, 2.0))  # its turn again: locates
    assert record.unit == 0
    assert [trial.eta for trial in record.trials] == approx([0.7**3, 2 * 0.7**3])
    assert [unit.eta_accepted for unit in opt.units] == [approx(0.7**3), 1.0]
    record = opt.step(given(1.0, 1.0, 1.0), script(0.0))  # unit 1 does not
    assert (record.unit, len(record.trials), opt.next_unit) == (1, 1, 0)


def test_exhausted_unit_keeps_a_trillionth_of_its_own_last_accepted():
    opt = make(ReferencePLASLS, 0.0, 0.0)
    opt.units[0].eta, opt.units[0].eta_accepted = 1e-13, 0.25
    opt.step(given(1.0, 1.0, 1.0), script(2.0))
    assert opt.etas == [0.25e-12, 1.0]


def test_a_unit_counts_its_own_flat_searches():
    opt = make(ReferencePLASLS, 0.0, 0.0, search_period=1)
    for k in range(1, 11):
        record = opt.step(given(1e20, 1.0, 1.0), script(1e20))
        assert (record.outcome, record.unit, len(record.trials)) == ("flat", 0, 1)
        assert [unit.flats for unit in opt.units] == [k, 0]
        opt.step(given(9.0, 1.0, 1.0), script(0.0))
    record = opt.step(given(9.0, 1.0, 1.0), script(0.0, 0.0, 9.9))
    assert record.unit == 0 and [trial.eta for trial in record.trials] == [1.0, 2.0, 4.0]
    assert opt.etas == [2.0, 1.0] and opt.units[0].located


def test_decay_never_flips_a_weight_of_a_unit():
    groups = [{"weight_decay": 1.5}, {"weight_decay": 1.5}]
    opt = make(ReferencePLASLS, 1.0, 1.0, groups=groups, search_period=None)
    opt.units[0].eta, opt.units[1].eta = 0.5, 2.0  # x = 0.75, 3
    opt.step(given(1.0, 0.0, 0.0), never)
    assert weights(opt) == approx([0.25, 0.25])


def test_a_unit_without_gradients_or_slope_is_flat_and_the_cycle_moves_on():
    opt = make(ReferencePLASLS, 0.0, 0.0)
    record = opt.step(given(1.0, None, 1.0), never)
    assert (record.outcome, record.unit, record.slope, record.trials) == ("flat", 0, 0.0, [])
    assert opt.next_unit == 1 and opt.units[0].since_search == 0
    assert weights(opt) == approx([0.0, -1.0]) and opt.t == [0, 1]


def test_skipped_step_stays_at_the_unit():
    opt = make(ReferencePLASLS, 0.0, 0.0)
    opt.units[0].flats = 7
    record = opt.step(given(NAN, 1.0, 1.0), never)
    assert (record.skipped, record.unit, opt.next_unit) == (True, 0, 0)
    assert opt.units[0].flats == 7 and opt.skipped_steps == 1


@pytest.mark.parametrize("direction", ["sgd", "lamb"])
def test_units_along_another_direction(direction):
    opt = make(reference_class(direction, "groups"), 4.0, 4.0, c=0.0)
    seen = []
    record = opt.step(given(9.0, 2.0, 3.0), watch(seen, 1.0))
    assert record.unit == 0
    assert seen == [approx([2.0, 4.0] if direction == "sgd" else [3.0, 4.0])]
    assert weights(opt) == approx([2.0, 1.0] if direction == "sgd" else [3.0, 3.0])


# Learning-rate distributions


def test_distribution():
    assert len(PUBLISHED_FACTORS) == 10
    groups = distributed([{"params": [i], "eps": 0.0} for i in range(10)])
    assert [g["lr"] for g in groups] == approx([1 / 3, 1 / 3, 0.1, 0.7 / 3, *[1 / 3] * 5, 1.0])
    opt = make(ReferenceSaLSa, *[0.0] * 10, groups=groups, c=0.0)
    seen = []
    record = opt.step(given(9.0, *[6.0] * 10), watch(seen, 1.0))
    # the slope of a scaled direction is the scaled slope: 6 * (8 ones, 0.3, 0.7 less one) / 3
    assert record.slope == approx(2.0 * sum(PUBLISHED_FACTORS))
    assert seen[0] == approx([-f / 3 for f in PUBLISHED_FACTORS])
    assert weights(opt) == approx(seen[0])  # what is applied is what was tried


# One interface


def test_reference_class():
    for direction, base in (
        ("adam", ReferenceSaLSa),
        ("sgd", ReferenceSGD),
        ("lamb", ReferenceLAMB),
    ):
        assert reference_class(direction) is base
        assert issubclass(reference_class(direction, "groups"), base)
    assert reference_class("adam", "groups") is ReferencePLASLS
    assert reference_class() is ReferenceSaLSa


@pytest.mark.parametrize(
    "direction, units, settings",
    [
        ("adam", "all", DEFAULTS),
        ("adam", "all", {**DEFAULTS, "look_back": False}),
        ("adam", "all", PAPER),
        ("adam", "all", SLS),
        ("sgd", "all", SGD_SALSA),
        ("lamb", "all", DEFAULTS),
        ("adam", "groups", {**DEFAULTS, "look_back": False}),
        ("sgd", "groups", SGD_SALSA),
        ("lamb", "groups", SLS),
    ],
)
def test_noisy_problem_brings_every_rule_into_play(direction, units, settings):
    """What follows the reference along it meets every outcome, and a relocation after ten flat."""
    problem = NoisyProblem(long_flat=10 if units == "all" else 30)
    opt = reference_class(direction, units)(problem.start, GROUPS, **settings)
    outcomes, relocating, relocated = set(), set(), 0
    for step in range(60):
        record = opt.step(problem.loss_and_grads(step), problem.loss_at(step))
        outcomes.add(record.outcome)
        if record.outcome == "accepted" and record.unit in relocating:
            relocating.remove(record.unit)
            relocated += len(record.trials) > 1
        searched = opt if record.unit is None else opt.units[record.unit]
        if record.outcome == "flat" and searched.flats == 10:
            relocating.add(record.unit)
    assert outcomes >= {"accepted", "flat", "exhausted"}
    assert relocated == (1 if units == "all" else 3) and not relocating
    assert max(np.abs(w).max() for w in opt.params) < 2.0
