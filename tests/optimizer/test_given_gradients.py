"""Gradients that are there before ``step(closure)``; closures that call backward() themselves."""

from __future__ import annotations

import warnings

import pytest
import torch
from small_net import make_batch, make_closure, make_net
from torch import nn

from salsa_fused import FusedSaLSa

ACCUMULATED = r"first_evaluation\(\).*step\(closure, loss=total\)"


@pytest.fixture(autouse=True)
def _no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def net_of(**keywords):
    net = make_net(norm=False, dropout=0.0)
    return net, FusedSaLSa(net.parameters(), **keywords)


def lbfgs_style(net, optimizer, step=0, zero=True):
    evaluate = make_closure(net, step)

    def closure():
        if zero:
            optimizer.zero_grad()
        loss = evaluate()
        loss.backward()
        return loss

    return closure


def assert_as_adamw(train, **keywords):
    """Train one net with AdamW and one with the same step of ours: `train(net, optimizer)`."""
    keywords = {"lr": 1e-2, "weight_decay": 0.0, **keywords}
    weights = []
    for build, more in ((torch.optim.AdamW, {}), (FusedSaLSa, {"search_period": None})):
        net = make_net(norm=False, dropout=0.0)
        train(net, build(net.parameters(), **keywords, **more))
        weights.append([p.detach() for p in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*weights))


# -- accumulated ------------------------------------------------------------------------------


@pytest.mark.parametrize("lbfgs", [False, True])
def test_accumulated_gradients_before_a_search_are_noticed(lbfgs):
    net, optimizer = net_of()
    make_closure(net, 1)().backward()
    closure = lbfgs_style(net, optimizer, zero=False) if lbfgs else make_closure(net)
    with pytest.warns(UserWarning, match=ACCUMULATED):
        optimizer.step(closure)
    make_closure(net, 1)().backward()
    optimizer.step(closure)  # once


def test_accumulated_gradients_before_a_plain_step():
    net, optimizer = net_of(search_period=None, lr=1e-3)
    make_closure(net, 1)().backward()
    with pytest.warns(UserWarning, match=ACCUMULATED):
        optimizer.step(make_closure(net))


def test_a_closure_that_adds_to_accumulated_gradients_steps_with_the_sum():
    """As with every optimizer of torch; Lightning's accumulate_grad_batches does this."""

    def train(net, optimizer):
        for step in range(6):
            optimizer.zero_grad()
            for micro in range(4):
                loss = make_closure(net, 4 * step + micro)() / 4

                def closure(loss=loss):
                    loss.backward()
                    return loss

                if micro < 3:
                    closure()
                else:
                    optimizer.step(closure)

    assert_as_adamw(train)


def test_nothing_is_said_where_nothing_is_lost():
    net, optimizer = net_of(search_period=(1, 3))
    for step in range(20):  # the optimizer's own gradients are there
        optimizer.step(make_closure(net, step))
    for step in range(10):
        optimizer.zero_grad(set_to_none=False)
        optimizer.step(make_closure(net, step))
    for step in range(10):  # the closure clears what is there
        make_closure(net, step)().backward()
        optimizer.step(lbfgs_style(net, optimizer, step))
    for step in range(10):  # gradients that are there are used
        optimizer.zero_grad()
        with optimizer.first_evaluation():
            loss = make_closure(net, step)()
        loss.backward()
        optimizer.step(make_closure(net, step), loss=loss)
    for step in range(10):
        optimizer.step(make_closure(net, step))


def test_gradients_of_another_optimizer_from_before_are_not_accumulated():
    net = make_net(norm=False)
    adam = torch.optim.Adam(net.parameters())
    adam.step(lbfgs_style(net, adam))
    optimizer = FusedSaLSa(net.parameters())
    optimizer.step(make_closure(net))


def test_accumulated_gradients_survive_an_exception():
    net, optimizer = net_of()
    make_closure(net, 1)().backward()
    gradients = [p.grad.clone() for p in net.parameters()]

    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        optimizer.step(fail)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients))


# -- no loss, no gradient ---------------------------------------------------------------------


def returning(value):
    return lambda net: value


RETURNS = {
    "None": returning(None),
    "a number": returning(0.1),
    "a loss without graph": lambda net: make_closure(net)().detach(),
}


@pytest.mark.parametrize("returned", RETURNS)
def test_without_a_search_such_a_closure_means_the_gradients_that_are_there(returned):
    """Lightning's manual optimization, torch's own tests."""

    def train(net, optimizer):
        for step in range(5):
            optimizer.zero_grad()
            make_closure(net, step)().backward()
            for _ in range(2 if step == 2 else 1):  # the same gradients once more
                optimizer.step(lambda: RETURNS[returned](net))

    assert_as_adamw(train)


@pytest.mark.parametrize("returned", RETURNS)
def test_without_gradients_it_is_no_step(returned):
    net, optimizer = net_of(search_period=None)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step(lambda: RETURNS[returned](net))
    assert all(map(torch.equal, before, [p.detach() for p in net.parameters()]))
    assert not optimizer.state


def test_a_batch_that_is_left_out_on_a_step_with_a_search():
    """A trainer's closure clears the gradients and returns None."""
    net, optimizer = net_of(search_period=1)
    for step in range(3):
        optimizer.step(make_closure(net, step))
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        assert optimizer.step(lambda: optimizer.zero_grad()) is None
    assert all(map(torch.equal, before, [p.detach() for p in net.parameters()]))
    optimizer.step(make_closure(net))
    assert optimizer.param_groups[0]["steps"] == 4


@pytest.mark.parametrize("returned", RETURNS)
def test_at_the_first_search_it_is_an_error(returned):
    net, optimizer = net_of()
    with pytest.raises((TypeError, RuntimeError), match="loss"):
        optimizer.step(lambda: RETURNS[returned](net))


def test_a_closure_that_returns_something_else_is_always_an_error():
    _, optimizer = net_of(search_period=None)
    with pytest.raises(TypeError, match=r"closure\(\) must be the loss"):
        optimizer.step(lambda: {"loss": 1.0})


# -- backward() for something else ------------------------------------------------------------


def adversarial(net, attack):
    """FGSM in the closure: the batch is moved along the sign of its gradient."""
    x, y = make_batch()

    def closure():
        inputs = x.clone().requires_grad_()
        loss = (net(inputs) - y).square().mean()
        attack(net, loss)
        moved = inputs.detach() + 0.05 * (inputs.grad.sign() if inputs.grad is not None else 0.0)
        return (net(moved) - y).square().mean()

    return closure


def left(net, loss):
    loss.backward()


def zeroed(net, loss):
    loss.backward()
    net.zero_grad(set_to_none=False)


def cleared(net, loss):
    loss.backward()
    net.zero_grad()


@pytest.mark.parametrize("attack", [left, zeroed, cleared])
def test_a_backward_for_something_else_is_not_the_loss_gradient(attack):
    results = []
    for one in (attack, cleared):
        net, optimizer = net_of(check_replay=False)
        closure = adversarial(net, one)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            losses = [optimizer.step(closure).item() for _ in range(40)]
        results.append(losses)
        expected = ["backward() for something other"] if one is left else []
        assert [text in str(w.message) for w, text in zip(said, expected)] == [True] * len(said)
        assert len(said) == len(expected)
    assert results[0] == results[1]
    assert results[0][-1] < 0.5 * results[0][0]


@pytest.mark.parametrize("retain", [False, True])
def test_the_convention_of_lbfgs_is_known_also_where_the_graph_is_retained(retain):
    results = []
    for own in (True, False):
        net, optimizer = net_of()
        for step in range(15):
            evaluate = make_closure(net, step)

            def closure(evaluate=evaluate, optimizer=optimizer):
                optimizer.zero_grad()
                loss = evaluate()
                loss.backward(retain_graph=retain)
                return loss

            optimizer.step(closure if own else evaluate)
        results.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *results))


# -- nothing gets a gradient ------------------------------------------------------------------


def test_a_loss_of_another_model_is_noticed():
    _, optimizer = net_of()
    other = make_net(seed=1, norm=False)
    with pytest.warns(UserWarning, match="none of this optimizer's parameters got a gradient"):
        optimizer.step(make_closure(other))
    optimizer.step(make_closure(other))  # once


def test_parameters_replaced_after_construction_are_noticed():
    net, optimizer = net_of(search_period=None)
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
    with pytest.warns(UserWarning, match="assign=True"):
        optimizer.step(make_closure(net))


def test_frozen_weights_with_a_loss_that_depends_on_others():
    inner = nn.Linear(6, 6).requires_grad_(False)
    adapter = nn.Parameter(torch.zeros(1))
    optimizer = FusedSaLSa(inner.parameters())
    with pytest.warns(UserWarning, match="nothing is trained"):
        optimizer.step(lambda: (inner(torch.ones(2, 6)) * adapter).sum())


# -- torch's conventions without a search -----------------------------------------------------


def retained_and_clipped(net, optimizer, step):
    optimizer.zero_grad()
    loss = make_closure(net, step)()
    loss.backward(retain_graph=True)
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    return loss


def returns_none(net, optimizer, step):
    optimizer.zero_grad()
    make_closure(net, step)().backward()


def returns_a_number(net, optimizer, step):
    optimizer.zero_grad()
    loss = make_closure(net, step)()
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("style", [retained_and_clipped, returns_none, returns_a_number])
def test_a_closure_is_understood_as_by_adamw(style):
    def train(net, optimizer):
        for step in range(6):
            optimizer.step(lambda s=step: style(net, optimizer, s))

    assert_as_adamw(train, eps=1.0)


def test_a_loss_that_was_differentiated_before():
    """The loop has called backward(), and the closure hands the loss over."""

    def train(net, optimizer):
        for step in range(6):
            optimizer.zero_grad()
            loss = make_closure(net, step)()
            loss.backward()
            optimizer.step(lambda loss=loss: loss)

    assert_as_adamw(train)
