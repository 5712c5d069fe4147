"""How many files of the package a step without a search enters: a reader follows it there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import salsa_fused
from salsa_fused import FusedSaLSa

PACKAGE = Path(salsa_fused.__file__).parent
MOST = 10
OPTIMIZERS = {  # of these, six at most
    "_torch.py",
    "evaluation.py",
    "interrupts.py",
    "optimizer.py",
    "replay.py",
    "turns.py",
}


def files_of_plain_steps(with_closure, replays_buffers):
    """The files that each of forty steps enters, and whether it looks back; no step searches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = FusedSaLSa(net.parameters(), module=net if replays_buffers else None)
    x = torch.randn(32, 6)
    entered, steps = set(), []

    def closure():
        return (net(x) - x[:, :1]).square().mean()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            entered.add(path.relative_to(PACKAGE).as_posix())

    for step in range(80):
        if step < 40 or optimizer.search_due:
            optimizer.step(closure)
            continue
        if not with_closure:
            optimizer.zero_grad()
            closure().backward()
        entered.clear()
        sys.setprofile(note)
        try:
            optimizer.step(closure if with_closure else None)
        finally:
            sys.setprofile(None)
        first = optimizer.param_groups[0]
        steps.append((set(entered), first["last_look"] == first["steps"]))
    assert {looks for _, looks in steps} == {True, False}
    return steps


WAYS = pytest.mark.parametrize(
    "with_closure, replays_buffers", [(False, False), (True, False), (True, True)]
)


@pytest.mark.filterwarnings("ignore:a forward changes buffers")
@WAYS
def test_the_optimizers_files(with_closure, replays_buffers):
    for entered, looks in files_of_plain_steps(with_closure, replays_buffers):
        found = {name for name in entered if not name.startswith("kernels/")}
        assert found <= OPTIMIZERS | ({"measures.py"} if looks else set())
        assert "optimizer.py" in found


@pytest.mark.filterwarnings("ignore:a forward changes buffers")
@WAYS
def test_all_files(with_closure, replays_buffers):
    for entered, looks in files_of_plain_steps(with_closure, replays_buffers):
        assert len(entered) <= MOST + 3 * looks, sorted(entered)
