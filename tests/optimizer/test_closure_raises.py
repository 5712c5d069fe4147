"""An exception anywhere in the closure leaves everything as it was."""

from __future__ import annotations

import pytest
import torch
from small_net import make_closure, make_net
from snapshots import assert_same, everything

from salsa_fused import FusedSaLSa


class Broken(Exception):
    pass


def build():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, check_replay=False)
    torch.manual_seed(11)
    return net, optimizer


def failing(net, step, at):
    """The closure of a step that raises at evaluation number `at`."""
    evaluate, calls = make_closure(net, step), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == at:
            raise Broken
        return evaluate()

    return closure


def test_an_exception_in_backward():
    net, optimizer = build()
    optimizer.step(make_closure(net))
    before = everything(net, optimizer)

    def fail(gradient):
        raise Broken

    handle = net[0].weight.register_hook(fail)
    with pytest.raises(Broken):
        optimizer.step(make_closure(net, 1))
    handle.remove()
    assert_same(before, everything(net, optimizer))
    assert all(p.grad is None for p in net.parameters())


def test_gradients_given_survive_an_exception_at_a_trial():
    net, optimizer = build()
    loss = make_closure(net)()
    loss.backward()
    before = everything(net, optimizer)
    gradients = [p.grad for p in net.parameters()]
    with pytest.raises(Broken):
        optimizer.step(failing(net, 0, 2), loss=loss)
    assert_same(before, everything(net, optimizer))
    assert all(p.grad is g for p, g in zip(net.parameters(), gradients))


@pytest.mark.parametrize("later", [None, "loss", 3.0])
def test_a_closure_that_suddenly_returns_something_else(later):
    net, optimizer = build()
    evaluate, calls = make_closure(net), 0

    def closure():
        nonlocal calls
        calls += 1
        return evaluate() if calls < 3 else later

    before = everything(net, optimizer)
    with pytest.raises(TypeError, match="closure\\(\\) at a trial point must be the loss"):
        optimizer.step(closure)
    assert_same(before, everything(net, optimizer))


def test_a_gradient_no_kernel_can_read():
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    optimizer = FusedSaLSa(embedding.parameters())
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"sparse=False"):
        optimizer.step(lambda: embedding(torch.arange(3)).square().sum())
    assert torch.equal(embedding.weight.detach(), before) and not optimizer.state
