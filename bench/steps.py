"""One optimizer on its own copy of a model: how long its steps take, and of what kind they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from rich.console import Console
from torch import Tensor, nn

from bench.devices import now
from bench.method import Method, plain_step
from bench.optimizers import closure_step
from bench.sets.batches import Batch, on
from bench.training import Work
from bench.workloads import Workload, loss_of

PLAIN, AT_ONCE, REJECTED = "a plain step", "a search accepted at once", "a search with rejections"
KINDS = (PLAIN, AT_ONCE, REJECTED)
SETTLED = 4


@dataclass
class Stepper:
    """Trains, a step at a time; everything that a step needs is built with it."""

    method: Method
    device: torch.device
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[Batch]
    work: Work = field(default_factory=Work)

    @classmethod
    def build(cls, workload: Workload, method: Method, device: torch.device) -> Stepper:
        """The same weights and the same batches for every method."""
        torch.manual_seed(0)
        with device:
            model = workload.model()
        optimizer = method.build(model)
        return cls(
            method, device, model, optimizer, map(partial(on, device), workload.batches(_seeded()))
        )

    def step(self) -> float:
        """A whole step, forward and backward included; its seconds."""
        closure = self.work.counting(partial(loss_of, self.model, next(self.batches), self.device))
        start = now(self.device)
        self.method.step(self.optimizer, closure)
        return now(self.device) - start

    @property
    def searches(self) -> bool:
        return self.method.step is not plain_step

    def step_and_kind(self) -> tuple[float, str]:
        """Seconds of a step, and whether FusedSaLSa searched in it; all others' are plain."""
        if self.method.step is not closure_step:
            return self.step(), PLAIN
        due = self.optimizer.search_due  # type: ignore[attr-defined]
        seconds = self.step()
        if not due:
            return seconds, PLAIN
        trials = self.optimizer.last_search.trials  # type: ignore[attr-defined]
        return seconds, AT_ONCE if trials == 1 else REJECTED

    def seconds_in_step(self) -> float | None:
        """Host time in `step` alone, gradients being there; None where it cannot be told apart.

        On a GPU the host does not wait for its kernels; a search waits for its losses.
        """
        if self.method.step not in (plain_step, closure_step):
            return None
        spent = [0.0]
        closure = _timed(partial(loss_of, self.model, next(self.batches), self.device), spent)
        self.optimizer.zero_grad()
        if self.method.step is closure_step:
            with self.optimizer.first_evaluation():  # type: ignore[attr-defined]
                loss = closure()
            step: Callable[[], object] = partial(self.optimizer.step, closure, loss=loss)
        else:
            loss, step = closure(), self.optimizer.step
        loss.backward()
        now(self.device)
        spent[0], start = 0.0, time.perf_counter()
        step()
        return time.perf_counter() - start - spent[0]


def report_left_out(what: str, error: Exception, missing: dict[str, str], console: Console) -> None:
    """A peer that is not there, or fails, or has no room: the others are still measured."""
    reason = "no room" if isinstance(error, torch.OutOfMemoryError) else str(error)
    missing[what] = reason.partition("\n")[0]
    console.print(f"{what}: left out: {missing[what]}", style="yellow")


def settled(workload: Workload, method: Method, device: torch.device) -> Stepper:
    """After so many steps that memory has reached its peak."""
    stepper = Stepper.build(workload, method, device)
    for _ in range(SETTLED):
        stepper.step()
    return stepper


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _timed(closure: Callable[[], Tensor], spent: list[float]) -> Callable[[], Tensor]:
    """`closure`, whose host time is added up: what trials cost is not the optimizer's."""

    def timed() -> Tensor:
        start = time.perf_counter()
        loss = closure()
        spent[0] += time.perf_counter() - start
        return loss

    return timed
