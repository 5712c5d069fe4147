"""The `reference` kernels against formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import GROUP, make_state, make_weights, run


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_reference_against_the_formulas(dtype, tolerance):
    eta, beta1, beta2, eps, decay, t = 0.37, 0.8, 0.97, 1e-6, 0.1, 8
    weights = make_weights([1000], dtype)
    state = make_state(weights, t - 1)
    w, g, m, v = (
        x.double().numpy().copy()
        for x in (weights[0], weights[0].grad, *list(state[weights[0]].values())[1:3])
    )
    group = {**GROUP, "lr": 0.5, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    groups = [{**group, "params": weights}, {**GROUP, "params": []}]
    seen, slope = run("reference", weights, groups, state, eta)

    m1, v1 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    root = np.sqrt(v1 / (1 - beta2**t)) + eps
    expected = [
        w - 0.5 * eta * g / root,
        w - 0.5 * eta * 0.7 * g / root,
        w - 0.5 * eta * 0.49 * (m1 / (1 - beta1**t) / root + decay * w),
    ]
    for tensors, target in zip(seen, expected):
        scale = np.abs(target).max()
        assert np.abs(tensors[0].double().numpy() - target).max() / scale < tolerance
    assert slope == pytest.approx(0.5 * np.sum(g * g / root), rel=tolerance)


def test_trials_leave_the_moments_alone():
    weights = make_weights([100])
    state = make_state(weights)
    before = [tensor.clone() for tensor in list(state[weights[0]].values())[1:]]
    seen, _ = run("native", weights, state=state)
    for launch in seen[:2]:
        assert all(map(torch.equal, launch[1:], before))


def test_sgd_against_the_formulas():
    eta, decay = 0.37, 0.1
    for maximize in (False, True):
        weights = make_weights([1000], torch.float64)
        w, g = (x.numpy().copy() for x in (weights[0], weights[0].grad))
        group = {**GROUP, "lr": 0.5, "weight_decay": decay, "direction": "sgd"}
        groups = [{**group, "params": weights, "maximize": maximize}, {**GROUP, "params": []}]
        state = {}
        seen, slope = run("reference", weights, groups, state, eta)
        g = -g if maximize else g
        expected = [
            w - 0.5 * eta * g,
            w - 0.5 * eta * 0.7 * g,
            after := w - 0.5 * eta * 0.49 * (g + decay * w),
            after - 0.5 * eta * (g + decay * after),
        ]
        for tensors, target in zip(seen, expected):
            assert np.abs(tensors[0].numpy() - target).max() / np.abs(target).max() < 1e-15
        assert slope == pytest.approx(0.5 * np.sum(g * g), rel=1e-14)
        assert not state
