"""A script's learning rates as factors of the step size that a search finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeVar, overload
from weakref import WeakSet

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.optim.optimizer import Optimizer

from ._torch import parts_of
from .plain_numbers import is_number

Scheduler = TypeVar("Scheduler", bound=LRScheduler)

_with_factors: WeakSet[Optimizer] = WeakSet()
_surely_factors: WeakSet[Optimizer] = WeakSet()  # of another peak than 1
_classes: dict[type[LRScheduler], type[LRScheduler]] = {}


@overload
def as_factor(scheduler: Scheduler, peak: float | None = None) -> Scheduler: ...
@overload
def as_factor(scheduler: float) -> Callable[[float], float]: ...


def as_factor(scheduler: Any, peak: float | None = None) -> Any:
    """Make a factor, 1 at its peak, of a schedule that is written in learning rates.

    From then on ``group["lr"]`` is the schedule's value divided by ``peak``, in every group; what
    the scheduler computes from, ``get_last_lr()`` and its checkpoints stay learning rates.

    >>> scheduler = as_factor(OneCycleLR(optimizer, max_lr=1e-3, total_steps=100))  # 0.04 .. 1 ..
    >>> scheduler.step()

    Where a script writes ``group["lr"]`` itself, ``as_factor`` of its largest learning rate is the
    function to write it with:

    >>> factor = as_factor(6e-4)
    >>> for group in optimizer.param_groups:
    ...     group["lr"] = factor(get_lr(iteration))

    It is called once, for the scheduler that has all the others in it (``SequentialLR``,
    ``ChainedScheduler``), and before or after checkpoints are loaded. What else changes
    ``group["lr"]`` (a ``ReduceLROnPlateau`` beside it) changes the factor.

    Args:
        scheduler: a scheduler of torch's, or of a class derived from one. Or a learning rate.
        peak: the learning rate that is to be the factor 1. By default the scheduler's ``max_lr``
            (``OneCycleLR``, ``CyclicLR``), or else the ``lr`` that it started from, of several
            groups the largest. A ``LambdaLR`` whose function returns learning rates needs it.

    Returns:
        The same scheduler. Or a function of a learning rate.

    Raises:
        TypeError: this is neither a scheduler nor a number.
        ValueError: the peak is not positive, or the optimizer has such a scheduler already.
    """
    if not isinstance(scheduler, LRScheduler):
        return _function_of(scheduler, peak)
    if isinstance(scheduler, _AsFactor):
        if peak is not None and peak != scheduler.peak_lr:
            raise ValueError(
                f"the scheduler is a factor of the peak {scheduler.peak_lr} already, not of {peak}"
            )
        return scheduler
    parts = _parts(scheduler)
    name = type(scheduler).__name__
    if any(isinstance(part, _AsFactor) for part in parts):
        raise ValueError(
            f"parts of the {name} are factors already: call as_factor({name}(...)) alone"
        )
    if scheduler.optimizer in _with_factors:
        raise ValueError(
            "the optimizer's lr are factors already, of another scheduler: one that multiplies "
            "needs no as_factor beside it; others are chained with it before, "
            "as_factor(ChainedScheduler([...]))"
        )
    loaded = vars(scheduler).get("peak_lr")  # from a checkpoint
    if peak is None:
        peak = _largest_rate(scheduler) if loaded is None else loaded
    _check_peak(peak)
    scheduler.__class__ = _class_of(type(scheduler))
    assert isinstance(scheduler, _AsFactor)
    if loaded is None:
        scheduler.peak_lr = float(peak)
        scheduler.divide()
    else:
        _write(scheduler.optimizer, scheduler._factors)
    _with_factors.add(scheduler.optimizer)
    if scheduler.peak_lr != 1.0:  # else they may be learning rates all the same
        _surely_factors.add(scheduler.optimizer)
    return scheduler


class Factor(float):
    """A ``group["lr"]`` that went through :func:`as_factor`; in a state dict it is a float."""


def has_factors(optimizer: Optimizer) -> bool:
    """Return whether a scheduler is known to write factors into the groups of this optimizer."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    return optimizer in _surely_factors or any(isinstance(lr, Factor) for lr in lrs)


class _AsFactor(LRScheduler):
    """What :func:`as_factor` puts before a scheduler's class.

    The scheduler steps on learning rates: they are put back into the groups before, and divided
    after it. A product of a quotient would not be the number that it was.
    """

    scheduler_class: type[LRScheduler]
    peak_lr: float
    _rates: list[float]  # each group's learning rate as the scheduler left it
    _factors: list[float]  # and what stands for it in the group

    def step(self, *arguments: Any, **keywords: Any) -> None:
        """Step the scheduler on its learning rates, and write factors again."""
        _write(self.optimizer, self._present_rates())
        try:
            super().step(*arguments, **keywords)
        finally:
            self.divide()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the scheduler's state, before or after the optimizer's."""
        left = self._factors
        super().load_state_dict(state_dict)
        if "peak_lr" not in state_dict:  # of a time when it was no factor
            self._rates = [float(rate) for rate in self.get_last_lr()]
            self._factors = [rate / self.peak_lr for rate in self._rates]
        for group, here, loaded in zip(self.optimizer.param_groups, left, self._factors):
            if float(group["lr"]) == here:  # else the loaded optimizer's
                write_lr(group, loaded)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.scheduler_class,), vars(self).copy()

    def _present_rates(self) -> list[float]:
        present = []
        for index, group in enumerate(self.optimizer.param_groups):
            lr = float(group["lr"])
            if index < len(self._factors) and lr == self._factors[index]:
                present.append(self._rates[index])
            else:  # somebody else's
                present.append(lr * self.peak_lr)
        return present

    def divide(self) -> None:
        """Note the groups' learning rates, and write factors in their place."""
        groups = self.optimizer.param_groups
        self._rates = [float(group["lr"]) for group in groups]
        _write(self.optimizer, [rate / self.peak_lr for rate in self._rates])
        self._factors = [float(group["lr"]) for group in groups]


def _class_of(scheduler_class: type[LRScheduler]) -> type[LRScheduler]:
    """Return the derived class, one for all schedulers of a class."""
    if scheduler_class not in _classes:
        names = ("__module__", "__qualname__", "__doc__")
        own = {name: getattr(scheduler_class, name) for name in names}
        own["scheduler_class"] = scheduler_class
        bases = _AsFactor, scheduler_class
        _classes[scheduler_class] = type(scheduler_class.__name__, bases, own)
    return _classes[scheduler_class]


def _unpickled(scheduler_class: type[LRScheduler]) -> LRScheduler:
    return object.__new__(_class_of(scheduler_class))


def _write(optimizer: Optimizer, values: Sequence[float]) -> None:
    """Write values into the groups. They were all read before: groups may share a tensor."""
    for group, value in zip(optimizer.param_groups, values):
        write_lr(group, value)


def write_lr(group: dict[str, Any], value: float) -> None:
    """Write a group's ``lr``, in place where it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value


def _parts(scheduler: LRScheduler) -> list[LRScheduler]:
    parts = parts_of(scheduler)
    return parts + [deeper for part in parts for deeper in _parts(part)]


def _largest_rate(scheduler: LRScheduler) -> float:
    if parts := _parts(scheduler):
        return max(map(_largest_rate, parts))
    groups = scheduler.optimizer.param_groups
    if isinstance(scheduler, OneCycleLR):
        rates = [group["max_lr"] for group in groups]
    elif not (rates := getattr(scheduler, "max_lrs", None) or getattr(scheduler, "base_lrs", [])):
        # ReduceLROnPlateau begins with them
        rates = [group.get("initial_lr", group["lr"]) for group in groups]
    return max(map(float, rates))


def _function_of(peak: Any, second: Any) -> Callable[[float], float]:
    if not isinstance(peak, (Real, Tensor)):
        raise TypeError(
            "as_factor takes a scheduler of torch's, or the largest learning rate of a schedule "
            f"that is written by hand, got {type(peak).__name__}"
        )
    if second is not None:
        raise TypeError("as_factor takes the peak once, where there is no scheduler")
    _check_peak(peak)
    largest = float(peak)

    def factor(lr: float) -> float:
        if not is_number(lr) or not 0.0 <= float(lr) < math.inf:
            raise ValueError(f"the learning rate must be a number >= 0 and finite, got {lr!r}")
        return Factor(float(lr) / largest)

    return factor


def _check_peak(peak: Any) -> None:
    if not is_number(peak) or not 0.0 < float(peak) < math.inf:
        raise ValueError(
            f"the peak must be a learning rate, positive and finite, got {peak!r}: as_factor "
            "divides by it"
        )
