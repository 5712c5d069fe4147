"""An optimizer as a bench sees it, and others' optimizers, as they are installed.

To add one, write a function that returns its `Method`, and name it in `bench.optimizers.METHODS`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers import peer

Closure = Callable[[], Tensor]  # computes the loss of one batch and returns it, nothing else
Step = Callable[[Any, Closure], Tensor]  # of an optimizer
Factor = Callable[[float], float]  # on an optimizer's `lr`, at a share of the work, 0 to 1


@dataclass(frozen=True)
class Method:
    """An optimizer with its settings."""

    name: str
    settings: str  # in words, for captions
    build: Callable[[nn.Module], torch.optim.Optimizer]
    step: Step
    step_size: Callable[[Any], float]  # of the step that was just taken
    factor: Factor | None = None
    grid: tuple[float, ...] = ()  # learning rates to choose from, each by a run of its own
    chosen_lr: float = math.nan  # from the grid
    unit_sizes: Callable[[Any], dict[str, float]] = lambda optimizer: {}  # where each has its own
    ours: bool = False  # what it does depends on the sources of salsa_fused


def gradients(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """One forward and one backward; the loss."""
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    return loss


def plain_step(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    """The ordinary training step of torch."""
    loss = gradients(optimizer, closure)
    optimizer.step()
    return loss.detach()


def lr_of(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def cosine_end(share: float) -> float:
    """1 over the first half, then a cosine down to 0."""
    return 1.0 if share < 0.5 else 0.5 * (1 + math.cos(math.pi * (2 * share - 1)))


def warm_up_and_cosine(share: float, lowest: float = 0.0, warm_up: float = 0.1) -> float:
    """A linear ramp from 0 to 1 over the first tenth, then a cosine down to `lowest`."""
    if share < warm_up:
        return max(share, 1e-3) / warm_up
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up))))
    return lowest + (1 - lowest) * cosine


# --- torch's own ----------------------------------------------------------------------------------

ADAM = Method(
    "Adam", "lr=1e-3", lambda model: torch.optim.Adam(model.parameters(), 1e-3), plain_step, lr_of
)
GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def adamw(
    name: str = "AdamW", settings: str = "", lr: float = 1e-3, factor: Factor | None = None,
    **how: Any,
) -> Method:  # fmt: skip
    """As torch builds it by default, on a CPU a loop over tensors; `fused=True` is faster."""

    def build(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=lr, **how)

    return Method(name, settings or f"lr={lr:g}", build, plain_step, lr_of, factor)


def tuned_adamw(lr: float = math.nan) -> Method:
    """AdamW with one learning rate of the grid, or one still to be chosen from it."""
    settings = f"lr={lr:g}, warm-up and cosine"
    method = adamw("AdamW, tuned", settings, lr, warm_up_and_cosine)
    return replace(method, grid=GRID, chosen_lr=lr)


# --- peers ----------------------------------------------------------------------------------------


def of_peer(
    name: str, optimizer: str, settings: str, step: Step = plain_step,
    step_size: Callable[[Any], float] = lr_of, factor: Factor | None = None,
) -> Method:  # fmt: skip
    """An optimizer of a package, "MODULE.CLASS", with its defaults."""
    module, _, of = optimizer.rpartition(".")

    def build(model: nn.Module) -> torch.optim.Optimizer:
        built = getattr(peer(module), of)(list(model.parameters()))
        if hasattr(built, "train"):  # schedule-free
            built.train()
        return built

    return Method(name, settings, build, step, step_size, factor)


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def authors_step(optimizer: Any, closure: Closure) -> Tensor:
    """The authors' package tells its closure whether it wants gradients; and it prints."""

    def theirs(backwards: bool = False) -> Tensor:
        with torch.set_grad_enabled(backwards):
            return gradients(optimizer, closure) if backwards else closure()

    with _silent():
        return torch.as_tensor(optimizer.step(theirs)).detach()


def told_step(optimizer: Any, closure: Closure) -> Tensor:
    """A step of optimizers that want to know the loss."""
    loss = gradients(optimizer, closure)
    optimizer.step(loss=loss)
    return loss.detach()


def _adapted(optimizer: torch.optim.Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group["d"]) * group["lr"]


authors_salsa = partial(
    of_peer, "authors' SaLSa", "salsa.SaLSA.SaLSA", "SaLSa-Optimizer 0.1.0", authors_step,
    lambda optimizer: float(optimizer.step_size),
)  # fmt: skip
prodigy = partial(of_peer, "Prodigy", "prodigyopt.Prodigy", "1.1.2, defaults", step_size=_adapted)
prodigy_cosine = partial(
    of_peer, "Prodigy, cosine", "prodigyopt.Prodigy", "1.1.2, cosine over the last half",
    step_size=_adapted, factor=cosine_end,
)  # fmt: skip
d_adaptation = partial(of_peer, "D-Adaptation", "dadaptation.DAdaptAdam",
                       "DAdaptAdam 3.2, defaults", step_size=_adapted)  # fmt: skip
schedule_free = partial(of_peer, "schedule-free", "schedulefree.AdamWScheduleFree",
                        "AdamW 1.4.1, default lr=0.0025")  # fmt: skip
# MoMo's step size is at most lr=0.01; what it is, the package keeps to itself.
momo = partial(of_peer, "MoMo", "momo.MomoAdam", "MomoAdam 0.1.0, defaults", told_step,
               lambda _: math.nan)  # fmt: skip
sps_safe = partial(of_peer, "SPS-safe", "sps_safe.IMA_SPS_safe", "IMA_SPS_safe 1.0.0, defaults",
                   told_step, lambda optimizer: float(optimizer.ss))  # fmt: skip

GEN_EVERY = 4  # steps; the package's page recommends four or more


class GeN(torch.optim.AdamW):
    """GeN (arXiv 2407.02772) as its package has it: AdamW, whose learning rate a parabola sets.

    It begins with the learning rate of the package's page. The package's function takes a model and
    a data set; here the optimizer is called in place of the model, and evaluates its closure.
    """

    def __init__(self, params: Iterator[nn.Parameter]) -> None:
        self.parabola = peer("GeN").lr_parabola  # or MissingPeer, before anything else
        super().__init__(params, lr=1e-4)
        self.taken = 0

    def parameters(self) -> Iterator[Tensor]:
        return (weight for group in self.param_groups for weight in group["params"])

    def __call__(self, _inputs: Tensor) -> Tensor:
        return self.closure()

    def train_step(self, closure: Closure) -> Tensor:
        """One step; every fourth one evaluates the loss at three points of the line."""
        self.closure = closure
        loss = gradients(self, closure)
        self.taken += 1
        if self.taken % GEN_EVERY == 0:
            batches, device = iter([torch.zeros(2)]), loss.device  # "inputs" and "targets"
            with _silent():  # it prints what a fit has failed of, and then halves the rate
                self.parabola(self, self, lambda loss, _: loss, 1, batches, device, "image_cls")
        self.step()
        return loss.detach()


def gen() -> Method:
    settings = "gen-optim 0.1.1 with AdamW, lr=1e-4 to begin with, every 4th step"
    return Method("GeN", settings, lambda model: GeN(model.parameters()), GeN.train_step, lr_of)
