"""Ctrl-C within a step, where Python's own handler or another's is installed; steps in threads."""

from __future__ import annotations

import gc
import signal
import threading

import pytest
import torch
from small_net import make_closure, make_net
from snapshots import assert_same, everything
from torch.amp import GradScaler

from salsa_fused import FusedSaLSa, evaluation
from salsa_fused.interrupts import Heard, Interrupts
from salsa_fused.kernels import Kernels


def build(**keywords):
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, **keywords)
    torch.manual_seed(3)
    return net, optimizer


@pytest.fixture
def pythons_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_on_the_way_out_of_the_closure_leaves_pythons_handler(pythons_handler):
    blocks = []

    def step():
        with Interrupts() as interrupts:
            blocks.append(interrupts.heard())
            blocks[0].__enter__()
            raise KeyboardInterrupt  # before the block's __exit__

    with pytest.raises(KeyboardInterrupt):
        step()
    blocks.clear()
    gc.collect()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_ones_own_is_left_alone():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        net, optimizer = build()
        evaluate = make_closure(net)

        def closure():
            signal.raise_signal(signal.SIGINT)
            return evaluate()

        optimizer.step(closure)
        assert heard and optimizer.metrics()["steps"] == 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_the_closure_installs_stays(pythons_handler):
    net, optimizer = build()
    evaluate = make_closure(net)

    def closure():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return evaluate()

    optimizer.step(closure)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_second_interrupt_waits_until_all_is_put_back(pythons_handler, monkeypatch):
    """The first comes between the closure's end and the block around it."""
    net, optimizer = build()
    for step in range(2):
        optimizer.step(make_closure(net, step))
    state = everything(net, optimizer)
    leave, restore, entered = Heard.__exit__, Kernels.restore, []

    def interrupted(heard, *details):
        entered.append(heard)
        if len(entered) == 2:  # at the first trial
            raise KeyboardInterrupt
        return leave(heard, *details)

    def restore_meanwhile(kernels):
        signal.raise_signal(signal.SIGINT)
        return restore(kernels)

    monkeypatch.setattr(Heard, "__exit__", interrupted)
    monkeypatch.setattr(Kernels, "restore", restore_meanwhile)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(make_closure(net, 2))
    assert_same(state, everything(net, optimizer))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_steps_in_threads():
    errors = []

    def work(seed):
        try:
            net = make_net(seed, dropout=0.0, norm=False)
            optimizer = FusedSaLSa(net.parameters(), check_replay=False)
            scaler = GradScaler("cpu", init_scale=4.0)
            for step in range(30):
                optimizer.step(make_closure(net, step))
                assert scaler.scale(torch.ones(())).item() == 4.0
        except BaseException as error:
            errors.append(error)

    scale = GradScaler.scale
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert GradScaler.scale is scale  # no wrapper is left, or put on another
    with evaluation.refused(), pytest.raises(RuntimeError, match="uses a GradScaler"):
        GradScaler("cpu").scale(torch.ones(()))
