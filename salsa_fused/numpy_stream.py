"""NumPy's global random stream: its state, read quickly where it has not moved.

``numpy.random.get_state()`` copies 624 numbers one by one: 30 us in every step that calls a
closure, and hardly any training step draws from this stream.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

SIZE = 624 * 4 + 4  # bytes of a Mersenne twister: its numbers and its place in them


class _Known:
    """The state as it was read last, and the bytes that the generator had then."""

    generator: Any = None
    read: bytes | None = None
    state: Any = None


def state_of(numpy: Any) -> Any:
    """Return ``numpy.random.get_state()``, and remember it."""
    generator = read = None
    with suppress(AttributeError):  # another NumPy
        generator = numpy.random.get_bit_generator()
        if type(generator) is not numpy.random.MT19937:
            return numpy.random.get_state(legacy=False)
        read = ctypes.string_at(generator.ctypes.state_address, SIZE)
    _Known.state = numpy.random.get_state()
    keeps_a_deviate = _Known.state[3]
    _Known.generator, _Known.read = generator, None if keeps_a_deviate else read
    return _Known.state


def probable_state_of(numpy: Any) -> Any:
    """Return the state that was read last, if the generator holds the same numbers.

    The normal deviate that NumPy may keep cannot be seen so: without a draw there is a new one
    only where somebody has put a state back.  Enough for an undo, not for a replay.
    """
    with suppress(AttributeError):
        generator = numpy.random.get_bit_generator()
        if generator is _Known.generator and _Known.read is not None:
            read = ctypes.string_at(generator.ctypes.state_address, SIZE)
            if read == _Known.read:
                return _Known.state
    return state_of(numpy)


def put_back(numpy: Any, state: Any) -> None:
    """Set the state; what was remembered may no longer hold."""
    _Known.read = None
    numpy.random.set_state(state)
