"""Signals that a step holds back: each handler is called once, after the step or in user code."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest
import torch
from signal_handlers import handlers, in_step, make_optimizer, raising
from small_net import make_closure
from snapshots import assert_same, everything

from salsa_fused.interrupts import CANDIDATES, Interrupts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has few signals")


@pytest.mark.parametrize("number", CANDIDATES, ids=lambda number: signal.Signals(number).name)
def test_every_handler_is_called_once_and_after_the_step(number, monkeypatch):
    net, optimizer = make_optimizer()
    heard = []

    def handler(*arguments):
        heard.append((*arguments, optimizer.metrics()["steps"]))

    with handlers(**{signal.Signals(number).name: handler}):
        in_step(monkeypatch, lambda: [signal.raise_signal(number) for _ in range(2)])
        optimizer.step(make_closure(net))
        assert signal.getsignal(number) is handler
    ((heard_number, frame, steps),) = heard  # as the system does with a signal that it blocks
    assert heard_number == number and frame is not None and steps == 1


def test_a_handler_that_ends_the_program(monkeypatch):
    net, optimizer = make_optimizer()
    with handlers(SIGTERM=raising(SystemExit(3))):
        in_step(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            optimizer.step(make_closure(net))
        assert optimizer.metrics()["steps"] == 1
        optimizer.step(make_closure(net))


def test_all_that_was_held_back_is_delivered(monkeypatch):
    """In the order in which it came, whatever the first handler raises."""
    net, optimizer = make_optimizer()
    heard = []
    with handlers(SIGTERM=raising(SystemExit(3)), SIGUSR1=lambda *_: heard.append(1)):

        def signals():
            for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
                signal.raise_signal(getattr(signal, name))

        in_step(monkeypatch, signals)
        with pytest.raises(KeyboardInterrupt) as caught:
            optimizer.step(make_closure(net))
    assert heard and isinstance(caught.value.__context__, SystemExit)


def test_an_interrupt_is_not_lost_where_the_step_raises_something_else(monkeypatch):
    """A loop that catches the other error to try again must not go on after Ctrl-C."""
    net, optimizer = make_optimizer()

    def fail():
        signal.raise_signal(signal.SIGINT)
        raise torch.OutOfMemoryError("full")

    before = everything(net, optimizer)
    with handlers():
        in_step(monkeypatch, fail, "refresh")
        with pytest.raises(KeyboardInterrupt) as caught:
            optimizer.step(make_closure(net))
    assert isinstance(caught.value.__context__, torch.OutOfMemoryError)
    assert_same(before, everything(net, optimizer))


def test_a_handler_is_called_once_for_a_signal_that_an_event_loop_waits_for(monkeypatch):
    """The loop hears of it by a file descriptor, too: a signal raised again were a second one."""
    net, optimizer = make_optimizer()
    heard = []

    async def train():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.append, 1)
        in_step(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
        optimizer.step(make_closure(net))
        await asyncio.sleep(0.05)

    with handlers(SIGUSR1=signal.SIG_DFL):
        asyncio.run(train())
    assert heard == [1]


def test_a_signal_before_a_trial_is_heard_in_it(monkeypatch):
    net, optimizer = make_optimizer(check_replay=False)
    before = everything(net, optimizer)
    with handlers(SIGTERM=raising(SystemExit(3))):
        in_step(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM), "first_trial")
        with pytest.raises(SystemExit):
            optimizer.step(make_closure(net))
    assert_same(before, everything(net, optimizer))


def test_the_closure_hears_all_signals_at_once():
    net, optimizer = make_optimizer()
    evaluate, heard = make_closure(net), []

    def closure():
        heard.append(0)
        signal.raise_signal(signal.SIGUSR1)
        heard.append(2)
        return evaluate()

    with handlers(SIGUSR1=lambda *_: heard.append(1)):
        optimizer.step(closure)
    assert heard[:3] == [0, 1, 2] and heard.count(1) == heard.count(0)


@pytest.mark.parametrize("installed", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_a_handler_that_the_closure_installs_stays(installed):
    net, optimizer = make_optimizer()
    evaluate = make_closure(net)

    def closure():
        signal.signal(signal.SIGTERM, installed)
        return evaluate()

    with handlers(SIGTERM=lambda *_: None):
        optimizer.step(closure)
        assert signal.getsignal(signal.SIGTERM) is installed


def test_a_handler_that_is_installed_in_mid_step_stays():
    """By the handler of a signal that is not held back."""
    with handlers():
        with Interrupts():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_step_in_the_closure_of_another_optimizers_step(monkeypatch):
    net, optimizer = make_optimizer(check_replay=False)
    inner_net, inner = make_optimizer()
    evaluate, heard = make_closure(net), []

    def closure():
        loss = evaluate()
        if torch.is_grad_enabled():
            in_step(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
            inner.step(make_closure(inner_net))
            assert heard == [1]  # at the end of the inner step
        return loss

    def hear(*_):
        heard.append(inner.metrics()["steps"])

    with handlers(SIGUSR1=hear):
        optimizer.step(closure)
        assert signal.getsignal(signal.SIGUSR1) is hear
        heard.clear()
        in_step(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
        optimizer.step(evaluate)
        assert heard and optimizer.metrics()["steps"] == 2


def test_other_threads_leave_handlers_alone():
    net, optimizer = make_optimizer()
    evaluate, seen = make_closure(net), []

    def closure():
        seen.append(signal.getsignal(signal.SIGINT))
        return evaluate()

    with handlers():
        thread = threading.Thread(target=optimizer.step, args=(closure,))
        thread.start()
        thread.join()
        assert set(seen) == {signal.default_int_handler}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_the_thread_that_forks_is_the_childs_main_thread():
    """Handlers run in it."""
    codes = []

    def fork():
        if child := os.fork():
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return
        held = False
        try:
            with handlers(), Interrupts():
                held = isinstance(signal.getsignal(signal.SIGINT), Interrupts)
        finally:
            os._exit(0 if held else 1)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert codes == [0]
