"""Plain steps that a device skips by itself: the host hears of them at the next search."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from small_net import make_closure, make_net

from salsa_fused import FusedSaLSa
from salsa_fused.pending import flag_of


class AsOnADevice(FusedSaLSa):
    """Leaves the loss of a plain step to the kernels, as on a GPU."""

    def _unless_finite(self, f0):
        return False, flag_of([f0])


def build(backend):
    net = make_net(norm=False)
    optimizer = AsOnADevice(
        net.parameters(), backend=backend, search_period=(1, 50), check_replay=False
    )
    step = 0
    while optimizer.search_due or optimizer.param_groups[0]["period"] < 50:
        optimizer.step(make_closure(net, step))
        step += 1
    return net, optimizer


def tensors(net, optimizer):
    entries = optimizer.state.values()
    moments = [entry[name] for entry in entries for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in [*net.parameters(), *moments]]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_plain_step_of_a_bad_loss_writes_nothing(backend, bad):
    net, optimizer = build(backend)
    before, steps = tensors(net, optimizer), optimizer.param_groups[0]["steps"]
    for _ in range(2):
        assert not optimizer.search_due
        optimizer.step(lambda: make_closure(net, 1)() * bad)
    assert all(map(torch.equal, before, tensors(net, optimizer)))
    # the host went on as if they had been taken
    assert optimizer.param_groups[0]["steps"] == steps + 2
    assert optimizer.param_groups[0]["skipped_steps"] == 0
    while not optimizer.search_due:
        optimizer.step(make_closure(net, 1))
    assert not all(map(torch.equal, before, tensors(net, optimizer)))
    optimizer.step(make_closure(net, 1))
    assert optimizer._pending.skips is None
    assert optimizer.skipped_steps == 2 and optimizer.last_search.outcome != "non_finite"


def test_without_searches_who_asks_is_told():
    net = make_net(norm=False)
    optimizer = AsOnADevice(net.parameters(), search_period=None)
    for _ in range(3):
        optimizer.step(lambda: make_closure(net)() * math.nan)
    assert optimizer.metrics()["skipped_steps"] == optimizer.skipped_steps == 3


def test_a_search_that_fails_forgets_no_skip():
    net, optimizer = build("native")
    optimizer.step(lambda: make_closure(net, 1)() * math.nan)
    while not optimizer.search_due:
        optimizer.step(make_closure(net, 1))
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return make_closure(net, 1)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["skipped_steps"] == 0
    optimizer.step(make_closure(net, 1))
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("save", [lambda o: o.state_dict(), copy.deepcopy])
def test_checkpoints_have_the_count(save):
    net, optimizer = build("native")
    optimizer.step(lambda: make_closure(net, 1)() * math.nan)
    saved = save(optimizer)
    groups = saved["param_groups"] if isinstance(saved, dict) else saved.param_groups
    assert groups[0]["skipped_steps"] == optimizer.skipped_steps == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_flags(dtype):
    for value in (3.0, -0.0, 6e4, math.inf, -math.inf, math.nan):
        for shape in ((), (1,)):
            flag = flag_of([torch.full(shape, value, dtype=dtype)])
            assert flag.dtype == torch.float32 and flag.shape == ()
            assert bool(flag != 0) != math.isfinite(value)
