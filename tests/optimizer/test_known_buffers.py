"""Buffers are known from step to step; whatever changes in a module, an undo puts all back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salsa_fused import FusedSaLSa
from salsa_fused.replay import KnownBuffers, Replay


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4)))


def another_module(net):
    net[2] = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))


def another_buffer(net):
    net[1].register_buffer("extra", torch.arange(3.0))


def another_tensor(net):
    net[1].running_mean = torch.full((4,), 7.0)


def other_memory(net):
    net[1].running_mean.data = torch.full((4,), 8.0)


def another_shape(net):
    net[1].running_mean.data = net[1].running_mean.data[:2]


def another_dtype(net):
    net.double()


def another_name(net):
    net[1].register_buffer("renamed", net[1].running_var)
    del net[1].running_var
    net[1].running_var = net[1].renamed


def another_dictionary(net):
    net[1]._buffers = {name: 2 * tensor for name, tensor in net[1]._buffers.items()}


def one_less(net):
    del net[2]


def nothing(net):
    pass


CHANGES = [another_module, another_buffer, another_tensor, other_memory, another_shape]
CHANGES += [another_dtype, another_name, another_dictionary, one_less, nothing]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_steps_is_seen(change, looks):
    net, known = make_net(), KnownBuffers()
    for _ in range(2):
        Replay([*net.parameters()], net, trials_follow=False, known=known)
    change(net)
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    replay = Replay([*net.parameters()], net, trials_follow=False, known=known)
    for buffer in net.buffers():
        buffer.add_(1)
    net[0].register_buffer("late", torch.zeros(2))
    replay.rewind()
    after = dict(net.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_copies_are_not_taken_from_whoever_still_needs_them():
    net, known = make_net(), KnownBuffers()
    first, second = (
        Replay([*net.parameters()], net, trials_follow=False, known=known) for _ in range(2)
    )
    net[1].running_mean.fill_(3.0)
    third = Replay([*net.parameters()], net, trials_follow=False, known=known)
    net[1].running_mean.fill_(4.0)
    for replay, mean in ((third, 3.0), (first, 0.0), (second, 0.0)):
        replay.rewind()
        assert net[1].running_mean[0] == mean


def test_an_exception_after_many_steps_puts_buffers_back():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, search_period=None, init_step_size=1e-3)
    inputs = torch.randn(8, 4)
    for _ in range(5):
        optimizer.step(lambda: net(inputs).square().mean())
    before = [buffer.clone() for buffer in net.buffers()]

    def fails():
        net(inputs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fails)
    assert all(map(torch.equal, before, net.buffers()))
