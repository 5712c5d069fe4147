"""Replays: a trial evaluates the same function as the first evaluation, at other weights.

That takes the same random numbers (dropout) and the same buffers (BatchNorm's running statistics,
spectral norm's vectors).  :class:`Replay` holds both as they were before the first evaluation and
as it left them.  However many trials there are, afterwards random streams and buffers stand where
the first evaluation left them.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Collection, Iterable
from itertools import compress
from operator import not_
from typing import Any

import torch
from torch import nn

from . import numpy_stream
from ._torch import copy_each
from .kernels.layout import has_memory, is_lazy, overlaps_itself

NARROW = re.compile(r"torch\.(u?int[1-7]|bits.*)")  # dtypes that torch can store and not copy


class _Snapshot:
    """The state of all random generators in use, and of all buffers."""

    def __init__(
        self,
        devices: Iterable[torch.device],
        module: nn.Module | None,
        moving: Collection[int],
        exact: bool,
    ) -> None:
        self.python = random.getstate()
        self.numpy: Any = None
        if (numpy := sys.modules.get("numpy")) is not None:
            stream = numpy_stream.state_of if exact else numpy_stream.probable_state_of
            self.numpy = stream(numpy)
        self.cpu = torch.get_rng_state()
        self.devices = {
            device: torch.get_device_module(device).get_rng_state(*_which(device))
            for device in devices
            if device.type != "cpu"
        }
        self.buffers = None if module is None else _Buffers(module, moving)

    def put_back(self) -> None:
        random.setstate(self.python)
        if self.numpy is not None:
            numpy_stream.put_back(sys.modules["numpy"], self.numpy)
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            torch.get_device_module(device).set_rng_state(state, *_which(device))
        if self.buffers is not None:
            self.buffers.put_back()


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one MPS device only


class _Buffers:
    """Which tensors were a module's buffers, where they lay, and what was in them.

    All three: a forward may write into a buffer, move it to other memory, or put another tensor in
    its place, or where there was none.

    ``moving``: addresses of memory that trials move.  A buffer that lies in it (a flat tensor of
    all weights) is left to the trials: put back, it would undo them.
    """

    def __init__(self, module: nn.Module, moving: Collection[int] = ()) -> None:
        self.owners = [(owner, dict(owner._buffers.items())) for owner in module.modules()]
        held = {id(b): b for _, buffers in self.owners for b in buffers.values() if b is not None}
        readable = [buffer for buffer in held.values() if _has_plain_memory(buffer)]
        if moving:
            readable = [b for b in readable if b.untyped_storage().data_ptr() not in moving]
        # `.data` and not `.detach()`: autograd does not count what is written there, and need not,
        # since another graph that has saved a buffer finds it as it was
        self.places = [(buffer, buffer.data) for buffer in readable]
        self.memory = [_elements_or_bytes(place) for _, place in self.places]
        self.copies = [torch.empty_like(memory) for memory in self.memory]
        if self.memory:
            copy_each(self.copies, self.memory)

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
        if not all(there):
            raise RuntimeError(self._say_which(list(map(not_, there))))

    def _say_which(self, lost: list[bool]) -> str:
        gone = {id(buffer) for buffer, _ in compress(self.places, lost)}
        labels = [
            f"buffer {name!r} of {type(owner).__name__}"
            for owner, buffers in self.owners
            for name, buffer in buffers.items()
            if id(buffer) in gone
        ]
        return (
            f"{', '.join(labels)}: its memory was freed or cut short while the closure ran, and "
            "what was in it before cannot be put back; everything else was. Load it from a "
            "checkpoint, and let the closure write into buffers, not free them"
        )


def _has_plain_memory(buffer: torch.Tensor) -> bool:
    """Others (sparse, quantized, nested, lazy) are put back as they are, if they were replaced."""
    return (
        buffer.layout == torch.strided
        and not buffer.is_quantized
        and not buffer.is_nested
        and not is_lazy(buffer)
        and (buffer.data_ptr() != 0 or buffer.numel() == 0)  # else its memory was given back
    )


def _elements_or_bytes(buffer: torch.Tensor) -> torch.Tensor:
    """What can be copied: all bytes, where elements share memory or torch cannot copy them."""
    if (
        overlaps_itself(buffer)
        or buffer.is_conj()
        or buffer.is_neg()
        or NARROW.fullmatch(str(buffer.dtype))
    ):
        storage = buffer.untyped_storage()
        return torch.empty(0, dtype=torch.uint8, device=buffer.device).set_(storage)
    return buffer


class Replay:
    """``Replay(...)`` before the first evaluation, :meth:`end_first` after it.

    Then :meth:`rewind` before every further one, and at last :meth:`resume`; or :meth:`rewind`
    alone where the step is undone.
    """

    def __init__(
        self,
        devices: Iterable[torch.device],
        module: nn.Module | None,
        *,
        knows_first: bool = True,  # made before the first evaluation, not after it
        moving: Collection[int] = (),  # addresses of the memory that trials move
        trials_follow: bool = True,  # else it is for an undo only
    ) -> None:
        self.knows_first = knows_first
        self._devices = list(devices)
        self._module = module
        self._moving = moving
        self._before = _Snapshot(self._devices, module, moving, trials_follow)
        self._after: _Snapshot | None = None

    def end_first(self) -> None:
        self._after = _Snapshot(self._devices, self._module, self._moving, exact=True)

    def rewind(self) -> None:
        """Random streams and buffers as before the first evaluation."""
        self._before.put_back()

    def resume(self) -> None:
        """Random streams and buffers as the first evaluation left them."""
        (self._after or self._before).put_back()
