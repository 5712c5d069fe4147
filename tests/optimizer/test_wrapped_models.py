"""Checkpointing, compilation, parametrizations and caches around a model."""

from __future__ import annotations

import shutil
import sys
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from small_net import make_batch, make_closure, make_net
from snapshots import assert_same, everything
from torch import nn
from torch.utils.checkpoint import checkpoint

from salsa_fused import FusedSaLSa


@pytest.fixture(autouse=True)
def no_warnings_of_ours():
    """`check_replay` warns where a trial is not a replay."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="salsa_fused")
        warnings.filterwarnings("error", message=".*closure")
        yield


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    """The forward that a backward repeats draws the masks of the first one."""
    runs = []
    for wrapped in (False, True):
        net = make_net(dropout=0.5, norm=False)
        optimizer = FusedSaLSa(net.parameters(), module=net)
        torch.manual_seed(2)
        for step in range(20):
            inputs, targets = make_batch(step)
            inputs.requires_grad_()

            forward = partial(checkpoint, net, use_reentrant=reentrant) if wrapped else net
            optimizer.step(lambda f=forward, x=inputs, y=targets: (f(x) - y).square().mean())
        assert optimizer.param_groups[0]["searches"] > 10
        runs.append(everything(net, optimizer))
    assert_same(*runs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_with_running_statistics(reentrant):
    """It runs each forward of a backward twice; trials leave the statistics of the first step."""
    net = make_net(dropout=0.5)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    for step in range(20):
        inputs, targets = make_batch(step)
        inputs.requires_grad_()
        optimizer.step(
            lambda x=inputs, y=targets: (
                (checkpoint(net, x, use_reentrant=reentrant) - y).square().mean()
            )
        )
    assert net[1].num_batches_tracked == 40  # two in every step, however many trials


compiles = pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform == "win32", reason="needs a C++ compiler"
)


@compiles
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_models(dropout):
    torch._dynamo.reset()
    net = make_net(dropout=dropout)
    compiled = torch.compile(net)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    losses = [optimizer.step(make_closure(compiled)).item() for _ in range(60)]
    assert optimizer.param_groups[0]["searches"] > 10
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert net[1].num_batches_tracked == 60


@compiles
def test_a_compiled_closure():
    torch._dynamo.reset()
    net = make_net(dropout=0.3, norm=False)
    optimizer = FusedSaLSa(net.parameters())
    loss_of = torch.compile(lambda x, y: (net(x) - y).square().mean())
    losses = [optimizer.step(lambda: loss_of(*make_batch())).item() for _ in range(40)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@compiles
def test_a_compiled_training_step():
    """`step` is left out of the graph, and takes the same steps."""
    torch._dynamo.reset()
    runs = []
    for compiled in (False, True):
        net = make_net(dropout=0.0, norm=False)
        optimizer = FusedSaLSa(net.parameters(), backend="native")

        def train(closure, optimizer=optimizer):
            return optimizer.step(closure)

        step_of = torch.compile(train, backend="eager") if compiled else train
        for step in range(15):
            step_of(make_closure(net, step))
        runs.append(everything(net, optimizer))
    assert_same(*runs)


def test_an_optimizer_that_a_compiled_function_makes():
    """torch.compile loses attributes that are set before a function which it does not follow."""
    net = make_net()

    def make():
        return FusedSaLSa(net.parameters(), module=net, check_finite=True, backend="reference")

    plain = make()  # the first one of a class is made another way
    torch._dynamo.reset()
    optimizer = torch.compile(make, backend="eager")()
    assert optimizer.__dict__.keys() == plain.__dict__.keys()
    assert optimizer.module is net and optimizer.check_finite
    optimizer.step(make_closure(net))
    assert optimizer.backends == ("reference",)


@pytest.mark.parametrize(
    "parametrize",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal],
)
def test_parametrizations(parametrize):
    """The weight is computed from others, and cached in a context, which trials must not see."""
    runs = []
    for context in (nullcontext, nn.utils.parametrize.cached):
        torch.manual_seed(0)
        net = nn.Sequential(parametrize(nn.Linear(6, 16)), nn.Tanh(), nn.Linear(16, 1))
        optimizer = FusedSaLSa(net.parameters(), module=net)
        for step in range(30):
            with context():
                optimizer.step(make_closure(net, step))
        runs.append(everything(net, optimizer))
    assert_same(*runs)


def test_autograd_notices_weights_that_moved():
    """A graph from before a step must not be used with the weights after it."""
    net = make_net(dropout=0.0, norm=False)
    optimizer = FusedSaLSa(net.parameters(), search_period=None, init_step_size=1e-3)
    inputs, _ = make_batch()
    old = net(inputs.requires_grad_()).sum()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        old.backward()


def test_a_loss_that_the_next_evaluation_overwrites():
    """As with CUDA-graph trees: the output's memory is the next call's."""
    net = make_net(dropout=0.0, norm=False)
    memory = torch.zeros(())

    class Overwriting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return memory.copy_(x).view(())

        @staticmethod
        def backward(ctx, g):
            return g

    runs = []
    for overwriting in (False, True):
        net = make_net(dropout=0.0, norm=False)
        optimizer = FusedSaLSa(net.parameters())
        for step in range(20):
            evaluate = make_closure(net, step)
            loss = optimizer.step(
                (lambda e=evaluate: Overwriting.apply(e())) if overwriting else evaluate
            )
        runs.append([loss, *everything(net, optimizer)[0]])
    assert all(map(torch.equal, *runs))
