"""Signals whose handlers raise, at any moment: a whole step or none, and nothing stays held."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from models import assert_same, everything, make_closure, make_net
from torch import nn
from torch.amp import GradScaler

from salsa_fused import FusedSaLSa, interrupts
from salsa_fused.interrupts import CANDIDATES, Heard, Interrupts, is_running
from salsa_fused.kernels import Table

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has few signals")


class Alarm(Exception):
    pass


@contextmanager
def handlers(**by_name):
    """Handlers of these signals, and Python's own of Ctrl-C unless another is given."""
    by_name = {"SIGINT": signal.default_int_handler, **by_name}
    numbers = [getattr(signal, name) for name in by_name]
    before = [signal.signal(*pair) for pair in zip(numbers, by_name.values())]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def raising(error):
    def handler(number, frame):
        raise error

    return handler


def build(**keywords):
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, **keywords)
    torch.manual_seed(3)
    return net, optimizer


def in_step(monkeypatch, do, place="commit"):
    """Have this done once in the next step, outside of the user's code; at its end, or there."""
    method = getattr(Table, place)

    def method_and_do(table, *arguments):
        monkeypatch.setattr(Table, place, method)
        found = method(table, *arguments)
        do()
        return found

    monkeypatch.setattr(Table, place, method_and_do)


def assert_ctrl_c_works():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- what is held back ------------------------------------------------------------------------


@pytest.mark.parametrize("number", CANDIDATES, ids=lambda number: signal.Signals(number).name)
def test_every_handler_is_called_once_and_after_the_step(number, monkeypatch):
    net, optimizer = build()
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
    net, optimizer = build()
    with handlers(SIGTERM=raising(SystemExit(3))):
        in_step(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            optimizer.step(make_closure(net))
        assert optimizer.metrics()["steps"] == 1
        optimizer.step(make_closure(net))


def test_all_that_was_held_back_is_delivered(monkeypatch):
    """In the order in which it came, whatever the first handler raises."""
    net, optimizer = build()
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
    net, optimizer = build()

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
    net, optimizer = build()
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
    net, optimizer = build(check_replay=False)
    before = everything(net, optimizer)
    with handlers(SIGTERM=raising(SystemExit(3))):
        in_step(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM), "first_trial")
        with pytest.raises(SystemExit):
            optimizer.step(make_closure(net))
    assert_same(before, everything(net, optimizer))


def test_the_closure_hears_all_signals_at_once():
    net, optimizer = build()
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
    net, optimizer = build()
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
    net, optimizer = build(check_replay=False)
    inner_net, inner = build()
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
    net, optimizer = build()
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


# -- a step that an exception has cut off -----------------------------------------------------


@pytest.fixture
def cut_off(monkeypatch):
    """A step that holds signals back and never lets them go; these come meanwhile."""
    net, optimizer = build(search_period=None, init_step_size=1e-3)

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
    net, optimizer = build()
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
    net, optimizer = build()
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
    net, optimizer = build()
    inner_net, inner = build(search_period=None, init_step_size=1e-3)
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
    net, optimizer = build(check_replay=False)
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
    net, optimizer = build()
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
    net, optimizer = build()
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
    net, optimizer = build()

    def fail(table):
        raise Alarm

    with monkeypatch.context() as patch:
        patch.setattr(Table, "release", fail)
        with pytest.raises(Alarm):
            optimizer.step(make_closure(net))
    assert not optimizer._stepping
    optimizer.zero_grad()
    optimizer.step(make_closure(net))


# -- at any moment ----------------------------------------------------------------------------


@contextmanager
def alarms(handler):
    """Without the garbage collector: others' callbacks and finalizers swallow what is raised."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    with handlers(SIGALRM=handler):
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if collecting:
                gc.enable()


def test_a_handler_that_raises_at_any_moment_leaves_a_whole_step_or_none():
    """Also in the user's code: there it is an exception of the closure."""
    weights = [nn.Parameter(torch.full((200_000,), 1.0)) for _ in range(4)]
    optimizer = FusedSaLSa(weights, search_period=(1, 2), check_replay=False)
    stepping = False

    def loss():
        return sum(w.square().mean() for w in weights)

    def look():
        moments = [
            e[k].clone() for e in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")
        ]
        return [w.detach().clone() for w in weights] + moments, optimizer.metrics()["steps"]

    def interrupt(*_):
        if stepping:
            raise Alarm

    for _ in range(12):
        optimizer.step(loss)
    interrupted = 0
    with alarms(interrupt):
        for attempt in range(80):
            (before, steps), after = look(), None
            try:
                stepping = True
                signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + attempt / 2))
                optimizer.step(loss)
                stepping = False
            except Alarm:
                interrupted += 1
            finally:
                stepping = False
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            after, taken = look()
            assert taken - steps in (0, 1)
            for a, b in zip(before, after):
                assert torch.equal(a, b) == (taken == steps)
    assert interrupted > 5


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("search_period", [None, 1, (1, 4)])
@pytest.mark.parametrize("name", ["SIGALRM", "SIGINT"])
def test_hundreds_of_interrupted_steps(search_period, name, times, monkeypatch):
    """Afterwards every step works, Ctrl-C does, and gradients are recorded.

    A second alarm comes while the first is on its way out.
    """
    if name == "SIGINT":  # the alarm that sends it must not be held back itself
        others = tuple(number for number in CANDIDATES if number != signal.SIGALRM)
        monkeypatch.setattr(interrupts, "CANDIDATES", others)
    weights = [nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(0)))]
    optimizer = FusedSaLSa(weights, search_period=search_period, init_step_size=1e-3)
    random_times, left, interrupted = random.Random(0), 0, 0

    def loss():
        return sum((w * w).sum() for w in weights)

    def interrupt(*_):
        nonlocal left, interrupted
        if left:
            left -= 1
            interrupted += 1
            if left:
                signal.setitimer(signal.ITIMER_REAL, random_times.uniform(2e-6, 1e-4))
            if name == "SIGINT":
                signal.raise_signal(signal.SIGINT)
            else:
                raise Alarm

    def step_until_interrupted():
        nonlocal left
        try:
            left = times
            signal.setitimer(signal.ITIMER_REAL, random_times.uniform(2e-6, 4e-4))
            while left == times:
                optimizer.step(loss)
            pytest.fail("what the handler raised was swallowed, as a finalizer does")
        except (Alarm, KeyboardInterrupt):
            pass

    end = time.monotonic() + 0.6
    with alarms(interrupt):
        while time.monotonic() < end:
            try:
                step_until_interrupted()
                left = 0
            except (Alarm, KeyboardInterrupt):  # the second, while it dealt with the first
                pass
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            assert torch.is_grad_enabled()
            GradScaler("cpu").scale(torch.ones(()))  # only in a closure it is an error
            assert_ctrl_c_works()
            assert signal.getsignal(signal.SIGALRM) is interrupt
            assert torch.isfinite(torch.cat([w.detach() for w in weights])).all()
            steps = optimizer.metrics()["steps"]
            optimizer.step(loss)
            assert optimizer.metrics()["steps"] == steps + 1
    assert interrupted > 20
