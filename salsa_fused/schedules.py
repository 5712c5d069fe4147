"""Schedules: :func:`as_factor` of any LR scheduler, and adaptive fine-tuning.

In adaptive fine-tuning the validation loss decides when to cool down and when to stop:
F. Stollenwerk, *Adaptive Fine-Tuning of Transformer-Based Language Models for Named Entity
Recognition*, arXiv 2202.02617.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from .factors import as_factor, write_lr
from .plain_numbers import check_integer

__all__ = ["AdaptiveFineTuning", "as_factor"]


class AdaptiveFineTuning(LRScheduler):
    """Linear warm-up, a constant factor 1, and a linear cool-down once the loss stops to improve.

    The first epoch whose validation loss is not below the best so far starts the cool-down. An
    improvement on the way returns to 1, and the next epoch without one starts a new cool-down. A
    full cool-down without an improvement ends training: :attr:`finished`. The checkpoint of
    :attr:`best_epoch` is the result. With ``N = steps_per_epoch`` the factors of ``lr`` are

        warm-up    (k + 1) / (warmup N)      for step k = 0, 1, ... of training
        constant   1
        cool-down  1 - k / (cooldown N)      for step k = 0, 1, ... of the cool-down
        finished   0

    A factor on ``lr`` of any optimizer; each group keeps its own ``lr``, and other schedulers that
    multiply it may run beside (not ``SequentialLR``: it calls ``step(0)``). ``step()`` comes after
    every optimizer step, ``step(validation_loss)`` after every epoch, as with
    ``ReduceLROnPlateau``; where ``steps_per_epoch`` is 1, the latter alone is enough.

    >>> scheduler = AdaptiveFineTuning(optimizer, steps_per_epoch=len(batches))
    >>> while not scheduler.finished:
    ...     for inputs, targets in batches:
    ...         optimizer.step(lambda: loss_function(model(inputs), targets))
    ...         scheduler.step()
    ...     scheduler.step(validation_loss(model))
    ...     if scheduler.improved:
    ...         torch.save(model.state_dict(), "best.pt")
    ... model.load_state_dict(torch.load("best.pt"))

    An epoch ends where its validation loss is given: a longer one stays at the factor of its last
    step, a shorter one jumps ahead. A warm-up is always completed: an epoch before its end starts
    no cool-down. A NaN is no improvement.

    Args:
        optimizer: any torch optimizer. Parameter groups may be added later.
        steps_per_epoch: optimizer steps per epoch, at least 1.
        warmup: epochs of warm-up, 0 or more, also a fraction of one. The paper's is 2.
        cooldown: epochs of cool-down, at least 1. The paper's is 7.

    Raises:
        TypeError: the optimizer is none, or a validation loss is not a number.
        ValueError: another argument is out of range.
    """

    epoch: int
    """Epochs that have ended."""
    best_loss: float
    """The lowest validation loss so far, infinity before the first."""
    best_epoch: int | None
    """The epoch it belongs to, counted from 0; None before the first."""
    finished: bool
    """Training has ended: a full cool-down brought no improvement."""

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: int = 1,
        *,
        warmup: float = 2,
        cooldown: int = 7,
    ) -> None:
        check_integer("steps_per_epoch", steps_per_epoch)
        check_integer("cooldown", cooldown)
        if isinstance(warmup, bool) or not isinstance(warmup, (int, float)):
            raise ValueError(f"warmup must be a number of epochs, got {warmup!r}")
        if not 0.0 <= warmup < math.inf:
            raise ValueError(f"warmup must be 0 or more epochs and finite, got {warmup!r}")
        self.steps_per_epoch = int(steps_per_epoch)
        self.warmup = warmup
        self.cooldown = int(cooldown)
        self.epoch = 0
        self.step_in_epoch = 0
        self.cooldown_start: int | None = None  # the first epoch of the present cool-down
        self.best_loss = math.inf
        self.best_epoch = None
        self.finished = False
        self._full: list[float] = []  # each group's lr at the factor 1
        self._set: list[float] = []  # each group's lr as this scheduler left it
        super().__init__(optimizer)

    @property
    def improved(self) -> bool:
        """Whether the last epoch is the best so far: the moment to keep a checkpoint."""
        return self.best_epoch is not None and self.best_epoch == self.epoch - 1

    @property
    def factor(self) -> float:
        """The present factor of ``lr``."""
        if self.finished:
            return 0.0
        # an epoch that is longer than expected stays at its last step
        k = self.epoch * self.steps_per_epoch + min(self.step_in_epoch, self.steps_per_epoch - 1)
        if self.cooldown_start is not None:
            k -= self.cooldown_start * self.steps_per_epoch
            return 1.0 - k / (self.cooldown * self.steps_per_epoch)
        length = self.warmup * self.steps_per_epoch
        return (k + 1) / length if k + 1 < length else 1.0

    def step(self, validation_loss: float | Tensor | None = None) -> None:
        """Count an optimizer step; given the validation loss of the whole epoch, end the epoch.

        A finished schedule stays as it is, whatever comes.
        """
        first = self.last_epoch < 0  # the base class's own call, from the constructor
        if validation_loss is not None:
            self._end_epoch(_as_number(validation_loss))
        elif not first and not self.finished:
            self.step_in_epoch += 1
        self._full = self._present_full([] if first else self._full)
        super().step()
        self._set = [float(group["lr"]) for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        """Return each group's full ``lr`` times the factor."""
        return [self.factor * full for full in self._full]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; before or after the optimizer's own."""
        set_here = self._set
        super().load_state_dict(state_dict)
        for group, here, there in zip(self.optimizer.param_groups, set_here, self._set):
            if float(group["lr"]) == here:  # else the loaded optimizer's, with what others did
                write_lr(group, there)

    def _present_full(self, full: list[float]) -> list[float]:
        """Return each group's lr at the factor 1, with what others have done to it since."""
        present = []
        for i, group in enumerate(self.optimizer.param_groups):
            lr = float(group["lr"])
            if i >= len(full):  # a new group
                present.append(lr)
            elif lr == self._set[i]:
                present.append(full[i])
            else:
                present.append(full[i] * (lr / self._set[i]) if self._set[i] else lr)
        return present

    def _end_epoch(self, loss: float) -> None:
        if self.finished:
            return
        self.epoch += 1
        self.step_in_epoch = 0
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch - 1
            self.cooldown_start = None
        elif self.cooldown_start is not None:
            self.finished = self.epoch - self.cooldown_start >= self.cooldown
        elif self.epoch >= self.warmup:
            self.cooldown_start = self.epoch


def _as_number(loss: Any) -> float:
    try:
        if isinstance(loss, str):
            raise TypeError
        return float(loss.item() if isinstance(loss, Tensor) else loss)
    except (TypeError, RuntimeError):  # no number; a tensor of several
        raise TypeError(
            "step(validation_loss) takes the validation loss of the epoch, one number, got "
            f"{type(loss).__name__}; after an optimizer step call step()"
        ) from None
