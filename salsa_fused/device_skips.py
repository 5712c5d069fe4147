"""Steps that a device skips by itself, since the host does not wait for the loss of every step."""

from __future__ import annotations

from torch import Tensor


class DeviceSkips:
    """Flags for the kernels, and the count of those that were up, both on the device."""

    def __init__(self) -> None:
        self.unheard: Tensor | None = None  # what the host does not know of yet

    @staticmethod
    def flag(number: Tensor) -> Tensor:
        """fp32: 0 where a loss or a norm is finite, else not a number."""
        return number.reshape(()).mul(0.0).float()

    def count(self, flag: Tensor) -> None:
        skipped = flag.ne(0.0).float()
        if self.unheard is None:
            self.unheard = skipped
        else:  # in place: on whatever stream, the memory stays this one
            self.unheard += skipped.to(self.unheard.device)

    def heard(self) -> None:
        """The host has read :attr:`unheard`."""
        self.unheard = None

    def wait(self) -> int:
        """The count, read now: the host waits for the device."""
        count = 0 if self.unheard is None else int(self.unheard.item())
        self.heard()
        return count
