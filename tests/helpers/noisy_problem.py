"""A small noisy problem that brings every rule of the search into play, for both sides alike."""

from __future__ import annotations

import math

import numpy as np
import torch
from seeds import seed_torch
from torch import Tensor

SHAPES = [(6, 8), (8,), (8, 3), (3,), ()]
GROUPS = [  # of parameter indices
    {"params": [0, 1], "lr": 0.5, "weight_decay": 0.02},
    {"params": [2], "lr": 1.0},
    {"params": [3, 4], "lr": 0.25, "betas": (0.8, 0.99), "eps": 1e-6},
]


class NoisyProblem:
    """Mini-batches of a two-layer regression with label noise, dropout and an L2 penalty.

    On some steps the trials' losses are ten too high (the search is exhausted), or a large
    constant hides every difference (flat); on every seventh, `missing` the first of them, the
    last parameter has no gradient.
    Steps 1 to `long_flat` are flat whatever the step size. With 10 of them the next step locates;
    three units in turn need 30, and more than one step size needs does harm.
    """

    def __init__(
        self, seed: int = 0, events: bool = True, long_flat: int = 10, missing: int = 3
    ) -> None:
        self.events = events
        self.missing = missing
        self.long_flat = long_flat
        random = np.random.default_rng(seed)
        self.start = [0.5 * random.standard_normal(shape) for shape in SHAPES]
        self.inputs = torch.from_numpy(random.standard_normal((256, 6)))
        targets = np.tanh(self.inputs.numpy() @ random.standard_normal((6, 3)))
        self.targets = torch.from_numpy(targets + 0.3 * random.standard_normal((256, 3)))
        self._batches: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def batch(self, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step; they are drawn once."""
        if (step, dtype) not in self._batches:
            chosen = np.random.default_rng(1000 + step).integers(0, 256, 16)
            self._batches[step, dtype] = (
                self.inputs[chosen].to(dtype),
                self.targets[chosen].to(dtype),
            )
        return self._batches[step, dtype]

    def loss(self, weights: list[Tensor], step: int) -> Tensor:
        dtype = weights[0].dtype
        x, y = self.batch(step, dtype)
        hidden = torch.tanh(x @ weights[0] + weights[1])
        keep = torch.rand(8, dtype=torch.float64) < 0.8  # from torch's own stream
        out = (hidden * keep.to(dtype)) @ weights[2] + weights[3]
        penalized = weights[:4]
        if step % 7 != self.missing:
            out = out * torch.exp(weights[4])
            penalized = weights
        # the penalty leads back from where tanh and exp are flat, and the search with them
        loss = (out - y).square().mean() + 0.1 * sum(w.square().sum() for w in penalized)
        if self.events and 1 <= step <= self.long_flat:
            loss = loss + 2.0 ** (120 if dtype == torch.float32 else 200)
        elif self.events and 45 <= step % 60 < 50:
            loss = loss + 2.0 ** (20 if dtype == torch.float32 else 50)
        return loss

    sign = 1.0  # of what the closure returns

    def closure(self, weights: list[Tensor], step: int):
        evaluations = 0

        def closure() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            loss = self.loss(weights, step)
            loss = loss + 10.0 if self.is_bad(step) and evaluations > 1 else loss
            return self.sign * loss

        return closure

    def is_bad(self, step: int) -> bool:
        return self.events and 30 <= step % 60 < 40

    # -- the same, for the reference: float64 NumPy in and out ---------------------------------

    def loss_and_grads(self, step: int):
        def evaluate(weights: list[np.ndarray]):
            seed_torch(step)
            tensors = [torch.tensor(w, requires_grad=True) for w in weights]
            loss = self.loss(tensors, step)
            grads = torch.autograd.grad(loss, tensors, allow_unused=True)
            return loss.item(), [None if g is None else g.numpy() for g in grads]

        return evaluate

    def loss_at(self, step: int):
        def evaluate(weights: list[np.ndarray]) -> float:
            seed_torch(step)
            loss = self.loss([torch.tensor(w) for w in weights], step).item()
            return loss + 10.0 if self.is_bad(step) else loss

        return evaluate


class ProblemWithNaN(NoisyProblem):
    """The same, but every eleventh loss is not a number, in searches and in plain steps."""

    def loss(self, weights: list[Tensor], step: int) -> Tensor:
        loss = super().loss(weights, step)
        return loss * math.nan if step % 11 == 8 else loss


class NegatedProblem(NoisyProblem):
    """The same, to be maximized; the reference lowers the loss all the same."""

    sign = -1.0
