"""A step that an exception has cut off while it held signals back: nothing stays held."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from signal_handlers import Alarm, assert_ctrl_c_works, handlers, in_step, make_optimizer, raising
from small_net import make_closure
from snapshots import assert_same, everything

from salsa_fused import FusedSaLSa, interrupts
from salsa_fused.interrupts import Heard, Interrupts, is_running
from salsa_fused.kernels import Kernels

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has few signals")


@pytest.fixture
def cut_off(monkeypatch):
    """A step that holds signals back and never lets them go; these come meanwhile."""
    net, optimizer = make_optimizer(search_period=None, init_step_size=1e-3)

    def step(*numbers):
        with monkeypatch.context() as patch:
            patch.setattr(Interrupts, "__exit__", lambda *_: None)
            in_step(patch, lambda: [signal.raise_signal(number) for number in numbers])
            optimizer.step(make_closure(net))
        assert isinstance(signal.getsignal(signal.SIGINT), Interrupts)

    return step


def test_a_step_that_is_gone_holds_nothing_back(cut_off):
    heard = []
    with handlers(SIGUSR1=lambda *_: heard.append(1)):
        cut_off()
        assert_ctrl_c_works()
        signal.raise_signal(signal.SIGUSR1)
        assert heard == [1]
        cut_off(signal.SIGUSR1)
        assert heard == [1]
        assert_ctrl_c_works()  # and what came before it is heard, too
        assert heard == [1, 1]


def test_the_next_step_lets_go_of_what_a_step_that_is_gone_held(cut_off):
    net, optimizer = make_optimizer()
    heard = []

    def hear(*_):
        heard.append(1)

    with handlers(SIGUSR1=hear):
        cut_off(signal.SIGUSR1)
        optimizer.step(make_closure(net))
        assert signal.getsignal(signal.SIGUSR1) is hear
        assert heard == [1]
        assert_ctrl_c_works()


def test_a_step_that_is_gone_in_the_closure_of_another(cut_off):
    net, optimizer = make_optimizer()
    evaluate, heard = make_closure(net), []

    def closure():
        loss = evaluate()
        if torch.is_grad_enabled():
            cut_off(signal.SIGUSR1)
            assert not heard
            assert_ctrl_c_works()
            assert heard
            cut_off()
        return loss

    with handlers(SIGUSR1=lambda *_: heard.append(1)):
        optimizer.step(closure)
        assert_ctrl_c_works()
        assert optimizer.metrics()["steps"] == 1


def test_a_step_that_finds_the_signals_in_another_steps_hands(monkeypatch):
    """Code that runs within a step and not in its closure, as a mode of torch does."""
    net, optimizer = make_optimizer()
    inner_net, inner = make_optimizer(search_period=None, init_step_size=1e-3)
    heard = []

    def step():
        signal.raise_signal(signal.SIGUSR1)
        inner.step(make_closure(inner_net))
        assert not heard
        assert inner.metrics()["steps"] == 1

    with handlers(SIGUSR1=lambda *_: heard.append(1)):
        in_step(monkeypatch, step)
        optimizer.step(make_closure(net))
        assert heard == [1]
        assert_ctrl_c_works()


def test_a_signal_while_another_is_on_its_way_out(monkeypatch):
    """The first between the closure's end and the block around it, the second before the undo."""
    net, optimizer = make_optimizer(check_replay=False)
    for step in range(2):
        optimizer.step(make_closure(net, step))
    before = everything(net, optimizer)
    leave, look, entered = Heard.__exit__, interrupts.getsignal, []

    def interrupted(heard, *details):
        entered.append(heard)
        if len(entered) != 2:
            return leave(heard, *details)
        monkeypatch.setattr(interrupts, "getsignal", interrupted_again)
        raise Alarm

    def interrupted_again(number):
        monkeypatch.setattr(interrupts, "getsignal", look)
        signal.raise_signal(signal.SIGUSR1)
        return look(number)

    monkeypatch.setattr(Heard, "__exit__", interrupted)
    with handlers(SIGUSR1=raising(SystemExit(3))):
        with pytest.raises(SystemExit):
            optimizer.step(make_closure(net, 2))
        assert_same(before, everything(net, optimizer))
        assert_ctrl_c_works()


def test_a_step_within_is_told_from_one_that_was_cut_off():
    net, optimizer = make_optimizer()
    optimizer._stepping = True
    optimizer.step(make_closure(net))
    assert not optimizer._stepping
    seen = []

    def closure():
        seen.append(is_running(FusedSaLSa._step.__code__, optimizer))
        return make_closure(net)()

    optimizer.step(closure)
    assert seen and all(seen) and not is_running(FusedSaLSa._step.__code__, optimizer)


def test_a_step_within_from_another_thread():
    net, optimizer = make_optimizer()
    errors = []

    def step():
        try:
            optimizer.step(make_closure(net))
        except RuntimeError as error:
            errors.append(str(error))

    def closure():
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        return make_closure(net)()

    optimizer.step(closure)
    assert errors and all("inside the closure" in error for error in errors)


def test_a_step_whose_table_cannot_be_released(monkeypatch):
    net, optimizer = make_optimizer()

    def fail(kernels):
        raise Alarm

    with monkeypatch.context() as patch:
        patch.setattr(Kernels, "release", fail)
        with pytest.raises(Alarm):
            optimizer.step(make_closure(net))
    assert not optimizer._stepping
    optimizer.zero_grad()
    optimizer.step(make_closure(net))
