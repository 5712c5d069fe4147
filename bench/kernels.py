"""What the kernels cost: time and GB/s, beside a copy and beside torch's Adam.

On a CPU everything is timed in turn, round after round, so that a machine that is busy for a while
slows all of it down, and ratios are taken within a round. On a GPU, on real models' shapes, where
not all have room at once, one comes after the other, and what is measured is the device's time.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.autograd import DeviceType

from bench import console as c
from bench import networks, results
from bench.results import Results, Row
from bench.tables import by_case
from salsa_fused import FusedSaLSa

FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}  # more than the caches hold
COPY_BYTES = 4 << 30  # that are copied at once
SLEEP_CYCLES_A_SECOND = 2.0e9  # about a GPU's clock
COPY = "copy"

Call = Callable[[], object]
Seconds = list[float]  # by round


def kernel_calls(
    weights: list[Tensor], backend: str | None = None, *, without: str = ""
) -> dict[str, Call]:
    """The kernels of a search by themselves, without closure and bookkeeping.

    "allocating" is the first trial with the memory for the saved weights, which every search takes
    and gives back. Without "moments" only `alignment` can be called, without "windows" all others.
    """
    how: Any = {"backend": backend, "direction": "sgd" if without == "moments" else "adam"}
    optimizer = FusedSaLSa(weights, init_step_size=1e-6, search_period=None, **how)
    kernels, groups = optimizer._kernels, optimizer.param_groups
    for weight in weights if without != "windows" else ():
        optimizer.state[weight]["window_start"] = weight.clone()
    kernels.refresh(groups, optimizer.state)
    if without != "windows":
        kernels.alignment()
    if without != "moments":
        kernels.first_trial(groups, 1e-6)
    (bucket,) = kernels.buckets

    def allocating() -> None:
        bucket.make_room(None)
        bucket.first_trial()

    return {
        "allocating": allocating,
        "first_trial": bucket.first_trial,
        "next_trial": bucket.next_trial,
        "adam_step": lambda: bucket.backend.step(bucket.work(saved=bucket.saved))(),
        "alignment": lambda: bucket.backend.alignment(bucket.work()),
    }


def plain_step(weights: Any, backend: str | None = None) -> Call:
    return FusedSaLSa(weights, backend=backend, search_period=None, init_step_size=1e-6).step


def copy_all(weights: list[Tensor]) -> Call:
    """Copy as many bytes as all weights have, `COPY_BYTES` of them at once."""
    size, first = sum(weight.numel() for weight in weights), weights[0]
    times = -(-size * first.itemsize // COPY_BYTES)
    source = torch.empty(size // times, dtype=first.dtype, device=first.device).normal_()
    target = torch.empty_like(source)
    return lambda: [target.copy_(source) for _ in range(times)]


class Timed(NamedTuple):
    """What builds a call, and how many numbers a parameter the call has to move."""

    build: Callable[[list[Tensor]], Call]
    numbers: int  # in the dtype of the weights
    moments: int = 0  # in fp32

    def bytes_of(self, dtype: torch.dtype) -> int:
        return self.numbers * dtype.itemsize + self.moments * torch.float32.itemsize


Found = dict[str, Timed]  # by the name in a table
KERNELS = {  # what a table calls them, and what they move
    "allocating": ("first_trial, allocating", 4, 1),
    "first_trial": ("first_trial", 4, 1),
    "next_trial": ("next_trial", 3, 1),
    "adam_step": ("adam_step after a search", 3, 4),
    "alignment": ("alignment", 3, 0),
}


def all_timed(torchs: str, backends: Sequence[str | None]) -> Found:
    """Torch's optimizer of that name, and our kernels; torch has moments in the weights' dtype."""

    def of_torch(weights: list[Tensor], **how: Any) -> Call:
        return getattr(torch.optim, torchs)(weights, lr=1e-6, **how).step

    def kernel(weights: list[Tensor], name: str, backend: str | None) -> Call:
        without = "moments" if name == "alignment" else "windows"  # no more memory than it needs
        return kernel_calls(weights, backend, without=without)[name]

    found = {
        COPY: Timed(copy_all, 2),
        f"torch {torchs}, fused": Timed(partial(of_torch, fused=True), 7),
        f"torch {torchs}, foreach": Timed(partial(of_torch, foreach=True), 7),
    }
    for backend in backends:
        of = f", {backend}" if backend else ""
        found[f"a plain step{of}"] = Timed(partial(plain_step, backend=backend), 3, 4)
        for name, (title, *moved) in KERNELS.items():
            found[f"{title}{of}"] = Timed(partial(kernel, name=name, backend=backend), *moved)
    return found


class Case(NamedTuple):
    """What is stepped, and whether something else fills the caches before every call."""

    title: str
    shapes: Sequence[torch.Size]
    dtype: torch.dtype = torch.float32
    cold: bool = True
    threads: int | None = None


TENSORS = 150
CPU_MODELS = {  # the number of parameters, and whether caches are cold
    "25 M parameters": (25_000_000, True),
    "0.5 M parameters, cold caches": (500_000, True),
    "0.5 M parameters, warm caches": (500_000, False),
}
GPU_MODELS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "BERT-base, fp32": (lambda: networks.bert(networks.bert_config()), torch.float32),
    "GPT-2 XL, fp32": (partial(networks.gpt, 50257, 1024, 48, 25, 1600), torch.float32),
    "GPT-2 XL, bf16": (partial(networks.gpt, 50257, 1024, 48, 25, 1600), torch.bfloat16),
    "Llama 7B, bf16": (partial(networks.llama, "7B"), torch.bfloat16),
}


def cpu_cases(threads: Sequence[int]) -> list[Case]:
    return [
        Case(
            f"{title}, {count} {'thread' if count == 1 else 'threads'}",
            [torch.Size([size // TENSORS])] * TENSORS, cold=cold, threads=count,
        )
        for count in threads
        for title, (size, cold) in CPU_MODELS.items()
    ]  # fmt: skip


def gpu_cases() -> list[Case]:
    with torch.device("meta"):
        made = [(title, make(), dtype) for title, (make, dtype) in GPU_MODELS.items()]
    return [
        Case(f"{title}, {networks.parameter_count(model) / 1e6:,.0f} M",
             [weight.shape for weight in model.parameters()], dtype)
        for title, model, dtype in made
    ]  # fmt: skip


def host_time(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def device_time(flush: Tensor, call: Call) -> float:
    """Seconds as a GPU saw them, with cold caches.

    The launches wait behind a sleep of the device until the host is through with them.
    """
    torch.cuda.synchronize()
    ahead = min(host_time(call), 0.2) + 1e-3
    flush.add_(1.0)
    torch.cuda._sleep(int(1.5 * ahead * SLEEP_CYCLES_A_SECOND))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def in_turn(
    calls: dict[str, Call], rounds: int, clock: Callable[[Call], float] = host_time,
    before: Callable[[Call], object] = lambda call: None,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, Seconds]:  # fmt: skip
    """Seconds of each call by round; what is done `before` is not timed, and the order rotates."""
    names = list(calls)
    seconds: dict[str, Seconds] = {name: [] for name in names}
    for call in [*calls.values()] * 3:
        call()  # a warm-up
    for index in range(rounds):
        turn = index % len(names)
        for name in [*names[turn:], *names[:turn]]:
            before(calls[name])
            seconds[name].append(clock(calls[name]))
        after_round()
    return seconds


def launches_of(call: Call) -> int:
    """Kernels that one call launches on a GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = [e.name for e in profile.events() if e.device_type == DeviceType.CUDA]
    return sum(not name.startswith("Mem") for name in on_device)


def kernels(arguments: argparse.Namespace) -> int:
    console, device, threads = c.quiet_console(), arguments.device, torch.get_num_threads()
    if device == "cuda":
        cases, found = gpu_cases(), all_timed("AdamW", arguments.backends)
        more = {"backends": arguments.backends}
    else:
        cases = cpu_cases(arguments.threads or sorted({1, threads}))
        found, more = all_timed("Adam", [None]), {"tensors": TENSORS}
    measured = measure(
        cases, found, torch.device(device), arguments.rounds, console, together=device == "cpu"
    )
    measured.settings.update(more)
    torch.set_num_threads(threads)
    return c.finish(measured, by_case(measured), arguments.json, console)


def measure(
    cases: Sequence[Case], found: Found, device: torch.device, rounds: int, console: Console, *,
    together: bool,
) -> Results:  # fmt: skip
    """Time all calls of every case: `together` in turn, or one after the other.

    What has no room, or is not there, is reported and left out.
    """
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    gpu, flush = device.type == "cuda", torch.zeros(FLUSH_BYTES[device.type] // 4, device=device)
    clock = partial(device_time, flush) if gpu else host_time
    for case in cases:
        console.print(case.title)
        if case.threads:
            torch.set_num_threads(case.threads)
        calls: dict[str, Call] = {}
        seconds: dict[str, Seconds] = {}
        weights: list[Tensor] = []
        for name, timed in found.items():
            try:
                weights = weights or weights_of(case, device)
                calls[name] = timed.build(weights)
                if not together:
                    seconds |= in_turn(calls, rounds, clock)
                if gpu:
                    rows.append(_row(case, name, "launches", "1", [launches_of(calls[name])]))
            except Exception as error:
                no_room = isinstance(error, torch.OutOfMemoryError)
                why = "no room" if no_room else f"{type(error).__name__}: {c.in_one_line(error)}"
                skipped[f"{case.title}: {name}"] = why
                console.print(f"{case.title}: {name}: left out: {why}", style="yellow")
            if not together:
                calls.clear()  # and with them the moments
                gc.collect()
                if gpu:
                    torch.cuda.empty_cache()
        if together:
            before = partial(_before, flush if case.cold else None)
            seconds = in_turn(calls, rounds, clock, before)
        rows += rows_of(case, found, seconds, together)
    settings = {"cases": [case.title for case in cases], "rounds": rounds, "skipped": skipped}
    return Results(results.environment(device), rows, settings=settings)


def _before(flush: Tensor | None, call: Call) -> None:
    """Fill the caches with something else, or with what the call needs."""
    call() if flush is None else flush.add_(1.0)


def weights_of(case: Case, device: torch.device) -> list[Tensor]:
    weights = [torch.empty(shape, dtype=case.dtype, device=device) for shape in case.shapes]
    for weight in weights:
        weight.normal_(std=0.02)
        weight.grad = torch.empty_like(weight).normal_(std=1e-3)
    return weights


def rows_of(
    case: Case, found: dict[str, Timed], seconds: dict[str, Seconds], together: bool
) -> list[Row]:
    """Time, bandwidth, and what they are of a copy's bandwidth and of torch's fused time.

    Ratios are taken within a round, or to the median of what was not timed in turn.
    """
    size = sum(shape.numel() for shape in case.shapes)
    moved = {name: timed.bytes_of(case.dtype) for name, timed in found.items()}
    to = {name: own if together else [median(own)] * len(own) for name, own in seconds.items()}
    fused = next((own for name, own in to.items() if name.endswith(" fused")), [])
    rows = []
    for name, own in seconds.items():
        of_copy = ratios(to.get(COPY, []), own)
        metrics = {
            ("time", "ms"): [1e3 * t for t in own],
            ("bandwidth", "GB/s"): [1e-9 * moved[name] * size / t for t in own],
            ("of_copy", "1"): [moved[name] / moved[COPY] * ratio for ratio in of_copy],
            ("to_fused", "1"): ratios(own, fused),
        }
        for (metric, unit), values in metrics.items():
            if values:
                rows.append(_row(case, name, metric, unit, values))
    return rows


def _row(case: Case, *what: Any) -> Row:
    return results.timed_row("kernels", case.title, *what)


def ratios(own: Seconds, other: Seconds) -> Seconds:
    return [a / b for a, b in zip(own, other)]
