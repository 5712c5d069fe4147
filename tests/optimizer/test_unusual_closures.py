"""What models and closures do that an optimizer does not expect."""

from __future__ import annotations

import math

import pytest
import torch
from small_net import make_batch, make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa


def build(**keywords):
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, **keywords)
    torch.manual_seed(3)
    return net, optimizer


# -- weights and activations ------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("search_period", [1, (1, 10)])
def test_weights_whose_memory_moves_inside_the_closure(keep, backend, search_period):
    """As `flatten_parameters()` of a recurrent network does, and offloading."""
    runs = []
    for moving in (False, True):
        net, optimizer = build(backend=backend, search_period=search_period)
        old = []
        for step in range(15):
            evaluate = make_closure(net, step)

            def closure(evaluate=evaluate, net=net, old=old, moving=moving):
                for p in net.parameters() if moving else ():
                    old.append(p.data)
                    p.data = p.data.clone()
                if not keep:
                    old.clear()
                return evaluate()

            optimizer.step(closure)
        runs.append(everything(net, optimizer))
    assert_same(*runs)


def test_a_weight_that_changes_its_memory_order_inside_the_closure():
    weight = nn.Parameter(torch.randn(2, 3))
    optimizer = FusedSaLSa([weight], check_replay=False)
    before, calls = weight.detach().clone(), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2:
            weight.data = weight.data.t().contiguous().t()
        return weight.square().sum()

    with pytest.raises(RuntimeError, match="replaced a weight by one of another shape"):
        optimizer.step(closure)
    assert torch.equal(weight.detach(), before)
    optimizer.step(lambda: weight.square().sum())
    assert optimizer.metrics()["steps"] == 1


@pytest.mark.parametrize("use", ["register_hook", "retain_grad"])
def test_hooks_on_activations(use):
    runs = []
    for hooked in (False, True):
        net, optimizer = build()
        for step in range(12):
            inputs, targets = make_batch(step)

            def closure(net=net, inputs=inputs, targets=targets, hooked=hooked):
                hidden = net[0](inputs)
                if hooked and use == "register_hook":
                    hidden.register_hook(lambda g: None)
                elif hooked:
                    hidden.retain_grad()
                return (net[1:](hidden) - targets).square().mean()

            optimizer.step(closure)
        runs.append(everything(net, optimizer))
    assert_same(*runs)


def test_a_backward_that_writes_into_the_same_gradients():
    """A closure that calls backward, and whose gradients keep their memory from call to call."""
    runs = []
    for shared in (False, True):
        net = make_net(norm=False, dropout=0.0)
        optimizer = FusedSaLSa(net.parameters(), check_replay=False)
        memory = {p: torch.zeros_like(p) for p in net.parameters()}
        for step in range(15):
            evaluate = make_closure(net, step)

            def closure(net=net, evaluate=evaluate, memory=memory, shared=shared):
                for p in net.parameters():
                    p.grad = memory[p].zero_() if shared else None
                loss = evaluate()
                loss.backward()
                return loss

            optimizer.step(closure)
        runs.append(everything(net, optimizer))
    assert_same(*runs)


def test_a_weight_that_only_trials_use_gets_no_gradient():
    first, later = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([first, later], check_replay=False)
    calls = 0

    def closure():  # in the manner of LBFGS
        nonlocal calls
        calls += 1
        first.grad = later.grad = None
        loss = first.square().sum() + (later.sum() * 1e-3 if calls > 1 else 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert calls > 1 and later.grad is None and not optimizer.state[later]
    assert torch.equal(later.detach(), torch.ones(3))
    assert torch.equal(first.grad, torch.full((3,), 2.0))


# -- buffers ----------------------------------------------------------------------------------


class Counting(nn.Module):
    """A forward that changes its buffer in some way, and sees what it held."""

    def __init__(self, change, buffer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.change = change
        if buffer is not None:
            self.register_buffer("seen", buffer)
        self.found = []

    def forward(self):
        self.found.append(self.seen.clone() if "seen" in self._buffers else None)
        self.change(self)
        return self.weight.square().sum()


def replace_data(m):
    m.seen.data = m.seen.data + 1


def set_memory(m):
    m.seen.set_(m.seen.clone() + 1)


def resize(m):
    m.seen.resize_(m.seen.numel() + 5).fill_(7.0)


def write_through_a_view(m):
    m.seen[0].add_(1)


def write(m):
    m.seen.add_(1)


def make_one(m):
    if "seen" not in m._buffers:
        m.register_buffer("seen", torch.zeros(2))
    m.seen.add_(1)


@pytest.mark.parametrize(
    ("change", "make"),
    [
        (replace_data, lambda: torch.zeros(2)),
        (set_memory, lambda: torch.zeros(2)),
        (resize, lambda: torch.zeros(2)),
        (write_through_a_view, lambda: torch.zeros(1).expand(4)),
        (write, lambda: torch.zeros(2, dtype=torch.complex64).conj()),
        (write, lambda: torch.zeros(2, dtype=torch.int64)),
        (make_one, lambda: None),
    ],
)
@pytest.mark.parametrize("fail", [False, True])
def test_buffers_that_are_changed_in_every_way(change, make, fail):
    m, once = Counting(change, make()), Counting(change, make())
    optimizer = FusedSaLSa(m.parameters(), module=m, check_replay=False)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        loss = m()
        if fail and calls == 3:
            raise KeyboardInterrupt
        return loss

    if fail:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure)
        expected = m.found[0]
    else:
        optimizer.step(closure)
        once()
        expected = once.seen
    assert len(m.found) > 2
    for found in m.found[1:]:
        assert (found is None) == (m.found[0] is None)
        assert found is None or torch.equal(found, m.found[0])
    assert ("seen" in m._buffers) == (expected is not None)
    assert expected is None or torch.equal(m.seen, expected)


def test_buffers_that_cannot_be_copied():
    m = Counting(lambda m: None, torch.eye(3).to_sparse_csr())
    m.register_buffer("coo", torch.eye(3).to_sparse())
    optimizer = FusedSaLSa(m.parameters(), module=m)
    for _ in range(12):
        optimizer.step(lambda: m() + (m.seen @ m.weight).sum())
    assert m.weight[0] < 1.0


def test_a_graph_that_has_saved_a_constant_buffer():
    """Another model's loss, computed before the step and differentiated after it."""
    m = nn.Module()
    m.register_buffer("scale", torch.full((3,), 2.0))
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([a], module=m)
    for _ in range(12):
        other = (b * m.scale).sum()
        optimizer.step(lambda: (a * m.scale).square().sum())
        other.backward()


# -- caches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check_replay", [False, True])
@pytest.mark.parametrize("kind", ["returns", "calls backward", "penalty"])
def test_steps_in_the_context_of_cached_parametrizations(kind, check_replay):
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 1))
    optimizer = FusedSaLSa(net.parameters(), check_replay=check_replay)
    for step in range(12):
        inputs, targets = make_batch(step)

        def closure(inputs=inputs, targets=targets, step=step):
            loss = (net(inputs) - targets).square().mean()
            if kind == "penalty":
                (g,) = torch.autograd.grad(loss, [net[0].weight], create_graph=True)
                loss = loss + 1e-3 * g.square().sum()
            if kind == "calls backward":
                optimizer.zero_grad()
                loss.backward()
            return loss * (math.nan if step == 10 and kind == "returns" else 1.0)

        if step % 3 == 0:
            context = nn.utils.parametrize.cached()
            context.__enter__()
        optimizer.step(closure)  # three in one context, one of them skipped
        if step % 3 == 2:
            context.__exit__(None, None, None)
    assert optimizer.metrics()["steps"] == (11 if kind == "returns" else 12)


# -- first_evaluation -------------------------------------------------------------------------


def test_an_exception_in_the_block_of_first_evaluation():
    net, optimizer = build()
    before = everything(net, optimizer)

    def fail():
        with optimizer.first_evaluation():
            make_closure(net)()
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        fail()
    assert_same(before, everything(net, optimizer))
    assert optimizer._outer_replay is None


def test_a_step_that_failed_may_be_tried_again_with_the_same_loss():
    runs = []
    for failing in (False, True):
        net, optimizer = build(check_replay=False)
        for step in range(12):
            closure, calls = make_closure(net, step), 0
            optimizer.zero_grad()
            with optimizer.first_evaluation():
                loss = closure()
            loss.backward()

            def broken(closure=closure):
                nonlocal calls
                calls += 1
                if calls == 1:
                    raise KeyboardInterrupt
                return closure()

            if failing and optimizer.search_due:
                with pytest.raises(KeyboardInterrupt):
                    optimizer.step(broken, loss=loss)
            optimizer.step(closure, loss=loss)
        runs.append(everything(net, optimizer))
    assert_same(*runs)


def test_a_block_counts_for_one_step():
    net, optimizer = build()
    with optimizer.first_evaluation():
        make_closure(net)()
    optimizer.step(make_closure(net))
    assert optimizer._outer_replay is None
