"""``evaluate(closure)`` before a bare ``step()``: the same steps as with ``step(closure)``."""

from __future__ import annotations

import copy
import gc
import random
import warnings
import weakref

import pytest
import torch
from small_net import make_closure, make_net
from snapshots import assert_same, everything

from salsa_fused import FusedSaLSa

STEPS = 30
MICRO = 4


@pytest.fixture(autouse=True)
def _no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def net_of(**keywords):
    net = make_net()
    return net, FusedSaLSa(net.parameters(), module=net, **keywords)


def trained(take_step, steps=STEPS, **keywords):
    """Return all that ``take_step(net, optimizer, step)`` has changed, and the losses."""
    net, optimizer = net_of(**keywords)
    losses = [float(take_step(net, optimizer, step)) for step in range(steps)]
    assert optimizer.metrics()["searches"] > 10
    return everything(net, optimizer), losses


def with_closure(net, optimizer, step):
    return optimizer.step(make_closure(net, step))


# -- one evaluation ---------------------------------------------------------------------------


def zero_first(net, optimizer, step):
    optimizer.zero_grad()
    optimizer.evaluate(make_closure(net, step)).backward()
    return optimizer.step()


def zero_before_backward(net, optimizer, step):
    loss = optimizer.evaluate(make_closure(net, step))
    optimizer.zero_grad()
    loss.backward()
    return optimizer.step()


def zero_last(net, optimizer, step):
    optimizer.evaluate(make_closure(net, step)).backward()
    loss = optimizer.step()
    net.zero_grad()
    return loss


def change_the_loss_in_place(net, optimizer, step):
    loss = optimizer.evaluate(make_closure(net, step))
    loss *= 1.0
    loss.backward()
    loss.detach().mul_(100.0)
    found = optimizer.step()
    optimizer.zero_grad()
    return found


ORDERS = [zero_first, zero_before_backward, zero_last, change_the_loss_in_place]


@pytest.mark.parametrize("take_step", ORDERS)
def test_the_same_as_step_with_the_closure(take_step):
    (expected, losses), (found, same) = trained(with_closure), trained(take_step)
    assert same == losses
    assert_same(found, expected)


def test_maximize():
    def with_closure(net, optimizer, step):
        evaluate = make_closure(net, step)
        return optimizer.step(lambda: -evaluate())

    def bare(net, optimizer, step):
        evaluate = make_closure(net, step)
        optimizer.evaluate(lambda: -evaluate()).backward()
        loss = optimizer.step()
        optimizer.zero_grad()
        return loss

    (expected, losses), (found, same) = (trained(f, maximize=True) for f in (with_closure, bare))
    assert same == losses
    assert_same(found, expected)


def test_autocast_around_the_evaluation_holds_at_trials():
    net, optimizer = net_of()
    seen = []

    def closure():
        seen.append(torch.is_autocast_enabled("cpu"))
        return make_closure(net)()

    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = optimizer.evaluate(closure)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) > 6 and all(seen)
    with torch.autocast("cpu", torch.bfloat16):  # and none, where there was none
        seen.clear()
        with torch.autocast("cpu", enabled=False):
            loss = optimizer.evaluate(closure)
        loss.backward()
        optimizer.step()
    assert len(seen) > 1 and not any(seen)


# -- accumulation -----------------------------------------------------------------------------


def by_hand(net, optimizer, step):
    closures = [make_closure(net, MICRO * step + micro) for micro in range(MICRO)]
    total = 0.0
    optimizer.zero_grad()
    with optimizer.first_evaluation():
        for closure in closures:
            loss = closure() / MICRO
            loss.backward()
            total = total + loss.detach()
    optimizer.clip_grad_norm_(0.5)
    return optimizer.step(lambda: sum(closure() / MICRO for closure in closures), loss=total)


def in_parts(net, optimizer, step):
    for micro in range(MICRO):
        loss = optimizer.evaluate(make_closure(net, MICRO * step + micro), 1 / MICRO)
        (loss / MICRO).backward()
    optimizer.clip_grad_norm_(0.5)
    loss = optimizer.step()
    optimizer.zero_grad()
    return loss


def clipped_by_somebody(net, optimizer, step):
    for micro in range(MICRO):
        loss = optimizer.evaluate(make_closure(net, MICRO * step + micro), 1 / MICRO)
        (loss / MICRO).backward()
    optimizer.note_clipping(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5), 0.5)
    loss = optimizer.step()
    optimizer.zero_grad()
    return loss


@pytest.mark.parametrize("take_step", [in_parts, clipped_by_somebody])
def test_several_evaluations_add_up(take_step):
    (expected, losses), (found, same) = trained(by_hand), trained(take_step)
    assert same == losses
    assert_same(found, expected)


def test_clipping_that_is_not_noted_gives_other_steps():
    """So the test above can fail."""

    def silent(net, optimizer, step):
        optimizer.evaluate(make_closure(net, step)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        loss = optimizer.step()
        optimizer.zero_grad()
        return loss

    with pytest.warns(UserWarning, match="gradients that were clipped before the step"):
        trained(silent)


def test_random_numbers_that_are_drawn_between_two_evaluations():
    """Data that is shuffled or augmented: each trial repeats the dropout masks all the same."""

    def take_step(net, optimizer, step):
        for micro in range(MICRO):
            torch.rand(3), random.random()
            loss = optimizer.evaluate(make_closure(net, MICRO * step + micro), 1 / MICRO)
            (loss / MICRO).backward()
        optimizer.step()
        again = optimizer.last_search.loss
        optimizer.zero_grad()
        return again

    trained(take_step)  # check_replay would warn


def test_micro_batches_of_different_weights():
    sizes = [3, 13]
    weights = [size / sum(sizes) for size in sizes]
    net, optimizer = net_of()
    whole = 0.0
    for micro, weight in enumerate(weights):
        loss = optimizer.evaluate(make_closure(net, micro), torch.tensor(weight))
        (weight * loss).backward()
        whole += weight * loss.item()
    assert optimizer.step().item() == pytest.approx(whole, rel=1e-6)
    assert optimizer.last_search.loss == pytest.approx(whole, rel=1e-6)


def test_a_weight_that_is_missing_is_noticed():
    net, optimizer = net_of()
    for micro in range(MICRO):
        loss = optimizer.evaluate(make_closure(net, micro))
        (loss / MICRO).backward()
    with pytest.warns(UserWarning, match="a loss that is a sum over micro-batches"):
        optimizer.step()


# -- what is forgotten ------------------------------------------------------------------------


CLEAR = {
    "optimizer": lambda net, optimizer: optimizer.zero_grad(),
    "to zero": lambda net, optimizer: optimizer.zero_grad(set_to_none=False),
    "model": lambda net, optimizer: net.zero_grad(),
}


def one_step(net, optimizer, step, clear="optimizer"):
    loss = optimizer.evaluate(make_closure(net, step))
    CLEAR[clear](net, optimizer)
    loss.backward()
    return optimizer.step()


def skip(net, optimizer, how):
    """An evaluation that no step follows."""
    loss = optimizer.evaluate(make_closure(net, 77))
    if how == "no backward":
        return
    loss.backward()
    if how in CLEAR:
        CLEAR[how](net, optimizer)


@pytest.mark.parametrize("clear", CLEAR)
@pytest.mark.parametrize("how", ["no backward", "left to the next", *CLEAR])
def test_an_evaluation_without_a_step_is_forgotten(how, clear):
    found = []
    for skipped in (None, how):
        net, optimizer = net_of()
        one_step(net, optimizer, 0)
        buffers, streams = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        if skipped is not None:
            skip(net, optimizer, skipped)
            net.load_state_dict(buffers)
            torch.set_rng_state(streams)
        one_step(net, optimizer, 1, clear)
        found.append(everything(net, optimizer))
    assert_same(*found)


def test_a_trainers_evaluation_without_a_step_is_forgotten():
    """Its backward() comes with it, and it clears the model's gradients."""
    net, optimizer = net_of()
    for step in range(3):
        closure = make_closure(net, step)
        with optimizer._evaluating(closure) as note:
            loss = closure()
            loss.backward()
            note(loss.detach())
        if step == 1:  # as where a scaler skips it
            net.zero_grad()
        else:
            assert optimizer.step().item() == loss.item() == optimizer.last_search.loss
            net.zero_grad()


def test_a_scaler_that_skips_a_step():
    net, optimizer = net_of()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(12):
        loss = optimizer.evaluate(make_closure(net, step))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if step == 5:
            next(net.parameters()).grad[0] = torch.inf
        scaler.unscale_(optimizer)
        optimizer.clip_grad_norm_(1.0)
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.metrics()["steps"] == 11
    assert optimizer.metrics()["searches"] > 5 and optimizer.skipped_steps == 0


def test_batches_are_released_after_the_step():
    net, optimizer = net_of()
    batch = torch.randn(4, 6)
    alive = weakref.ref(batch)
    optimizer.evaluate(lambda batch=batch: net(batch).square().mean()).backward()
    optimizer.step()
    del batch
    gc.collect()
    assert alive() is None


def test_copies_and_loaded_states_begin_without_an_evaluation():
    net, optimizer = net_of(search_period=None)
    optimizer.evaluate(make_closure(net)).backward()
    other = copy.deepcopy(optimizer)
    assert other.step() is None
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.step() is None


# -- mistakes ---------------------------------------------------------------------------------


def refused(error, match, call, net, optimizer):
    before = everything(net, optimizer)
    with pytest.raises(error, match=match):
        call()
    assert_same(everything(net, optimizer), before)


def test_without_backward():
    net, optimizer = net_of()
    optimizer.evaluate(make_closure(net))
    refused(
        RuntimeError, "no loss that it returned has had a backward", optimizer.step, net, optimizer
    )


def test_a_closure_as_well():
    net, optimizer = net_of()
    optimizer.evaluate(make_closure(net)).backward()
    for arguments, keywords in (([make_closure(net)], {}), ([], {"loss": torch.tensor(1.0)})):
        with pytest.raises(ValueError, match="step\\(\\) after evaluate\\(\\) takes no arguments"):
            optimizer.step(*arguments, **keywords)
    assert optimizer.step() > 0.0


@pytest.mark.parametrize(
    "closure, weight, error, match",
    [
        (None, 1.0, TypeError, "closure must be callable"),
        (lambda: None, 1.0, TypeError, r"closure\(\) must be the loss, .* got NoneType"),
        (lambda: torch.ones(2), 1.0, ValueError, "a loss of one element"),
        (lambda: torch.tensor(1.0), 1.0, RuntimeError, "does not depend on any parameter"),
        (lambda: 0 / 0, 1.0, ZeroDivisionError, "division by zero"),
        (lambda: None, -1.0, ValueError, "weight must be a number >= 0"),
        (lambda: None, float("nan"), ValueError, "weight must be a number >= 0"),
        (lambda: None, "1", ValueError, "weight must be a number >= 0"),
    ],
)
def test_what_evaluate_refuses(closure, weight, error, match):
    net, optimizer = net_of()

    def after_a_forward():
        make_closure(net)()
        return closure()

    given = after_a_forward if callable(closure) else closure
    refused(error, match, lambda: optimizer.evaluate(given, weight), net, optimizer)
    one_step(net, optimizer, 0)


def test_without_gradients():
    net, optimizer = net_of()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
        optimizer.evaluate(make_closure(net))


def test_within_a_step():
    net, optimizer = net_of()

    def closure():
        return optimizer.evaluate(make_closure(net))

    with pytest.raises(RuntimeError, match=r"evaluate\(\) was called inside the closure"):
        optimizer.step(closure)


def test_a_scaler_within_the_closure():
    net, optimizer = net_of()
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="Leave scaling and backward"):
        optimizer.evaluate(lambda: scaler.scale(make_closure(net)()))


def test_a_search_without_anything_names_evaluate():
    net, optimizer = net_of()
    make_closure(net)().backward()
    with pytest.raises(RuntimeError, match=r"loss = optimizer\.evaluate\(closure\)"):
        optimizer.step()


def test_a_trial_that_raises_leaves_the_step_to_be_taken_again():
    found = []
    for fails in (False, True):
        net, optimizer = net_of()
        for step in range(4):
            calls = []

            def closure(net=net, step=step, calls=calls, fails=fails):
                calls.append(step)
                if fails and step == 2 and len(calls) == 2:
                    raise OSError("at a trial")
                return make_closure(net, step)()

            optimizer.evaluate(closure).backward()
            if fails and step == 2:
                with pytest.raises(OSError, match="at a trial"):
                    optimizer.step()
            optimizer.step()
            optimizer.zero_grad()
        found.append(everything(net, optimizer))
    assert_same(*found)
