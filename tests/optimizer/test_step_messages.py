"""Every error of a step: its text says what to do, and nothing changes."""

from __future__ import annotations

import pytest
import torch
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels.memory import readable_gradient


def weight(*shape, **keywords):
    return torch.ones(*(shape or (3,)), requires_grad=True, **keywords)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda loss: None, TypeError, "got NoneType: does it lack `return loss`"),
        (lambda loss: loss.item(), TypeError, "a tensor of one element, got float"),
        (lambda loss: loss.expand(3), ValueError, r"shape \(3,\): reduce it"),
        (lambda loss: loss.long(), TypeError, r"floating-point loss, got torch.int64"),
        (lambda loss: loss.detach(), RuntimeError, r"no grad_fn.*without .item\(\)"),
    ],
)
def test_what_a_closure_returns(returned, error, message):
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    evaluate = make_closure(net)
    before = everything(net, optimizer)
    with pytest.raises(error, match=message):
        optimizer.step(lambda: returned(evaluate()))
    assert_same(before, everything(net, optimizer))


def test_no_closure_when_a_search_is_due():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters())
    make_closure(net)().backward()
    before = everything(net, optimizer)
    with pytest.raises(RuntimeError, match=r"search_due.*search_period=None"):
        optimizer.step()
    assert_same(before, everything(net, optimizer))


def test_a_loss_in_place_of_a_closure():
    net = make_net()
    with pytest.raises(TypeError, match=r"step\(closure, loss=loss\)"):
        FusedSaLSa(net.parameters()).step(make_closure(net)())
    with pytest.raises(TypeError, match="loss must be the loss, a tensor"):
        FusedSaLSa(net.parameters()).step(make_closure(net), loss=1.0)


def test_backward_inside_a_closure_beside_a_given_loss():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    evaluate = make_closure(net)
    loss = evaluate()
    loss.backward()

    def closure():
        again = evaluate()
        again.backward()
        return again

    before = everything(net, optimizer)
    with pytest.raises(RuntimeError, match=r"leave zero_grad.* and backward.* outside it"):
        optimizer.step(closure, loss=loss)
    assert_same(before, everything(net, optimizer))


def test_complex_and_foreign_gradients():
    parameter = weight()
    optimizer = FusedSaLSa([parameter], search_period=None)
    parameter.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    assert parameter.tolist() == [1.0] * 3


def test_a_step_within_a_step():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    evaluate = make_closure(net)
    before = everything(net, optimizer)

    def closure():
        if not torch.is_grad_enabled():
            optimizer.step(evaluate)
        return evaluate()

    with pytest.raises(RuntimeError, match="inside the closure of a step of this optimizer"):
        optimizer.step(closure)
    assert_same(before, everything(net, optimizer))
    optimizer.step(evaluate)


def test_a_weight_replaced_by_one_of_another_shape():
    base = torch.randn(10)
    parameter = nn.Parameter(base)
    optimizer = FusedSaLSa([parameter], search_period=None)
    parameter.grad = torch.ones(10)
    optimizer.step()
    tail = base[5:].clone()
    parameter.data = base[:5]  # at the same address
    with pytest.raises(RuntimeError, match=r"shape \(10,\) .* weight has \(5,\).*zero_grad"):
        optimizer.step()
    parameter.grad = torch.ones(5)
    with pytest.raises(RuntimeError, match=r"shape \(5,\) now, and its moments have \(10,\)"):
        optimizer.step()
    del optimizer.state[parameter]
    optimizer.step()
    assert torch.equal(base[5:], tail)


def test_the_gradient_is_named():
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    optimizer = FusedSaLSa(net.named_parameters())
    with pytest.raises(RuntimeError, match=r"gradient of parameter '0.weight'.* is sparse"):
        optimizer.step(lambda: net(torch.arange(2)).square().sum())


def test_trials_that_did_not_repeat_the_loss_are_named_as_the_cause():
    parameter = weight()
    optimizer = FusedSaLSa([parameter])
    loss = parameter.square().sum()
    loss.backward()
    with pytest.warns(UserWarning, match=r"first_evaluation\(\)"):
        optimizer.step(lambda: parameter.square().sum() + 100.0, loss=loss)


def test_capture_in_a_cuda_graph_is_refused(monkeypatch):
    parameter = weight()
    optimizer = FusedSaLSa([parameter])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
        optimizer.step(lambda: parameter.sum())
    assert parameter.tolist() == [1.0] * 3 and not optimizer.state


def test_gradients_that_no_kernel_can_read():
    parameter = weight()
    for gradient, message in [
        (torch.ones(3, dtype=torch.complex64), "gradient of it is complex.*two parameters"),
        (
            torch.ones(3, device="meta"),
            r"on meta, and .* on cpu: call zero_grad",
        ),
        (torch.ones(4), r"shape \(4,\) on cpu, and the weight has \(3,\)"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            readable_gradient(gradient, parameter, "it")
