"""Whole runs of the optimizer on translated PTX, and how often it launches and compiles."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import same_bits
from seeds import seed_torch
from small_net import make_closure, make_net
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels, backends
from salsa_fused.kernels.backends.triton import TritonBackend

from .conftest import BOTH, HERE, served

STEPS = 50


def tensors(net, optimizer):
    entries = optimizer.state.values()
    moments = [x for entry in entries for x in entry.values() if isinstance(x, torch.Tensor)]
    return [tensor.detach().clone() for tensor in (*net.parameters(), *moments)]


def train(backend, keywords):
    """Yield the step size and every tensor after each step on real losses."""
    net = make_net(0, norm=False)
    optimizer = FusedSaLSa(net.parameters(), backend=backend, check_replay=False, **keywords)
    for step in range(STEPS):
        seed_torch(step)
        optimizer.step(make_closure(net, step))
        yield optimizer.step_size, tensors(net, optimizer)
    assert optimizer.backends == (backend,)
    assert optimizer.param_groups[0]["searches"] > 10


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"search_period": 1, "weight_decay": 0.1},
        {"total_steps": STEPS},
        {"units": "groups"},
        {"direction": "sgd"},
        {"direction": "lamb", "weight_decay": 0.1},
        {"direction": "lion"},
        {"direction": "ademamix"},
    ],
    ids=lambda keywords: ",".join(map(str, keywords.values())) or "defaults",
)
@pytest.mark.parametrize("backend", BOTH, indirect=True)
def test_a_run_takes_the_same_steps(backend, keywords):
    for step, (ours, theirs) in enumerate(zip(train(backend, keywords), train("native", keywords))):
        assert ours[0] == theirs[0], f"step size of step {step}"
        assert len(ours[1]) == len(theirs[1])
        assert all(map(same_bits, ours[1], theirs[1])), f"tensors after step {step}"
    assert step == STEPS - 1


# -- launches ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(threads):
    with served("triton", HERE, threads) as given:
        yield given


@pytest.fixture
def launched(driver):
    driver.launched.clear()
    driver.loaded.clear()
    return driver.launched


def parameters(sizes, dtype=torch.float32):
    weights = [nn.Parameter(torch.ones(size, dtype=dtype)) for size in sizes]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    return weights


def test_one_launch_for_any_model(launched):
    optimizer = FusedSaLSa(parameters([100, 3] * 100), backend="triton", search_period=None)
    for _ in range(3):
        optimizer.step()
    assert launched == ["step"] * 3


def test_the_launches_of_a_search(launched):
    weights = parameters([100, 3, 7])
    kernels = Kernels("triton")
    groups = FusedSaLSa(weights).param_groups
    kernels.refresh(groups, {})
    kernels.first_trial(groups, 1.0)
    kernels.next_trial(groups, 0.5)
    kernels.final_write(groups, 0.25)
    assert launched == ["first_trial", "next_trial", "step"]


def test_one_launch_for_an_alignment(launched, driver):
    weights = parameters([100, 3, 7])
    kernels = Kernels("triton")
    state = {weight: {"window_start": weight.detach().clone()} for weight in weights}
    for _ in range(2):
        kernels.refresh(FusedSaLSa(weights).param_groups, state)
        kernels.alignment()
    assert launched == ["alignment"] * 2 and driver.loaded.count("alignment") <= 1


def test_one_compilation_for_every_variant(launched, driver):
    """Neither counts nor addresses are compiled into a kernel."""
    for sizes in ([16], [100, 3] * 10, [1], [5] * 3, [1 << 15]):
        weights = parameters(sizes, torch.bfloat16)
        optimizer = FusedSaLSa(weights, backend="triton", search_period=None)
        for skip in (None, torch.zeros(())):
            for _ in range(2):
                kernels, groups = optimizer._kernels, optimizer.param_groups
                kernels.refresh(groups, optimizer.state)
                kernels.final_write(groups, 1.0, skip)
                kernels.commit(optimizer.state)
                kernels.release()
    assert len(driver.loaded) <= 2  # with a flag and without
    assert launched == ["step"] * 20


def test_all_is_compiled_before_anything_is_launched(launched, monkeypatch):
    weights = [*parameters([5]), *parameters([5], torch.bfloat16)]
    optimizer = FusedSaLSa(weights, backend="triton", search_period=None)
    seen = []
    backend = backends.BACKENDS[-1]

    def spy(work):
        write = TritonBackend.step(backend, work)
        seen.append(list(launched))
        return write

    monkeypatch.setattr(backend, "step", spy)
    optimizer.step()
    assert seen == [[], []] and launched == ["step"] * 2
