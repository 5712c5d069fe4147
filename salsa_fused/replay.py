"""Replays: a trial evaluates the same function as the first evaluation, at other weights.

That takes the same random numbers (dropout) and the same buffers (BatchNorm's running statistics,
spectral norm's vectors).  :class:`Replay` holds both as they were before the first evaluation and
as it left them.  However many trials there are, afterwards random streams and buffers stand where
the first evaluation left them.
"""

from __future__ import annotations

import ctypes
import random
import re
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from copy import copy as copy_of
from itertools import chain, compress
from operator import attrgetter
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ._torch import copy_each, local_of
from .kernels import columns
from .kernels.memory import has_memory, is_lazy, overlaps_itself
from .wrappers import buffer_syncs, put_back_buffer_syncs

NARROW = re.compile(r"torch\.(u?int[1-7]|bits.*)")  # dtypes that torch can store and not copy


class Replay:
    """``Replay(...)`` before the first evaluation, :meth:`end_first` after it.

    Then :meth:`rewind` before every further one, and at last :meth:`resume`; or :meth:`rewind`
    alone where the step is undone.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],  # that the step moves
        module: nn.Module | None,
        *,
        knows_first: bool = True,  # made before the first evaluation, not after it
        trials_follow: bool = True,  # else it is for an undo only
        known: KnownBuffers | None = None,  # those of the step before
    ) -> None:
        self.knows_first = knows_first
        devices = set(map(attrgetter("device"), parameters))
        self._devices = [device for device in devices if device.type not in ("cpu", "meta")]
        self._module = module
        self._moving: set[int] = set()  # addresses of memory
        if trials_follow and module is not None:
            moved = [local_of(p) for p in parameters if p.requires_grad]
            self._moving = {own.untyped_storage().data_ptr() for own in moved}
        known = None if trials_follow else known
        self._before = _Snapshot(self._devices, module, self._moving, trials_follow, known)
        self._after: _Snapshot | None = None

    def end_first(self) -> None:
        """Note random streams and buffers as the first evaluation left them."""
        self._after = _Snapshot(self._devices, self._module, self._moving, exact=True)

    def rewind(self) -> None:
        """Put random streams and buffers back as before the first evaluation."""
        self._before.put_back()

    def rewind_streams(self) -> None:
        """Put random streams back as before the first evaluation, and no buffers."""
        self._before.put_streams_back()

    def resume(self) -> None:
        """Put random streams and buffers back as the first evaluation left them."""
        (self._after or self._before).put_back()


class _Snapshot:
    """The state of all random generators in use, and of all buffers; of DTensors this rank's part.

    And whether DDP is to broadcast them in the next forward.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],  # beside the CPU
        module: nn.Module | None,
        moving: Collection[int],
        exact: bool,
        known: KnownBuffers | None = None,
    ) -> None:
        self.python = random.getstate()
        self.numpy: Any = None
        if (numpy := sys.modules.get("numpy")) is not None:
            self.numpy = numpy_state(numpy) if exact else probable_numpy_state(numpy)
        self.cpu = torch.get_rng_state()
        self.devices = {
            device: torch.get_device_module(device).get_rng_state(*_which(device))
            for device in devices
        }
        self.buffers = None if module is None else _Buffers(module, moving, known)
        self.syncs = buffer_syncs(module) if exact else []

    def put_back(self) -> None:
        self.put_streams_back()
        if self.buffers is not None:
            self.buffers.put_back()

    def put_streams_back(self) -> None:
        random.setstate(self.python)
        if self.numpy is not None:
            put_numpy_back(sys.modules["numpy"], self.numpy)
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            torch.get_device_module(device).set_rng_state(state, *_which(device))
        put_back_buffer_syncs(self.syncs)


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one MPS device only


class _Buffers:
    """Which tensors were a module's buffers, where they lay, and what was in them.

    All three: a forward may write into a buffer, move it to other memory, or put another tensor in
    its place, or where there was none.

    ``moving``: addresses of memory that trials move.  A buffer that lies in it (a flat tensor of
    all weights) is left to the trials: put back, it would undo them.
    """

    def __init__(
        self,
        module: nn.Module,
        moving: Collection[int] = (),
        known: KnownBuffers | None = None,
    ) -> None:
        if known is not None and known.are_those_of(module):
            found = known.found
            self.owners, self.places, self.memory = found.owners, found.places, found.memory
            self.copies = known.room_for(self)
        else:
            self._find(module, moving)
            self.copies = [torch.empty_like(memory) for memory in self.memory]
            if known is not None:
                known.remember(module, self)
        if self.memory:
            copy_each(self.copies, self.memory)

    def _find(self, module: nn.Module, moving: Collection[int]) -> None:
        self.owners = [(owner, dict(owner._buffers.items())) for owner in module.modules()]
        held = {id(b): b for _, buffers in self.owners for b in buffers.values() if b is not None}
        readable = [own for own in map(local_of, held.values()) if _has_plain_memory(own)]
        if moving:
            readable = [b for b in readable if b.untyped_storage().data_ptr() not in moving]
        # `.data` and not `.detach()`: autograd does not count what is written there, and need not,
        # since another graph that has saved a buffer finds it as it was
        self.places = [(buffer, buffer.data) for buffer in readable]
        self.memory = [_elements_or_bytes(place) for _, place in self.places]

    def put_back(self) -> None:
        for owner, buffers in self.owners:
            now = dict(owner._buffers.items())  # TorchScript's is no dictionary
            for name in now.keys() - buffers.keys():
                del owner._buffers[name]
            for name, buffer in buffers.items():
                if now.get(name) is not buffer:
                    owner._buffers[name] = buffer
        for buffer, place in self.places:
            if buffer.data_ptr() != place.data_ptr() or buffer.shape != place.shape:
                buffer.data = place
        there = list(map(has_memory, self.memory))
        if any(there):
            copy_each(list(compress(self.memory, there)), list(compress(self.copies, there)))
        if all(there):
            return
        lost = {id(buffer) for (buffer, _), is_there in zip(self.places, there) if not is_there}
        labels = [
            f"buffer {name!r} of {type(owner).__name__}"
            for owner, buffers in self.owners
            for name, buffer in buffers.items()
            if id(local_of(buffer)) in lost
        ]
        raise RuntimeError(
            f"{', '.join(labels)}: its memory was freed or cut short while the closure ran, and "
            "what was in it before cannot be put back; everything else was. Load it from a "
            "checkpoint, and let the closure write into buffers, not free them"
        )


class KnownBuffers:
    """The buffers as a step found them: to walk over a module takes longer than to look again.

    Used where no trials follow.  Whatever differs (a module, a name, a tensor, where it lies) makes
    the next step walk again.
    """

    MOST_BYTES = 4 << 20  # of copies that are kept from step to step

    def __init__(self) -> None:
        self.found: Any = None  # the _Buffers
        self._module: nn.Module | None = None
        self._seen: Any = None
        self._columns: Any = None
        self._copies: list[Tensor] = []
        self._user: Any = None  # a reference to whoever uses them now

    def remember(self, module: nn.Module, found: _Buffers) -> None:
        owners = [owner for owner, _ in found.owners]
        self._module = self.found = None
        if any(type(owner._buffers) is not dict for owner in owners):  # TorchScript's
            return
        tensors = [buffer for _, buffers in found.owners for buffer in buffers.values()]
        if not all(buffer is None or _has_plain_memory(buffer) for buffer in tensors):
            return
        layouts, at = columns.look.layouts(tensors), columns.addresses(tensors)
        small = sum(copy.nbytes for copy in found.copies) <= self.MOST_BYTES
        self._copies, self._user = (found.copies, ref(found)) if small else ([], None)
        self._columns = [(tensors, layouts, at)]
        self._owners, self._seen = owners, self._look(owners)
        kept = copy_of(found)
        kept.copies = []
        self._module, self.found = module, kept

    def are_those_of(self, module: nn.Module) -> bool:
        return (
            self._module is module
            and self._look(self._owners) == self._seen
            and columns.look.unchanged(self._columns)
        )

    @staticmethod
    def _look(owners: list[nn.Module]) -> tuple[list[int], list[str], list[int]]:
        """Everything by which the tree is known: submodules, and buffers with their names."""
        children = map(dict.values, map(_modules, owners))
        buffers = list(map(_buffers, owners))
        tensors = map(dict.values, buffers)
        chained = chain.from_iterable
        return (
            list(map(id, chained(children))),
            list(chained(buffers)),
            list(map(id, chained(tensors))),
        )

    def room_for(self, user: _Buffers) -> list[Tensor]:
        """Return copies to write into: those of the step before, unless it still needs them."""
        if self._copies and self._user() is None:
            self._user = ref(user)
            return self._copies
        return [torch.empty_like(memory) for memory in user.memory]


_modules, _buffers = attrgetter("_modules"), attrgetter("_buffers")


def _has_plain_memory(buffer: torch.Tensor) -> bool:
    """Return whether a buffer's memory can be copied.

    Others (sparse, quantized, nested, lazy) are put back as they are, if they were replaced.
    """
    return (
        buffer.layout == torch.strided
        and not buffer.is_quantized
        and not buffer.is_nested
        and (type(buffer) is torch.Tensor or not is_lazy(buffer))
        and (buffer.data_ptr() != 0 or buffer.numel() == 0)  # else its memory was given back
    )


def _elements_or_bytes(buffer: torch.Tensor) -> torch.Tensor:
    """Return what to copy: all bytes, where elements share memory or torch cannot copy them."""
    overlaps = not buffer.is_contiguous() and overlaps_itself(buffer)
    if overlaps or NARROW.fullmatch(str(buffer.dtype)) or buffer.is_conj() or buffer.is_neg():
        storage = buffer.untyped_storage()
        return torch.empty(0, dtype=torch.uint8, device=buffer.device).set_(storage)
    return buffer


# -- NumPy's stream ---------------------------------------------------------------------------

# ``numpy.random.get_state()`` copies 624 numbers one by one: 30 us in every step that calls a
# closure, and hardly any training step draws from this stream.

SIZE = 624 * 4 + 4  # bytes of a Mersenne twister: its numbers and its place in them


class _Known:
    """The state as it was read last, and the bytes that the generator had then."""

    generator: Any = None
    read: bytes | None = None
    state: Any = None


def numpy_state(numpy: Any) -> Any:
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


def probable_numpy_state(numpy: Any) -> Any:
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
    return numpy_state(numpy)


def put_numpy_back(numpy: Any, state: Any) -> None:
    """Set the state; what was remembered may no longer hold."""
    _Known.read = None
    numpy.random.set_state(state)
