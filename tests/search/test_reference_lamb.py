"""The references of LAMB and LAMBC against numbers worked by hand."""

import math

import numpy as np
import pytest
from reference import ReferenceLAMB
from scripted_losses import given, make, never, script, watch, weights

approx = pytest.approx
NAN = math.nan


def lamb(*tensors, gradients, trust_clip=None, found=False, **keywords):
    opt = make(ReferenceLAMB, *tensors, trust_clip=trust_clip, search_period=None, **keywords)
    opt.step(lambda w: (1.0, [np.array(g) for g in gradients]), never)
    return opt


def test_trust_ratio_is_per_tensor():
    # Adam's first u is the sign: norms sqrt 2 and 1
    opt = lamb([3.0, 4.0], [0.5], gradients=([1.0, -2.0], [3.0]), init_step_size=0.1)
    assert opt.trust == approx([5 / math.sqrt(2), 0.5])
    assert opt.params[0] == approx(
        np.array([3.0, 4.0]) - 0.1 * 5 / math.sqrt(2) * np.array([1, -1])
    )
    assert opt.params[1] == approx([0.5 - 0.1 * 0.5])


def test_trust_clip():
    opt = lamb([3.0, 4.0], [0.5], gradients=([1.0, -2.0], [3.0]), trust_clip=1.0)
    assert opt.trust == [1.0, approx(0.5)]
    opt = lamb([3.0, 4.0], gradients=([1.0, -2.0],), trust_clip=3.0)
    assert opt.trust == [3.0]


def test_trust_ratio_has_the_decay_in_its_norm():
    # u = 1 + 0.5 * 2 = 2, r = 2 / 2
    opt = lamb([2.0], gradients=([1.0],), groups=[{"weight_decay": 0.5}], init_step_size=0.1)
    assert opt.trust == [approx(1.0)] and weights(opt) == approx([2.0 - 0.1 * 2.0])


@pytest.mark.parametrize(
    "decay, trust_clip, trust, left",  # lr eta is 8, u is decay times w
    [
        (0.01, None, 100.0, 1 - 8 / 9),  # nothing bounds r: x = 8 * r * decay
        (4.0, None, 0.25, 1 - 8 / 9),
        (0.1, None, 10.0, 1 - 8 / 9),
        (0.25, 0.5, 0.5, 1 - 1 / 3),  # x = 2: 8 * 0.5 * 0.25 / 3
        (0.25, 4.0, 4.0, 1 - 8 / 9),  # x = 8: 8 * 4 * 0.25 / 9
        (0.03, 4.0, 4.0, 1 - 0.96),  # x = 0.96: as it is
    ],
)
def test_decay_at_most_at_the_largest_trust_ratio(decay, trust_clip, trust, left):
    groups = [{"lr": 0.5, "weight_decay": decay}]
    opt = lamb([3.0], gradients=([0.0],), trust_clip=trust_clip, groups=groups, init_step_size=16.0)
    assert opt.trust == [approx(trust)] and weights(opt) == approx([3.0 * left])


def test_trust_ratio_of_a_zero_norm_is_one():
    opt = lamb([0.0], gradients=([5.0],), init_step_size=0.1)
    assert opt.trust == [1.0] and weights(opt) == approx([-0.1])
    opt = lamb([2.0], gradients=([0.0],), groups=[{"eps": 1e-6}])
    assert opt.trust == [1.0] and weights(opt) == [2.0]


def test_trust_ratio_is_that_of_the_momentum_in_trial_and_write():
    opt = make(ReferenceLAMB, 0.1, groups=[{"weight_decay": 0.5}], c=0.0)
    opt.m[0][:], opt.v[0][:], opt.t[0] = 0.5, 1.0, 1
    seen = []
    record = opt.step(given(5.0, 1.0), watch(seen, 0.0))
    root = math.sqrt(1.0 / (1 - 0.999**2))
    u = 0.55 / 0.19 / root + 0.05
    r = 0.1 / u
    assert r < 1.0 and opt.trust == [approx(r)]
    assert seen == [[approx(0.1 - r / root)]]  # no momentum, no decay
    assert record.slope == approx(r / root)
    assert weights(opt) == approx([0.1 - r * u])


def test_trust_ratio_of_the_published_method_over_two_steps():
    opt = lamb([1.0], gradients=([2.0],), trust_clip=1.0, init_step_size=0.1)
    assert weights(opt) == approx([0.9])
    opt.step(given(1.0, 1.0), never)
    u = 0.28 / 0.19 / math.sqrt(0.004996 / 0.001999)
    assert opt.trust == [approx(0.9 / u)] and opt.trust[0] < 1.0
    assert weights(opt) == approx([0.9 - 0.1 * 0.9])


def test_lr_scales_after_the_trust_ratio():
    groups = [{"lr": 0.5}, {"lr": 0.25}]
    opt = make(ReferenceLAMB, 0.5, 0.5, groups=groups, c=0.0)
    seen = []
    record = opt.step(given(9.0, 2.0, 4.0), watch(seen, 1.0))
    assert record.slope == approx(0.5 * 2.0 + 0.5 * 0.5 * 4.0)
    assert seen == [approx([0.0, 0.25])] and opt.trust == approx([0.5, 0.5])
    assert weights(opt) == approx([0.25, 0.375])


def test_missing_gradient_and_skipped_step_leave_the_trust_ratio():
    opt = make(ReferenceLAMB, 0.5, 0.5)
    opt.step(given(1.0, 2.0, None), script(0.0))
    assert opt.trust == [approx(0.5), None] and opt.t == [1, 0]
    assert opt.step(given(1.0, NAN, NAN), never).skipped
    assert opt.trust == [approx(0.5), None]
