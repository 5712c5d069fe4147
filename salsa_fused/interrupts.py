"""Signals are handled in the user's code, or when the step is complete; never in half a step.

Python runs the handler of a signal between any two instructions, and many a handler raises: that of
Ctrl-C, those of time limits and of clusters, and a data loader's for a worker that died.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from types import CodeType, FrameType
from typing import Any

signal: Any
try:
    signal = importlib.import_module("_signal")  # as `signal`, without its enums: 20 times faster
except ImportError:  # another Python
    signal = importlib.import_module("signal")

Handler = Callable[[int, FrameType | None], Any]
Undo = Callable[[], object]

NAMES = "INT TERM ALRM USR1 USR2 HUP CHLD QUIT VTALRM PROF XCPU BREAK"
"""What may have a handler in Python; to ask for one takes a step 30 ns."""

CANDIDATES: tuple[int, ...] = tuple(
    getattr(signal, f"SIG{name}") for name in NAMES.split() if hasattr(signal, f"SIG{name}")
)

DEFAULT, getsignal, set_signal = signal.SIG_DFL, signal.getsignal, signal.signal

_main_thread = threading.main_thread().ident  # to ask costs a step a third of a microsecond


def _find_main_thread() -> None:
    global _main_thread
    _main_thread = threading.main_thread().ident


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_find_main_thread)  # the thread that forks is the main one


class Interrupts:
    """``with Interrupts() as interrupts:`` around a step, ``interrupts.heard()`` around user code.

    In the main thread, where handlers run, it replaces every handler that is written in Python and
    notes the signals that come: each once, as the system does while it blocks them. On the way out
    all handlers are put back, and those of the noted signals are called.

    A handler that raises may interrupt this exchange. A replacement that was left behind therefore
    checks whether its step is still on the stack, and if not, puts the handlers back.
    """

    __slots__ = ("_held", "_in_main", "_noted")

    def __init__(self) -> None:
        self._in_main = get_ident() == _main_thread
        self._held: list[tuple[int, Handler]] = []
        self._noted: dict[int, FrameType | None] = {}

    def __enter__(self) -> Interrupts:
        try:
            self.hold()
        except BaseException:
            self.let_go()
            raise
        return self

    def heard(self) -> Heard:
        """Return a context for the user's code in a step, in which signals are not held back."""
        return Heard(self)

    def hold(self) -> None:
        """Hold back every signal that has a handler in Python."""
        if not self._in_main:
            return
        try:
            for number, handler in _in_python():
                if type(handler) is Interrupts:
                    inherited = self._inherit(handler, number)
                    if inherited is None:
                        continue
                    handler = inherited
                self._held.append((number, handler))
                set_signal(number, self)
        except BaseException:  # of a handler whose turn had not come
            self.hold()
            raise

    def let_go(self, *details: object) -> None:
        """Put the handlers back, and call those of what was noted."""
        held = self._held
        try:
            while held:
                number, handler = held[-1]
                found = set_signal(number, handler)
                if found is not self and found is not None:  # one that was installed since
                    set_signal(number, found)
                held.pop()
        finally:
            if held:  # a handler that is back has raised
                self.let_go()
            elif self._noted:
                self._deliver()

    __exit__ = let_go

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal: the handler in the place of all others."""
        self._noted.setdefault(number, frame)
        if not self._is_on(frame):
            self.let_go()

    def _inherit(self, other: Interrupts, number: int) -> Handler | None:
        """Take over from a step that is gone; None where it is not, and has this signal in hand."""
        if other is self or other._is_on(sys._getframe()):
            return None
        self._noted = {**other._noted, **self._noted}
        other._noted = {}
        other.let_go()
        handler = getsignal(number)
        return handler if callable(handler) else None

    def _is_on(self, frame: FrameType | None) -> bool:
        """Return whether the step is on this stack: its functions have a variable for it."""
        while frame is not None:
            if frame.f_globals.get("__package__") == __package__:
                variables = frame.f_locals
                if variables.get("interrupts") is self or variables.get("self") is self:
                    return True
            frame = frame.f_back
        return False

    def _deliver(self) -> None:
        """Call the handlers, and not by a signal: event loops have heard of the first already."""
        try:
            while self._noted:
                number = next(iter(self._noted))
                handler = getsignal(number)
                frame = self._noted.pop(number)
                if callable(handler):
                    handler(number, frame)
                else:
                    signal.raise_signal(number)
        finally:
            if self._noted:  # a handler has raised
                self._deliver()


_found: tuple[Any, ...] = ()
_found_in_python: list[tuple[int, Handler]] = []


def _in_python() -> list[tuple[int, Handler]]:
    """Return the signals with a handler in Python: mostly the same as at the step before."""
    global _found, _found_in_python
    found = tuple(map(getsignal, CANDIDATES))
    if found != _found:
        pairs = zip(CANDIDATES, found)
        _found_in_python = [(n, h) for n, h in pairs if h is not DEFAULT and callable(h)]
        _found = found
    return _found_in_python


class Heard:
    """A context for the user's code in a step.

    It is no generator: one that an interrupt has cut off would hold signals back again, for ever,
    when it is collected as garbage.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        try:
            self._interrupts.let_go()
        except BaseException:  # of what came before the user's code, which is not called then
            self._interrupts.hold()
            raise

    def __exit__(self, *details: object) -> None:
        self._interrupts.hold()


def is_running(code: CodeType, owner: object) -> bool:
    """Tell whether a call of this method of ``owner`` is under way, in any thread."""
    for frame in sys._current_frames().values():
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code is code and caller.f_locals.get(code.co_varnames[0]) is owner:
                return True
            caller = caller.f_back
    return False


def take_back(changes: Sequence[Undo], error: BaseException, interrupts: Interrupts) -> None:
    """Undo all that a step has begun, the last first, whatever fails on the way.

    Raises:
        RuntimeError: user code has freed or replaced what was to be put back; ``error`` is its
            cause. One that is to end the process (Ctrl-C) is raised itself, with a note.
    """
    try:
        interrupts.hold()  # an interrupt on the way out of the closure has not done so
    finally:  # and another may come just now
        lost = None
        for undo in reversed(changes):
            try:
                undo()
            except Exception as failed:
                lost = lost or failed
        if lost is not None and isinstance(error, Exception):
            raise lost from error
        if lost is not None and hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(str(lost))
