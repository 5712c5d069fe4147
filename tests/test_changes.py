"""Whatever happens to tensors between two steps, the next step sees it."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from array import array
from collections import OrderedDict, UserDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import same_bits
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import watch

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
    found = watch.module, watch.reader
    if not compiled:
        watch.module = watch.reader = None
    try:
        ours = run(changes, None, fresh=False)
    finally:
        watch.module, watch.reader = found
    theirs = run(changes, "reference", fresh=True)
    for step, (tensors, others) in enumerate(zip(ours, theirs)):
        assert len(tensors) == len(others)
        for i, (a, b) in enumerate(zip(tensors, others)):
            assert a.dtype == b.dtype and same_bits(a.contiguous(), b.contiguous()), (step, i)


# -- the looks at all tensors -----------------------------------------------------------------

needs_reader = pytest.mark.skipif(watch.reader is None, reason="the C++ kernels are not built")


@needs_reader
def test_layouts_are_as_remembered_and_nothing_else_is():
    def tensors(other=None):
        return [torch.zeros(4, 4), None, torch.zeros(2) if other is None else other]

    known = watch.Layouts()
    assert known.addresses(tensors()) is None
    known.remember(tensors())
    these = tensors()
    assert known.addresses(these) == array("q", [these[0].data_ptr(), 0, these[2].data_ptr()])
    for other in (
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.float16),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(3),
        torch.zeros(2, 1),
        torch.zeros(()),
        torch.zeros(4)[::2],
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
    ):
        assert known.addresses(tensors(other)) is None, other
    assert known.addresses([torch.zeros(4, 4), torch.zeros(2), None]) is None
    assert known.addresses([torch.zeros(4, 4), None]) is None
    assert known.addresses([*tensors(), torch.zeros(2)]) is None
    assert known.addresses(tensors()) is not None


@needs_reader
def test_what_cannot_be_described_is_not_remembered():
    known = watch.Layouts()
    known.remember([torch.zeros(2), torch.zeros(2).to_sparse()])
    assert known.addresses([torch.zeros(2)]) is None
    with pytest.raises(RuntimeError, match="storage"):
        watch.addresses([torch.zeros(2).to_sparse()])


@needs_reader
def test_another_version_of_dlpack_is_not_used():
    module = pytest.importorskip("salsa_fused._native")
    version = ctypes.create_string_buffer(struct.pack("IIQQQQQQ", 2, 0, *[1] * 6))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    with pytest.raises(RuntimeError, match="DLPack"):
        module.TensorReader(new(ctypes.addressof(version), b"dlpack_exchange_api", None))
    with pytest.raises(ValueError, match="PyCapsule"):
        module.TensorReader(new(ctypes.addressof(version), b"something else", None))


@pytest.mark.parametrize("other", ["None", "datetime.datetime_CAPI"])
def test_a_torch_with_another_api_is_read_in_python(other):
    code = (
        f"import datetime, torch; torch.Tensor.__dlpack_c_exchange_api__ = {other}; "
        "from salsa_fused.kernels import watch; print(watch.reader)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "None\n"


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def looks(request, monkeypatch):
    """`watch`, as it is and as it is without the compiled module."""
    if not request.param:
        monkeypatch.setattr(watch, "module", None)
        monkeypatch.setattr(watch, "reader", None)
    return watch


def test_addresses_begin_at_the_first_element(looks):
    whole = torch.zeros(10, dtype=torch.bfloat16)
    assert list(looks.addresses([whole[3:], None, whole])) == [
        whole.data_ptr() + 6,
        0,
        whole.data_ptr(),
    ]


def test_the_same_objects(looks):
    a, b, c = ([] for _ in range(3))
    assert looks.same_objects([[a], [], [b, c]], [a, b, c])
    for others in ([a, b], [a, b, c, c], [a, c, b], [a, b, []], []):
        assert not looks.same_objects([[a], [b, c]], others)
    state = {"x": a, "y": b}
    assert looks.same_items(state, ["x", "y", a, b])
    for others in (["x", "y", a, c], ["y", "x", b, a], ["x", a], ["x", "y", a, b, c]):
        assert not looks.same_items(state, others)


def test_the_count_that_all_entries_share():
    moments = [torch.zeros(1) for _ in range(40)]

    def entries(**changes):
        found = [{"step": 1000, "exp_avg": m, "exp_avg_sq": m} for m in moments]
        found[20].update(changes)
        return found

    def common_step(entries):
        return watch.common_step(entries, moments, moments)

    if watch.module is not None:
        assert common_step(entries()) == 1000
    changes: list[dict] = [{"step": 999}, {"step": 1e3}, {"exp_avg": None}]
    changes += [{"exp_avg_sq": torch.zeros(1)}, {"step": torch.tensor(1000)}]
    for change in changes:
        assert common_step(entries(**change)) is None
    assert common_step([*entries()[:-1], None]) is None
    assert common_step([*entries()[:-1], {}]) is None
    assert common_step(entries()[:-1]) is None
    missing = [{"step": 1, "exp_avg": None, "exp_avg_sq": None}]
    assert watch.common_step(missing, [None], [None]) is None


def test_a_count_is_entered_everywhere(looks):
    entries = [{"step": 1}, {"other": 2}]
    looks.set_step(entries, 7)
    assert entries == [{"step": 7}, {"other": 2, "step": 7}]


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


def everything(weights, optimizer):
    moments = [e[k] for e in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    counts = [e["step"] for e in optimizer.state.values()]
    tensors = [tensor.detach().clone() for tensor in (*weights, *moments)]
    return tensors, counts, optimizer.metrics()["steps"]


def assert_alike(ours, theirs):
    assert all(map(torch.equal, ours[0], theirs[0]))
    assert [int(count) for count in ours[1]] == theirs[1] and ours[2] == theirs[2]


@pytest.fixture
def stepped():
    """After four steps, when nobody has changed anything."""
    weights, optimizer, step = small()
    step()
    return everything(weights, optimizer)


@pytest.mark.parametrize("sequence", [tuple, nn.ParameterList])
def test_parameters_in_another_sequence(sequence, stepped, looks):
    weights, optimizer, step = small()
    group = optimizer.param_groups[0]
    group["params"] = sequence(group["params"])
    step()
    assert_alike(everything(weights, optimizer), stepped)


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
    assert_alike(everything(weights, optimizer), stepped)
    assert optimizer.state[weights[0]] is entry
    assert getattr(entry, "step", 4) == 4


def test_counts_that_are_tensors_stay_apart(stepped):
    weights, optimizer, step = small()
    for entry in optimizer.state.values():
        entry["step"] = torch.tensor(float(entry["step"]))
    step()
    assert_alike(everything(weights, optimizer), stepped)
    assert [type(entry["step"]) for entry in optimizer.state.values()] == [int, int]


def test_a_plain_dictionary_as_state(stepped):
    weights, optimizer, step = small()
    optimizer.state = dict(optimizer.state)
    step()
    assert_alike(everything(weights, optimizer), stepped)
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
    before = everything(weights, optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is sparse"):
            step()
    assert_alike(everything(weights, optimizer), before)
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
