"""Handlers of signals for one block, and a step in whose middle something happens."""

from __future__ import annotations

import signal
from contextlib import contextmanager

import pytest
import torch
from small_net import make_net

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels


class Alarm(Exception):
    """A handler raises it."""


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


def make_optimizer(**keywords):
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, **keywords)
    torch.manual_seed(3)
    return net, optimizer


def in_step(monkeypatch, do, place="commit"):
    """Have this done once in the next step, outside of the user's code; at its end, or there."""
    method = getattr(Kernels, place)

    def method_and_do(kernels, *arguments):
        monkeypatch.setattr(Kernels, place, method)
        found = method(kernels, *arguments)
        do()
        return found

    monkeypatch.setattr(Kernels, place, method_and_do)


def assert_ctrl_c_works():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
