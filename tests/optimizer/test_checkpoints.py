"""Checkpoints: what is saved, and that a loaded run continues bit for bit."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys

import pytest
import torch
from checkpointed_run import advance, build
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch import nn

from salsa_fused import FusedSaLSa

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", [1, 7, 23])
def test_a_loaded_run_continues_bit_for_bit(dtype, at):
    net, optimizer = build(dtype=dtype, norm=False)
    advance(net, optimizer, 0, at)
    saved_net, saved = through_a_file(net.state_dict()), through_a_file(optimizer.state_dict())
    advance(net, optimizer, at, 40)
    other_net, other = build(seed=99, dtype=dtype, norm=False, c=0.123, lr=0.5)
    other_net.load_state_dict(saved_net)
    with pytest.warns(UserWarning, match="replaces settings"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["c"] == 0.5  # a loaded dictionary wins, as in torch
    advance(other_net, other, at, 40)
    assert_same(everything(net, optimizer), everything(other_net, other))


CONTINUE = """
import sys, torch
sys.path[:0] = {path!r}
from checkpointed_run import advance, build
runs = []
for saved in torch.load({file!r}, weights_only=True):
    net, optimizer = build(seed=99, dtype=saved["dtype"], norm=False)
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    advance(net, optimizer, 13, 30)
    runs.append([p.detach() for p in net.parameters()])
torch.save(runs, {out!r})
"""


def test_a_new_process_continues_bit_for_bit(tmp_path):
    runs = [build(dtype=dtype, norm=False) for dtype in DTYPES]
    file, out = str(tmp_path / "saved.pt"), str(tmp_path / "out.pt")
    saved = []
    for dtype, (net, optimizer) in zip(DTYPES, runs):
        advance(net, optimizer, 0, 13)
        states = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
        saved.append(copy.deepcopy({"dtype": dtype, **states}))
    torch.save(saved, file)
    program = CONTINUE.format(path=sys.path, file=file, out=out)
    subprocess.run([sys.executable, "-c", program], check=True)
    for (net, optimizer), theirs in zip(runs, torch.load(out, weights_only=True)):
        advance(net, optimizer, 13, 30)
        assert all(map(torch.equal, net.parameters(), theirs))


def test_the_state_is_there_from_construction_and_plain():
    _, optimizer = build()
    packed = optimizer.state_dict()["param_groups"][0]
    for name in ("step_size", "smoothed_decrease", "smoothed_slope", "period", "skipped_steps"):
        assert name in packed
    json.dumps(packed)


def test_loading_copies():
    net, optimizer = build()
    advance(net, optimizer, 0, 3)
    other_net, other = build()
    other.load_state_dict(optimizer.state_dict())
    before = [entry["exp_avg"].clone() for entry in optimizer.state.values()]
    advance(other_net, other, 3, 6)
    assert all(torch.equal(b, e["exp_avg"]) for b, e in zip(before, optimizer.state.values()))


@pytest.mark.parametrize("theirs", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_of_torch_adam(theirs, amsgrad, recwarn):
    net = make_net(dropout=0.0)
    adam = theirs(net.parameters(), lr=1e-3, amsgrad=amsgrad)
    for step in range(5):
        adam.zero_grad()
        make_closure(net, step)().backward()
        adam.step()
    optimizer = FusedSaLSa(net.parameters(), module=net, weight_decay=0.03)
    advance(net, optimizer, 0, 2)
    optimizer.load_state_dict(adam.state_dict())
    assert any("max_exp_avg_sq" in str(w.message) for w in recwarn) == amsgrad
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1.0, 0.03, (0.9, 0.999))
    assert (group["steps"], group["step_size"], group["located"]) == (0, 1.0, False)
    for p in net.parameters():
        entry = optimizer.state[p]
        assert type(entry["step"]) is int and entry["step"] == 5
        assert set(entry) == {"step", "exp_avg", "exp_avg_sq"}
        assert torch.equal(entry["exp_avg"], adam.state[p]["exp_avg"])
    optimizer.step(make_closure(net))
    assert optimizer.last_search.outcome == "accepted"


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_deepcopy_and_pickle(copy_of):
    net, optimizer = build()
    advance(net, optimizer, 0, 12)
    other_net, other = copy_of((net, optimizer))
    assert other.module is other_net and not other.check_replay
    assert other.param_groups[0]["params"][0] is next(other_net.parameters())
    assert other.last_search == optimizer.last_search
    advance(net, optimizer, 12, 30)
    advance(other_net, other, 12, 30)
    assert_same(everything(net, optimizer), everything(other_net, other))


def test_hooks():
    net, optimizer = build()
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append(state["extra"]))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    advance(net, optimizer, 0, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", 1, "loaded"]


def test_a_group_added_to_a_copy():
    net, optimizer = build()
    advance(net, optimizer, 0, 3)
    other = copy.deepcopy(optimizer)
    shared = torch.nn.Parameter(other.param_groups[0]["params"][0].data)
    with pytest.raises(ValueError, match="share memory"):
        other.add_param_group({"params": [shared]})
    other.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert len(other.param_groups) == 2


def test_a_group_added_in_mid_run_takes_over_the_search():
    net, optimizer = build()
    advance(net, optimizer, 0, 15)
    extra = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    first, second = optimizer.param_groups
    assert first["step_size"] == second["step_size"] and second["steps"] == 15
    evaluate = make_closure(net)
    for _ in range(3):
        optimizer.step(lambda: evaluate() + extra.square().sum())
    assert optimizer.state[extra]["step"] == 3
    assert optimizer.state[net[0].weight]["step"] == 18
    assert first["step_size"] == second["step_size"]


@pytest.mark.parametrize("change", ["to", "data", "swap"])
def test_tensors_that_move_between_steps(change):
    runs = []
    for moving in (False, True):
        net, optimizer = build()
        for step in range(20):
            if moving and change == "to":
                net.to(torch.float64).to(torch.float32)
            elif moving and change == "data":
                for p in net.parameters():
                    p.data = p.data.clone()
            elif moving:  # as an EMA of the weights is swapped in for validation
                kept = [p.data for p in net.parameters()]
                for p in net.parameters():
                    p.data = p.data * 0
                for p, data in zip(net.parameters(), kept):
                    p.data = data
            advance(net, optimizer, step, step + 1)
        runs.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *runs))


def test_weights_that_change_dtype_and_layout_keep_their_moments():
    net = torch.nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    optimizer = FusedSaLSa(net.parameters(), check_replay=False)
    for convert in (lambda: net.to(memory_format=torch.channels_last), net.double, net.float):
        for _ in range(3):
            optimizer.step(lambda: net(x.to(net.weight.dtype)).square().mean())
        before = optimizer.state[net.weight]["exp_avg_sq"].double().contiguous()
        convert()
        optimizer._kernels.refresh(optimizer.param_groups, optimizer.state)
        net.weight.grad = torch.zeros_like(net.weight)
        net.bias.grad = torch.zeros_like(net.bias)
        optimizer._kernels.refresh(optimizer.param_groups, optimizer.state)
        moment = optimizer._kernels.buckets[0].beside.moments[0][0]
        assert torch.allclose(moment.double().contiguous(), before)
        assert moment.stride() == net.weight.stride()
        optimizer._kernels.release()


def test_a_cleared_state_starts_over():
    net, optimizer = build()
    advance(net, optimizer, 0, 3)
    optimizer.state.clear()
    advance(net, optimizer, 3, 4)
    assert all(entry["step"] == 1 for entry in optimizer.state.values())


def test_no_gradient_is_held_between_steps():
    net, optimizer = build()
    advance(net, optimizer, 0, 1)
    for bucket in optimizer._kernels.buckets:
        assert bucket.saved is None and bucket.gradients == [None] * len(bucket.weights)


@pytest.mark.parametrize("move", ["data", "share_memory"])
def test_moments_whose_memory_moves(move):
    runs = []
    for moving in (False, True):
        net, optimizer = build()
        for step in range(20):
            advance(net, optimizer, step, step + 1)
            for entry in optimizer.state.values() if moving else ():
                for name in ("exp_avg", "exp_avg_sq"):
                    if move == "data":
                        entry[name].data = entry[name].data.clone()
                    else:
                        entry[name].share_memory_()
        runs.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *runs))


def test_a_weight_reshaped_in_place_needs_moments_of_its_shape():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = FusedSaLSa([weight], search_period=None)
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    weight.grad, weight.data = None, weight.data.view(3, 2)
    weight.grad = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match=r"shape \(3, 2\) now, and its moments have \(2, 3\)"):
        optimizer.step()


def test_a_parameter_that_is_of_zero_size_for_a_while():
    """As sharding and offloading leave it between steps."""
    weight, other = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(2))
    optimizer = FusedSaLSa([weight, other], search_period=None)
    whole = weight.data
    for size in (0, 5, 0, 5):
        weight.data, weight.grad = (whole if size else torch.empty(0)), None
        weight.grad, other.grad = torch.ones(size), torch.ones(2)
        before = whole.clone()
        optimizer.step()
        assert torch.equal(before, whole) == (size == 0)
        optimizer.state.pop(weight)  # its moments are of another shape


def test_only_one_moment_has_to_be_converted():
    weight = nn.Parameter(torch.ones(3))
    optimizer = FusedSaLSa([weight], search_period=None)
    for step in range(1, 5):
        weight.grad = torch.ones(3)
        optimizer.step()
        if step == 2:
            entry = optimizer.state[weight]
            entry["exp_avg_sq"] = entry["exp_avg_sq"].double()
    assert optimizer.state[weight]["exp_avg_sq"].tolist() == pytest.approx([1 - 0.999**4] * 3)


def test_entries_that_are_exchanged_between_weights():
    found = []
    for fresh in (False, True):
        weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        optimizer = FusedSaLSa(weights, search_period=None, init_step_size=1e-2)
        for step in range(3):
            for scale, weight in enumerate(weights, 1):
                weight.grad = torch.full((2,), float(scale**step))
            optimizer.step()
            if step == 1:
                first, second = (optimizer.state.pop(weight) for weight in weights)
                optimizer.state[weights[1]], optimizer.state[weights[0]] = first, second
                if fresh:
                    optimizer.__setstate__(optimizer.__getstate__())
        found.append(torch.cat([weight.detach() for weight in weights]))
    assert torch.equal(*found)


def test_gradients_whose_memory_is_replaced():
    """Past torch's check of shapes, which looks when `.grad` is assigned and not at `.data`."""
    weight = nn.Parameter(torch.ones(1 << 16))
    optimizer = FusedSaLSa([weight], search_period=None)
    weight.grad = torch.ones(1 << 16)
    optimizer.step()
    before = weight.detach().clone()
    weight.grad.data = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"has shape \(4,\)"):
        optimizer.step()
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("how", ["never", "frozen", "alternating"])
def test_weights_without_gradient_cost_nothing_twice(how):
    """Rows are uploaded when they change, and what is settled is not looked at again."""
    weights = [nn.Parameter(torch.ones(4)) for _ in range(5)]
    optimizer = FusedSaLSa(weights, search_period=None)
    versions = []
    for step in range(12):
        for i, weight in enumerate(weights):
            has = i != 2 or (how == "frozen" and step < 3) or (how == "alternating" and step % 2)
            if not has:
                weight.grad = None
            elif weight.grad is None:
                weight.grad = torch.ones(4)
        optimizer.step()
        (bucket,) = optimizer._kernels.buckets
        versions.append(bucket.rows_version)
        assert bucket.beside.current or step < 5
    if how != "alternating":
        assert versions[6] == versions[11]
    counts = [optimizer.state[weight].get("step", 0) for weight in weights]
    assert counts == [12, 12, {"never": 0, "frozen": 3, "alternating": 6}[how], 12, 12]


def test_zero_size_parameters_have_a_state():
    weight, empty = torch.ones(3, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    optimizer = FusedSaLSa([weight, empty])
    for _ in range(2):
        optimizer.step(lambda: weight.square().sum() + empty.sum())
    entry = optimizer.state[empty]
    assert entry["step"] == 2 and entry["exp_avg"].shape == entry["exp_avg_sq"].shape == (0, 4)


def test_moments_that_are_exchanged_between_steps():
    """By hand in the state, in an entry or with the entry: the next step reads what is there."""
    for exchange in (
        lambda state, w: state[w].update(exp_avg=torch.ones(3)),
        lambda state, w: state.__setitem__(w, {**state[w], "exp_avg": torch.ones(3)}),
    ):
        weights = [torch.zeros(3, requires_grad=True) for _ in range(2)]
        optimizer = FusedSaLSa(weights, search_period=None, init_step_size=1e-3)
        for weight in weights:
            weight.grad = torch.ones(3)
        optimizer.step()
        optimizer.step()
        exchange(optimizer.state, weights[1])
        optimizer.step()
        assert optimizer.state[weights[1]]["exp_avg"].tolist() == pytest.approx([1.0] * 3)
        assert optimizer.state[weights[0]]["exp_avg"].tolist() == pytest.approx([0.271] * 3)


def test_entries_lost_after_a_refused_gradient():
    """A step that raises remembers nothing of the state it saw."""
    weight = torch.zeros(3, requires_grad=True)
    optimizer = FusedSaLSa([weight], search_period=None)
    weight.grad = torch.ones(3)
    optimizer.step()
    weight.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    optimizer.state.clear()
    weight.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[weight]["step"] == 1


def test_a_failed_first_step_leaves_no_moments():
    net, optimizer = build()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: make_closure(net)() if torch.is_grad_enabled() else 1 / 0)
    assert not optimizer.state
    assert optimizer._kernels.buckets == []


NEW = ("direction", "units", "trust_clip", "next_unit")


def test_what_was_saved_before_the_family_can_be_loaded():
    net, optimizer = build()
    advance(net, optimizer, 0, 3)
    saved, pickled = optimizer.state_dict(), copy.deepcopy(optimizer)
    for group in (*saved["param_groups"], *pickled.param_groups):
        for name in NEW:
            del group[name]
    pickled.__setstate__(pickled.__getstate__())
    assert pickled.search_due and pickled.param_groups[0]["units"] == "all"
    _, other = build(units="groups", direction="lamb")
    with pytest.warns(UserWarning, match="replaces settings"):
        other.load_state_dict(saved)
    assert [other.param_groups[0][name] for name in NEW] == ["adam", "all", 1.0, 0]
