"""Parameters that no step moves: they cost no copy, may be anything, and may come in later."""

from __future__ import annotations

import copy

import pytest
import torch
from kernel_cases import GROUP, make_state, make_weights, same_bits
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels


def elements_saved(optimizer):
    saved = [bucket.saved for bucket in optimizer._kernels.buckets]
    return sum(one.memory.numel() for one in saved if one is not None)


def watched(optimizer, loss):
    """A closure, and what a search has saved whenever it is evaluated."""
    seen = []

    def closure():
        seen.append(elements_saved(optimizer))
        return loss()

    return closure, seen


# -- what a search saves ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_search_saves_no_frozen_weights(backend):
    frozen = nn.Linear(2000, 4000)
    head = nn.Linear(4000, 2)
    frozen.requires_grad_(False)
    optimizer = FusedSaLSa([*frozen.parameters(), *head.parameters()], backend=backend)
    inputs = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    closure, seen = watched(optimizer, lambda: head(frozen(inputs)).square().mean())
    optimizer.step(closure)
    assert optimizer.last_search.trials > 0 and 8002 <= max(seen) <= 8002 + 32
    assert elements_saved(optimizer) == 0


def test_a_search_saves_only_what_has_a_gradient_in_this_step():
    experts = [nn.Parameter(torch.ones(1000) * (i + 1)) for i in range(4)]
    optimizer = FusedSaLSa(experts, check_replay=False, search_period=1)
    for used in ([0], [0], [2, 3], [1], [0, 1, 2, 3]):
        closure, seen = watched(optimizer, lambda u=used: sum(experts[i].norm() for i in u))
        optimizer.zero_grad()
        optimizer.step(closure)
        assert 1000 * len(used) <= max(seen) <= 1016 * len(used)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_search_of_a_unit_saves_only_the_unit(backend):
    weights = make_weights([1000] * 4)
    groups = [{**GROUP, "params": weights[:1]}, {**GROUP, "params": weights[1:]}]
    kernels = Kernels(backend)
    cases = [(0, [], 1000), (1, [], 3000), (1, [2], 2000), (1, [1, 2, 3], 0), (0, [], 1000)]
    for unit, missing, expected in cases:
        for i, weight in enumerate(weights):
            weight.grad = None if i in missing else torch.ones(1000)
        kernels.refresh(groups, {})
        kernels.first_trial(groups, 0.1, unit)
        (bucket,) = kernels.buckets
        assert expected <= bucket.saved.memory.numel() <= expected + 64
        kernels.next_trial(groups, 0.2)
        kernels.restore()
        assert all(map(same_bits, weights, make_weights([1000] * 4)))
        kernels.release()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("direction", ["adam", "sgd", "lamb"])
def test_gradients_that_come_and_go_change_no_bits(backend, direction):
    """The places of the saved weights move from search to search; beside one that is new."""
    groups_of = [[0, 1, 2], [3, 4, 5]]

    def run(anew):
        weights = make_weights([100, 37, 5, 64, 1, 300])
        groups = [
            {**GROUP, "direction": direction, "params": [weights[i] for i in these]}
            for these in groups_of
        ]
        state = {} if direction == "sgd" else make_state(weights)
        kernels = Kernels("reference" if anew else backend)
        for step, (missing, unit) in enumerate(
            [((), None), ((1, 2), None), ((1, 2), 0), ((), 1), ((0, 5), 1), ((0, 5), None)]
        ):
            random = torch.Generator().manual_seed(step)
            for i, weight in enumerate(weights):
                gradient = torch.randn(weight.shape, generator=random)
                weight.grad = None if i in missing else gradient
            if anew:
                kernels = Kernels("reference")
            kernels.refresh(groups, state)
            kernels.first_trial(groups, 0.3, unit)
            kernels.next_trial(groups, 0.2)
            if step == 2:
                kernels.restore()
            else:
                kernels.final_write(groups, 0.2 if unit is None else [0.2, 0.1])
                kernels.commit(state)
            kernels.release()
        return weights

    assert all(map(same_bits, run(False), run(True)))


# -- what a frozen parameter may be -----------------------------------------------------------


class Described(torch.Tensor):
    """A subclass with a function of its own, as quantized weights are."""


def in_inference_mode():
    with torch.inference_mode():
        return torch.ones(3)


def freed():
    weight = torch.ones(3)
    weight.untyped_storage().resize_(0)
    return weight


FROZEN = {
    "int8": lambda: torch.ones(3, dtype=torch.int8),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8),
    "meta": lambda: torch.ones(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "expanded": lambda: torch.ones(1).expand(4),
    "negated": lambda: torch._neg_view(torch.ones(3)),
    "inference": in_inference_mode,
    "freed": freed,
    "subclass": lambda: torch.ones(3).as_subclass(Described),
    "lazy": lambda: nn.UninitializedParameter(requires_grad=False),
    "empty": lambda: torch.ones(0),
    "gaps": lambda: torch.ones(6)[::2],
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(nested tensors|Sparse CSR|quantize).*", "ignore:.*TypedStorage.*"
)


def frozen(kind):
    made = FROZEN[kind]()
    if isinstance(made, nn.UninitializedParameter) or type(made) is Described:
        return made
    return nn.Parameter(made, requires_grad=False)


@pytest.mark.parametrize("search_period", [1, None])
@pytest.mark.parametrize("kind", FROZEN)
def test_a_frozen_parameter_may_be_anything(kind, search_period):
    nets, optimizers = [], []
    for with_frozen in (True, False):
        net = make_net()
        parameters = list(net.named_parameters())
        if with_frozen:
            parameters.insert(1, ("strange", frozen(kind)))
        optimizer = FusedSaLSa(
            parameters, module=net, search_period=search_period, init_step_size=1e-2
        )
        if with_frozen:
            optimizer.add_param_group({"params": [("later", frozen(kind))], "lr": 0.5})
            optimizer.load_state_dict(optimizer.state_dict())
        torch.manual_seed(3)
        for step in range(4):
            optimizer.step(make_closure(net, step))
        optimizer.zero_grad(set_to_none=False)
        nets.append(net)
        optimizers.append(optimizer)
    ours, theirs = (everything(*pair)[0] for pair in zip(nets, optimizers))
    assert all(map(torch.equal, ours, theirs))
    saved = optimizers[0].state_dict()
    assert len(saved["state"]) == len(optimizers[1].state_dict()["state"])
    optimizers[0].load_state_dict(saved)
    of_torch = [{"params": group["params"]} for group in optimizers[0].param_groups]
    optimizers[0].load_state_dict(torch.optim.AdamW(of_torch).state_dict())
    optimizers[0].step(make_closure(nets[0], 4))


def test_copies_of_an_optimizer_with_frozen_parameters():
    weight = nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([weight, frozen("int8"), frozen("complex")])
    optimizer.step(lambda: weight.square().sum())
    other = copy.deepcopy(optimizer)
    (theirs, *_) = other.param_groups[0]["params"]
    other.step(lambda: theirs.square().sum())
    assert other.state[theirs]["step"] == 2 and optimizer.state[weight]["step"] == 1


def test_frozen_ones_alone_are_not_stepped():
    parameters = [frozen("int8"), frozen("meta"), nn.Parameter(torch.ones(3), requires_grad=False)]
    optimizer = FusedSaLSa(parameters)
    assert optimizer.step(lambda: torch.tensor(2.0)).item() == 2.0
    assert not optimizer.state and optimizer.metrics()["steps"] == 0


def test_what_is_listed_twice_is_refused_frozen_too():
    twice = frozen("nested")
    with pytest.raises(ValueError, match="parameter 1 of its group is in its group twice"):
        FusedSaLSa([twice, twice])


# -- coming in later --------------------------------------------------------------------------


def pair(*, frozen):
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.arange(4.0))
    a.requires_grad_(not frozen)
    return a, b


def loss_of(a, b):
    return (a.sum() * b - 1.0).square().mean() + a.square().sum()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("search_period", [1, None])
def test_unfreezing(backend, grouped, search_period):
    """As if it had been there without a gradient."""
    runs = []
    for frozen_at_first in (True, False):
        a, b = pair(frozen=frozen_at_first)
        optimizer = FusedSaLSa(
            [{"params": [a]}, {"params": [b]}] if grouped else [a, b],
            **{"backend": backend, "search_period": search_period, "init_step_size": 1e-2},
        )
        for step in range(8):
            if step == 3:
                a.requires_grad_(True)
            used = a if 3 <= step < 6 else a.detach()
            optimizer.step(lambda a=used, b=b: loss_of(a, b))
            if step == 6 and frozen_at_first:
                a.requires_grad_(False)
        runs.append(everything(nn.ParameterList([a, b]), optimizer))
        assert optimizer.state[a]["step"] == 3 and optimizer.state[b]["step"] == 8
    assert_same(*runs)


def test_a_gradient_given_by_hand_is_a_gradient():
    """As torch's optimizers have it, whatever is required."""
    a, b = pair(frozen=True)
    twins = [p.detach().clone() for p in (a, b)]
    ours = FusedSaLSa([a, b], search_period=None, init_step_size=1e-2, backend="reference")
    theirs = torch.optim.AdamW(twins, lr=1e-2, weight_decay=0.0)
    for step in range(4):
        for p, twin in zip((a, b), twins):
            p.grad = twin.grad = torch.full_like(p, 1.0 + step) if p is b or step % 2 else None
        ours.step()
        theirs.step()
    for p, twin in zip((a, b), twins):
        assert torch.allclose(p, twin) and not torch.equal(p, torch.ones_like(p))


def with_gradient(parameter, requires_grad):
    """Give it one as autograd, or a user, would."""
    if requires_grad:
        parameter.requires_grad_(True)
    parameter.grad = parameter.detach().clone()


@pytest.mark.parametrize(
    ("kind", "requires_grad", "error", "message"),
    [
        ("int8", False, TypeError, "not of a real floating dtype"),
        ("complex", True, TypeError, "not of a real floating dtype"),
        ("meta", True, ValueError, "meta device"),
        ("sparse", True, TypeError, "sparse"),
        ("expanded", True, ValueError, "overlaps itself"),
        ("negated", True, ValueError, "negated view"),
        ("subclass", True, TypeError, "Described"),
        ("freed", True, RuntimeError, "has no memory of its own"),
    ],
)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_one_that_comes_in_is_looked_at_by_name(kind, requires_grad, error, message, steps_before):
    weight, strange = nn.Parameter(torch.ones(3)), frozen(kind)
    optimizer = FusedSaLSa(
        [("weight", weight), ("strange", strange)], search_period=None, init_step_size=1e-2
    )
    for _ in range(steps_before):
        optimizer.step(lambda: weight.square().sum())
    before = everything(nn.ParameterList([weight]), optimizer)
    gradient = torch.ones(3) if kind == "freed" else None
    if gradient is None:
        with_gradient(strange, requires_grad)
    else:
        strange.grad = gradient
    weight.grad = torch.ones(3)
    for _ in range(2):  # every time
        with pytest.raises(error, match=rf"parameter 'strange'.*{message}"):
            optimizer.step()
        assert_same(before, everything(nn.ParameterList([weight]), optimizer))
    strange.grad = None
    if requires_grad:
        strange.requires_grad_(False)
    optimizer.step(lambda: weight.square().sum())
    assert optimizer.metrics()["steps"] == steps_before + 1


def test_one_that_comes_in_may_share_no_memory():
    """Tied by `.data`: while one is frozen nothing is wrong with it."""
    memory = torch.ones(4)
    a, b = nn.Parameter(memory[:3], requires_grad=False), nn.Parameter(memory[1:])
    optimizer = FusedSaLSa([("a", a), ("b", b)], search_period=None, init_step_size=1e-2)
    optimizer.step(lambda: b.square().sum())
    a.requires_grad_(True)
    optimizer.step(lambda: b.square().sum())  # without a gradient it is not moved
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'a'.* and .*'b'.* share memory"):
            optimizer.step(lambda: (a * b).sum())
    assert optimizer.metrics()["steps"] == 2
    with torch.no_grad():
        a.data = a.data.clone()
    optimizer.step(lambda: (a * b).sum())
    assert optimizer.metrics()["steps"] == 3


def test_frozen_ones_are_looked_at_by_both_readers(looks):
    a, b = pair(frozen=True)
    optimizer = FusedSaLSa([a, b], search_period=None, init_step_size=1e-2)
    for step in range(4):
        a.grad, b.grad = (torch.ones(3) if step == 2 else None), torch.ones(4)
        optimizer.step()
    assert optimizer.state[a]["step"] == 1 and optimizer.state[b]["step"] == 4


def test_random_streams_of_no_device_are_asked_for():
    """A frozen parameter on the meta device has a device that has no random numbers."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([weight, frozen("meta")])
    with optimizer.first_evaluation():
        loss = weight.square().sum()
    loss.backward()
    optimizer.step(lambda: weight.square().sum(), loss=loss)
    assert optimizer.metrics()["steps"] == 1
