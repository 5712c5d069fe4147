"""GeN (arXiv 2407.02772) as its package has it: AdamW, whose learning rate a parabola sets.

The package's function takes a model and a data set; here it gets a closure in their place.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.peers import peer

EVERY = 4  # steps; the package's page recommends four or more


class GeN(torch.optim.AdamW):
    """With the learning rate that the package's page begins with."""

    def __init__(self, params: Iterator[torch.nn.Parameter], lr: float = 1e-4) -> None:
        self.parabola = peer("GeN").lr_parabola  # or MissingPeer, before anything else
        super().__init__(params, lr=lr)
        self.taken = 0

    def train_step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; every fourth one evaluates the loss at three points of the line."""
        self.zero_grad()
        loss = closure()
        loss.backward()
        self.taken += 1
        if self.taken % EVERY == 0:
            net, data = _Net(self, closure), iter([_Batch()])
            # It prints what a fit has failed of, and then halves the learning rate.
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                self.parabola(net, self, tr_iter=data, task="NLU", device=loss.device)
        self.step()
        return loss.detach()


class _Net:
    """What is asked of a model: its parameters, and a result with a loss."""

    def __init__(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
        self.optimizer, self.closure = optimizer, closure

    def parameters(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def __call__(self) -> SimpleNamespace:
        return SimpleNamespace(loss=self.closure())


class _Batch(dict[str, Any]):
    """Without entries: the closure has its own."""

    def to(self, _device: torch.device) -> _Batch:
        return self
