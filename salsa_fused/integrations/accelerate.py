"""FusedSaLSa with Hugging Face Accelerate.

::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    evaluate = salsa_fused.integrations.accelerate.evaluate(accelerator, optimizer, model)

    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = evaluate(lambda: loss_function(model(inputs), targets))
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from ..evaluation import Closure
from ..optimizer import FusedSaLSa
from .common import DEEPSPEED, numbers, unwrapped


class evaluate:
    """``evaluate(accelerator, optimizer)``, called with a closure before ``accelerator.backward``.

    It weighs the loss as ``accelerator.backward`` does, and ``accelerator.clip_grad_norm_`` tells
    the optimizer of clipped gradients from now on.

    Args:
        accelerator: the Accelerator.
        optimizer: the FusedSaLSa, as ``accelerator.prepare`` returned it.
        module: the model, as ``accelerator.prepare`` returned it.  Leave it out only where nothing
            wraps it (no DDP), or no forward changes buffers.

    Raises:
        TypeError: the optimizer is another one.
        ValueError: DeepSpeed or Megatron take the step.
    """

    def __init__(
        self, accelerator: Accelerator, optimizer: Any, module: nn.Module | None = None
    ) -> None:
        self.optimizer = unwrapped(optimizer)
        self._accelerator = accelerator
        check_distributed_type(accelerator)
        note_clipping_of(accelerator, self.optimizer)
        if module is not None:
            self.optimizer.module = module

    def __call__(self, closure: Closure) -> Tensor:
        """Return the loss with its graph, for ``accelerator.backward(loss)``."""
        weight = 1.0 / self._accelerator.gradient_accumulation_steps
        return self.optimizer.evaluate(closure, weight)

    def metrics(self) -> dict[str, float]:
        """Return the optimizer's numbers for ``accelerator.log``."""
        return numbers(self.optimizer)


def check_distributed_type(accelerator: Accelerator) -> None:
    """Raise ValueError where something else than the optimizer takes the step."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(DEEPSPEED)
    if accelerator.distributed_type == DistributedType.MEGATRON_LM:
        raise ValueError(DEEPSPEED.replace("DeepSpeed", "Megatron-LM"))


def note_clipping_of(accelerator: Any, optimizer: FusedSaLSa) -> None:
    """Let ``accelerator.clip_grad_norm_`` tell the optimizer by how much it has clipped."""
    if not isinstance(accelerator.clip_grad_norm_, _Clipping):
        accelerator.clip_grad_norm_ = _Clipping(accelerator.clip_grad_norm_)
    accelerator.clip_grad_norm_.optimizers.add(optimizer)


class _Clipping:
    """An accelerator's own ``clip_grad_norm_``, and the optimizers that hear of it."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self.optimizers: WeakSet[FusedSaLSa] = WeakSet()

    def __call__(
        self, parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2
    ) -> Any:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        norm = self._own(parameters, max_norm, norm_type=norm_type)
        clipped = set(map(id, parameters))
        for optimizer in self.optimizers if norm is not None and math.isfinite(max_norm) else ():
            groups = optimizer.param_groups
            present = [p for group in groups for p in group["params"] if p.grad is not None]
            if all(id(parameter) in clipped for parameter in present):
                optimizer.note_clipping(norm, max_norm)
        return norm
