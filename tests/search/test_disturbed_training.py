"""Whatever hits the search, it recovers: training ends near where undisturbed training ends."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from salsa_fused import FusedSaLSa, settings

pytestmark = pytest.mark.slow

STEPS = 400


def problem():
    """Least squares of condition 100 with noisy targets: mini-batches disagree to the end."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 10, generator=random) * torch.logspace(0, -1, 10)
    noise = 0.03 * torch.randn(512, generator=random)
    return inputs, inputs @ torch.randn(10, generator=random) + noise


def train(disturb=lambda step, trial, loss: loss, offset=0.0, steps=STEPS, **keywords):
    """Final loss above the minimum; `disturb` changes the loss of an evaluation."""
    inputs, targets = problem()
    weight = torch.zeros(10, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False, **keywords)
    for step in range(steps):
        chosen = torch.randint(0, 512, (32,), generator=torch.Generator().manual_seed(step))
        x, y, calls = inputs[chosen], targets[chosen], 0

        def closure(x=x, y=y, step=step):
            nonlocal calls
            calls += 1
            loss = (x @ weight - y).square().mean() + offset
            return disturb(step, calls > 1, loss)

        optimizer.step(closure)
    best = torch.linalg.lstsq(inputs.double(), targets.double()[:, None]).solution[:, 0]
    losses = [(inputs.double() @ w.double() - targets).square().mean() for w in (weight, best)]
    return (losses[0] - losses[1]).item(), optimizer


@functools.cache
def undisturbed_loss(system, steps=STEPS):
    return train(steps=steps, **SYSTEMS[system])[0]


SYSTEMS = {
    "defaults": {},
    "paper": settings.PAPER,
    "sgd": {"direction": "sgd"},
    "lamb": {"direction": "lamb"},
    "always": {"search_period": 1},
}


def bad_batches(step, trial, loss):
    return loss + 10.0 if trial and 100 <= step < 130 else loss


def nan_losses(step, trial, loss):
    return loss * math.nan if not trial and step % 7 == 2 else loss


def nan_bursts(step, trial, loss):
    return loss * math.nan if 100 <= step < 130 else loss


def nan_trials(step, trial, loss):
    return loss * math.nan if trial and 50 <= step < 80 else loss


DISTURBANCES = {
    "thirty bad batches": {"disturb": bad_batches},
    "thirty bad batches, a search on every step": {"disturb": bad_batches, "search_period": 1},
    "from 1e-9": {"init_step_size": 1e-9},
    "from 1e-4": {"init_step_size": 1e-4},
    "from 1e3": {"init_step_size": 1e3},
    "negative losses": {"offset": -5.0},
    "NaN losses": {"disturb": nan_losses},
    "thirty NaN losses": {"disturb": nan_bursts},
    "thirty steps of NaN trials": {"disturb": nan_trials},
}


@pytest.mark.parametrize(
    ("system", "name"),
    [
        *(("defaults", name) for name in DISTURBANCES),
        *(("paper", name) for name in ("thirty bad batches", "from 1e3", "thirty NaN losses")),
    ],
)
def test_the_search_recovers(system, name):
    undisturbed = undisturbed_loss(system)
    disturbed, optimizer = train(**{**SYSTEMS[system], **DISTURBANCES[name]})
    assert 0.0 < undisturbed < 1e-3
    assert disturbed < 50 * undisturbed
    assert optimizer.param_groups[0]["located"]


@pytest.mark.filterwarnings("ignore:.*steps in a row were skipped")
@pytest.mark.parametrize("name", SYSTEMS)
def test_sixty_good_steps_make_up_for_two_hundred_bad_ones(name):
    number = 200

    def bad(step, trial, loss):
        return loss + 10.0 if trial and 100 <= step < 100 + number else loss

    undisturbed = undisturbed_loss(name, 160)
    disturbed, optimizer = train(bad, steps=160 + number, **SYSTEMS[name])
    assert disturbed < 2.0 * undisturbed
    assert optimizer.skipped_steps > 0.5 * number


def test_the_same_step_size_is_found_from_anywhere():
    found = []
    for start in (1e-9, 1e-4, 1.0, 1e3):
        _, optimizer = train(init_step_size=start)
        found.append(optimizer.step_size)
    assert max(found) < 30 * min(found)
