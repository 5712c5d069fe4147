"""FusedSaLSa with the Hugging Face Trainer: ``SaLSaTrainer``, or the mixin for other trainers.

::

    trainer = SaLSaTrainer(model=model, args=args, train_dataset=dataset)
    trainer.train()

    class MyTrainer(SaLSaTrainerMixin, SFTTrainer): ...
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import SchedulerType, Trainer

from ..optimizer import FusedSaLSa
from .accelerate import check_distributed_type, note_clipping_of
from .common import numbers, replaced, unwrapped


class SaLSaTrainerMixin:
    """What makes a Trainer search; it goes before the Trainer: ``(SaLSaTrainerMixin, Trainer)``.

    * The optimizer is a ``FusedSaLSa`` with ``adam_beta1``, ``adam_beta2``, ``adam_epsilon`` and
      ``weight_decay`` of the arguments, or the one that is given with ``optimizers=`` or
      ``optimizer_cls_and_kwargs=``. There is no learning rate: ``learning_rate`` is not used.
    * ``lr_scheduler_type="linear"``, the Trainer's default, stands for the optimizer's own decay
      over the last half of the run, ``total_steps=``. Every other schedule is a factor on the step
      size, 1 at its peak; warm-up is one with all of them.
    * ``max_grad_norm`` clips as ever, and the search knows of it.
    * The optimizer's numbers are logged beside the loss, as ``salsa/step_size`` and so on; what the
      Trainer logs as ``learning_rate`` is the factor.

    A trial runs ``training_step`` again, without gradients and without backward. What an override
    of ``training_step`` or ``compute_loss`` counts or logs, it does for trials, too, unless it asks
    ``torch.is_grad_enabled()``.
    """

    # of the Trainer
    accelerator: Any
    args: Any
    model: Any
    optimizer: Any
    optimizer_cls_and_kwargs: Any
    lr_scheduler: Any

    _total_steps: int | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the FusedSaLSa, where none was given."""
        check_distributed_type(self.accelerator)
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            betas = self.args.adam_beta1, self.args.adam_beta2, 0.99
            settings = {"betas": betas, "eps": self.args.adam_epsilon}
            self.optimizer_cls_and_kwargs = FusedSaLSa, settings
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        note_clipping_of(self.accelerator, unwrapped(optimizer))
        return optimizer

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Create the schedule of factors; a linear one is left to the optimizer."""
        create = partial(super().create_scheduler, num_training_steps)  # type: ignore[misc]
        optimizer = unwrapped(self.optimizer)
        first = optimizer.param_groups[0]
        linear = self.args.lr_scheduler_type == SchedulerType.LINEAR
        if self.lr_scheduler is not None or first["search_period"] is None or not linear:
            return create(*args, **kwargs)
        if first["total_steps"] in (None, self._total_steps):
            self._total_steps = first["steps"] + num_training_steps
            self._set_total_steps(optimizer)
        with replaced(self.args, lr_scheduler_type=SchedulerType.CONSTANT_WITH_WARMUP):
            return create(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Run forward and backward of a micro-batch, and note how to evaluate it again."""
        optimizer = unwrapped(self.optimizer)
        if optimizer.module in (None, self.model):
            optimizer.module = model  # as it is called: DDP's
        self._set_total_steps(optimizer)  # a checkpoint may have brought another run's
        again = partial(self._evaluate_again, model, copy.copy(inputs), num_items_in_batch)
        with optimizer._evaluating(again) as note:
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
            note(loss)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the optimizer's numbers beside the loss."""
        if "loss" in logs:
            logs.update(numbers(unwrapped(self.optimizer)))
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _evaluate_again(self, model: nn.Module, inputs: Any, num_items_in_batch: Any) -> Tensor:
        """Return the loss of a micro-batch at a trial."""
        training_step = super().training_step  # type: ignore[misc]
        with replaced(self.accelerator, backward=_no_backward):
            return training_step(model, copy.copy(inputs), num_items_in_batch)

    def _set_total_steps(self, optimizer: FusedSaLSa) -> None:
        if self._total_steps is not None:
            for group in optimizer.param_groups:
                group["total_steps"] = self._total_steps


class SaLSaTrainer(SaLSaTrainerMixin, Trainer):
    """``transformers.Trainer`` with FusedSaLSa; see :class:`SaLSaTrainerMixin`."""


def _no_backward(loss: Tensor, **keywords: Any) -> None:
    """Stand in for ``accelerator.backward`` at a trial."""
