"""What a whole training step costs on real architectures: time, and peak memory.

On a CPU all optimizers take turns, round after round, so that a machine that is busy for a while
slows all of them down; on a GPU, where they would not fit side by side, one comes after the other.
"""

from __future__ import annotations

import argparse
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from statistics import fmean, median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from bench import console as c
from bench import methods, results
from bench.methods import Method, adamw, plain_step
from bench.networks import parameter_count
from bench.optimizers import closure_step, fused_salsa
from bench.peers import versions
from bench.results import Results, Row
from bench.sets.batches import Batch, on
from bench.tables import by_case, without_spread
from bench.training import Loop, Run
from bench.workloads import ON_CPU, ON_GPU, REAL_SIZES, Workload, loss_of

FUSED = "AdamW, fused"  # what the ratios are taken to
OURS = "FusedSaLSa"
WARM_UP = 20  # steps of an optimizer that searches: it looks for the order of magnitude first
BLOCK = 10  # steps in a round of an optimizer that searches: its longest period
FEW = 3  # of the others
SETTLED = 4  # steps after which memory has reached its peak
PLAIN, AT_ONCE, REJECTED = "a plain step", "a search accepted at once", "a search with rejections"


def compiled_adamw() -> Method:
    """AdamW whose step torch.compile has made one graph of."""
    method = adamw("AdamW, compiled", "torch.compile")

    def build(model: nn.Module) -> torch.optim.Optimizer:
        torch._dynamo.reset()  # it keeps the tensors of what it compiled before
        # it warns of profilers that it leaves out
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        optimizer = method.build(model)
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[assignment]
        return optimizer

    return replace(method, build=build)


Methods = Sequence[Callable[[], Method]]
METHODS: Methods = (
    partial(adamw, FUSED, fused=True),
    partial(adamw, "AdamW, foreach", foreach=True),
    compiled_adamw,
    partial(fused_salsa, OURS),
    methods.authors_salsa,
    methods.prodigy,
    methods.schedule_free,
)
MEMORY_METHODS: Methods = (*METHODS, methods.d_adaptation)


@dataclass
class Figures:
    """What is measured of one optimizer on one model."""

    name: str
    peak: int = 0  # bytes
    state: float = 0.0  # bytes a parameter
    rounds: list[float] = field(default_factory=list)  # mean seconds of a step
    kinds: dict[str, list[float]] = field(default_factory=dict)  # seconds of every step
    extra_forwards: list[float] = field(default_factory=list)  # mean of a round


@dataclass
class Stepper:
    """One optimizer on its own copy of a model, with the batches that it trains on."""

    method: Method
    model: nn.Module
    loop: Loop
    batches: Iterator[Batch]
    figures: Figures

    @classmethod
    def build(cls, workload: Workload, method: Method, device: torch.device) -> Stepper:
        """The same weights and the same batches for every method."""
        torch.manual_seed(0)
        with device:
            model = workload.model()
        run = Run(workload.case, method.name, 0)
        loop = Loop(method.build(model), method.step, method.step_size, run, device=device)
        batches = map(partial(on, device), workload.batches(torch.Generator().manual_seed(0)))
        return cls(method, model, loop, batches, Figures(method.name))

    @classmethod
    def settled(cls, workload: Workload, method: Method, device: torch.device) -> Stepper:
        """Build one, and step until memory has reached its peak, which is measured."""
        made: list[Stepper] = []

        def run() -> None:
            made.append(cls.build(workload, method, device))
            for _ in range(SETTLED):
                made[0].step()

        peak = peak_memory(run, device)
        (stepper,) = made
        state = tree_leaves(list(stepper.loop.optimizer.state.values()))
        taken = sum(one.numel() * one.element_size() for one in state if isinstance(one, Tensor))
        stepper.figures.peak, stepper.figures.state = peak, taken / parameter_count(stepper.model)
        return stepper

    @property
    def searches(self) -> bool:
        return self.method.step is not plain_step

    def step(self) -> tuple[float, str]:
        """Take a whole step, forward and backward included.

        Return its seconds, and whether FusedSaLSa searched in it; all others' steps are plain.
        """
        optimizer: Any = self.loop.optimizer
        due = self.method.step is closure_step and optimizer.search_due
        seconds = self.loop.step(partial(loss_of, self.model, next(self.batches), self.loop.device))
        if not due:
            return seconds, PLAIN
        return seconds, AT_ONCE if optimizer.last_search.trials == 1 else REJECTED

    def round(self) -> None:
        steps = [self.step() for _ in range(BLOCK if self.searches else FEW)]
        self.figures.rounds.append(fmean(seconds for seconds, _ in steps))
        self.figures.extra_forwards.append(fmean(self.loop.run.extra_forwards[-len(steps) :]))
        for seconds, kind in steps:
            self.figures.kinds.setdefault(kind, []).append(seconds)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors took at once, beyond those before; `run` builds what it needs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The allocator of the CPU keeps no statistics; it tells the profiler what it does.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def measure(
    workload: Workload, device: torch.device, rounds: int, console: Console,
    missing: dict[str, str], makes: Methods,
) -> list[Figures]:  # fmt: skip
    """Every optimizer on this model; what is not there, or has no room, is reported.

    With no rounds only its memory is measured.
    """
    found: list[Figures] = []
    waiting: list[Stepper] = []
    stepper: Stepper | None
    for method in (make() for make in makes):
        title = f"{workload.title}: {method.name}"
        console.print(title)
        try:
            stepper = Stepper.settled(workload, method, device)
            for _ in range(WARM_UP - SETTLED if rounds and stepper.searches else 0):
                stepper.step()
            if device.type == "cuda":
                take_turns([stepper], rounds)
            elif rounds:
                waiting.append(stepper)
            found.append(stepper.figures)
        except Exception as error:  # a peer that is not there, fails, or has no room
            no_room = isinstance(error, torch.OutOfMemoryError)
            missing[title] = "no room" if no_room else c.in_one_line(error)
            console.print(f"{title}: left out: {missing[title]}", style="yellow")
        stepper = None  # and with it the model
        gc.collect()
    take_turns(waiting, rounds)
    return found


def take_turns(steppers: Sequence[Stepper], rounds: int) -> None:
    for index in range(rounds):
        for stepper in steppers if index % 2 == 0 else reversed(steppers):
            stepper.round()


def rows_of(bench: str, case: str, found: Sequence[Figures]) -> list[Row]:
    """Figures, and what they are of fused AdamW's: times in the same round, or else the peak.

    Those of a kind of step are compared with the median of all rounds.
    """
    fused = next((one.rounds or [one.peak] for one in found if one.name == FUSED), [])
    rows: list[Row] = []

    def add(name: str, metric: str, unit: str, values: Sequence[float]) -> None:
        if values:
            rows.append(results.timed_row(bench, case, name, metric, unit, values))

    for one in found:
        extra = one.extra_forwards and [fmean(one.extra_forwards)]
        ratios = [a / b for a, b in zip(one.rounds or [one.peak], fused)]
        add(one.name, "time", "ms", [1e3 * t for t in one.rounds])
        add(one.name, "to_fused", "1", ratios)
        add(one.name, "extra_forwards", "per step", extra)
        add(one.name, "peak_memory", "MB", [one.peak / 1e6])
        add(one.name, "state", "bytes a parameter", [one.state])
        for kind in (PLAIN, AT_ONCE, REJECTED) if len(one.kinds) > 1 else ():
            name, seconds = f"{one.name}: {kind}", one.kinds.get(kind, [])
            add(name, "time", "ms", [1e3 * t for t in seconds])
            add(name, "to_fused", "1", [t / median(fused) for t in seconds if fused])
    return rows


def step(arguments: argparse.Namespace) -> int:
    gpu = c.chosen_device(arguments.device).type == "cuda"
    autocast = "bf16" if gpu else None
    more = {"rounds": arguments.rounds, "autocast": autocast, "in_turn": not gpu}
    return _run("step", arguments, ON_GPU if gpu else ON_CPU, METHODS, more)


def memory(arguments: argparse.Namespace) -> int:
    gpu = c.chosen_device(arguments.device).type == "cuda"
    return _run("memory", arguments, ON_GPU if gpu else REAL_SIZES, MEMORY_METHODS, {})


def _run(
    bench: str, arguments: argparse.Namespace, workloads: Sequence[Workload],
    makes: Methods, more: dict[str, Any],
) -> int:  # fmt: skip
    console, device = c.quiet_console(), c.chosen_device(arguments.device)
    c.check_writable(arguments.json)
    rows: list[Row] = []
    cases: dict[str, str] = {}
    missing: dict[str, str] = {}
    for workload in workloads:
        cases[workload.case] = workload.describe()
        found = measure(workload, device, more.get("rounds", 0), console, missing, makes)
        rows += rows_of(bench, workload.case, found)
    if not rows:
        raise SystemExit(f"{bench}: nothing could be measured; {'; '.join(missing.values())}")
    settings = {"cases": cases, "missing": missing, "peers": versions(), **more}
    measured = Results(results.environment(device), rows, settings=settings)
    return c.finish(measured, without_spread(by_case(measured)), arguments.json, console)
