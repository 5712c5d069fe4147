"""Autocast, tied and 16-bit weights, late parameters, settings from NumPy, other devices."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from small_net import make_batch, make_closure, make_net
from torch import nn
from torch.optim import lr_scheduler

from salsa_fused import FusedSaLSa

BACKENDS = ["native", "reference"]


def test_weights_in_an_autocast_context():
    """One context around the whole step: the cached casts of the old weights must not be used."""
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    x, y = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step(lambda: (net(x).float() - y).square().mean())
    last = optimizer.last_search
    assert last.outcome == "accepted" and last.trial_loss != last.loss


def test_tied_weights():
    torch.manual_seed(0)
    embedding, head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
    head.weight = embedding.weight
    optimizer = FusedSaLSa(nn.ModuleList([embedding, head]).parameters())
    tokens = torch.arange(11)
    losses = [
        optimizer.step(
            lambda: nn.functional.cross_entropy(head(embedding(tokens)), tokens.roll(1))
        ).item()
        for _ in range(60)
    ]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_maximize_is_to_minimize_the_negative(backend):
    runs = []
    for maximize in (False, True):
        net = make_net()
        optimizer = FusedSaLSa(
            net.parameters(), module=net, maximize=maximize, weight_decay=0.1, backend=backend
        )
        torch.manual_seed(0)
        sign = -1.0 if maximize else 1.0
        for step in range(30):
            evaluate = make_closure(net, step)
            loss = optimizer.step(lambda evaluate=evaluate, sign=sign: sign * evaluate())
        assert loss.item() * sign > 0
        assert optimizer.last_search.loss * sign > 0
        runs.append([*net.parameters(), *(e["exp_avg_sq"] for e in optimizer.state.values())])
        runs[-1].append(torch.tensor(optimizer.step_size))
    assert all(map(torch.equal, *runs))


def test_parameters_unfrozen_in_mid_run():
    net = make_net()
    net[0].requires_grad_(False)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    frozen = net[0].weight.detach().clone()
    for step in range(15):
        optimizer.step(make_closure(net, step))
    assert torch.equal(net[0].weight, frozen) and net[0].weight not in optimizer.state
    net[0].requires_grad_(True)
    for step in range(5):
        optimizer.step(make_closure(net, step))
    assert optimizer.state[net[0].weight]["step"] == 5
    assert optimizer.state[net[4].weight]["step"] == 20
    assert not torch.equal(net[0].weight, frozen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_16_bit_weights_are_rounded_once_a_step(dtype, backend):
    """AdamW with fp32 moments on fp32 copies of the weights, rounded after every step."""
    torch.manual_seed(0)
    weight = torch.randn(1000).to(dtype)
    copy = weight.float().requires_grad_()
    ours = FusedSaLSa([weight], lr=1e-2, search_period=None, weight_decay=0.1, backend=backend)
    theirs = torch.optim.AdamW([copy], lr=1e-2, weight_decay=0.1)
    for _ in range(50):
        weight.grad = torch.randn(1000).to(dtype)
        copy.grad = weight.grad.float()
        ours.step()
        theirs.step()
        with torch.no_grad():
            copy.copy_(copy.to(dtype))
        entry = ours.state[weight]
        assert entry["exp_avg"].dtype == entry["exp_avg_sq"].dtype == torch.float32
        # torch multiplies by 1 - lr * decay: now and then that rounds to the neighbour
        off = (weight.float() - copy.detach()).abs() > 0
        spacing = torch.finfo(dtype).eps * copy.detach().abs()
        assert off.float().mean() < 0.01
        assert (weight.float() - copy.detach()).abs().le(1.01 * spacing).all()
        with torch.no_grad():
            copy.copy_(weight.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_train_with_a_search(dtype):
    net = make_net(norm=False).to(dtype)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    x, y = make_batch(size=64)
    losses = [
        optimizer.step(lambda: (net(x.to(dtype)).float() - y).square().mean()).item()
        for _ in range(150)
    ]
    assert losses[-1] < 0.4 * losses[0]
    assert optimizer.backends == ("native",)


def test_a_training_loop_written_for_lbfgs_with_gradients_zeroed_in_place():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    evaluate = make_closure(net)

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = evaluate()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_with_a_sign_still_to_be_turned(backend):
    """Torch hands out negated views: behind ``conj()``, for one."""
    a, b = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    target = torch.complex(torch.tensor(0.3), torch.tensor(-0.5))
    factor = torch.complex(torch.tensor(1.0), torch.tensor(2.0))
    optimizer = FusedSaLSa([a, b], backend=backend)

    def closure():
        return (torch.complex(a, b).conj() * factor - target).abs().pow(2).sum()

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert b.grad.is_neg()
    assert losses[-1] < 1e-2 * losses[0]


def test_numbers_of_numpy_and_torch_become_plain():
    weight = torch.ones(3, requires_grad=True)
    optimizer = FusedSaLSa(
        [weight],
        c=np.float64(0.4),
        init_step_size=torch.tensor(0.1),
        betas=(np.float32(0.5), 0.999, np.float64(0.9)),
        eps=np.float64(1e-8),
        weight_decay=torch.tensor(0.0),
        max_trials=np.int64(5),
        search_period=(np.int64(1), np.int64(4)),
    )
    optimizer.step(lambda: weight.square().sum())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)
    assert type(optimizer.step_size) is float
    assert type(optimizer.param_groups[0]["max_trials"]) is int


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda step: np.exp(-0.1 * step)),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=np.float64(1.0), total_steps=9),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 9, eta_min=np.float32(0.1)),
    ],
)
def test_factors_of_numpy_become_plain(schedule):
    weights = [torch.ones(3, requires_grad=True) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": np.float64(0.5)}, {"params": weights[1:]}]
    optimizer = FusedSaLSa(groups, lr=np.float32(0.25))
    assert [type(group["lr"]) for group in optimizer.param_groups] == [float, float]
    scheduler = schedule(optimizer)
    for _ in range(2):
        optimizer.step(lambda: sum(w.square().sum() for w in weights))
        scheduler.step()
    file = io.BytesIO()
    saved = optimizer.state_dict()
    torch.save(saved, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"] == saved["param_groups"]
    assert saved["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"] != 0.5


def test_a_tensor_as_factor_stays_one():
    lr = torch.tensor(0.5)
    optimizer = FusedSaLSa([torch.ones(3, requires_grad=True)], lr=lr)
    assert optimizer.param_groups[0]["lr"] is optimizer.state_dict()["param_groups"][0]["lr"] is lr


def test_step_under_a_default_device():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    x, y = make_batch()
    with torch.device("meta"):
        optimizer.step(lambda: (net(x) - y).square().mean())
    assert optimizer.last_search.outcome == "accepted"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_parameter_without_gradient_keeps_its_version(backend):
    """Its graph from before the step can still be used."""
    a, b = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    x = torch.randn(3, requires_grad=True)
    optimizer = FusedSaLSa([a, b], search_period=None, backend=backend)
    loss = (b * x).sum()
    a.grad = torch.ones(3)
    optimizer.step()
    loss.backward()
    assert torch.equal(x.grad, b.detach())
