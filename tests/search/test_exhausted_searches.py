"""A search that finds nothing takes no step: what once destroyed weights, and coming back."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from seeds import seed_torch
from torch import nn

from salsa_fused import FusedSaLSa, settings

pytestmark = pytest.mark.filterwarnings("ignore:.*steps in a row were skipped")


def deep_linear(depth, init, seed=0, width=16):
    """A regression by a product of matrices: steep walls, flat ground at zero."""
    seed_torch(seed)
    layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=init / math.sqrt(width))
    x = torch.randn(64, width)
    y = x @ torch.randn(width, width) / math.sqrt(width)
    return nn.Sequential(*layers), lambda net: (net(x) - y).square().mean()


SYSTEMS = {
    "defaults": {},
    "paper": settings.PAPER,
    "sgd": {"direction": "sgd"},
    "lamb": {"direction": "lamb"},
    "SGD_SALSA": settings.SGD_SALSA,
    "SGD_SLS": settings.SGD_SLS,
}


@pytest.mark.parametrize(
    ("system", "init", "depth"),
    [*itertools.product(SYSTEMS, (0.5, 1.0, 2.0), (4, 8))],
)
def test_deep_linear_nets_never_end_above_their_start(system, init, depth):
    net, loss_of = deep_linear(depth, init)
    optimizer = FusedSaLSa(net.parameters(), check_replay=False, **SYSTEMS[system])
    start = loss_of(net).item()
    for _ in range(60):
        optimizer.step(lambda: loss_of(net))
    assert loss_of(net).item() <= 2.0 * start


def test_rosenbrock_by_coordinates():
    """Torch's own test of optimizers: every other gradient is of one coordinate."""
    weight = torch.tensor([1.5, 1.5], dtype=torch.float64, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False, **settings.SGD_SLS)

    def rosenbrock():
        x, y = weight
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    def closure(keep):
        optimizer.zero_grad()
        loss = rosenbrock()
        loss.backward()
        weight.grad = weight.grad * keep
        return loss

    start = rosenbrock().item()
    for step in range(400):
        keep = torch.tensor([step % 2 == 0, step % 2 == 1])
        optimizer.step(lambda keep=keep: closure(keep))
        assert rosenbrock().item() <= start
    assert rosenbrock().item() < 0.1 * start


def test_a_table_that_begins_at_zero():
    """word2vec's output, LoRA's B, a new head: the first step seems to cost nothing."""
    seed_torch(0)
    inner, outer = nn.Embedding(47, 128), nn.Linear(128, 47, bias=False)
    nn.init.uniform_(inner.weight, -0.5 / 128, 0.5 / 128)
    nn.init.zeros_(outer.weight)
    optimizer = FusedSaLSa([*inner.parameters(), *outer.parameters()], check_replay=False)
    losses = []
    for step in range(200):
        random = torch.Generator().manual_seed(step)
        x = torch.randint(0, 47, (256,), generator=random)
        y = torch.where(torch.rand(256, generator=random) < 0.8, (7 * x + 3) % 47, x)

        def closure(x=x, y=y):
            return nn.functional.cross_entropy(outer(inner(x)), y)

        losses.append(optimizer.step(closure).item())
    assert max(losses) < 1.2 * losses[0]  # a thousand times that, if the rejected step is taken
    assert losses[-1] < 0.5 * losses[0]


def test_the_weights_of_an_exhausted_step_are_those_before_it():
    weight = torch.ones(5, requires_grad=True)
    optimizer = FusedSaLSa([weight], check_replay=False, look_back=False)
    for _ in range(3):
        optimizer.step(lambda: weight.square().sum())
    before, entry = weight.detach().clone(), dict(optimizer.state[weight])
    moments = entry["exp_avg"].clone(), entry["exp_avg_sq"].clone()
    size, calls = optimizer.step_size, 0

    def rising():
        nonlocal calls
        calls += 1
        return weight.square().sum() + (10.0 if calls > 1 else 0.0)

    optimizer.step(rising)
    assert optimizer.last_search.outcome == "exhausted" and calls == 11
    assert torch.equal(weight.detach(), before)
    assert optimizer.state[weight]["step"] == entry["step"] == 3
    assert torch.equal(optimizer.state[weight]["exp_avg"], moments[0])
    assert torch.equal(optimizer.state[weight]["exp_avg_sq"], moments[1])
    assert (optimizer.skipped_steps, optimizer.search_due) == (1, True)
    assert optimizer.step_size == pytest.approx(size * 2 ** (1 / 20) * 0.7**10)
    assert optimizer.metrics()["outcome"] == "exhausted"


@pytest.mark.parametrize(("steps", "bad"), [(30, math.inf), (60, math.nan), (200, 10.0)])
@pytest.mark.parametrize(
    "keywords", [{}, settings.PAPER, {"direction": "lamb"}, {"units": "groups"}]
)
def test_it_recovers_from_bad_batches_in_a_row(steps, bad, keywords):
    """Within sixty good steps the loss is where it would be, however long it went on."""
    first, second = (torch.full((8,), 2.0, requires_grad=True) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second]}]
    optimizer = FusedSaLSa(groups, check_replay=False, **keywords)

    def loss():
        return first.square().sum() + 10.0 * (second - 1.0).square().sum()

    for _ in range(4):
        optimizer.step(loss)
    for _ in range(steps):
        calls = 0

        def worse():
            nonlocal calls
            calls += 1
            return loss() + (bad if calls > 1 else 0.0)

        optimizer.step(worse)
    before = loss().item()
    for _ in range(60):
        optimizer.step(loss)
    assert loss().item() < max(0.05 * before, 1e-6)


def test_another_task_after_convergence():
    """A step size that became too small to be felt is found anew."""
    weight = torch.full((4,), 0.5, requires_grad=True)
    optimizer = FusedSaLSa([weight], search_period=1, check_replay=False, look_back=False)
    target = torch.zeros(4)
    for _ in range(1500):
        optimizer.step(lambda: (weight - target).square().sum())
    optimizer.param_groups[0]["step_size"] = 1e-9  # as after thousands of steps
    target = torch.full((4,), 1.0)
    for _ in range(300):
        optimizer.step(lambda: (weight - target).square().sum())
    assert (weight - target).square().sum().item() < 1e-6
