"""Whatever happens to tensors between two steps, the next step sees it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import same_bits
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import guards

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


@pytest.mark.parametrize("guarded", [True, False])
@given(changes=steps)
def test_nothing_goes_unnoticed(guarded, changes):
    found = guards.TensorGuards
    if not guarded:
        guards.TensorGuards = None
    try:
        ours = run(changes, None, fresh=False)
    finally:
        guards.TensorGuards = found
    theirs = run(changes, "reference", fresh=True)
    for step, (tensors, others) in enumerate(zip(ours, theirs)):
        assert len(tensors) == len(others)
        for i, (a, b) in enumerate(zip(tensors, others)):
            assert a.dtype == b.dtype and same_bits(a.contiguous(), b.contiguous()), (step, i)


# -- the guards -------------------------------------------------------------------------------


@pytest.mark.skipif(guards.TensorGuards is None, reason="this torch has no guards")
def test_guards_hold_for_what_is_alike_and_for_nothing_else():
    def tensors(other=None):
        return [torch.zeros(4, 4), torch.zeros(2) if other is None else other]

    known = guards.Guards()
    assert not known.hold(tensors())
    known.remember(tensors())
    assert known.hold(tensors())
    for other in (
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(3),
        torch.zeros(2, 1),
        torch.zeros(4)[::2],
        torch._neg_view(torch.zeros(2)),
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
    ):
        assert not known.hold(tensors(other)), other
    assert known.hold(tensors())


def test_guards_give_up_where_nothing_stays_as_it_was():
    known = guards.Guards()
    for size in range(1, 10):
        assert not known.hold([torch.zeros(size)])
        known.remember([torch.zeros(size)])
    assert known._guards is None
    assert not known.hold([torch.zeros(9)])


def test_another_torch_whose_guards_want_something_else(monkeypatch):
    def refuse(*arguments, **keywords):
        raise TypeError

    monkeypatch.setattr(guards, "TensorGuards", refuse)
    known = guards.Guards()
    known.remember([torch.zeros(2)])
    assert not known.hold([torch.zeros(2)])
