"""GradScaler, autocast and 16-bit losses."""

from __future__ import annotations

import threading

import pytest
import torch
from small_net import make_batch, make_closure, make_net
from snapshots import assert_same, everything
from torch.amp import GradScaler

from salsa_fused import FusedSaLSa, evaluation


def build(**keywords):
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, **keywords)
    torch.manual_seed(3)
    return net, optimizer


def scaled_step(net, optimizer, scaler, step, *, unscale=False, clip=None):
    closure = make_closure(net, step)
    optimizer.zero_grad()
    with optimizer.first_evaluation():
        loss = closure()
    scaler.scale(loss).backward()
    if unscale:
        scaler.unscale_(optimizer)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
    scaler.step(optimizer, closure, loss=loss)
    scaler.update()
    return loss


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_scaled_run_is_the_same_run(unscale, clip):
    """The scale is a power of two: not one bit differs."""
    if clip is not None and not unscale:
        pytest.skip("clipping comes after unscale_")
    runs = []
    for enabled in (False, True):
        net, optimizer = build()
        scaler = GradScaler("cpu", init_scale=2.0**9, growth_interval=7, enabled=enabled)
        for step in range(40):
            scaled_step(net, optimizer, scaler, step, unscale=unscale, clip=clip)
        assert not enabled or scaler.get_scale() > 2.0**9  # it grew in between
        assert optimizer.param_groups[0]["searches"] > 12
        runs.append(everything(net, optimizer))
    assert_same(*runs)


def test_gradients_that_overflow_skip_the_step():
    net, optimizer = build()
    scaler = GradScaler("cpu", init_scale=2.0**9)
    for step in range(15):
        scaled_step(net, optimizer, scaler, step)
    before = everything(net, optimizer)[1:], [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    loss = make_closure(net, 15)()
    scaler.scale(loss * 1e38).backward()
    scaler.step(optimizer, make_closure(net, 15), loss=loss)
    scaler.update()
    after = everything(net, optimizer)[1:], [p.detach().clone() for p in net.parameters()]
    assert before[0] == after[0] and all(map(torch.equal, before[1], after[1]))
    assert scaler.get_scale() == 2.0**8
    scaled_step(net, optimizer, scaler, 16)
    assert optimizer.param_groups[0]["steps"] == 16


@pytest.mark.parametrize("calls_backward", [False, True])
def test_a_closure_that_scales_is_refused_with_the_recipe(calls_backward):
    net, optimizer = build()
    scaler = GradScaler("cpu", init_scale=8.0)
    evaluate = make_closure(net)

    def closure():
        loss = scaler.scale(evaluate())
        if calls_backward:
            loss.backward()
        return loss

    before = everything(net, optimizer)
    with pytest.raises(RuntimeError, match=r"scaler\.step\(optimizer, closure, loss=loss\)"):
        optimizer.step(closure)
    assert_same(before, everything(net, optimizer))
    loss = evaluate()
    loss.backward()
    before = everything(net, optimizer)
    with pytest.raises(RuntimeError, match="Leave scaling"):
        optimizer.step(closure, loss=loss)
    assert_same(before, everything(net, optimizer))
    assert scaler.scale(torch.ones(())).item() == 8.0  # outside of a step it scales


def test_a_scaler_that_is_switched_off_may_stand_in_the_closure():
    net, optimizer = build()
    scaler = GradScaler("cpu", enabled=False)
    evaluate = make_closure(net)
    for _ in range(12):
        optimizer.step(lambda: scaler.scale(evaluate()))
    assert optimizer.param_groups[0]["steps"] == 12


def test_scaling_is_watched_in_the_closure_only():
    own = GradScaler.scale
    net, optimizer = build()
    seen = []

    def closure():
        seen.append(GradScaler.scale)
        with evaluation.refused():  # the step of another optimizer in it
            pass
        seen.append(GradScaler.scale)
        return make_closure(net)()

    optimizer.step(closure)
    assert len(seen) >= 4 and own not in seen and len(set(seen)) == 1
    assert GradScaler.scale is own
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert GradScaler.scale is own


def test_another_thread_scales_meanwhile():
    net, optimizer = build()
    scaler, found = GradScaler("cpu", init_scale=4.0), []

    def scale():
        found.append(scaler.scale(torch.ones(())).item())

    def closure():
        thread = threading.Thread(target=scale)
        thread.start()
        thread.join()
        return make_closure(net)()

    optimizer.step(closure)
    assert len(found) >= 2 and set(found) == {4.0}


def test_somebody_else_puts_a_method_over_the_watching_one(monkeypatch):
    own = GradScaler.scale
    monkeypatch.setattr(GradScaler, "scale", own)  # and puts it back
    calls = []
    with evaluation.refused():
        watching = GradScaler.scale

        def theirs(self, outputs):
            calls.append(outputs)
            return watching(self, outputs)

        GradScaler.scale = theirs
    assert GradScaler.scale is theirs
    assert GradScaler("cpu", init_scale=2.0).scale(torch.ones(())).item() == 2.0 and calls
    with evaluation.refused(), pytest.raises(RuntimeError, match="uses a GradScaler"):
        GradScaler("cpu").scale(torch.ones(()))
    assert GradScaler.scale is theirs


def test_an_interrupt_before_the_closure_is_left():
    """It keeps `__exit__` from running: then the end is that of the object."""
    refused = evaluation.refused()
    refused.__enter__()
    with pytest.raises(RuntimeError, match="uses a GradScaler"):
        GradScaler("cpu").scale(torch.ones(()))
    del refused
    GradScaler("cpu").scale(torch.ones(()))
    own = evaluation._own_scale
    with evaluation.refused():
        pass
    assert GradScaler.scale is own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_loss_ends_flat_and_does_not_grow(dtype):
    """Trials that the loss cannot tell from its start are no success."""
    net, optimizer = build(search_period=1, check_replay=False)
    for step in range(12):
        optimizer.step(make_closure(net, step))
    size = optimizer.step_size
    outcomes = []
    for step in range(12, 40):
        evaluate = make_closure(net, step)
        optimizer.step(lambda e=evaluate: (100.0 + 1e-3 * e()).to(dtype))
        outcomes.append(optimizer.last_search.outcome)
    assert set(outcomes) == {"flat"}
    assert optimizer.step_size == size
    assert optimizer.param_groups[0]["period"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_loss_is_warned_of(dtype):
    net, optimizer = build(search_period=1)
    evaluate = make_closure(net)
    with pytest.warns(UserWarning, match=f"the loss is {dtype}, .* Return it in fp32"):
        optimizer.step(lambda: evaluate().to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_whole_step_in_one_autocast_context(dtype):
    """Cached casts of the weights before would make every trial return the same loss."""
    net, optimizer = build(search_period=1, check_replay=False)
    inputs, targets = make_batch(0)
    for _ in range(12):
        seen = []
        with torch.autocast("cpu", dtype):

            def closure(seen=seen):
                loss = (net(inputs).float() - targets).square().mean()
                seen.append(loss.item())
                return loss

            optimizer.step(closure)
        assert len(set(seen)) == len(seen) or optimizer.last_search.outcome == "flat"
    assert optimizer.last_search.loss < 1.1


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_check_finite_skips_plain_steps_too(bad, given):
    for check_finite in (False, True):
        net = make_net()
        optimizer = FusedSaLSa(
            net.parameters(), search_period=None, init_step_size=1e-2, check_finite=check_finite
        )
        for step in range(3):
            optimizer.step(make_closure(net, step))
        before = [p.detach().clone() for p in net.parameters()]
        handle = net[0].weight.register_hook(lambda g: g.index_fill(0, torch.tensor(1), bad))
        if given:
            optimizer.zero_grad()
            make_closure(net, 3)().backward()
            optimizer.step()
        else:
            optimizer.step(make_closure(net, 3))
        handle.remove()
        after = [p.detach() for p in net.parameters()]
        assert all(map(torch.equal, before, after)) == check_finite
        assert optimizer.skipped_steps == check_finite
        if check_finite:
            assert optimizer.last_search.outcome == "non_finite"
            optimizer.step(make_closure(net, 3))
            assert not any(map(torch.equal, before, [p.detach() for p in net.parameters()]))
