"""Whatever happens to tensors between two steps, the next step sees it."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import GROUP, backend_named, same_bits
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels, columns

SHAPES = [(4, 6), (6,), (3, 2, 5, 5), (), (17,)]


def new_gradient(p, random):
    return torch.randn(p.shape, generator=random).to(p.dtype)


def clear(p, o, random):
    p.grad = None


def same_place(p, o, random):
    if p.grad is not None:
        p.grad.copy_(new_gradient(p, random))


def elsewhere(p, o, random):
    p.grad = new_gradient(p, random)


def other_order(p, o, random):
    order = list(range(p.ndim))[::-1]
    p.grad = new_gradient(p, random).permute(order).contiguous().permute(order)


def unaligned(p, o, random):
    room = torch.empty(p.numel() + 1, dtype=p.dtype)
    p.grad = room[1:].view(p.shape).copy_(new_gradient(p, random))


def negated(p, o, random):
    p.grad = torch._neg_view(new_gradient(p, random))


def move_weight(p, o, random):
    p.data = p.data.clone()


def channels_last(p, o, random):
    if p.ndim == 4:
        p.data = p.data.to(memory_format=torch.channels_last)


def to_bf16(p, o, random):
    p.data, p.grad = p.data.to(torch.bfloat16), None


def to_fp32(p, o, random):
    p.data, p.grad = p.data.float(), None


def move_moments(p, o, random):
    for name in ("exp_avg", "exp_avg_sq"):
        if name in o.state.get(p, {}):
            o.state[p][name].data = o.state[p][name].data.clone()


def exchange_moment(p, o, random):
    if o.state.get(p):
        o.state[p]["exp_avg"] = o.state[p]["exp_avg"] * 0.5


def exchange_entry(p, o, random):
    if o.state.get(p):
        o.state[p] = {**o.state[p], "step": o.state[p]["step"] + 1}


def forget(p, o, random):
    o.state.pop(p, None)


def reload(p, o, random):
    o.load_state_dict(o.state_dict())


CHANGES = [
    *[clear, same_place, elsewhere, other_order, unaligned, negated, move_weight, channels_last],
    *[to_bf16, to_fp32, move_moments, exchange_moment, exchange_entry, forget, reload],
]
steps = st.lists(
    st.lists(
        st.tuples(st.sampled_from(CHANGES), st.integers(0, len(SHAPES) - 1)), max_size=4
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


def run(changes, backend, *, fresh):
    """Plain steps with these changes between them; `fresh`: nothing is remembered of a step."""
    random = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]
    optimizer = FusedSaLSa(
        [{"params": weights[:2], "lr": 0.5}, {"params": weights[2:], "weight_decay": 0.1}],
        backend=backend,
        search_period=None,
        init_step_size=1e-2,
    )
    for weight in weights:
        weight.grad = new_gradient(weight, random)
    seen = []
    for these in changes:
        for change, i in these:
            with torch.no_grad():
                change(weights[i], optimizer, random)
        if fresh:
            optimizer.__setstate__(optimizer.__getstate__())
        optimizer.step()
        moments = [
            entry[k] for entry in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")
        ]
        seen.append([tensor.detach().clone() for tensor in (*weights, *moments)])
    return seen


@pytest.mark.parametrize("compiled", [True, False])
@given(changes=steps)
def test_nothing_goes_unnoticed(compiled, changes):
    found = columns.look
    if not compiled:
        columns.look = columns.InPython()
    try:
        ours = run(changes, None, fresh=False)
    finally:
        columns.look = found
    theirs = run(changes, "reference", fresh=True)
    for step, (tensors, others) in enumerate(zip(ours, theirs)):
        assert len(tensors) == len(others)
        for i, (a, b) in enumerate(zip(tensors, others)):
            assert a.dtype == b.dtype and same_bits(a.contiguous(), b.contiguous()), (step, i)


# -- changes by hand --------------------------------------------------------------------------


def small(n=2, **keywords):
    """An optimizer of `n` small weights after three plain steps, and how to take another."""
    weights = [nn.Parameter(torch.ones(3) * (i + 1)) for i in range(n)]
    keywords = {"search_period": None, "lr": 0.1, **keywords}
    optimizer = FusedSaLSa(weights, **keywords)

    def step():
        for i, weight in enumerate(weights):
            weight.grad = torch.full_like(weight, 0.5 + i)
        optimizer.step()

    for _ in range(3):
        step()
    return weights, optimizer, step


@pytest.fixture
def stepped():
    """After four steps, when nobody has changed anything."""
    weights, optimizer, step = small()
    step()
    return everything(nn.ParameterList(weights), optimizer)


@pytest.mark.parametrize("sequence", [tuple, nn.ParameterList])
def test_parameters_in_another_sequence(sequence, stepped, looks):
    weights, optimizer, step = small()
    group = optimizer.param_groups[0]
    group["params"] = sequence(group["params"])
    step()
    assert_same(everything(nn.ParameterList(weights), optimizer), stepped)


class Attributes(dict):
    """A dictionary that sees what is entered."""

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        setattr(self, name, value)


@pytest.mark.parametrize("mapping", [UserDict, OrderedDict, Attributes])
def test_entries_that_are_other_mappings(mapping, stepped, looks):
    weights, optimizer, step = small()
    optimizer.state[weights[0]] = entry = mapping(optimizer.state[weights[0]])
    step()
    assert_same(everything(nn.ParameterList(weights), optimizer), stepped)
    assert optimizer.state[weights[0]] is entry
    assert getattr(entry, "step", 4) == 4


def test_counts_that_are_tensors_stay_apart(stepped):
    weights, optimizer, step = small()
    for entry in optimizer.state.values():
        entry["step"] = torch.tensor(float(entry["step"]))
    step()
    assert_same(everything(nn.ParameterList(weights), optimizer), stepped)
    assert [type(entry["step"]) for entry in optimizer.state.values()] == [int, int]


def test_a_plain_dictionary_as_state(stepped):
    weights, optimizer, step = small()
    optimizer.state = dict(optimizer.state)
    step()
    assert_same(everything(nn.ParameterList(weights), optimizer), stepped)
    optimizer.state = {}
    step()
    assert [entry["step"] for entry in optimizer.state.values()] == [1, 1]


def test_a_moment_that_is_transposed_where_it_lies(looks):
    """Its numbers are where they were, and mean others."""
    runs = []
    for in_place in (True, False):
        weight = nn.Parameter(torch.ones(3, 3))
        optimizer = FusedSaLSa([weight], search_period=None, lr=0.1)
        for step in range(4):
            weight.grad = torch.arange(9.0).view(3, 3) - step
            if step == 3 and in_place:
                optimizer.state[weight]["exp_avg"].t_()
            elif step == 3:
                entry = optimizer.state[weight]
                entry["exp_avg"] = entry["exp_avg"].t().contiguous()
            optimizer.step()
        runs.append(weight.detach())
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_that_are_none(name):
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = FusedSaLSa(weights, search_period=None, lr=0.1)
    optimizer.state[weights[1]] = {"step": 0, "exp_avg": None, "exp_avg_sq": None}
    weights[0].grad = torch.ones(3)
    optimizer.step()
    weights[1].grad = torch.ones(3)
    optimizer.step()
    optimizer.state[weights[1]][name] = None
    optimizer.step()
    assert optimizer.state[weights[1]][name] is not None


def test_an_entry_that_is_put_back_after_an_error():
    weights, optimizer, step = small()
    good = optimizer.state[weights[0]]
    optimizer.state[weights[0]] = {**good, "exp_avg": torch.zeros(7)}
    with pytest.raises(RuntimeError, match="its moments have"):
        step()
    optimizer.state[weights[0]] = good
    step()
    assert good["step"] == 4


def test_a_group_that_is_appended_by_hand():
    _, optimizer, step = small()
    new = nn.Parameter(torch.ones(3))
    new.grad = torch.ones(3)
    first = optimizer.param_groups[0]
    names = ("lr", "betas", "eps", "weight_decay", "maximize")
    optimizer.param_groups.append({"params": [new], **{name: first[name] for name in names}})
    for _ in range(2):
        step()
    assert optimizer.param_groups[1]["steps"] == first["steps"] == 5
    assert optimizer.state[new]["step"] == 2


# -- errors, and what comes after them --------------------------------------------------------


def test_a_gradient_that_cannot_be_read_is_an_error_every_time():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = FusedSaLSa(embedding.parameters(), check_replay=False)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="is sparse"):
            optimizer.step(lambda: embedding(torch.tensor([1, 2])).square().sum())
    embedding.sparse = False
    optimizer.step(lambda: embedding(torch.tensor([1, 2])).square().sum())
    assert optimizer.metrics()["steps"] == 1


def test_a_bad_gradient_of_a_new_group_stops_nobody_for_good():
    weights, optimizer, step = small()
    new = nn.Parameter(torch.ones(4, 4))
    optimizer.add_param_group({"params": [new]})
    new.grad = torch.ones(4, 4).to_sparse()
    before = everything(nn.ParameterList(weights), optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is sparse"):
            step()
    assert_same(everything(nn.ParameterList(weights), optimizer), before)
    new.grad = torch.ones(4, 4)
    step()
    assert optimizer.state[new]["step"] == 1 and optimizer.state[weights[0]]["step"] == 4


def test_a_weight_that_the_backend_cannot_serve_is_an_error_every_time():
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = FusedSaLSa([weight], backend="native", search_period=None)
    weight.grad = torch.ones_like(weight)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="native"):
            optimizer.step()


@pytest.mark.parametrize("what", ["weight", "gradient", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_memory_that_was_freed(what, backend):
    weights, optimizer, step = small(backend=backend)
    entry = optimizer.state[weights[1]]
    tensors = {"weight": weights[1].data, "gradient": torch.ones(3), **entry}
    size = tensors[what].untyped_storage().nbytes()
    if what == "gradient":
        weights[0].grad = torch.ones(3)
        weights[1].grad = tensors[what]
        tensors[what].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=r"the gradient of parameter 1 .*has no memory"):
            optimizer.step()
    else:
        tensors[what].untyped_storage().resize_(0)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"parameter 1 .*has no memory"):
                step()
        tensors[what].untyped_storage().resize_(size)
        tensors[what].fill_(1.0)
    step()
    assert [entry["step"] for entry in optimizer.state.values()] == [4, 4]


# -- weights that move ------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch):
    """How often a kernels is built anew."""
    seen = []
    build = Kernels._build

    def counted(self, groups):
        seen.append(groups)
        build(self, groups)

    monkeypatch.setattr(Kernels, "_build", counted)
    return seen


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_weight_that_moves_costs_no_rebuild(backend, stepped, looks, builds):
    weights, optimizer, step = small(backend=backend)
    builds.clear()
    weights[1].data = weights[1].data.clone()
    step()
    assert not builds
    assert_same(everything(nn.ParameterList(weights), optimizer), stepped)


def test_one_that_moves_and_changes_does(looks, builds):
    for change in (
        lambda p: p.data.to(torch.bfloat16),
        lambda p: p.data.t().contiguous().t(),
        lambda p: p.data[:2].clone(),
    ):
        weight = nn.Parameter(torch.ones(3, 3))
        optimizer = FusedSaLSa([weight], search_period=None, lr=0.1)
        for step in range(3):
            weight.grad = torch.ones_like(weight)
            if step == 2:
                builds.clear()
                weight.data, weight.grad = change(weight), None
                del optimizer.state[weight]
                weight.grad = torch.ones_like(weight)
            optimizer.step()
        assert len(builds) == 1
        assert torch.equal(weight.float(), torch.full_like(weight, weight[0, 0].item()).float())


def test_a_weight_that_is_exchanged_for_one_on_another_device(builds):
    """Shape, dtype and strides are the same."""
    kernels = Kernels("reference")
    weights = [torch.ones(3), torch.ones(3)]
    for weight in weights:
        weight.grad = torch.ones(3)
    groups = [{**GROUP, "params": weights}]
    assert kernels.refresh(groups, {})
    there = torch.ones(3, device="meta")
    there.grad = torch.ones(3, device="meta")
    torch.utils.swap_tensors(weights[1], there)
    builds.clear()
    with suppress(RuntimeError, ValueError):
        kernels.refresh(groups, {})
    assert len(builds) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (torch.Tensor.to_sparse, TypeError, "is sparse"),
        (lambda w: torch.ones_like(w, device="meta"), ValueError, "meta device"),
        (lambda w: torch.ones(1).expand(3), ValueError, "overlaps itself"),
    ],
)
def test_a_weight_that_becomes_another_kind_of_tensor(change, error, message):
    weights, optimizer, step = small()
    old = weights[1].detach().clone()
    torch.utils.swap_tensors(weights[1], nn.Parameter(change(weights[1].detach())))
    before = everything(nn.ParameterList(weights[:1]), optimizer)
    for _ in range(2):
        weights[0].grad = torch.ones(3)
        weights[1].grad = weights[1].detach().clone()
        with pytest.raises(error, match=rf"parameter 1 .*{message}"):
            optimizer.step()
        assert_same(before, everything(nn.ParameterList(weights[:1]), optimizer))
    torch.utils.swap_tensors(weights[1], nn.Parameter(old))
    step()
    assert [entry["step"] for entry in optimizer.state.values()] == [4, 4]


def test_vectors_are_cut_anew_where_a_weight_moves():
    """To a place that no vector can be read of, and back."""
    room = torch.ones(9)
    weights = [room[:8], torch.ones(8)]
    for weight in weights:
        weight.grad = torch.ones(8)
    groups, state, kernels = [{**GROUP, "params": weights}], {}, Kernels()
    kernels.refresh(groups, state)
    (bucket,) = kernels.buckets
    bucket.backend = backend_named("triton")  # looked at only for what it reads
    bucket._cut_anew()
    assert bucket.selection.all.n_vector == 2
    weights[0].data = room[1:]
    kernels.refresh(groups, state)
    assert bucket.selection.all.n_vector == 1 and kernels.buckets == [bucket]
    weights[0].data = room[:8]
    kernels.refresh(groups, state)
    assert bucket.selection.all.n_vector == 2 and kernels.buckets == [bucket]
