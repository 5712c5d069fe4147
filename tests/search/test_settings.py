"""The named settings: what they say, and that an optimizer built of them does it."""

from __future__ import annotations

import pytest
import torch

from salsa_fused import FusedSaLSa, settings


def weights(seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=random).requires_grad_() for n in (5, 3)]


def closure_of(parameters):
    scales = [torch.linspace(1.0, 9.0, p.numel()) for p in parameters]
    return lambda: sum((s * p.square()).sum() for s, p in zip(scales, parameters))


NAMES = ["PAPER", "SGD_SALSA", "ADAM_SLS", "SGD_SLS"]


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_is_built_of_each_and_lowers_the_loss(name):
    parameters = weights()
    optimizer = FusedSaLSa(parameters, **getattr(settings, name))
    closure = closure_of(parameters)
    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_sls_is_armijos_criterion_alone_on_every_step():
    parameters = weights()
    optimizer = FusedSaLSa(parameters, **settings.ADAM_SLS)
    closure = closure_of(parameters)
    for _ in range(25):
        assert optimizer.search_due
        optimizer.step(closure)
        last = optimizer.last_search
        if last.outcome == "accepted":  # neither side knows of the searches before
            assert last.loss - last.trial_loss >= 0.1 * last.step_size * last.slope * (1 - 1e-6)
            group = optimizer.param_groups[0]
            assert group["smoothed_slope"] == last.slope
            assert group["smoothed_decrease"] == last.loss - last.trial_loss
    assert optimizer.param_groups[0]["searches"] == 25
