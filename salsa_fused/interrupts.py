"""Ctrl-C is heard in the user's code, or when the step is complete; never in half a step."""

from __future__ import annotations

import importlib
import threading
from types import FrameType
from typing import Any

signal: Any
try:
    signal = importlib.import_module("_signal")  # as `signal`, without its enums: 20 times faster
except ImportError:  # another Python
    signal = importlib.import_module("signal")


class Interrupts:
    """``with Interrupts() as interrupts:`` around a step, ``interrupts.heard()`` around user code.

    Python's own handler of SIGINT is held back, and only in the main thread, where it would raise;
    another handler is left alone.
    """

    def __init__(self) -> None:
        self._in_main = threading.current_thread() is threading.main_thread()
        self._holding = False
        self._pending = False

    def __enter__(self) -> Interrupts:
        self.hold()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if self._holding:
            self._let_go()
            if self._pending and kind is None:
                raise KeyboardInterrupt

    def heard(self) -> Heard:
        return Heard(self)

    def hold(self) -> None:
        """Hold it back, if Python's own handler is there and nobody does yet."""
        if self._in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._holding = True

    def _let_go(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._holding = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending = True


class Heard:
    """Around the user's code in a step.

    No generator: one that an interrupt keeps from going on holds Ctrl-C back again when it is
    collected, and for ever.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._held = interrupts._holding

    def __enter__(self) -> None:
        if self._held:
            if self._interrupts._pending:
                self._interrupts._pending = False
                raise KeyboardInterrupt
            self._interrupts._let_go()

    def __exit__(self, *details: object) -> None:
        if self._held:
            self._interrupts.hold()  # not where the user's code has set a handler
