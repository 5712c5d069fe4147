"""A fault at every point of a run: nothing is lost, and the run goes on as if it had not been."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from small_net import make_batch
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa

STEPS = 30


class Fault(Exception):
    pass


def build(**keywords):
    """Dropout, running statistics of both kinds, and vectors that every forward moves."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16)),
        nn.BatchNorm1d(16, momentum=None),  # cumulative: its count is a buffer, too
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 1),
    )
    optimizer = FusedSaLSa(net.parameters(), module=net, check_replay=False, **keywords)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(11)
    return net, optimizer


def closure_of(net, step):
    inputs, targets = make_batch(step)

    def closure():
        noise = 1e-3 * (random.random() + np.random.rand())
        return (net(inputs) - targets).square().mean() + noise

    return closure


def streams():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def put_back(states):
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def snapshot(net, optimizer):
    python, numpy, _ = streams()
    numpy = tuple(x.tolist() if isinstance(x, np.ndarray) else x for x in numpy)
    tensors, *numbers = everything(net, optimizer)
    return [tensors, *numbers, python, numpy, optimizer.last_search]


def layers_of(net):
    return [net[1], net[3], net[6]]  # between which buffers and streams move


def faulty(net, step, number, place, fault):
    """The closure of a step that fails at one evaluation: before, inside or after the forward."""
    evaluate, calls = closure_of(net, step), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls != number:
            return evaluate()
        if place == "before":
            raise fault
        if place == "after":
            evaluate()
            raise fault
        layer = layers_of(net)[place]
        handle = layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(fault))
        try:
            return evaluate()
        finally:
            handle.remove()

    return closure


PLACES = ("before", 0, 1, 2, "after")


def test_an_exception_at_every_point_of_a_run():
    net, optimizer = build()
    twin, undisturbed = build()
    points = 0
    for step in range(STEPS):
        before = snapshot(net, optimizer)
        number = 1
        while True:
            failed = 0
            for place in PLACES:
                fault = KeyboardInterrupt() if place == 1 else Fault()
                if place == 2:
                    fault = torch.OutOfMemoryError("full")
                try:
                    optimizer.step(faulty(net, step, number, place, fault))
                except type(fault):
                    failed += 1
                    assert_same(before, snapshot(net, optimizer))
                    assert all(p.grad is None for p in net.parameters())
                else:
                    break
            points += failed
            if failed < len(PLACES):  # there was no such evaluation: that was the step
                assert failed == 0
                break
            number += 1
        after = streams()
        put_back((before[3], streams()[1], before[0][-1]))
        put_back_numpy(before)
        undisturbed.step(closure_of(twin, step))
        assert_same(snapshot(net, optimizer), snapshot(twin, undisturbed))
        put_back(after)
    assert points >= 200


def put_back_numpy(before):
    name, key, *rest = before[4]
    np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))


def without_skips(seen):
    """A snapshot but for what says that a step was skipped."""
    numbers = [
        [(k, v) for k, v in group if k not in ("skipped_steps", "searches", "total_trials")]
        for group in seen[1]
    ]
    return [seen[0], numbers, *seen[2:-1]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_steps_that_are_not_finite_leave_no_trace(bad, what):
    """A bad loss on every step of a run, bad gradients on every search step."""
    net, optimizer = build()
    twin, undisturbed = build()
    points = 0
    for step in range(STEPS):
        if what == "loss" or optimizer.search_due:
            before, skipped = snapshot(net, optimizer), optimizer.skipped_steps
            evaluate = closure_of(net, step)
            if what == "loss":
                optimizer.step(lambda e=evaluate: e() * bad)
            else:
                handle = net[6].weight.register_hook(lambda g: g * bad)
                optimizer.step(evaluate)
                handle.remove()
            assert_same(without_skips(before), without_skips(snapshot(net, optimizer)))
            assert optimizer.skipped_steps == skipped + 1
            assert optimizer.last_search.outcome == "non_finite"
            points += 1
        start = streams()
        optimizer.step(closure_of(net, step))
        end = streams()
        put_back(start)
        undisturbed.step(closure_of(twin, step))
        put_back(end)
        ours, theirs = snapshot(net, optimizer), snapshot(twin, undisturbed)
        assert_same(without_skips(ours), without_skips(theirs))
    assert points == (STEPS if what == "loss" else optimizer.param_groups[0]["searches"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_trials_that_are_not_finite_are_rejected(bad):
    """At every trial of every search: the loss there counts as too high, whatever its sign."""
    net, optimizer = build(search_period=1)
    for step in range(12):
        optimizer.step(closure_of(net, step))
    for step in range(12, STEPS):
        evaluate, calls = closure_of(net, step), 0

        def closure(evaluate=evaluate, worst=step % 4):
            nonlocal calls
            calls += 1
            return evaluate() * (bad if 1 < calls <= 1 + worst else 1.0)

        optimizer.step(closure)
        found = optimizer.last_search
        assert found.outcome in ("accepted", "exhausted")
        assert found.trials > step % 4 and math.isfinite(found.trial_loss)
        assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("searching", [False, True])
def test_no_launch_is_written_before_all_are_ready(searching, monkeypatch):
    """Of two dtypes, each with a bucket of its own: the second has no memory."""
    weights = [nn.Parameter(torch.ones(5, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    optimizer = FusedSaLSa(weights, search_period=1 if searching else None, check_replay=False)

    def loss():
        return sum(w.float().square().sum() for w in weights)

    for _ in range(12):
        optimizer.step(loss)
    backend = type(optimizer._kernels.buckets[1].backend)
    ready = backend.step

    def fail(self, work):
        if work.dtype == torch.bfloat16:
            raise torch.OutOfMemoryError("full")
        return ready(self, work)

    monkeypatch.setattr(backend, "step", fail)
    tensors = [
        *weights,
        *(e[k] for e in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")),
    ]
    before = [tensor.detach().clone() for tensor in tensors]
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(loss)
    assert all(map(torch.equal, before, [tensor.detach() for tensor in tensors]))
    assert [entry["step"] for entry in optimizer.state.values()] == [12, 12]


@pytest.mark.parametrize("number", range(1, 6))
def test_an_exception_while_the_kernels_run(number, monkeypatch):
    """As when there is no memory for what they allocate."""
    net, optimizer = build()
    for step in range(12):
        optimizer.step(closure_of(net, step))
    while not optimizer.search_due:
        optimizer.step(closure_of(net, 12))
    calls = 0
    (bucket,) = optimizer._kernels.buckets
    backend = type(bucket.backend)

    def failing(kernel):
        run = getattr(backend, kernel)

        def call(self, work):
            nonlocal calls
            calls += 1
            if calls == number:
                raise torch.OutOfMemoryError("full")
            return run(self, work)

        return call

    for kernel in ("first_trial", "next_trial", "step"):
        monkeypatch.setattr(backend, kernel, failing(kernel))
    before = snapshot(net, optimizer)
    evaluate, evaluations = closure_of(net, 12), 0

    def closure():  # two rejections, so that every kernel has its turn
        nonlocal evaluations
        evaluations += 1
        return evaluate() + (1e3 if 1 < evaluations < 4 else 0.0)

    try:
        optimizer.step(closure)
    except torch.OutOfMemoryError:
        assert_same(before, snapshot(net, optimizer))
        calls = -1000
        optimizer.step(closure_of(net, 12))
    else:
        assert number > calls
    assert optimizer.param_groups[0]["steps"] > dict(before[1][0])["steps"]
