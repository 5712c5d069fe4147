"""What the authors' package (`SaLSa-Optimizer` 0.1.0) does otherwise.

Each test states what should happen.  It holds for FusedSaLSa; run with the authors' package, where
that is installed, it fails.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from salsa_fused import FusedSaLSa
from salsa_fused.pending import flag_of


class Ours:
    def __init__(self, parameters, module=None):
        self.optimizer = FusedSaLSa(
            parameters, module=module, search_period=1, check_replay=False, look_back=False
        )

    def step(self, loss):
        return self.optimizer.step(loss)

    @property
    def step_size(self):
        return self.optimizer.step_size


class Theirs:
    def __init__(self, parameters, module=None):
        salsa = pytest.importorskip("salsa.SaLSA", reason="the authors' package is not installed")
        self.optimizer = salsa.SaLSA(parameters, speed_up=False)

    def step(self, loss):
        def closure(backwards=False):
            if not backwards:
                with torch.no_grad():
                    return loss()
            self.optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            return self.optimizer.step(closure)

    @property
    def step_size(self):
        return float(self.optimizer.step_size)


def weight(*shape):
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(shape))


def settled(build, w):
    """After some steps on a parabola: the step size has its order of magnitude."""
    optimizer = build([w])
    for _ in range(15):
        optimizer.step(lambda: (w - 3.0).square().sum())
    return optimizer


# -- one function a row of the table ------------------------------------------------------------


def the_final_weights_of_a_search_step_have_momentum(build):
    w = weight(1)
    optimizer = build([w])
    for _ in range(8):
        optimizer.step(lambda: 1.0 + w.sum())
    before = w.item()
    optimizer.step(lambda: 1.0 - 0.01 * w.sum())  # a small gradient the other way
    assert w.item() < before


def bias_correction_is_of_this_step(build):
    w = weight(1)
    optimizer, before = build([w]), w.item()
    optimizer.step(lambda: 10.0 + w.sum())
    assert abs(w.item() - before) == pytest.approx(optimizer.step_size, rel=1e-3)


def dropout_masks_differ_between_steps(build):
    net, x = nn.Dropout(0.5), torch.ones(1000)
    w = weight(1000)
    optimizer, masks = build([w]), []
    for _ in range(2):
        seen = []

        def loss(seen=seen):
            out = net(w * x)
            seen.append(out == 0)
            return out.square().mean()

        optimizer.step(loss)
        assert all(torch.equal(seen[0], mask) for mask in seen)  # the same within a step
        masks.append(seen[0])
    assert not torch.equal(*masks)


def the_generator_of_numpy_is_left_alone(build):
    w = weight(3)
    optimizer = build([w])
    np.random.seed(12)
    expected = np.random.RandomState(12).rand()
    optimizer.step(lambda: w.square().sum())
    assert np.random.rand() == expected


def running_statistics_do_not_count_trials(build):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer, x = build(net.parameters(), net), torch.randn(32, 4)
    for _ in range(5):
        optimizer.step(lambda: net(x).square().mean())
    assert net[1].num_batches_tracked == 5


def the_step_size_never_grows_untested(build):
    w = weight(1)
    optimizer = settled(build, w)
    before = optimizer.step_size
    for _ in range(20):  # a slope too small to be seen in the loss
        optimizer.step(lambda: -1.0 + 1e-9 * w.sum())
    assert optimizer.step_size <= before


def a_loss_that_does_not_change_is_no_success(build):
    w = weight(1)
    optimizer = settled(build, w)
    before = optimizer.step_size
    for _ in range(20):
        optimizer.step(lambda: 1.0 + (w - w.detach()).sum())
    assert optimizer.step_size <= before


def one_gradient_that_is_no_number_is_survived(build):
    w = weight(3)
    optimizer = settled(build, w)
    optimizer.step(lambda: (w * torch.where(w == w, math.nan, 1.0)).nan_to_num(1.0).sum() + w.sum())
    for _ in range(30):
        optimizer.step(lambda: (w - 5.0).square().sum())
    assert torch.isfinite(w).all() and math.isfinite(optimizer.step_size)
    assert (w - 5.0).abs().max() < 1.5


def a_search_without_success_takes_no_step(build):
    w = weight(3)
    optimizer = settled(build, w)
    before, start, calls = optimizer.step_size, w.detach().clone(), 0

    def loss():
        nonlocal calls
        calls += 1
        return w.square().sum() + (0.0 if calls == 1 else 1e4)

    optimizer.step(loss)
    assert torch.equal(w.detach(), start)
    for _ in range(3):
        optimizer.step(lambda: w.square().sum())
    assert optimizer.step_size > before / 10


def the_state_of_the_search_is_saved(build):
    w = weight(3)
    optimizer = settled(build, w)
    saved = optimizer.optimizer.state_dict()
    other = weight(3)
    with torch.no_grad():
        other.copy_(w)
    loaded = build([other])
    loaded.optimizer.load_state_dict(saved)
    for it, at in ((optimizer, w), (loaded, other)):
        for _ in range(3):
            it.step(lambda at=at: (at - 7.0).square().sum())
    assert loaded.step_size == optimizer.step_size and torch.equal(w, other)


def schedulers_and_groups_work(build):
    a, b = weight(2), weight(3)
    optimizer = build([{"params": [a]}, {"params": [b], "lr": 0.5}])
    scheduler = LambdaLR(optimizer.optimizer, lambda step: 0.9**step)
    for _ in range(3):
        optimizer.step(lambda: a.square().sum() + b.square().sum())
        scheduler.step()
    assert [group["lr"] for group in optimizer.optimizer.param_groups] == pytest.approx(
        [0.9**3, 0.5 * 0.9**3]
    )


class CountWaits(TorchDispatchMode):
    """Numbers that the host asks of tensors: on a GPU each is a wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def a_plain_step_waits_for_nothing(build):
    w = weight(3)
    if build is Theirs:
        optimizer = Theirs([w]).optimizer
        optimizer.speed_up = True
    else:
        optimizer = FusedSaLSa([w], backend="reference")
        optimizer._unless_finite = lambda f0: (False, flag_of([f0]))
    wrapped = build.__new__(build)
    wrapped.optimizer = optimizer
    counts = []
    for _ in range(60):
        with CountWaits() as waits:
            wrapped.step(lambda: (w - 3.0).square().sum())
        counts.append(waits.count)
    assert min(counts[12:]) == 0


ROWS = [
    the_final_weights_of_a_search_step_have_momentum,
    bias_correction_is_of_this_step,
    dropout_masks_differ_between_steps,
    the_generator_of_numpy_is_left_alone,
    running_statistics_do_not_count_trials,
    the_step_size_never_grows_untested,
    a_loss_that_does_not_change_is_no_success,
    one_gradient_that_is_no_number_is_survived,
    a_search_without_success_takes_no_step,
    the_state_of_the_search_is_saved,
    schedulers_and_groups_work,
    a_plain_step_waits_for_nothing,
]


@pytest.fixture(autouse=True)
def one_second(monkeypatch):
    """Their seed is the time in whole seconds."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_ours(row):
    row(Ours)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_theirs_does_otherwise(row):
    with pytest.raises((AssertionError, ValueError, KeyError, TypeError, AttributeError)):
        row(Theirs)


def test_the_pages_table_has_a_row_for_every_test():
    page = Path(__file__).parent.parent.parent / "docs" / "from_the_authors.md"
    table = page.read_text(encoding="utf-8").split("## What is different")[1].split("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) - 1 == len(ROWS)  # but for the line below the heads


def test_decay_is_decoupled_and_of_the_accepted_step_size():
    """Their package has no weight decay; their older code decayed before the search."""
    runs = []
    for decay in (0.0, 0.1):
        w = weight(3)
        optimizer = FusedSaLSa([w], weight_decay=decay, search_period=1, check_replay=False)
        before = w.detach().clone()
        optimizer.step(lambda w=w: w.square().sum())
        runs.append((w.detach() - before, optimizer.applied_step_size))
    (plain, size), (decayed, other) = runs
    assert size == other  # the search does not see it
    assert torch.allclose(decayed - plain, -0.1 * size * before, rtol=1e-4, atol=1e-7)
