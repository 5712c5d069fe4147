"""Several ranks train one model: what one of them decides, all decide.

Every number that a decision needs is gathered from all ranks in a message of fixed length, and each
rank adds up the same float64 numbers in the same exact way.  So step sizes, trials and skips are
equal bit for bit, whatever order a reduction would have.

What is gathered is always a mean over the ranks.  Of the loss it is what averaged gradients belong
to.  Of a sum over weights it is the sum over the whole model, where each rank counts its part as
often as there are distinct parts (``pieces`` of a bucket): once under DDP, where all have all.

A rank whose step fails tells the others, which wait for its message: they undo the step, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ._torch import is_dtensor, local_of, ranks_are_set_up
from .plain_numbers import check_choice

KINDS = (
    *("a plain step", "its gradients", "a search", "its slope", "a trial"),
    *("a look back", "a first move"),
)
KIND, FAILED, STEPS, STEP_SIZE, NUMBERS = range(5)  # of a message
LENGTH = NUMBERS + 4

APART = (
    "ranks are at different {what} ({found}): was a checkpoint loaded, or a step taken, on some "
    "ranks only? Build the optimizer, load and step alike on all ranks"
)

REDUCTIONS = ("mean", "sum")


class Ranks:
    """The ranks of a process group (None: all), and this one's part in what they agree on.

    ``loss_reduction``: how the losses of all ranks make the loss whose gradient is used.
    """

    def __init__(self, group: Any = None, loss_reduction: str = "mean") -> None:
        check_choice("loss_reduction", loss_reduction, REDUCTIONS)
        if group is not None and not hasattr(group, "rank"):
            raise TypeError(
                "process_group must be a torch.distributed.ProcessGroup or None (all ranks), got "
                f"{type(group).__name__}"
            )
        self.group, self.loss_reduction = group, loss_reduction
        self.are_set_up = self.several = False  # as this step has found it
        self.deaf = False  # the others may wait in their forward, and for no message
        self._groups: Sequence[Mapping[str, Any]] = ()
        self._others_wait = False
        self._columns: list[tuple[float, ...]] = []

    @property
    def size(self) -> int:
        """How many ranks there are; 1 where torch.distributed was not set up."""
        return torch.distributed.get_world_size(self.group) if ranks_are_set_up() else 1

    def begin(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Begin a step in torch.distributed; return whether there are several ranks.

        ``groups``: what every message says of them.
        """
        self._groups, self._others_wait, self.deaf = groups, False, False
        return self.size > 1

    # -- numbers on the host --------------------------------------------------------------------

    def mean(self, kind: str, *numbers: float) -> list[float]:
        """Return the means over all ranks; one that is not finite on a rank is NaN on all.

        Raises:
            RuntimeError: another rank has failed, or does something else at this time.
        """
        self._others_wait = False  # whatever fails from here on, they hear of it or are gone
        rows = self._gather(self._message(kind, numbers)).tolist()
        self._compare(rows)
        self._others_wait = True
        self._columns = list(zip(*rows))[NUMBERS : NUMBERS + len(numbers)]
        return [_mean(column) for column in self._columns]

    def differ(self, place: int, tolerance: float = 0.0) -> bool:
        """Return whether ranks had other numbers at this place of the last :meth:`mean`."""
        numbers = self._columns[place]
        largest, smallest = max(numbers), min(numbers)
        return largest - smallest > tolerance * max(abs(largest), abs(smallest))

    def mean_loss(self, kind: str, loss: float, *numbers: float) -> list[float]:
        """Return the loss of all ranks as ``loss_reduction`` has it, and the means of others."""
        mean, *means = self.mean(kind, loss, *numbers)
        return [mean * self._share_of_loss, *means]

    # -- numbers on a device, whose host does not wait ------------------------------------------

    def mean_on_device(self, kind: str, number: Tensor) -> Tensor:
        """Return the mean over all ranks, where the number is; the host waits on a CPU only."""
        if number.device.type == "cpu":
            return number.new_tensor(self.mean(kind, number.item())[0])
        message = self._message(kind, ())
        message[NUMBERS] = number.detach()
        mean = self._gather(message)[:, NUMBERS].sum() / self.size
        return mean.to(number.device, number.dtype)

    def mean_loss_on_device(self, kind: str, loss: Tensor) -> Tensor:
        """Return the loss of all ranks as ``loss_reduction`` has it, where the loss is."""
        return self.mean_on_device(kind, loss) * self._share_of_loss

    def mean_of_each(self, numbers: Tensor) -> Tensor:
        """Return the mean over all ranks of every number; the host does not wait on a device."""
        return self._gather(numbers).sum(0) / self.size if self.several else numbers

    # -- failures -------------------------------------------------------------------------------

    def begin_to_listen(self) -> None:
        """Note that the next thing that all ranks do is a message."""
        self._others_wait = True

    def end(self) -> None:
        """Note that no further message follows in this step."""
        self._others_wait = False

    def tell_of_failure(self) -> None:
        """Tell the others that this rank's step has failed, if they wait for its message."""
        if self._others_wait and not self.deaf:
            self._others_wait = False
            message = self._message(KINDS[0], ())
            message[FAILED] = 1.0
            with suppress(Exception):  # they are gone
                self._gather(message)

    def _compare(self, rows: list[list[float]]) -> None:
        """Raise RuntimeError where a rank has failed, or is somewhere else."""
        failed = [str(self._name(rank)) for rank, row in enumerate(rows) if row[FAILED]]
        if failed:
            raise RuntimeError(
                f"the step failed on rank {', '.join(failed)}, whose error says why: this rank has "
                "undone it, too"
            )
        for place, what in ((STEPS, "steps"), (STEP_SIZE, "step sizes")):
            found = list(dict.fromkeys(row[place] for row in rows))
            if len(found) > 1:
                raise RuntimeError(
                    APART.format(what=what, found=", ".join(f"{value:.17g}" for value in found))
                )
        kinds = list(dict.fromkeys(KINDS[int(row[KIND])] for row in rows))
        if len(kinds) > 1:
            raise RuntimeError(
                APART.format(what=f"places of step {rows[0][STEPS]:.0f}", found=", ".join(kinds))
            )

    # -- messages -------------------------------------------------------------------------------

    def _message(self, kind: str, numbers: Sequence[float]) -> Tensor:
        first = self._groups[0]
        header = [KINDS.index(kind), 0.0, first["steps"], first["step_size"]]
        padded = [*header, *numbers, *[0.0] * (LENGTH - NUMBERS - len(numbers))]
        message = torch.tensor(padded, dtype=torch.float64)
        device = device_of(self._groups)
        if device.type == "cpu":
            return message
        return message.pin_memory().to(device, non_blocking=True)

    def _gather(self, message: Tensor) -> Tensor:
        """Return the messages of all ranks, in their order."""
        rows = [torch.empty_like(message) for _ in range(self.size)]
        torch.distributed.all_gather(rows, message, group=self.group)
        return torch.stack(rows)

    @property
    def _share_of_loss(self) -> float:
        return float(self.size) if self.loss_reduction == "sum" else 1.0

    def _name(self, rank: int) -> int:
        if self.group is None:
            return rank
        return torch.distributed.get_global_rank(self.group, rank)


def device_of(groups: Sequence[Mapping[str, Any]]) -> torch.device:
    """Return where messages go from: where the parameters are, or their mesh is.

    An offloaded DTensor lies on the CPU, where its ranks have no way to each other.
    """
    first: Any = next((group["params"][0] for group in groups if group["params"]), None)
    if first is None:
        return torch.device("cpu")
    device: torch.device = local_of(first).device
    if is_dtensor(first) and (kind := first.device_mesh.device_type) != device.type:
        return torch.device(kind, torch.get_device_module(kind).current_device())
    return device


def _mean(numbers: Sequence[float]) -> float:
    if not all(map(math.isfinite, numbers)):
        return math.nan
    return math.fsum(numbers) / len(numbers)
