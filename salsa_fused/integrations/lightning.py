"""FusedSaLSa with Lightning: ``Trainer(callbacks=[SaLSaCallback()])``.

Without the callback Lightning runs, too, but each trial is a backward with all its hooks, logs are
averaged over trials, and with ``accumulate_grad_batches`` only the last micro-batch counts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from .._torch import is_dtensor
from ..dtensor_norms import clip_grad_norm_of_dtensors
from ..optimizer import FusedSaLSa
from .common import DEEPSPEED, found_within, numbers, replaced

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # the same under its older name
    from pytorch_lightning import Callback  # type: ignore[assignment]

ITERATOR = (
    "training_step(dataloader_iter) draws its batch itself, and a trial would draw the next one: "
    "take the batch, training_step(batch, batch_idx)"
)

BY_VALUE = (
    'gradient_clip_algorithm="value" turns the gradients, and the search would test another slope '
    'than theirs: use "norm"'
)


class SaLSaCallback(Callback):
    """Lets the FusedSaLSa that ``configure_optimizers`` returns search in a Lightning Trainer.

    * Accumulation, clipping by norm, precision plugins and schedulers (as factors on the step size,
      1 at their peak) work as with any optimizer.
    * A trial calls ``training_step`` again, without gradients: backward and hooks run once a step,
      and ``self.log`` is silent in trials. What else ``training_step`` counts (torchmetrics) it
      does for trials, too, unless it asks ``torch.is_grad_enabled()``.
    * In manual optimization: ``loss = optimizer.evaluate(closure)``, ``self.manual_backward(loss)``
      and ``optimizer.step()``.
    * The optimizer's numbers are logged as ``salsa/step_size`` and so on; ``log=False``: not.

    Raises:
        TypeError, ValueError: no optimizer is a FusedSaLSa; DeepSpeed takes the step; clipping is
            by value; ``training_step`` takes an iterator.
    """

    def __init__(self, *, log: bool = True) -> None:
        self._log = log
        self._logged = 0  # the step
        self._optimizers: list[FusedSaLSa] = []
        self._norms: dict[int, Tensor] = {}  # before clipping
        self._automatic = True
        self._undo = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the optimizers, and watch their steps."""
        self._leave()  # a trial run of Lightning's tuners may have ended anywhere
        if "DeepSpeed" in type(trainer.strategy).__name__:
            raise ValueError(DEEPSPEED)
        found = [found_within(optimizer) for optimizer in trainer.optimizers]
        self._optimizers = [optimizer for optimizer in found if optimizer is not None]
        if not self._optimizers:
            raise TypeError(
                "SaLSaCallback needs a salsa_fused.FusedSaLSa from configure_optimizers, got "
                + (", ".join(type(o).__name__ for o in trainer.optimizers) or "no optimizer")
            )
        searches = any(o.param_groups[0]["search_period"] is not None for o in self._optimizers)
        if searches and trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            raise ValueError(BY_VALUE)
        for optimizer in self._optimizers:
            if optimizer.module in (None, pl_module):
                optimizer.module = trainer.model  # as it is called: DDP's
            self._undo.callback(optimizer.register_step_pre_hook(self._before_step).remove)
        self._automatic = pl_module.automatic_optimization
        if self._automatic:  # with one optimizer
            evaluation = _Evaluation(trainer, pl_module, self._optimizers[0])
            self._undo.enter_context(replaced(trainer.strategy, training_step=evaluation))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Note the norm of the gradients that a search will use, before Lightning clips them."""
        found = found_within(optimizer)
        if found is not None and found.search_due and self._automatic:
            self._norms[id(found)] = _norm(found)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the optimizer's numbers where Lightning logs the others."""
        if self._automatic:  # what had no backward had none on purpose
            self._optimizers[0]._parts.forget_without_backward()
        step, period = trainer.global_step, trainer.log_every_n_steps
        if not self._log or not period or step == self._logged or step % period:
            return
        self._logged = step
        several = len(self._optimizers) > 1
        for index, optimizer in enumerate(self._optimizers):
            end = f"/{index}" if several else ""
            found = {f"{name}{end}": value for name, value in numbers(optimizer).items()}
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step - 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave trainer and optimizers as they were."""
        self._leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave trainer and optimizers as they were."""
        self._leave()

    def _leave(self) -> None:
        self._undo.close()
        self._norms.clear()
        self._optimizers, self._logged = [], 0

    def _before_step(
        self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Call Lightning's closure, which computes the gradients, and step without it."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not self._automatic and not optimizer._parts:
            return None  # the closure is the user's
        if closure is not None:  # else a scaler's step, and it was called before
            closure()
        norm = self._norms.pop(id(optimizer), None)
        if norm is not None and not torch.equal(after := _norm(optimizer), norm):
            optimizer._clipped = optimizer._clipped.multiplied(after / norm)
        if self._automatic:
            optimizer._parts.forget_without_backward()
            if not optimizer._parts:  # training_step returned None
                return (optimizer, lambda: None), {}
        return (optimizer,), {}


class _Evaluation:
    """``strategy.training_step``, and the optimizer hears of what is evaluated."""

    def __init__(self, trainer: Any, pl_module: Any, optimizer: FusedSaLSa) -> None:
        self._own = trainer.strategy.training_step
        self._trainer = trainer
        self._optimizer = optimizer
        # of whichever of Lightning's two packages
        self._modules = [m for m in pl_module.modules() if hasattr(m, "log_dict")]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(argument, Iterator) for argument in args):
            raise TypeError(ITERATOR)
        again = partial(self._again, _copied(args), kwargs)
        weight = 1.0 / self._trainer.accumulate_grad_batches
        with self._optimizer._evaluating(again, weight) as note:
            output = self._own(*args, **kwargs)
            loss = _loss_of(output)
            if loss is not None:
                note(loss)
        return output

    def _again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the loss at a trial, without a word to the loggers."""
        with ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(replaced(module, log=_silent, log_dict=_silent))
            return _loss_of(self._own(*_copied(args), **kwargs))


def _loss_of(output: Any) -> Any:
    return output.get("loss") if isinstance(output, MutableMapping) else output


def _copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments as they are before a ``training_step`` that takes its batch apart."""
    return tuple(copy.copy(a) if isinstance(a, (MutableMapping, list)) else a for a in args)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``self.log`` at a trial."""


def _norm(optimizer: FusedSaLSa) -> Tensor:
    parameters = optimizer._parameters()
    if any(map(is_dtensor, parameters)):
        return clip_grad_norm_of_dtensors(parameters, math.inf, 2.0, False)
    return get_total_norm([p.grad for p in parameters if p.grad is not None])
