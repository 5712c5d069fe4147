"""`master_weights` and bf16 moments, through the optimizer: runs, checkpoints, messages."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from small_net import make_closure, make_net
from snapshots import assert_same
from snapshots import everything as as_it_stands

from salsa_fused import FusedSaLSa

BF16 = torch.bfloat16
ALL = {"master_weights": True, "exp_avg_dtype": BF16, "exp_avg_sq_dtype": BF16}
SLOW = pytest.mark.slow
SETTINGS = [  # and the dtype of the weights
    ({"master_weights": True}, torch.float16),
    (ALL, BF16),
    ({**ALL, "direction": "sgd"}, BF16),
    pytest.param({"exp_avg_dtype": BF16, "exp_avg_sq_dtype": BF16}, BF16, marks=SLOW),
    pytest.param({**ALL, "direction": "ademamix"}, torch.float16, marks=SLOW),
    pytest.param({**ALL, "direction": "lamb", "weight_decay": 0.01}, BF16, marks=SLOW),
    pytest.param({**ALL, "direction": "lion"}, BF16, marks=SLOW),
    pytest.param({**ALL, "look_back": False}, BF16, marks=SLOW),
    pytest.param({**ALL, "units": "groups"}, BF16, marks=SLOW),
]
with_settings = pytest.mark.parametrize(
    ("settings", "dtype"), SETTINGS, ids=lambda x: ",".join(map(str, x)) if type(x) is dict else ""
)
half_weights = pytest.mark.parametrize("dtype", [BF16, torch.float16])


def build(dtype=BF16, seed=0, **settings):
    net = make_net(seed, norm=False).to(dtype)
    groups = [{"params": list(net[0].parameters())}, {"params": list(net[-1].parameters())}]
    return net, FusedSaLSa(groups, module=net, check_replay=False, **settings)


def advance(net, optimizer, begin, end):
    for step in range(begin, end):
        torch.manual_seed(step)
        optimizer.step(make_closure(net, step))


def everything(net, optimizer):
    """A group that was loaded may have its numbers in another order."""
    tensors, groups, counts = as_it_stands(net, optimizer)
    return [tensors, [sorted(group) for group in groups], counts]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- runs -----------------------------------------------------------------------------------------


@with_settings
def test_backends_take_the_same_steps(settings, dtype):
    runs = []
    for backend in ("native", "reference"):
        net, optimizer = build(dtype, backend=backend, **settings)
        advance(net, optimizer, 0, 25)
        assert optimizer.backends == (backend,)
        runs.append(everything(net, optimizer))
    assert_same(*runs)


@half_weights
def test_weights_are_the_masters_rounded(dtype):
    net, optimizer = build(dtype, master_weights=True)
    for step in range(20):
        advance(net, optimizer, step, step + 1)
        for p in net.parameters():
            master = optimizer.state[p]["master_param"]
            assert master.dtype == torch.float32 and torch.equal(master.to(dtype), p)
            assert optimizer.state[p]["window_start"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_weights_have_no_masters(dtype):
    runs = []
    for masters in (False, True):
        net, optimizer = build(dtype, master_weights=masters)
        advance(net, optimizer, 0, 12)
        runs.append(everything(net, optimizer))
    assert_same(*runs)
    assert not any("master_param" in entry for entry in optimizer.state.values())


def test_what_the_state_is_stored_in():
    net, optimizer = build(**ALL)
    advance(net, optimizer, 0, 2)
    for entry in optimizer.state.values():
        dtypes = {name: x.dtype for name, x in entry.items() if name != "step"}
        assert dtypes == {
            "exp_avg": BF16,
            "exp_avg_sq": BF16,
            "master_param": torch.float32,
            "window_start": torch.float32,
        }
    net, optimizer = build(torch.float64, exp_avg_dtype=BF16, exp_avg_sq_dtype=BF16)
    advance(net, optimizer, 0, 2)
    assert all(entry["exp_avg_sq"].dtype == torch.float64 for entry in optimizer.state.values())


def test_sgd_steps_from_its_masters():
    """Its accepted trial is the step, but of the weights alone."""
    net, optimizer = build(direction="sgd", master_weights=True)
    advance(net, optimizer, 0, 15)
    for p, entry in optimizer.state.items():
        assert set(entry) == {"step", "master_param"} and entry["step"] == 15
        assert torch.equal(entry["master_param"].to(BF16), p)
        assert not torch.equal(entry["master_param"], p.float())


def test_trials_that_change_no_weight_are_counted():
    net, optimizer = build(master_weights=True)
    advance(net, optimizer, 0, 3)
    assert optimizer.metrics()["unchanged_trials"] == 0
    for group in optimizer.param_groups:
        group["step_size"] = group["accepted_step_size"] = 1e-20
    advance(net, optimizer, 3, 4)
    metrics = optimizer.metrics()
    assert optimizer.last_search.outcome == "flat"
    assert metrics["unchanged_trials"] == optimizer.last_search.trials == 1
    assert optimizer.state_dict()["param_groups"][1]["unchanged_trials"] == 1


# -- nothing is lost ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
@with_settings
def test_a_failing_evaluation_leaves_everything_as_it_was(settings, dtype, number):
    """The run goes on as one that was not disturbed, from masters that were not touched."""
    net, optimizer = build(dtype, **settings)
    other_net, other = build(dtype, **settings)
    for step in range(12):
        before, calls = everything(net, optimizer), 0
        torch.manual_seed(step)
        evaluate = make_closure(net, step)

        def failing(evaluate=evaluate):
            nonlocal calls
            calls += 1
            if calls == number:
                raise ArithmeticError
            return evaluate()

        streams = torch.get_rng_state()
        try:
            optimizer.step(failing)
        except ArithmeticError:
            assert_same([before[0][:-1], *before[1:]], without_streams(net, optimizer))
            torch.set_rng_state(streams)
            optimizer.step(evaluate)
        advance(other_net, other, step, step + 1)
    assert_same(without_streams(net, optimizer), without_streams(other_net, other))


def without_streams(net, optimizer):
    tensors, *rest = everything(net, optimizer)
    return [tensors[:-1], *rest]


def test_a_step_that_is_skipped_leaves_the_masters():
    net, optimizer = build(**ALL)
    advance(net, optimizer, 0, 12)
    before = [entry["master_param"].clone() for entry in optimizer.state.values()]
    closure = make_closure(net, 12)
    optimizer.step(lambda: closure() * torch.nan)
    after = [entry["master_param"] for entry in optimizer.state.values()]
    assert optimizer.skipped_steps == 1 and all(map(torch.equal, before, after))


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 13])
@with_settings
def test_a_loaded_run_continues_bit_for_bit(settings, dtype, at):
    net, optimizer = build(dtype, **settings)
    advance(net, optimizer, 0, at)
    saved_net, saved = through_a_file(net.state_dict()), through_a_file(optimizer.state_dict())
    advance(net, optimizer, at, 30)
    for model_first in (True, False):
        other_net, other = build(dtype, seed=9, **settings)
        if model_first:
            other_net.load_state_dict(saved_net)
        other.load_state_dict(saved)
        if not model_first:
            other_net.load_state_dict(saved_net)
        advance(other_net, other, at, 30)
        assert_same(everything(net, optimizer), everything(other_net, other))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_the_formats(copy_of):
    net, optimizer = build(**ALL)
    advance(net, optimizer, 0, 5)
    other_net, other = copy_of((net, optimizer))
    advance(net, optimizer, 5, 12)
    advance(other_net, other, 5, 12)
    assert_same(everything(net, optimizer), everything(other_net, other))


def test_a_state_in_fp32_goes_into_masters_and_back():
    net, optimizer = build(torch.float32)
    advance(net, optimizer, 0, 12)
    half_net, half = build(**ALL)
    half_net.load_state_dict(net.state_dict())
    half.load_state_dict(through_a_file(optimizer.state_dict()))
    for p, q in zip(net.parameters(), half_net.parameters()):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(half.state[q][name], optimizer.state[p][name].to(BF16))
    advance(half_net, half, 12, 13)
    assert all(entry["step"] == 13 for entry in half.state.values())
    assert all(entry["master_param"].dtype == torch.float32 for entry in half.state.values())

    wide_net, wide = build(torch.float32)
    wide_net.load_state_dict(half_net.state_dict())
    with pytest.warns(UserWarning, match=r"holds master_param.*entry\['master_param'\]"):
        wide.load_state_dict(through_a_file(half.state_dict()))
    for p, q in zip(half_net.parameters(), wide_net.parameters()):
        moment = wide.state[q]["exp_avg_sq"]
        assert moment.dtype == torch.float32
        assert torch.equal(moment, half.state[p]["exp_avg_sq"].float())
    advance(wide_net, wide, 13, 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half.load_state_dict(half.state_dict())


def test_masters_that_are_given_count():
    """Of an fp32 checkpoint: its weights, under the name that the state has for them."""
    net, optimizer = build(torch.float32)
    advance(net, optimizer, 0, 3)
    state = optimizer.state_dict()
    for entry, p in zip(state["state"].values(), net.parameters()):
        entry["master_param"] = p.detach().clone()
    half_net, half = build(master_weights=True)
    half_net.load_state_dict(net.state_dict())
    half.load_state_dict(state)
    half._kernels.refresh(half.param_groups, half.state)
    for p, q in zip(net.parameters(), half_net.parameters()):
        assert torch.equal(half.state[q]["master_param"], p)


def test_a_model_that_is_loaded_takes_its_masters_along():
    """Without the optimizer's state: masters of other weights would put these back."""
    net, optimizer = build(master_weights=True)
    advance(net, optimizer, 0, 12)
    net.load_state_dict(make_net(5, norm=False).state_dict())
    before = [p.detach().clone() for p in net.parameters()]
    optimizer._kernels.refresh(optimizer.param_groups, optimizer.state)
    masters = [entry["master_param"].to(BF16) for entry in optimizer.state.values()]
    assert all(map(torch.equal, before, masters))


def test_the_state_that_torch_distributed_asks_for():
    """Its checkpoints take a step at lr=0 to have a state; that of SGD has masters, too."""
    net, optimizer = build(direction="sgd", master_weights=True)
    before = [p.detach().clone() for p in net.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    assert all("master_param" in optimizer.state[p] for p in net.parameters())
    assert all(map(torch.equal, before, net.parameters()))


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exp_avg_dtype", "exp_avg_sq_dtype"])
@pytest.mark.parametrize("value", [torch.float16, torch.float64, torch.int8, "bfloat16"])
def test_dtypes_that_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be torch.float32, torch.bfloat16 or None"):
        build(**{name: value})


@pytest.mark.parametrize("value", [1, "yes", None, torch.float32])
def test_masters_that_are_refused(value):
    with pytest.raises(ValueError, match="master_weights must be True or False"):
        build(master_weights=value)


def test_none_is_fp32():
    net, optimizer = build(exp_avg_dtype=None, exp_avg_sq_dtype=None)
    advance(net, optimizer, 0, 2)
    assert all(entry["exp_avg"].dtype == torch.float32 for entry in optimizer.state.values())
