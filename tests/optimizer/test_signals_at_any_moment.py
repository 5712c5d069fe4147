"""A signal at any moment leaves a whole step or none."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from contextlib import contextmanager

import pytest
import torch
from signal_handlers import Alarm, assert_ctrl_c_works, handlers
from torch import nn
from torch.amp import GradScaler

from salsa_fused import FusedSaLSa, interrupts
from salsa_fused.interrupts import CANDIDATES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has few signals")


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
def test_a_hundred_interrupted_steps(search_period, name, times, monkeypatch):
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

    with alarms(interrupt):
        end = time.monotonic() + 10.0
        while interrupted < 100 and time.monotonic() < end:
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
    assert interrupted >= 100


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
def test_an_interrupt_at_any_moment_leaves_a_whole_step_or_none(monkeypatch):
    monkeypatch.setattr(interrupts, "CANDIDATES", (signal.SIGINT,))  # the alarm is heard at once
    weights = [nn.Parameter(torch.full((400_000,), 1.0)) for _ in range(4)]
    optimizer = FusedSaLSa(weights, search_period=(1, 2), check_replay=False)

    def loss():
        return sum(w.square().mean() for w in weights)

    def look():
        moments = [
            e[k].clone() for e in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")
        ]
        counts = [e["step"] for e in optimizer.state.values()]
        return [w.detach().clone() for w in weights], moments, counts, optimizer.metrics()["steps"]

    def interrupt(*_):
        if stepping:  # an alarm that comes late is nobody's
            signal.raise_signal(signal.SIGINT)

    for _ in range(12):
        optimizer.step(loss)
    interrupted, stepping = 0, False
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    signal.signal(signal.SIGALRM, interrupt)
    for attempt in range(60):
        before = look()
        try:
            stepping = True
            signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + attempt))
            optimizer.step(loss)
            stepping = False
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            stepping = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        after = look()
        taken = after[3] - before[3]
        assert taken in (0, 1)
        assert after[2] == [count + taken for count in before[2]]
        for a, b in zip(before[0] + before[1], after[0] + after[1]):
            assert torch.equal(a, b) == (taken == 0)
    assert interrupted > 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
