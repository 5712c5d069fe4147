"""Trials replay the first evaluation, and leave no trace in random streams and buffers."""

from __future__ import annotations

import itertools
import random
import warnings
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from small_net import make_batch, make_closure, make_net
from torch import nn

from salsa_fused import FusedSaLSa, replay
from salsa_fused.replay import Replay


def spied(net, optimizer, evaluate, layer):
    """One step; the output of a layer in each evaluation."""
    seen = []
    handle = layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    optimizer.step(evaluate)
    handle.remove()
    return seen


def masks(seen):
    return [out == 0 for _, out in seen]


def test_dropout_masks_repeat_within_a_step_and_differ_between_steps():
    net = make_net(dropout=0.5, norm=False)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    steps = [masks(spied(net, optimizer, make_closure(net, step), net[3])) for step in range(8)]
    assert len(steps[0]) > 3
    for step in steps:
        assert all(torch.equal(step[0], mask) for mask in step)
    assert all(not torch.equal(a[0], b[0]) for a, b in itertools.pairwise(steps))


def trained(steps, trials, **keywords):
    """Streams and buffers after a run whose weights never move, whatever its trials."""
    net = make_net(dropout=0.5)
    keywords |= {"betas": (0.9, 0.999, 0.0), "init_step_size": 1e-3}
    optimizer = FusedSaLSa(net.parameters(), module=net, check_replay=False, **keywords)
    for name in ("accepted_once", "located"):
        optimizer.param_groups[0][name] = True
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    for step in range(steps):
        evaluate, calls = make_closure(net, step), 0

        def closure(evaluate=evaluate):
            nonlocal calls
            calls += 1
            noise = random.random() + np.random.rand()
            worse = {1: 0.0, 1 + trials: -1e3}.get(calls, 1e3)
            return evaluate() + 0.0 * noise + worse

        with torch.no_grad():
            weights = [p.clone() for p in net.parameters()]
        optimizer.step(closure)
        with torch.no_grad():
            for p, w in zip(net.parameters(), weights):
                p.copy_(w)
    buffers = [buffer.clone() for buffer in net.buffers()]
    streams = (torch.get_rng_state().tolist(), random.random(), np.random.rand())
    return optimizer.metrics()["total_trials"], buffers, streams


def test_streams_and_buffers_do_not_depend_on_the_number_of_trials():
    none, buffers, streams = trained(50, 1, search_period=None)
    few, few_buffers, few_streams = trained(50, 1, search_period=1)
    many, many_buffers, many_streams = trained(50, 7, search_period=1)
    assert (none, few, many) == (0, 50, 350)
    assert streams == few_streams == many_streams
    assert all(map(torch.equal, buffers, few_buffers))
    assert all(map(torch.equal, buffers, many_buffers))


def test_a_seed_determines_the_run():
    def run():
        net = make_net(dropout=0.3)
        optimizer = FusedSaLSa(net.parameters(), module=net)
        torch.manual_seed(5)
        return [optimizer.step(make_closure(net, step)).item() for step in range(30)]

    assert run() == run()


def test_trials_see_the_buffers_of_the_first_evaluation():
    """An EMA buffer that the output depends on: a trial must not see the first one's update."""

    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))
            self.register_buffer("mean", torch.zeros(6))
            self.seen = []

        def forward(self, x):
            self.seen.append(self.mean.clone())
            out = (x - self.mean) * self.weight
            with torch.no_grad():
                self.mean.lerp_(x.mean(0) + 1.0, 0.5)
            return out

    net = Centered()
    x, y = make_batch()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    expected = net.mean.lerp(x.mean(0) + 1.0, 0.5)
    optimizer.step(lambda: (net(x) - y).square().mean())
    assert len(net.seen) > 3
    assert all(torch.equal(mean, torch.zeros(6)) for mean in net.seen)
    assert torch.equal(net.mean, expected)


def test_spectral_norm():
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16))
    net = nn.Sequential(normed, nn.Tanh(), nn.Linear(16, 1))
    optimizer = FusedSaLSa(net.parameters(), module=net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # check_replay finds the same loss
        losses = [optimizer.step(make_closure(net)).item() for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


def test_check_replay_warns_of_data_drawn_in_the_closure():
    net = make_net(dropout=0.0)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    steps = iter(range(1000))
    with pytest.warns(UserWarning, match=r"draw the data .* before the closure"):
        optimizer.step(lambda: make_closure(net, next(steps))())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once per optimizer
        optimizer.step(lambda: make_closure(net, next(steps))())
        silent = FusedSaLSa(net.parameters(), module=net, check_replay=False)
        silent.step(lambda: make_closure(net, next(steps))())


@pytest.mark.filterwarnings("ignore:no step size")
def test_check_replay_names_the_module_when_it_is_missing():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("count", torch.zeros(1))

        def forward(self):
            self.count += 1
            return (self.weight * self.count).square().sum()

    net = Counter()
    with pytest.warns(UserWarning, match="pass module=model"):
        FusedSaLSa(net.parameters()).step(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FusedSaLSa(net.parameters(), module=net).step(net)


def test_check_replay_is_two_evaluations_and_no_trial():
    net, calls = make_net(), []
    for check in (False, True):
        optimizer = FusedSaLSa(net.parameters(), module=net, check_replay=check)
        evaluate, before = make_closure(net), len(calls)
        optimizer.step(lambda evaluate=evaluate: (calls.append(0), evaluate())[1])
        extra = 2 if check else 0  # at the same weights, and after a small step
        assert len(calls) - before == 1 + extra + optimizer.last_search.trials


@pytest.mark.filterwarnings("ignore:no step size")
def test_without_first_evaluation_trials_share_one_mask():
    net = make_net(dropout=0.5, norm=False)
    optimizer = FusedSaLSa(net.parameters(), module=net)
    evaluate = make_closure(net)
    loss = evaluate()
    loss.backward()
    stream = torch.get_rng_state()
    seen = []
    handle = net[3].register_forward_hook(lambda module, args, out: seen.append(out == 0))
    optimizer.step(evaluate, loss=loss)
    handle.remove()
    assert len(seen) > 2 and all(torch.equal(seen[0], mask) for mask in seen)
    assert torch.equal(torch.get_rng_state(), stream)


def test_gradients_cleared_by_the_closure_at_a_trial():
    results = []
    for clear in (None, "none", "zero"):
        net = make_net()
        optimizer = FusedSaLSa(net.parameters(), module=net)
        evaluate = make_closure(net)
        optimizer.zero_grad()
        with optimizer.first_evaluation():
            loss = evaluate()
        loss.backward()

        def closure(net=net, clear=clear, evaluate=evaluate):
            if clear is not None:
                net.zero_grad(set_to_none=clear == "none")
            return evaluate()

        optimizer.step(closure, loss=loss)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net[4].parameters())
        results.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


def test_buffers_that_a_forward_replaces():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 1)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)
            self.register_buffer("constant", torch.zeros(1, 4).expand(3, 4))

        def forward(self, x):
            self.calls = self.calls + 1  # another tensor
            self.last = x.mean(0)
            return self.layer(x)

    net = Counting()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    optimizer.step(make_closure(net))
    assert net.calls.item() == 1.0
    assert torch.equal(net.last, make_batch()[0].mean(0))
    calls = 0

    def failing():
        nonlocal calls
        calls += 1
        loss = make_closure(net, 1)()
        if calls == 2:
            raise KeyError
        return loss

    with pytest.raises(KeyError):
        optimizer.step(failing)
    assert net.calls.item() == 1.0
    assert torch.equal(net.last, make_batch()[0].mean(0))


@pytest.mark.parametrize("given", [False, True])
def test_a_closure_that_differentiates(given):
    """A gradient penalty: trials build a graph, though nobody calls backward on it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.linspace(0, 1, 32)[:, None].requires_grad_()
    optimizer = FusedSaLSa(net.parameters(), module=net)

    def closure():
        u = net(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope - u).square().mean() + (net(torch.zeros(1)) - 1).square().sum()

    losses = []
    for _ in range(60):
        if not given:
            losses.append(optimizer.step(closure).item())
            continue
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        losses.append(optimizer.step(closure, loss=loss).item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("name", "named"), [("cuda:1", True), ("xpu:0", True), ("mps", False)])
def test_the_generators_of_other_devices_are_replayed(name, named, monkeypatch):
    """With a stand-in for the device's module: a counter for its random stream."""
    device = torch.device(name)

    class Generator:
        position = 5

        @classmethod
        def get_rng_state(cls, *which):
            assert which == ((device,) if named else ())
            return cls.position

        @classmethod
        def set_rng_state(cls, state, *which):
            assert which == ((device,) if named else ())
            cls.position = state

    monkeypatch.setattr(torch, "get_device_module", lambda wanted: Generator)
    weights = [SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(device=device)]
    replay = Replay(weights, None)
    Generator.position = 8  # after the first evaluation
    replay.end_first()
    for _ in range(3):
        replay.rewind()
        assert Generator.position == 5
        Generator.position += 3
    replay.resume()
    assert Generator.position == 8


DRAWS = {
    "nothing": lambda: None,
    "a number": np.random.rand,
    "a deviate": np.random.randn,  # NumPy makes two, and keeps one
    "many": lambda: np.random.rand(1000),
    "a seed": lambda: np.random.seed(3),
    "a state": lambda: np.random.set_state(np.random.RandomState(5).get_state()),
    "an integer": lambda: np.random.randint(0, 100),
    "a shuffle": lambda: np.random.shuffle(list(range(9))),
}


def same_state(found, expected):
    return (
        found[0] == expected[0]
        and np.array_equal(found[1], expected[1])
        and found[2:] == expected[2:]
    )


@hypothesis.given(st.lists(st.sampled_from([*sorted(DRAWS), "put back"]), max_size=12))
def test_numpys_state_is_known_whatever_was_drawn(draws):
    replay.numpy_state(np)
    earlier = [np.random.get_state()]
    for draw in draws:
        if draw == "put back":  # by a replay
            replay.put_numpy_back(np, earlier[len(earlier) // 2])
        else:
            DRAWS[draw]()
        assert same_state(replay.probable_numpy_state(np), np.random.get_state())
        assert same_state(replay.numpy_state(np), np.random.get_state())
        earlier.append(np.random.get_state())


def test_a_replay_sees_the_deviate_that_numpy_keeps():
    """Also where somebody else has put a state back."""
    np.random.seed(0)
    np.random.randn()
    kept = np.random.get_state()
    np.random.randn()
    replay.numpy_state(np)
    np.random.set_state(kept)
    assert same_state(replay.numpy_state(np), kept)


def test_another_generator_of_numpys():
    before = np.random.get_bit_generator()
    try:
        for generator in (np.random.MT19937(1), np.random.MT19937(2), np.random.PCG64(1)):
            np.random.set_bit_generator(generator)
            found, expected = replay.numpy_state(np), np.random.get_state(legacy=False)
            np.random.rand(3)
            np.random.set_state(found)
            assert str(np.random.get_state(legacy=False)) == str(expected)
    finally:
        np.random.set_bit_generator(before)
