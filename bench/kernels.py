"""What the kernels cost, beside a copy and torch's Adam; and what a plain step costs the host.

On a CPU everything is timed in turn, round after round, so that a machine that is busy for a while
slows all of it down, and ratios are taken within a round. On a GPU, on real models' shapes, where
not all have room at once, one comes after the other, and what is measured is the device's time.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributed import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bench import console as c
from bench import networks, results
from bench.results import Results, Row, timed_rows
from bench.tables import HOST_CASES, by_case
from salsa_fused import FusedSaLSa

FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}  # more than the caches hold
COPY_BYTES = 4 << 30  # that are copied at once
SLEEP_CYCLES_A_SECOND = 2.0e9  # about a GPU's clock
COPY = "copy"

T = TypeVar("T")
Call = Callable[[], object]
Seconds = list[float]  # by round


def turns(items: Sequence[T], rounds: int) -> Iterator[T]:
    """All items in every round; the order rotates."""
    for index in range(rounds if items else 0):
        first = index % len(items)
        yield from [*items[first:], *items[:first]]


def in_turn(
    calls: dict[str, Call], rounds: int, clock: Callable[[Call], float]
) -> dict[str, Seconds]:
    """The seconds of each call by round, after a warm-up."""
    for call in [*calls.values()] * 3:
        call()
    seconds: dict[str, Seconds] = {name: [] for name in calls}
    for name in turns([*calls], rounds):
        seconds[name].append(clock(calls[name]))
    return seconds


def host_time(call: Call, before: Call | None = None) -> float:
    """What comes before, by default the call itself, decides what the caches hold."""
    (before or call)()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def device_time(call: Call, before: Call) -> float:
    """Seconds as a GPU saw them: launches wait behind its sleep until all have been made."""
    ahead = min(host_time(call), 0.2) + 1e-3
    before()
    torch.cuda._sleep(int(1.5 * ahead * SLEEP_CYCLES_A_SECOND))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


class Timed(NamedTuple):
    """What builds a call, and how many numbers a parameter the call has to move."""

    build: Callable[[list[Tensor]], Call]
    numbers: int  # in the dtype of the weights
    moments: int = 0  # in fp32

    def bytes_of(self, dtype: torch.dtype) -> int:
        return self.numbers * dtype.itemsize + self.moments * torch.float32.itemsize


KERNELS = {  # what a table calls them, and what they move
    "allocating": ("first_trial, allocating", 4, 1),
    "first_trial": ("first_trial", 4, 1),
    "next_trial": ("next_trial", 3, 1),
    "adam_step": ("adam_step after a search", 3, 4),
    "alignment": ("alignment", 3, 0),
}


def all_timed(torchs: str, backends: Sequence[str | None]) -> dict[str, Timed]:
    """Torch's optimizer of that name, and our kernels; torch has moments in the weights' dtype."""

    def of_torch(weights: list[Tensor], **how: Any) -> Call:
        return getattr(torch.optim, torchs)(weights, lr=1e-6, **how).step

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


def copy_all(weights: list[Tensor]) -> Call:
    """Copy as many bytes as all weights have, `COPY_BYTES` of them at once."""
    size, first = sum(weight.numel() for weight in weights), weights[0]
    times = -(-size * first.itemsize // COPY_BYTES)
    source = torch.empty(size // times, dtype=first.dtype, device=first.device).normal_()
    target = torch.empty_like(source)
    return lambda: [target.copy_(source) for _ in range(times)]


def plain_step(weights: Any, backend: str | None) -> Call:
    return FusedSaLSa(weights, backend=backend, search_period=None, init_step_size=1e-6).step


def kernel(weights: list[Tensor], name: str, backend: str | None) -> Call:
    """A kernel of a search by itself, without closure, bookkeeping, and memory it does not need.

    "allocating" is the first trial with the memory for the saved weights, which every search takes
    and gives back.
    """
    aligning = name == "alignment"  # it needs windows and no moments
    how: Any = {"backend": backend, "direction": "sgd" if aligning else "adam"}
    optimizer = FusedSaLSa(weights, init_step_size=1e-6, search_period=None, **how)
    kernels, groups = optimizer._kernels, optimizer.param_groups
    for weight in weights if aligning else ():
        optimizer.state[weight]["window_start"] = weight.clone()
    kernels.refresh(groups, optimizer.state)
    (kernels.alignment if aligning else partial(kernels.first_trial, groups, 1e-6))()
    (bucket,) = kernels.buckets

    def allocating() -> None:
        bucket.make_room(None)
        bucket.first_trial()

    calls: dict[str, Call] = {
        "allocating": allocating,
        "first_trial": bucket.first_trial,
        "next_trial": bucket.next_trial,
        "adam_step": lambda: bucket.backend.step(bucket.work(saved=bucket.saved))(),
        "alignment": lambda: bucket.backend.alignment(bucket.work()),
    }
    return calls[name]


class Case(NamedTuple):
    """What is stepped, and whether something else fills the caches before every call."""

    title: str
    shapes: Sequence[torch.Size]
    dtype: torch.dtype = torch.float32
    cold: bool = True
    threads: int | None = None


TENSORS, MANY, FEW = 150, 25_000_000, 500_000  # parameters
CPU_MODELS = {  # how many, whether caches are cold, and the dtype of weights and gradients
    "25 M parameters": (MANY, True, torch.float32),
    "0.5 M parameters, cold caches": (FEW, True, torch.float32),
    "0.5 M parameters, warm caches": (FEW, False, torch.float32),
    "25 M parameters, bf16": (MANY, True, torch.bfloat16),
    "25 M parameters, fp16": (MANY, True, torch.float16),
}
GPU_MODELS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "BERT-base, fp32": (lambda: networks.bert(networks.bert_config()), torch.float32),
    "GPT-2 XL, fp32": (partial(networks.gpt, 50257, 1024, 48, 25, 1600), torch.float32),
    "GPT-2 XL, bf16": (partial(networks.gpt, 50257, 1024, 48, 25, 1600), torch.bfloat16),
    "Llama 7B, bf16": (partial(networks.llama, "7B"), torch.bfloat16),
}


def cpu_cases(threads: Sequence[int]) -> Iterator[Case]:
    for count in threads:
        for title, (size, cold, dtype) in CPU_MODELS.items():
            shapes = [torch.Size([size // TENSORS])] * TENSORS
            title = f"{title}, {count} {'thread' if count == 1 else 'threads'}"
            yield Case(title, shapes, dtype, cold, threads=count)


def gpu_cases() -> Iterator[Case]:
    for title, (make, dtype) in GPU_MODELS.items():
        with torch.device("meta"):
            weights = [*make().parameters()]
        size = sum(weight.numel() for weight in weights)
        yield Case(f"{title}, {size / 1e6:,.0f} M", [weight.shape for weight in weights], dtype)


def weights_of(case: Case, device: torch.device) -> list[Tensor]:
    weights = [torch.empty(shape, dtype=case.dtype, device=device) for shape in case.shapes]
    for weight in weights:
        weight.normal_(std=0.02)
        weight.grad = torch.empty_like(weight).normal_(std=1e-3)
    return weights


def kernels(arguments: argparse.Namespace) -> int:
    device, threads = torch.device(arguments.device), torch.get_num_threads()
    if device.type == "cuda":
        cases, found = [*gpu_cases()], all_timed("AdamW", ["triton", "native"])
    else:
        cases, found = [*cpu_cases(sorted({1, threads}))], all_timed("Adam", [None])
    measured = measure(cases, found, device, arguments.rounds, together=device.type == "cpu")
    torch.set_num_threads(threads)
    return c.finish(measured, by_case(measured), arguments.json)


def measure(
    cases: Sequence[Case], found: dict[str, Timed], device: torch.device, rounds: int, *,
    together: bool,
) -> Results:  # fmt: skip
    """Time all calls of every case, `together` in turn or one after the other."""
    rows, missing = list[Row](), dict[str, str]()
    gpu, flush = device.type == "cuda", torch.zeros(FLUSH_BYTES[device.type] // 4, device=device)
    timer: Callable[..., float] = device_time if gpu else host_time
    groups = [found] if together else [{name: timed} for name, timed in found.items()]
    for case in cases:
        c.CONSOLE.print(case.title)
        if case.threads:
            torch.set_num_threads(case.threads)
        clock = partial(timer, before=partial(flush.add_, 1.0) if case.cold else None)
        calls, seconds, weights = dict[str, Call](), dict[str, Seconds](), list[Tensor]()
        for group in groups:
            with c.left_out(missing, f"{case.title}: {', '.join(group)}"):
                weights = weights or weights_of(case, device)
                calls |= {name: timed.build(weights) for name, timed in group.items()}
                seconds |= in_turn(calls, rounds, clock)
            calls.clear()  # and with them the moments
            gc.collect()
            torch.cuda.empty_cache()
        rows += rows_of(case, found, seconds, together)
    titles = [case.title for case in cases]
    settings = {"cases": titles, "tensors": TENSORS, "rounds": rounds, "missing": missing}
    return Results(results.environment(device), rows, settings=settings)


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
        rows += timed_rows("kernels", case.title, name, {
            ("time", "ms"): [1e3 * t for t in own],
            ("bandwidth", "GB/s"): [1e-9 * moved[name] * size / t for t in own],
            ("of_copy", "1"): [moved[name] / moved[COPY] * ratio for ratio in of_copy],
            ("to_fused", "1"): ratios(own, fused),
        })  # fmt: skip
    return rows


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(own, other)]


# --- the host's time: the Python between one launch and the next, which limits small models -------

HOST_TENSORS, ELEMENTS = 200, 16  # too few elements to cost anything but the host
LAUNCHED = ("plain", "dtensors")
ADAM, OURS, FOREACH = "torch Adam, fused", "FusedSaLSa, triton", "torch Adam, foreach"


def host(arguments: argparse.Namespace) -> int:
    device, rows, missing = torch.device(arguments.device), list[Row](), dict[str, str]()
    gpu = device.type == "cuda"
    for case in HOST_CASES:
        launching = nullcontext() if gpu or case in LAUNCHED else without_launches()
        with c.left_out(missing, f"host: {case}"), launching:
            seconds = host_seconds(device, arguments.rounds, case)
            for name, own in seconds.items():
                us = {("time", "us"): [1e6 * t for t in own]}
                to_fused = {("to_fused", "1"): ratios(own, seconds[ADAM])}
                rows += timed_rows("host", case, name, {**us, **to_fused})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    settings = {"tensors": HOST_TENSORS, "rounds": arguments.rounds, "launches": gpu}
    measured = Results(results.environment(device), rows, settings=settings)
    return c.finish(measured, by_case(measured), arguments.json)


def host_seconds(device: torch.device, rounds: int, case: str) -> dict[str, Seconds]:
    """Seconds of plain steps; gradients that "move" are in the other of two places in every step.

    A "closure" returns a loss that is there, whose gradients are there too.
    """
    loss, launched = torch.zeros((), device=device), case in LAUNCHED
    tensors = [torch.randn(ELEMENTS, device=device) for _ in range(HOST_TENSORS)]
    if case == "dtensors":  # of one rank: what is timed is the way to the kernels
        torch.distributed.init_process_group(store=HashStore(), rank=0, world_size=1)
        mesh = init_device_mesh(device.type, (1,))
        tensors = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in tensors]
    weights = [*map(nn.Parameter, tensors)]
    gradients = cycle([[torch.randn_like(weight) for weight in weights] for _ in range(2)])

    def move() -> None:
        for weight, gradient in zip(weights, next(gradients)):
            weight.grad = gradient

    move()
    steps: dict[str, Callable[..., object]] = {
        ADAM: torch.optim.Adam(weights, lr=1e-6, fused=True).step,
        "FusedSaLSa" if launched else OURS: plain_step(weights, None if launched else "triton"),
    }
    if case == "closure":
        steps = {name: partial(step, lambda: loss) for name, step in steps.items()}
    if launched:
        steps[FOREACH] = torch.optim.Adam(weights, lr=1e-6, foreach=True).step
    return in_turn(steps, rounds, partial(host_time, before=move if case == "move" else None))


@contextmanager
def without_launches() -> Iterator[None]:
    """Run neither our kernels nor torch's: what remains is Python's time, checks included."""
    from salsa_fused.kernels import backends
    from salsa_fused.kernels.backends import triton

    class OnTheHost(triton.TritonBackend):
        """Serves CPU tensors, whose launches are left out."""

        def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
            return None

    def nothing(*arguments: object, **keywords: object) -> None: ...

    with (
        mock.patch.object(backends, "BACKENDS", [OnTheHost(), *backends.BACKENDS[1:]]),
        mock.patch.multiple(triton, start=nothing, compile_only=nothing),
        mock.patch.multiple(torch, _fused_adam_=nothing, _foreach_add_=nothing),
    ):
        yield
