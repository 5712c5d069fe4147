"""What torch's own generic tests ask of every optimizer, asked of this one.

Each configuration below stands for one ``OptimizerInput`` of torch's ``OptimizerInfo``.
"""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from seeds import seed_torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from salsa_fused import FusedSaLSa, settings

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")

CONFIGURATIONS = {
    "default": {},
    "factor": {"lr": 0.5},
    "tensor lr": {"lr": torch.tensor(0.5)},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "eps": {"eps": 1e-4},
    "paper": settings.PAPER,
    "every step": {"search_period": 1},
    "no search": {"search_period": None, "init_step_size": 1e-2},
}

SCHEDULERS = {
    "step": lambda o: [lr_scheduler.StepLR(o, step_size=10, gamma=0.9)],
    "linear and exponential": lambda o: [
        lr_scheduler.LinearLR(o, start_factor=0.4, total_iters=4),
        lr_scheduler.ExponentialLR(o, gamma=0.9),
    ],
    "cosine": lambda o: [lr_scheduler.CosineAnnealingLR(o, T_max=30)],
    "plateau": lambda o: [lr_scheduler.ReduceLROnPlateau(o)],
    "one cycle": lambda o: [lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=40)],
    "lambda": lambda o: [lr_scheduler.LambdaLR(o, lambda epoch: min(1.0, (epoch + 1) / 10))],
}


@pytest.fixture(params=CONFIGURATIONS)
def keywords(request):
    return deepcopy(CONFIGURATIONS[request.param])  # schedulers write into a tensor


def problem(contiguous=True, dtype=torch.float32):
    seed_torch(0)
    weight = torch.randn(10, 5, dtype=dtype)
    if not contiguous:
        weight = torch.randn(10, 5, 2, dtype=dtype)[..., 0]
    bias = torch.randn(10, dtype=dtype)
    return Parameter(weight), Parameter(bias), torch.randn(5, dtype=dtype)


def closure_of(optimizer, weight, bias, inputs, sign=1.0):
    def closure():
        optimizer.zero_grad()
        loss = sign * (weight.mv(inputs) + bias).pow(2).sum()
        loss.backward()
        return loss

    return closure


def advance(optimizer, closure, steps, schedulers=()):
    for _ in range(steps):
        for scheduler in schedulers:
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(closure().item())
            else:
                scheduler.step()
        loss = optimizer.step(closure)
    return loss


def assert_goes_in_the_right_direction(keywords, contiguous=True, schedulers=None):
    weight, bias, inputs = problem(contiguous)
    optimizer = FusedSaLSa([weight, bias], **keywords)
    sign = -1.0 if keywords.get("maximize") else 1.0
    closure = closure_of(optimizer, weight, bias, inputs, sign)
    first = closure().item()
    made = SCHEDULERS[schedulers](optimizer) if schedulers else ()
    advance(optimizer, closure, 20, made)
    assert sign * closure().item() < sign * first


@pytest.mark.parametrize("contiguous", [True, False])
def test_goes_in_the_right_direction(keywords, contiguous):
    assert_goes_in_the_right_direction(keywords, contiguous)


@pytest.mark.parametrize("schedulers", SCHEDULERS)
@pytest.mark.parametrize("name", ["default", "tensor lr", "no search"])
def test_goes_in_the_right_direction_with_schedulers(name, schedulers):
    assert_goes_in_the_right_direction(deepcopy(CONFIGURATIONS[name]), schedulers=schedulers)


def test_groups_with_schedulers(keywords):
    weight, bias, inputs = problem()
    unused = Parameter(torch.randn(4, 5))
    groups = [{"params": [weight]}, {"params": [bias], "lr": 0.01}, {"params": [unused], "lr": 1.0}]
    optimizer = FusedSaLSa(groups, **keywords)
    sign = -1.0 if keywords.get("maximize") else 1.0
    closure = closure_of(optimizer, weight, bias, inputs, sign)
    first, irrelevant = closure().item(), unused.detach().clone()
    advance(optimizer, closure, 20, SCHEDULERS["step"](optimizer))
    assert sign * closure().item() < sign * first
    assert torch.equal(unused.detach(), irrelevant)


@pytest.mark.parametrize("schedulers", [None, "step"])
def test_state_dict_is_deterministic(keywords, schedulers):
    weight, bias, inputs = problem()
    optimizer = FusedSaLSa([weight, bias], **keywords)
    made = SCHEDULERS[schedulers](optimizer) if schedulers else ()
    closure = closure_of(optimizer, weight, bias, inputs)
    advance(optimizer, closure, 10, made)

    weight_copy, bias_copy = (Parameter(p.detach().clone()) for p in (weight, bias))
    other = FusedSaLSa([weight_copy, bias_copy], **keywords)
    other_made = SCHEDULERS[schedulers](other) if schedulers else ()
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for scheduler, copy in zip(made, other_made):
        copy.load_state_dict(scheduler.state_dict())
    other_closure = closure_of(other, weight_copy, bias_copy, inputs)
    for _ in range(10):
        advance(optimizer, closure, 1, made)
        advance(other, other_closure, 1, other_made)
        assert torch.equal(weight, weight_copy) and torch.equal(bias, bias_copy)

    # equal (not identical) parameters have equal state dicts
    assert str(optimizer.state_dict()) == str(other.state_dict())
    # repeated groups have identical representations
    other.param_groups.extend(other.param_groups)
    packed = [o.state_dict()["param_groups"][-1] for o in (optimizer, other)]
    assert str(packed[0]) == str(packed[1])


def test_loads_a_state_dict_of_an_older_version(keywords):
    weight, bias, inputs = problem()
    optimizer = FusedSaLSa([weight, bias], **keywords)
    closure = closure_of(optimizer, weight, bias, inputs)
    advance(optimizer, closure, 3)
    old = deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for name in ("maximize", "total_trials", "skipped_steps", "max_trials"):
            del group[name]
    optimizer.load_state_dict(old)
    assert optimizer.metrics()["steps"] == 3
    advance(optimizer, closure, 3)
    assert optimizer.metrics()["steps"] == 6


def test_loads_steps_of_every_kind(keywords):
    weight, bias, inputs = problem()
    optimizer = FusedSaLSa([weight, bias], **keywords)
    closure = closure_of(optimizer, weight, bias, inputs)
    advance(optimizer, closure, 3)
    for kind in (int, float, torch.tensor, lambda t: torch.tensor(float(t))):
        saved = deepcopy(optimizer.state_dict())
        for entry in saved["state"].values():
            entry["step"] = kind(entry["step"])
        optimizer.load_state_dict(saved)
        assert {type(entry["step"]) for entry in optimizer.state.values()} == {int}
        advance(optimizer, closure, 1)


@pytest.mark.parametrize("to_named", [True, False])
def test_loads_between_named_and_unnamed_parameters(to_named):
    nets = [torch.nn.Linear(3, 3) for _ in range(2)]
    named, unnamed = nets[0].named_parameters(), nets[1].parameters()
    source, target = (FusedSaLSa(p) for p in ((unnamed, named) if to_named else (named, unnamed)))
    net = nets[1] if to_named else nets[0]
    source.step(lambda: net(torch.ones(3)).square().sum())
    target.load_state_dict(source.state_dict())
    assert target.step_size == source.step_size
    names = target.param_groups[0].get("param_names")
    assert names == ["weight", "bias"]  # torch keeps the names of whichever has some


def test_no_op_without_gradients(keywords):
    parameters = [torch.randn(2, 3), torch.randn(3)]
    before = [p.clone() for p in parameters]
    optimizer = FusedSaLSa(parameters, **keywords)
    optimizer.step(lambda: torch.tensor([1]))
    assert all(map(torch.equal, parameters, before)) and not optimizer.state


def test_no_op_for_zero_gradients(keywords):
    keywords.pop("weight_decay", None)  # it moves the weights whatever the gradient
    parameter = torch.rand(5, 1, requires_grad=True)
    before = parameter.detach().clone()
    optimizer = FusedSaLSa([parameter], **keywords)
    optimizer.step(lambda: (parameter * 0.0).sum() + 1.0)
    assert torch.equal(parameter.detach(), before)
    assert optimizer.state[parameter]["step"] == 1


def test_deepcopy_copies_all_public_attributes(keywords):
    weight, bias, inputs = problem()
    optimizer = FusedSaLSa([weight, bias], **keywords)
    advance(optimizer, closure_of(optimizer, weight, bias, inputs), 3)

    def public(o):
        return {name for name in o.__dict__ if not name.startswith("_")}

    assert public(optimizer) == public(deepcopy(optimizer))


def test_pre_and_post_hooks_see_and_change_the_arguments():
    weight, bias, inputs = problem()
    optimizer = FusedSaLSa([weight, bias])
    closure = closure_of(optimizer, weight, bias, inputs)
    data = 2

    def post(opt, args, kwargs):
        nonlocal data
        data += 2

    def pre(opt, args, kwargs):
        nonlocal data
        data *= 2
        return (args[0], closure), {}

    handle = optimizer.register_step_pre_hook(pre)
    optimizer.register_step_post_hook(post)
    optimizer.step()  # the pre-hook brings the closure
    assert data == 6
    handle.remove()
    optimizer.step(closure)
    assert data == 8


def test_global_hooks_and_profilers_see_the_step():
    weight = torch.zeros(2, requires_grad=True)
    optimizer = FusedSaLSa([weight], search_period=None)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("post")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    assert seen == ["pre", "post"]
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#FusedSaLSa.step" in [event.name for event in profile.events()]
    assert seen == ["pre", "post"]


def test_mixed_dtypes_and_shapes():
    seed_torch(0)
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64] * 3
    shapes = [(2,), (), (3, 4), (5, 2, 3)] * 3
    parameters = [torch.randn(s).to(k).requires_grad_() for s, k in zip(shapes, kinds)]
    optimizer = FusedSaLSa(parameters)

    def loss():
        return sum(p.double().square().sum() for p in parameters)

    losses = [optimizer.step(loss).item() for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0]
    for p in parameters:
        expected = torch.float64 if p.dtype == torch.float64 else torch.float32
        assert optimizer.state[p]["exp_avg"].dtype == expected


def test_no_state_for_gradients_that_are_not_there(keywords):
    weight, bias, inputs = problem()
    optimizer = FusedSaLSa([weight, bias], **keywords)
    for _ in range(3):
        optimizer.step(lambda: weight.mv(inputs).pow(2).sum())
    assert bias not in optimizer.state


def test_repr_names_the_settings():
    text = repr(FusedSaLSa([torch.ones(1, requires_grad=True)]))
    assert text.startswith("FusedSaLSa (") and "step_size: 1.0" in text


# -- checkpoints of whole models --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoint_on_one_process(flatten, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    optimizer, other = (FusedSaLSa(net.parameters()) for net in nets)

    def step(net, opt):
        return opt.step(lambda: net(torch.arange(3.0)).square().sum())

    for _ in range(13):
        step(nets[0], optimizer)
    saved = get_optimizer_state_dict(nets[0], optimizer, options=options)
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    nets[1].load_state_dict(nets[0].state_dict())
    loaded = {"optimizer": get_optimizer_state_dict(nets[1], other, options=options)}
    dcp.load(loaded, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_optimizer_state_dict(nets[1], other, loaded["optimizer"], options=options)
    for _ in range(20):
        assert step(nets[0], optimizer) == step(nets[1], other)
    assert optimizer.param_groups[0]["step_size"] == other.param_groups[0]["step_size"]
    assert math.isfinite(optimizer.step_size)


def test_load_onto_channels_last_weights():
    nets = [torch.nn.Conv2d(3, 4, 3) for _ in range(2)]
    x = torch.randn(2, 3, 8, 8)
    first = FusedSaLSa(nets[0].parameters())
    for _ in range(3):
        first.step(lambda: nets[0](x).square().mean())
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].to(memory_format=torch.channels_last)
    second = FusedSaLSa(nets[1].parameters())
    second.load_state_dict(first.state_dict())
    entry = second.state[nets[1].weight]
    assert entry["exp_avg"].stride() == nets[1].weight.stride() != nets[0].weight.stride()
    assert torch.equal(entry["exp_avg"], first.state[nets[0].weight]["exp_avg"])
    for _ in range(3):
        first.step(lambda: nets[0](x).square().mean())
        second.step(lambda: nets[1](x).square().mean())
    assert torch.allclose(nets[0].weight, nets[1].weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loaded_moments_of_16_bit_weights_keep_fp32(dtype):
    weight = torch.randn(50).to(dtype).requires_grad_()
    optimizer = FusedSaLSa([weight])
    for _ in range(3):
        optimizer.step(lambda: weight.float().square().sum())
    twin = torch.zeros(50, dtype=dtype, requires_grad=True)
    other = FusedSaLSa([twin])
    other.load_state_dict(optimizer.state_dict())
    assert other.state[twin]["exp_avg_sq"].dtype == torch.float32
    assert torch.equal(other.state[twin]["exp_avg_sq"], optimizer.state[weight]["exp_avg_sq"])
