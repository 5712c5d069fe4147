"""The undo of a search: whatever the closure did to a weight, all others are put back.

And the kernels is of use again, wherever an exception left it.
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from kernel_cases import GROUP, make_state, make_weights, same_bits
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels, chunks
from salsa_fused.kernels.saved import Saved

SIZES = [50, 40, 30]
LOST = r"could not be put back.*all others were"


def searching(weights, backend="native", unit=None, **group):
    """A kernels whose weights stand at a first trial, and the weights before it."""
    before = [weight.clone() for weight in weights]
    groups = [{**GROUP, **group, "params": [weight]} for weight in weights]
    if unit is None:
        groups = [{**GROUP, **group, "params": weights}]
    kernels = Kernels(backend)
    kernels.refresh(groups, {})
    kernels.first_trial(groups, 0.5, unit)
    return kernels, groups, before


def free(weight):
    weight.untyped_storage().resize_(0)


def shrink(weight):
    weight.untyped_storage().resize_(weight.untyped_storage().nbytes() - 4)


def other_shape(weight):
    weight.data = torch.zeros(7)


def other_dtype(weight):
    weight.data = weight.data.to(torch.bfloat16)


def other_class(weight):
    torch.utils.swap_tensors(weight, torch.eye(weight.numel())[0].to_sparse())


def to_meta(weight):
    torch.utils.swap_tensors(weight, torch.zeros_like(weight, device="meta"))


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("damage", [free, shrink, other_shape, other_dtype, other_class, to_meta])
def test_what_cannot_be_put_back_is_named_and_all_others_are(damage, backend, row):
    weights = make_weights(SIZES)
    kernels, _, before = searching(weights, backend)
    damage(weights[row])
    with pytest.raises(RuntimeError, match=rf"parameter {row} of its group .*{LOST}") as raised:
        kernels.restore()
    assert f"shape ({SIZES[row]},)" in str(raised.value)  # that it had
    kernels.restore()  # there is nothing left to do
    for i, (weight, old) in enumerate(zip(weights, before)):
        assert i == row or same_bits(weight, old)


def test_several_are_named():
    weights = make_weights(SIZES)
    kernels, _, before = searching(weights)
    free(weights[0])
    other_shape(weights[2])
    with pytest.raises(RuntimeError, match=rf"parameter 0 .*parameter 2 .*{LOST}"):
        kernels.restore()
    assert same_bits(weights[1], before[1])


def test_a_copy_that_fails_stops_no_other(monkeypatch):
    """Whatever torch says: no memory, a device that is gone."""
    weights = make_weights(SIZES)
    kernels, _, before = searching(weights)
    view = Saved.view

    def fail(self, row):
        if row == 1:
            raise torch.OutOfMemoryError("full")
        return view(self, row)

    monkeypatch.setattr(Saved, "view", fail)
    with pytest.raises(RuntimeError, match=rf"parameter 1 .*OutOfMemoryError: full.*{LOST}"):
        kernels.restore()
    assert same_bits(weights[0], before[0]) and same_bits(weights[2], before[2])


def test_the_buckets_of_other_dtypes_are_put_back_too():
    weights = [*make_weights([50]), *make_weights([40], torch.bfloat16)]
    kernels, _, before = searching(weights)
    assert len(kernels.buckets) == 2
    free(weights[0])
    with pytest.raises(RuntimeError, match=rf"parameter 0 .*{LOST}"):
        kernels.restore()
    assert same_bits(weights[1], before[1])


@pytest.mark.parametrize("gradients", [False, True])
def test_weights_that_moved_are_put_back_where_they_are(gradients):
    """In whatever order of dimensions, and whether or not torch records gradients."""
    weights = [w.requires_grad_() for w in make_weights([(4, 6), 30])]
    with torch.no_grad():
        kernels, _, before = searching(weights)
        weights[0].data = weights[0].data.t().contiguous().t()
        weights[1].data = weights[1].data.clone()
    with torch.set_grad_enabled(gradients):
        kernels.restore()
    assert all(map(torch.equal, weights, before))


@pytest.mark.parametrize("restored", [1, 2])
def test_an_interrupted_undo_is_made_again(restored, monkeypatch):
    """An exception of a signal's handler comes out, and the next call does the rest."""
    weights = make_weights(SIZES)
    kernels, _, before = searching(weights)
    view, seen = Saved.view, []

    def interrupted(self, row):
        seen.append(row)
        if len(seen) == restored:
            raise TimeoutError
        return view(self, row)

    monkeypatch.setattr(Saved, "view", interrupted)
    with pytest.raises(TimeoutError):
        kernels.restore()
    kernels.restore()
    assert all(map(same_bits, weights, before))


def test_an_undo_while_the_rest_was_to_be_written():
    """After the search of a unit the others are written in place: their rows were not saved."""
    weights = make_weights(SIZES)
    kernels, _, before = searching(weights, unit=1)
    (found,) = kernels.buckets
    found.prepare_write(already_written=False)
    kernels.restore()
    assert all(map(same_bits, weights, before))


@pytest.mark.parametrize("when", ["raises", "returns"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_closure_that_frees_a_weight_at_a_trial(when, backend):
    """As sharded parameters do that are gathered for a forward."""
    a, b = (nn.Parameter(torch.ones(4) * (i + 1)) for i in range(2))
    optimizer = FusedSaLSa([a, b], backend=backend, check_replay=False, search_period=1)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        loss = a.square().sum() + b.square().sum()
        if calls == 2:
            free(a.data)
            if when == "raises":
                raise ValueError("of the user")
            return loss + 1e3  # so that there is another trial
        return loss

    with pytest.raises(RuntimeError, match=rf"parameter 0 .*{LOST}"):
        optimizer.step(closure)
    assert b.tolist() == [2.0] * 4
    a.data = torch.ones(4)
    optimizer.step(lambda: a.square().sum() + b.square().sum())
    assert optimizer.metrics()["steps"] == 1


# -- an exception at any point ----------------------------------------------------------------


class Struck(Exception):
    """What a signal's handler raises."""


def strike(number, call, *arguments):
    """Call it, with an exception before the `number`-th bytecode of this package's kernels."""
    left = number

    def tracer(frame, event, _):
        nonlocal left
        if "salsa_fused/kernels" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left < 0:
                raise Struck
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call(*arguments)
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return False


def step(kernels, groups, state):
    kernels.refresh(groups, state)
    kernels.first_trial(groups, 0.5)
    kernels.next_trial(groups, 0.25)
    kernels.final_write(groups, 0.25)
    kernels.commit(state)
    kernels.release()


def numbers(weights, state):
    entries = [state[weight] for weight in weights]
    moments = [entry[name].clone() for entry in entries for name in ("exp_avg", "exp_avg_sq")]
    return [*[weight.clone() for weight in weights], *moments], [e["step"] for e in entries]


@pytest.mark.parametrize("every", [43, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("ready", [False, True], ids=["new", "warm"])
def test_a_step_that_is_left_at_any_point_leaves_kernels_of_use(backend, ready, every):
    """After `forget` the next step gives what a new `Kernels` gives, whatever was half made."""
    number, points, struck = 0, 0, True
    while struck:
        weights = make_weights([5, 4])
        groups = [{**GROUP, "params": weights}]
        kernels, state = Kernels(backend), {}
        if ready:
            step(kernels, groups, state)
            for weight in weights:  # elsewhere, so that there is something to take up
                weight.grad = torch.cat([weight.grad, torch.zeros(1)])[1:]
        struck = strike(number, step, kernels, groups, state)
        kernels.restore()
        kernels.release()
        kernels.forget()
        twins = [weight.clone() for weight in weights]
        for weight, twin in zip(weights, twins):
            twin.grad = weight.grad
        copies = {
            twin: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in entry.items()}
            for weight, twin in zip(weights, twins)
            if (entry := state.get(weight))
        }
        step(kernels, groups, state)
        step(Kernels(backend), [{**GROUP, "params": twins}], copies)
        ours, theirs = numbers(weights, state), numbers(twins, copies)
        assert all(map(same_bits, ours[0], theirs[0])), number
        assert ours[1] == theirs[1], number
        points += struck
        number += every  # all points would take minutes
    assert points * every > 1000


def test_what_is_half_cut_is_cut_again(monkeypatch):
    """Without `forget`, too: as where there is no memory for the chunks."""
    weights = make_weights([50, 40])
    groups, state = [{**GROUP, "params": weights}], make_state(make_weights([50, 40]))
    kernels = Kernels("native")
    cut = chunks.cut

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(chunks, "cut", fail)
    for _ in range(2):
        with pytest.raises(MemoryError):
            kernels.refresh(groups, state)
    monkeypatch.setattr(chunks, "cut", cut)
    assert kernels.refresh(groups, state)
    kernels.final_write(groups, 0.5)


# -- what else user code may free -------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 0.5], ids=["freed", "cut short"])
@pytest.mark.parametrize("in_trial", [False, True])
@pytest.mark.parametrize("search_period", [1, None])
def test_a_closure_that_frees_a_buffer(search_period, in_trial, part):
    if in_trial and search_period is None:
        pytest.skip("there are no trials")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 64), nn.BatchNorm1d(64), nn.Linear(64, 1))
    optimizer = FusedSaLSa(net.parameters(), module=net, search_period=search_period)
    x = torch.randn(16, 5)
    optimizer.step(lambda: net(x).square().mean())
    before = [p.detach().clone() for p in net.parameters()], net[1].running_var.clone()
    stream = torch.get_rng_state()

    def closure():
        if optimizer.in_trial == in_trial:
            storage = net[1].running_mean.untyped_storage()
            storage.resize_(int(part * storage.nbytes()))
            torch.rand(1)
            raise ValueError("of the user")
        return net(x).square().mean()

    with pytest.raises(RuntimeError, match="buffer 'running_mean' of BatchNorm1d") as caught:
        optimizer.step(closure)
    assert isinstance(caught.value.__cause__, ValueError)
    assert all(map(torch.equal, before[0], [p.detach() for p in net.parameters()]))
    assert torch.equal(net[1].running_var, before[1])
    assert torch.equal(torch.get_rng_state(), stream)
    net[1].running_mean = torch.zeros(64)
    optimizer.step(lambda: net(x).square().mean())


@pytest.mark.parametrize("search_period", [1, None])
def test_a_gradient_that_was_freed_between_steps(search_period):
    """It is of the step before: nobody needs it."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = FusedSaLSa([weight], search_period=search_period, lr=0.1)
    for _ in range(3):
        optimizer.step(lambda: weight.square().sum())
        weight.grad = torch.ones(4)
        weight.grad.untyped_storage().resize_(0)
    assert optimizer.metrics()["steps"] == 3


@pytest.mark.parametrize("search_period", [1, None])
def test_a_closure_that_frees_its_gradient(search_period):
    weight = nn.Parameter(torch.ones(4))
    optimizer = FusedSaLSa([weight], search_period=search_period, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        weight.grad.untyped_storage().resize_(0)
        return loss

    with pytest.raises(RuntimeError, match=r"gradient of parameter 0 .* no memory"):
        optimizer.step(closure)
    assert torch.equal(weight.detach(), torch.ones(4))


def test_clipping_a_gradient_without_memory_is_an_error():
    weight = nn.Parameter(torch.ones(4))
    optimizer = FusedSaLSa([weight], search_period=None, max_grad_norm=1.0)
    weight.grad = torch.ones(4)
    weight.grad.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"gradient of parameter 0 .* no memory"):
        optimizer.step()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_closure_that_frees_a_moment(backend):
    weight = nn.Parameter(torch.ones(4))
    optimizer = FusedSaLSa([weight], backend=backend, check_replay=False)
    optimizer.step(lambda: weight.square().sum())
    before = weight.detach().clone()

    def closure():
        if optimizer.in_trial:
            optimizer.state[weight]["exp_avg"].untyped_storage().resize_(0)
        return weight.square().sum()

    with pytest.raises(RuntimeError, match="the optimizer's state"):
        optimizer.step(closure)
    assert torch.equal(weight.detach(), before)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_not_hidden_by_what_was_lost(end):
    """A loop that goes on after every Exception would go on after Ctrl-C, too."""
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = FusedSaLSa([first, second], check_replay=False)

    def closure():
        if optimizer.in_trial:
            first.data = torch.zeros(5)
            raise end
        return first.square().sum() + second.square().sum()

    with pytest.raises(end) as caught:
        optimizer.step(closure)
    assert "could not be put back" in caught.value.__notes__[0]
    assert torch.equal(second.detach(), torch.ones(3))


@pytest.mark.parametrize("what", ["load_state_dict", "add_param_group"])
def test_what_would_pull_the_step_from_under_itself_is_refused(what):
    weight = nn.Parameter(torch.full((3,), 5.0))
    optimizer = FusedSaLSa([weight], check_replay=False)
    saved = copy.deepcopy(optimizer.state_dict())

    def closure():
        if optimizer.in_trial and what == "load_state_dict":
            optimizer.load_state_dict(saved)
        elif optimizer.in_trial:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        return weight.square().sum()

    with pytest.raises(RuntimeError, match=rf"{what}\(\) was called inside the closure"):
        optimizer.step(closure)
    assert torch.equal(weight.detach(), torch.full((3,), 5.0))
    optimizer.load_state_dict(saved)
    optimizer.step(lambda: weight.square().sum())
