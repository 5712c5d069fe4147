"""The reference's looking back against numbers worked by hand."""

import math

import numpy as np
import pytest
from reference import (
    DEFAULTS,
    PAPER,
    SGD_SALSA,
    SLS,
    LookBack,
    ReferenceLAMB,
    ReferenceSaLSa,
    reference_class,
)
from reference_looks import ACCEPTED, at, looks, optimizer, sums
from scripted_losses import given, never, scalar, script

approx = pytest.approx
NAN = math.nan


# Where it is


def test_settings():
    assert DEFAULTS["look_back"] is None and DEFAULTS["total_steps"] is None
    for settings in (PAPER, SLS, SGD_SALSA):
        assert settings["look_back"] is False


@pytest.mark.parametrize(
    "direction, units, found",
    [
        ("adam", "all", True),
        ("lamb", "all", True),
        ("sgd", "all", False),
        ("adam", "groups", False),
        ("lamb", "groups", False),
        ("sgd", "groups", False),
    ],
)
def test_none_means_where_it_can(direction, units, found):
    cls = reference_class(direction, units)
    assert cls([np.ones(1)]).look_back is found
    assert cls([np.ones(1)], search_period=None).look_back is False


def test_without_it_eta_is_applied_and_nothing_is_remembered():
    opt = scalar(growth=1.0)
    for _ in range(25):
        opt.step(given(1.0, 1.0), ACCEPTED)
    assert opt.params[0][0] == approx(-24.0)
    assert vars(opt.looks) == vars(LookBack(1.0, 1))


@pytest.mark.parametrize("cls", [ReferenceSaLSa, ReferenceLAMB])
def test_the_search_is_the_same(cls):
    """Of one step, from one state; a later one starts from other weights."""
    found = []
    for look_back in (False, True):
        opt = optimizer([3.0], cls=cls, look_back=look_back, steps=40, search_period=1)
        opt.looks = looks(40, 80, w_a=[7.0], a=0.125)
        record = opt.step(given(9.0, 2.0), script(10.0, 10.0, 0.0))
        found.append((record.trials, record.step_size, opt.eta, opt.h, opt.s, opt.L))
    assert found[0] == found[1]
    assert record.step_size == approx(0.49)


# The first ten steps


def test_before_the_first_step():
    found = optimizer([1.0], init_step_size=0.25).looks
    assert (found.a, found.b, found.t_e, found.longest) == (0.25, 0.0, 0, 0.0)
    assert found.w_a == [None]


def test_the_first_move_is_a_part_of_the_moving_weights_root_mean_square():
    # (9 + 16 + 2) / 3 = 9, of weights with a gradient
    opt = optimizer([3.0, 4.0], [5.0] * 4, [2.0**0.5])
    opt.step(lambda w: (1.0, [np.ones(2), None, np.ones(1)]), ACCEPTED)
    b = 0.03 * math.sqrt(9.0)
    assert (opt.looks.b, opt.looks.a, opt.looks.longest) == (approx(b), approx(b), approx(b))
    assert opt.eta == 1.0
    assert opt.params[0] == approx(np.array([3.0 - b, 4.0 - b]))  # Adam's first direction: signs
    assert opt.params[1] == approx(5.0)
    opt.step(lambda w: (1.0, [np.ones(2), np.ones(4), np.ones(1)]), ACCEPTED)
    assert opt.looks.b == approx(b)  # of the weights before the first step


def test_a_smaller_eta_is_not_bounded():
    found = LookBack(1.0, 1)
    found.search(1, 0.02, at(1.0), at(1.0))
    assert (found.b, found.a) == (approx(0.03), 0.02)
    applied = []
    for t, eta in ((2, 0.01), (3, 5.0), (4, 0.025)):
        found.search(t, eta, at(1.0), at(1.0))
        applied.append(found.a)
    assert applied == [0.01, approx(0.03), 0.025]
    assert found.longest == 0.025  # that of the last one, until t = 10


def test_weights_of_zero_bound_nothing():
    found = LookBack(1.0, 1)
    for t in range(1, 5):
        found.search(t, 2.0 * t, at(0.0 if t == 1 else 1.0), at(1.0))
        assert (found.a, found.b) == (2.0 * t, -1.0)


def test_the_first_step_that_searches_gives_the_bound():
    opt = optimizer([1.0], init_step_size=0.5)
    opt.groups[0]["lr"] = 0.0
    opt.step(given(1.0, 1.0), never)
    opt.groups[0]["lr"] = 1.0
    opt.step(given(1.0, 1.0), ACCEPTED)
    assert (opt.steps, opt.looks.b, opt.looks.a) == (2, 0.03, 0.03)


@pytest.mark.parametrize("losses, f0", [((9.0,), 1.0), ((NAN,), 1.0), ((0.0,), NAN)])
def test_a_skipped_first_step_is_not_the_first(losses, f0):
    opt = optimizer([1.0], init_step_size=0.5)
    opt.step(given(f0, 1.0), script(*losses))
    assert vars(opt.looks) == vars(LookBack(0.5, 1))
    opt.params[0][0] = 2.0
    opt.step(given(1.0, 1.0), ACCEPTED)
    assert opt.looks.b == approx(0.06)


def test_windows_begin_at_the_tenth_step_and_at_the_end_of_the_one_before():
    opt = optimizer([0.0], search_period=3)
    begun = {}
    for t in range(1, 60):
        before = opt.params[0].copy()
        opt.step(given(1.0, 1.0), ACCEPTED)
        if opt.looks.t_b == t:
            begun[t] = opt.looks.t_e
            assert opt.looks.w_a[0] == before
            assert sums(opt.looks) == (0.0, 0.0)
            assert (opt.looks.last_look, opt.looks.last_change) == (t, t)
    assert begun == {10: 20, 22: 44, 46: 92}  # searches: 10, 13, 16, 19, 22, ...


def test_the_first_search_may_come_late():
    found = LookBack(1.0, 1)
    found.search(37, 0.5, at(3.0), at(1.0))
    assert (found.a, found.b, found.t_b, found.t_e) == (approx(0.09), approx(0.09), 37, 74)
    assert found.longest == approx(0.09)


def test_of_weights_next_to_zero_a_is_a_share_of_eta():
    found = LookBack(1.0, 1)
    found.search(1, 0.5, at(1e-9), at(1.0))
    assert (found.b, found.a) == (approx(3e-11), 5e-5)


# Looks


def test_a_look():
    # 2 * (5 - 1) - 3 * (4 - 6): those with a gradient and a weight at the beginning
    found = looks(10, 1000, w_a=[5.0, 4.0, None, 2.0], P=1.0, Q=7.0)
    found.search(12, 1.0, at(1.0, 6.0, 8.0, 9.0), at(2.0, -3.0, 5.0, None))
    assert sums(found) == (15.0, 21.0)
    assert (found.last_look, found.last_change) == (12, 10)
    found.search(13, 1.0, at(9.0, 4.0, 8.0, 9.0), at(2.0, -3.0, 5.0, None))
    assert sums(found) == (7.0, 29.0)


@pytest.mark.parametrize("g", [NAN, math.inf, -math.inf])
def test_a_look_that_is_not_finite_does_not_count(g):
    found = looks(10, 1000, P=1.0, Q=7.0)
    found.search(12, 1.0, at(1.0), at(g))
    assert sums(found) == (1.0, 7.0) and found.last_look == 12


def test_looks_of_plain_steps():
    # sixteen in a window of 40: wherever (t - last_look) * 16 >= 40
    found = looks(40, 80)
    seen = []
    for t in range(41, 54):
        found.plain_step(t, at(-1.0), at(2.0 if t < 48 else -5.0))
        if found.last_look == t:
            seen.append(t)
    assert seen == [43, 46, 49, 52]
    assert sums(found) == (0.0, 0.0)
    found.search(54, 1.0, at(-1.0), at(1.0))  # too early for a plain step
    assert sums(found) == (2.0 + 2.0 - 5.0 - 5.0 + 1.0, 15.0)
    assert (found.waiting, found.last_look) == ([], 54)
    for t in (55, 56, 57):
        found.plain_step(t, at(-1.0), at(1.0))
    assert found.last_look == 57
    found = looks(10, 26)
    found.plain_step(11, at(-1.0), at(1.0))  # equal
    assert found.last_look == 11


def test_looks_go_on_past_the_end_and_there_are_none_without_a_window():
    found = looks(40, 80, last_look=90)
    found.plain_step(93, at(-1.0), at(1.0))
    assert found.last_look == 93
    found = LookBack(1.0, 1)
    found.plain_step(93, at(-1.0), at(1.0))
    assert vars(found) == {**vars(LookBack(1.0, 1)), "w_a": [np.array([-1.0])]}


def test_the_way_of_a_newcomer_begins_at_its_first_step():
    found = looks(40, 80, w_a=[5.0, None])
    found.plain_step(50, at(1.0, 2.0), at(1.0, None))
    assert found.w_a == [5.0, None] and found.waiting == [4.0]
    found.plain_step(60, at(1.0, 3.0), at(1.0, 1.0))
    assert found.w_a == [5.0, 3.0] and found.waiting == [4.0, 4.0]
    found.search(70, 1.0, at(5.0, 1.0), at(1.0, 1.0))
    assert found.P == 4.0 + 4.0 + 2.0


def test_the_weights_looked_at_are_those_before_the_step():
    opt = optimizer([3.0], steps=20, search_period=1)
    opt.looks = looks(20, 400, w_a=[5.0], a=0.5)
    opt.step(given(1.0, 7.0), ACCEPTED)
    assert sums(opt.looks) == (14.0, 14.0) and opt.params[0] == approx(2.5)
    opt = optimizer([3.0], steps=20, search_period=10)
    opt.looks = looks(5, 21, w_a=[5.0], a=0.5)
    opt.step(given(1.0, 7.0), never)
    assert opt.looks.waiting == [14.0] and opt.params[0] == approx(2.5)


def test_factors_do_not_enter():
    groups = [{"params": [0], "lr": 0.5, "eps": 0.0}, {"params": [1], "lr": 0.125, "eps": 0.0}]
    opt = ReferenceSaLSa([np.array([3.0]), np.array([1.0])], groups, growth=1.0, search_period=1)
    opt.located = opt.accepted_once = True
    opt.steps = 20
    opt.looks = looks(20, 400, w_a=[5.0, 5.0], a=0.5)
    opt.step(given(1.0, 7.0, -1.0), ACCEPTED)
    assert sums(opt.looks) == (10.0, 10.0)
    assert [w[0] for w in opt.params] == approx([3.0 - 0.25, 1.0 + 0.0625])  # a lr


def test_a_look_sees_the_clipped_gradient_and_the_slope_does_not():
    opt = optimizer([3.0], [1.0], steps=20, search_period=1, max_grad_norm=1.0)
    opt.looks = looks(20, 400, w_a=[5.0, 5.0])
    record = opt.step(given(1.0, 3.0, -4.0), ACCEPTED)
    assert sums(opt.looks) == (approx(0.6 * 2 - 0.8 * 4), approx(2.0))
    # Adam's direction of (0.6, 0.8) on a first step is (1, 1)
    assert record.slope == approx((3.0 + 4.0) / 1.0, rel=1e-6)
    opt = optimizer([3.0], search_period=1, max_grad_norm=9.0)
    assert opt.step(given(1.0, 3.0), ACCEPTED).slope == approx(3.0, rel=1e-15)  # shorter: as it is


@pytest.mark.parametrize("f0, losses", [(1.0, (9.0,)), (1.0, (NAN,)), (NAN, (0.0,))])
def test_the_look_of_a_skipped_search_is_dropped(f0, losses):
    opt = optimizer([3.0], steps=30, search_period=1)
    opt.looks = looks(10, 20, w_a=[5.0], P=1.0, Q=2.0, waiting=[4.0])
    assert opt.step(given(f0, 1.0), script(*losses)).skipped
    expected = looks(10, 20, w_a=[5.0], P=1.0, Q=2.0, waiting=[4.0])
    assert vars(opt.looks) == vars(expected)


def test_the_look_of_a_skipped_plain_step_is_dropped():
    opt = optimizer([3.0], steps=30)
    opt.looks = looks(10, 20, w_a=[5.0])
    assert opt.step(given(NAN, 1.0), never).skipped
    assert vars(opt.looks) == vars(looks(10, 20, w_a=[5.0]))


# Changes


@pytest.mark.parametrize(
    "t, last_change, share",
    [
        (110, 100, None),  # settled: at 125
        (125, 100, 0.0),
        (140, 100, 15 / 75),
        (170, 140, 30 / 75),
        (200, 100, 1.0),
        (260, 170, 30 / 75),  # not past its end
        (260, 200, 0.0),
    ],
)
@pytest.mark.parametrize("P, exponent", [(4.0, 2 * 0.5), (-4.0, -0.5 * 0.5), (0.0, 0.0)])
def test_a_change(t, last_change, share, P, exponent):
    found = looks(100, 200, last_change=last_change, P=P, Q=8.0)
    found.search(t, 1.0, at(0.0), at(1.0))  # a look of 0
    assert found.a == approx(2.0 ** ((share or 0.0) * exponent), rel=1e-15)
    if t < 200:
        assert found.last_change == (t if share else last_change)


def test_this_look_and_the_waiting_ones_count():
    found = looks(100, 200, P=1.0, Q=1.0, waiting=[-2.0, 3.0])
    found.search(200, 1.0, at(-1.0), at(-10.0))
    assert found.a == approx(2.0 ** (0.5 * -8 / 16))


@pytest.mark.parametrize(
    "P, Q, r",
    [
        (1.4, 1024.0, 1.0),
        (0.5, 1024.0, 0.0),  # half to even
        (1.5, 1024.0, 2.0),
        (-1.5, 1024.0, -2.0),
        (-2.5, 1024.0, -2.0),
        (7.0, 7.0, 1024.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_r_is_a_multiple_of_a_1024th(P, Q, r):
    found = looks(100, 200, P=P, Q=Q)
    found.search(200, 1.0, at(0.0), at(1.0))
    assert found.a == 2.0 ** (r / 1024 * (2 if r > 0 else 0.5))


def test_a_flat_search_changes_too_and_a_plain_step_never():
    opt = optimizer([5.0], steps=199, search_period=1)
    opt.looks = looks(100, 200, w_a=[5.0], P=1.0, Q=2.0)
    assert opt.step(given(1e60, 1.0), script(1e60)).outcome == "flat"
    assert (opt.looks.a, opt.looks.t_b) == (2.0, 200) and opt.params[0] == approx(3.0)
    opt.looks = looks(100, 200, w_a=[5.0], P=1.0, Q=2.0)
    assert opt.step(given(1.0, 0.0), never).outcome == "flat"  # a slope of 0
    assert opt.looks.a == 2.0
    opt = optimizer([5.0], steps=199, search_period=10)
    opt.looks = looks(100, 200, w_a=[5.0], P=1.0, Q=2.0)
    opt.step(given(1.0, 1.0), never)
    assert (opt.looks.a, opt.looks.last_change, opt.looks.t_b) == (1.0, 100, 100)
    assert opt.params[0] == approx(4.0)


def test_a_whole_window_by_hand():
    """Steps of a from 0, with gradients of 1 and in the end of -1; searches at 10, 14, 17, 20."""
    opt = optimizer([0.0], init_step_size=1.0, search_period=1)
    for _ in range(9):
        opt.step(given(1.0, 1.0), ACCEPTED)
    opt.params[0][0] = 0.0
    opt.m[0][:], opt.v[0][:], opt.t[0] = 1.0, 1.0, 10_000  # Adam's direction: 1
    opt.step(given(1.0, 1.0), ACCEPTED)
    w, P, Q, a, last = -1.0, 0.0, 0.0, 1.0, 12.5
    for t in range(11, 20):
        g = 1.0 if t < 18 else -1.0
        P, Q = P - g * w, Q + abs(w)
        share = (t - last) / 7.5
        if share > 0:
            r = round(1024 * P / Q) / 1024
            a, last = a * 2 ** (share * r * (2 if r > 0 else 0.5)), t
        opt.m[0][:] = g
        opt.step(given(1.0, g), ACCEPTED)
        w -= a * g
        assert (opt.looks.a, opt.params[0][0]) == (approx(a, rel=1e-5), approx(w, rel=1e-3))
    assert a > 1.5


# The next window


def test_a_missing_gradient_keeps_the_older_weights_or_none():
    found = looks(10, 20, w_a=[1.0, 2.0, None, None])
    found.notes_newcomers = False
    found.search(25, 1.0, at(5.0, 6.0, 7.0, 8.0), at(1.0, None, 1.0, None))
    assert found.w_a == [5.0, 2.0, 7.0, None]
    assert (found.t_b, found.t_e, sums(found)) == (25, 50, (0.0, 0.0))
    assert (found.last_look, found.last_change) == (25, 25)
    w = at(5.0)
    found = looks(10, 20)
    found.search(20, 1.0, w, at(1.0))
    w[0] += 1.0
    assert found.w_a == [5.0]  # a copy


def test_the_last_search_of_a_window_changes_a_before_the_next_begins():
    found = looks(10, 20, P=8.0, Q=8.0, last_change=15)
    found.search(23, 1.0, at(0.0), at(1.0))
    assert found.a == approx(2.0 ** (2 * 5 / 7.5))
    assert (found.t_b, found.t_e) == (23, 46)


def test_38_etas_at_most():
    found = looks(100, 200, a=37.0, P=1.0, Q=1.0)
    found.search(150, 2.0, at(0.0), at(1.0))
    assert found.a == found.longest == approx(37.0 * 2.0 ** (2 / 3))
    found.search(151, 1.0, at(0.0), at(1.0))
    assert found.a == 38.0 and found.longest == approx(37.0 * 2.0 ** (2 / 3))
    found.search(152, 0.25, at(0.0), at(1.0))  # does not come back with eta
    found.search(153, 9.0, at(0.0), at(1.0))
    assert found.a < 11.0


# What is applied


def test_decay_is_of_what_is_applied():
    group = {"params": [0], "lr": 0.5, "weight_decay": 0.5, "eps": 0.0}
    applied = []
    for a in (1.0, 8.0):  # x = a / 4, 2
        opt = ReferenceSaLSa([np.ones(1)], [group], search_period=10)
        opt.steps = 30
        opt.looks.a = a
        opt.step(given(1.0, 2.0), never)
        applied.append(opt.params[0][0])
    assert applied == approx([1.0 - 0.5 * 1.5, 1.0 - 4.0 - 2 / 3])


@pytest.mark.parametrize("trust_clip, applied", [(0.25, 0.5), (None, 4.0)])
def test_lamb(trust_clip, applied):
    opt = optimizer([4.0], cls=ReferenceLAMB, trust_clip=trust_clip, steps=20, search_period=10)
    opt.looks.a = 1.0 if trust_clip is None else 2.0
    opt.step(given(1.0, 2.0), never)  # u = 1, r = min(4, trust_clip)
    assert opt.params[0] == approx(4.0 - applied)


SHARES_OF_5 = [1.0, 1.0, 1.0, 2 / 3, 1 / 3, 1 / 3, 1 / 3]
SHARES_OF_8 = [1.0] * 5 + [3 / 4, 2 / 4, 1 / 4, 1 / 4]


@pytest.mark.parametrize(
    "N, shares", [(1, [1.0, 1.0]), (2, [1.0] * 3), (5, SHARES_OF_5), (8, SHARES_OF_8)]
)
@pytest.mark.parametrize("direction", ["adam", "sgd", "lamb"])
@pytest.mark.parametrize("units", ["all", "groups"])
def test_total_steps(N, shares, direction, units):
    cls = reference_class(direction, units)
    opt = cls([np.array([50.0])], search_period=None, init_step_size=0.5, total_steps=N)
    for share in shares:
        before = opt.params[0][0]
        opt.step(given(1.0, 1.0), never)
        assert before - opt.params[0][0] == approx(0.5 * share, rel=1e-6)


def test_total_steps_is_not_remembered():
    opt = optimizer([100.0], steps=199, search_period=1, total_steps=200, init_step_size=4.0)
    opt.looks = looks(100, 200, w_a=[100.0], P=1.0, Q=2.0)
    opt.step(given(1.0, 1.0), ACCEPTED)
    assert (opt.looks.a, opt.looks.longest, opt.eta) == (2.0, 2.0, 4.0)
    assert opt.params[0] == approx(100.0 - 2.0 / 100)
    opt = optimizer([100.0], steps=199, search_period=1, total_steps=200, look_back=False)
    opt.step(given(1.0, 1.0), ACCEPTED)
    assert opt.eta == 1.0 and opt.params[0] == approx(100.0 - 1.0 / 100)


def test_skipped_steps_do_not_count():
    opt = optimizer([1.0], total_steps=4, search_period=1)
    for _ in range(5):
        opt.step(given(NAN, 1.0), never)
    opt.step(given(1.0, 1.0), ACCEPTED)
    assert opt.params[0] == approx(1.0 - 0.03)
