"""The loss of a step in parts, which the training loop evaluates before a bare ``step()``.

A trial evaluates all parts again and adds them up.  Each begins with the random streams that it had
at first, whatever was drawn between two of them (data, augmentation), with its autocast, and with
the variables of its closure.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .evaluation import check_loss
from .replay import Replay
from .variables import Variables

NO_BACKWARD = (
    "evaluate() was called for this step, but no loss that it returned has had a backward(): call "
    "loss.backward() (accelerator.backward(loss), scaler.scale(loss).backward()) before step()"
)

TWO_CLOSURES = (
    "step() was given a closure or a loss, and evaluate() has noted one for this step: leave one "
    "of them out, step() after evaluate() takes no arguments (in Lightning's manual optimization "
    "salsa_fused.integrations.lightning.SaLSaCallback sees to it)"
)


@dataclass(eq=False)
class Part:
    """One evaluation: the ``loss`` that ``closure`` computed; it counts ``weight`` times."""

    closure: Callable[[], Any]
    loss: Tensor
    replay: Replay  # from before it
    weight: float = 1.0
    differentiated: bool = False  # its backward() has begun
    autocasts: list[tuple[Any, ...]] = field(default_factory=lambda: autocasts_now())

    def __post_init__(self) -> None:
        self._variables = Variables(self.closure)
        # a new tensor: a compiled model may overwrite its output in the next evaluation
        self.loss = self.weight * self.loss.detach()

    def again(self) -> Tensor:
        """Return the loss at the weights as they stand now, weighted."""
        with ExitStack() as stack:
            for device, dtype, enabled, cached in self.autocasts:
                stack.enter_context(torch.autocast(device, dtype, enabled, cached))
            stack.enter_context(self._variables.as_then())
            return self.weight * check_loss(self.closure(), "closure() at a trial point")


class Parts(list[Part]):
    """All parts since the last step.

    Those whose ``backward`` has begun are in the gradients.  A loop may clear these between an
    evaluation and its ``backward``, so that a part is not forgotten before that.
    """

    def differentiate(self, part: Part, gone: Callable[[], bool]) -> None:
        """Note that the gradients of a part are about to be added to those that are there."""
        if not part.differentiated:
            self.forget_cleared(gone)
            part.differentiated = True

    def forget_cleared(self, gone: Callable[[], bool]) -> None:
        """Forget the parts whose gradients are gone: model.zero_grad() was called since."""
        if any(part.differentiated for part in self) and gone():
            self.forget_differentiated()

    def forget_differentiated(self) -> None:
        """Forget the parts whose gradients were cleared."""
        self[:] = [part for part in self if not part.differentiated]

    def forget_without_backward(self) -> None:
        """Forget the parts that are not in the gradients, and will not be."""
        self[:] = [part for part in self if part.differentiated]

    def together(self) -> tuple[Callable[[], Tensor], Tensor, Replay]:
        """Return closure, loss and replay of all parts that are in the gradients.

        Raises:
            RuntimeError: there is none.
        """
        self.forget_without_backward()
        if not self:
            raise RuntimeError(NO_BACKWARD)
        first, others = self[0], self[1:]

        def closure() -> Tensor:
            total = first.again()  # the step has put its random streams and all buffers back
            for part in others:
                part.replay.rewind_streams()
                total = total + part.again()
            return total

        loss = first.loss
        for part in others:
            loss = loss + part.loss
        return closure, loss, first.replay


def autocasts_now() -> list[tuple[Any, ...]]:
    """Return the arguments of ``torch.autocast`` that say what it does at present."""
    cached = torch.is_autocast_cache_enabled()
    return [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cached)
        for device in _device_types()
    ]


def _device_types() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]
