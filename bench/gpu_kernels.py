"""`python -m bench kernels --device cuda`: the kernels on real models' shapes.

Each call is timed with events, its launches queued behind a device that sleeps until the host is
through with them, and after something else has filled the caches: what is measured is the device.
What the host takes is `python -m bench host --device cuda`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from torch import Tensor
from torch.autograd import DeviceType

from bench import results
from bench.results import Results, Row
from bench.shapes import Shapes, bert_base, gpt2_xl, llama_7b
from salsa_fused import FusedSaLSa

MODELS = (bert_base, gpt2_xl, llama_7b)
COPY = "copy"
FUSED = "torch AdamW, fused"
FLUSH_BYTES = 512 << 20  # more than the caches of any GPU
COPY_BYTES = 4 << 30
SLEEP_CYCLES_A_SECOND = 2.0e9  # about a GPU's clock

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """Something to time; `bytes_each` is what it has to move per parameter, 0: unknown."""

    name: str
    bytes_each: int
    build: Callable[[list[Tensor]], Call]


def bytes_of(dtype: torch.dtype) -> dict[str, int]:
    """Bytes a parameter that every kernel has to move, with moments in fp32."""
    weight, moment = dtype.itemsize, 4
    return {
        COPY: 2 * weight,
        "first_trial": 4 * weight + moment,
        "next_trial": 3 * weight + moment,
        "adam_step": 3 * weight + 4 * moment,
        "alignment": 3 * weight,
        FUSED: 7 * weight,  # torch keeps the moments in the weight's dtype
    }


def everything(shapes: Shapes, backends: list[str]) -> list[Timed]:
    each = bytes_of(shapes.dtype)
    timed = [Timed(FUSED, each[FUSED], lambda w: _adamw(w, fused=True).step)]
    for backend in backends:
        timed += [
            Timed(f"a plain step, {backend}", each["adam_step"], _plain(backend)),
            *(
                Timed(f"{kernel}, {backend}", each[kernel], _kernel(backend, kernel))
                for kernel in ("first_trial", "next_trial", "adam_step")
            ),
            Timed(f"alignment, {backend}", each["alignment"], _alignment(backend)),
            Timed(f"a search step, {backend}", 0, _search(backend)),
        ]
    timed += [
        Timed("torch AdamW, foreach", each[FUSED], lambda w: _adamw(w, foreach=True).step),
        Timed("torch AdamW, compiled", each[FUSED], _compiled),
        Timed("authors' package, a search step", 0, _authors),
    ]
    return timed


def _adamw(weights: list[Tensor], **how: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=1e-6, **how)  # type: ignore[arg-type]


def _compiled(weights: list[Tensor]) -> Call:
    torch._dynamo.reset()  # it keeps the tensors of what it compiled before
    return torch.compile(_adamw(weights, foreach=True).step)


def _plain(backend: str) -> Callable[[list[Tensor]], Call]:
    return lambda weights: (
        FusedSaLSa(weights, backend=backend, search_period=None, init_step_size=1e-6).step
    )


def _kernel(backend: str, kernel: str) -> Callable[[list[Tensor]], Call]:
    """One kernel by itself: without closure and bookkeeping."""

    def build(weights: list[Tensor]) -> Call:
        optimizer = FusedSaLSa(weights, backend=backend, search_period=None, init_step_size=1e-6)
        groups, table = optimizer.param_groups, optimizer._table
        table.refresh(groups, optimizer.state)
        table.first_trial(groups, 1e-6)
        (launch,) = table.launches
        run = getattr(launch.backend, kernel)  # of a launch that holds the moments
        if kernel == "adam_step":
            return lambda: run(launch)()
        return lambda: run(launch)

    return build


def _alignment(backend: str) -> Callable[[list[Tensor]], Call]:
    """By itself, too; without moments, which it does not read."""

    def build(weights: list[Tensor]) -> Call:
        optimizer = FusedSaLSa(weights, backend=backend, direction="sgd", search_period=None)
        for weight in weights:
            optimizer.state[weight]["window_start"] = weight.clone()
        table = optimizer._table
        table.refresh(optimizer.param_groups, optimizer.state)
        table.alignment()
        (launch,) = table.launches
        return lambda: launch.backend.alignment(launch)

    return build


def _search(backend: str) -> Callable[[list[Tensor]], Call]:
    """A whole step with a search that is accepted at once; the closure costs nothing."""

    def build(weights: list[Tensor]) -> Call:
        optimizer = FusedSaLSa(
            weights, backend=backend, search_period=1, check_replay=False, init_step_size=1e-6
        )
        lower = torch.full((), -1e9, device=weights[0].device)
        for group in optimizer.param_groups:  # as after many steps
            group["located"] = group["accepted_once"] = True
        return lambda: optimizer.step(lambda: lower, loss=torch.zeros_like(lower))

    return build


def _authors(weights: list[Tensor]) -> Call:
    """The same of the package `SaLSa-Optimizer`."""
    from salsa.SaLSA import SaLSA

    optimizer = SaLSA(weights, speed_up=False, init_step_size=1e-6)
    device = weights[0].device
    losses = {True: torch.ones((), device=device), False: torch.full((), -1e9, device=device)}
    return lambda: optimizer.step(lambda backwards: losses[backwards])


@dataclass
class Measurement:
    """Of one call: seconds in every round and launches of kernels, or why there are none."""

    name: str
    seconds: list[float]
    launches: int | None = None
    reason: str = ""


def run(
    models: Sequence[Callable[[], Shapes]],
    device: torch.device,
    rounds: int,
    backends: list[str],
    console: Console,
) -> Results:
    """Everything on every model; what has no room, or is not there, is reported."""
    rows: list[Row] = []
    cases: list[str] = []
    skipped: dict[str, str] = {}
    for model in models:
        shapes = model()
        case = f"{shapes.title}, {shapes.size / 1e6:,.0f} M"
        found: list[Measurement] = []
        for one in measure(shapes, device, rounds, backends):
            if one.reason:
                skipped[f"{case}: {one.name}"] = one.reason
                console.print(f"{case}: {one.name}: left out: {one.reason}", style="yellow")
            else:
                found.append(one)
                console.print(f"{case}: {one.name}: {1e3 * statistics.median(one.seconds):.3f} ms")
        if found:
            cases.append(case)
            rows += rows_of(case, shapes, found, backends)
    settings = {"cases": cases, "rounds": rounds, "backends": backends, "skipped": skipped}
    return Results(results.environment(device), rows, settings=settings)


def measure(
    shapes: Shapes, device: torch.device, rounds: int, backends: list[str]
) -> Iterator[Measurement]:
    """One after the other, each with its own moments: together they might have no room."""
    try:
        weights = [torch.empty(s, dtype=shapes.dtype, device=device) for s in shapes.shapes]
        for weight in weights:
            weight.normal_(std=0.02)
            weight.grad = torch.empty_like(weight).normal_(std=1e-3)
        flush = torch.empty(FLUSH_BYTES // 4, device=device)
        source = torch.empty(min(COPY_BYTES, shapes.size * shapes.dtype.itemsize), device=device,
                             dtype=torch.int8).random_()  # fmt: skip
        target = torch.empty_like(source)
    except torch.OutOfMemoryError:
        yield Measurement("everything", [], reason="no room for weights and gradients")
        return
    seconds = time_of(partial(target.copy_, source), rounds, flush)
    share = shapes.size * shapes.dtype.itemsize / source.numel()  # as if all had been copied
    yield Measurement(COPY, [share * t for t in seconds], launches=1)
    del source, target
    for timed in everything(shapes, backends):
        call: Call | None = None
        try:
            call = timed.build(weights)
            one = Measurement(timed.name, time_of(call, rounds, flush), launches_of(call, device))
        except torch.OutOfMemoryError:
            one = Measurement(timed.name, [], reason="no room")
        except Exception as error:  # a peer that is not there, or fails, is reported
            one = Measurement(timed.name, [], reason=f"{type(error).__name__}: {error}")
        del call  # and with it the moments
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield one


def time_of(call: Call, rounds: int, flush: Tensor) -> list[float]:
    """Seconds of every round, as the device saw them."""
    for _ in range(3):
        call()
    if flush.device.type != "cuda":
        return [_host_time(call) for _ in range(rounds)]
    torch.cuda.synchronize()
    ahead = min(_host_time(call), 0.2) + 1e-3
    found = []
    for _ in range(rounds):
        flush.add_(1.0)
        torch.cuda._sleep(int(1.5 * ahead * SLEEP_CYCLES_A_SECOND))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(1e-3 * start.elapsed_time(end))
    return found


def launches_of(call: Call, device: torch.device) -> int | None:
    """Kernels that one call launches; None where there is no GPU to count on."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = [e.name for e in profile.events() if e.device_type == DeviceType.CUDA]
    return sum(not name.startswith("Mem") for name in on_device)


def _host_time(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rows_of(case: str, shapes: Shapes, found: list[Measurement], backends: list[str]) -> list[Row]:
    """Time, bandwidth, and what they are of a copy's bandwidth and of fused AdamW's time."""
    each = {timed.name: timed.bytes_each for timed in everything(shapes, backends)}
    each[COPY] = bytes_of(shapes.dtype)[COPY]
    medians = {one.name: statistics.median(one.seconds) for one in found}
    copy = 1e-9 * each[COPY] * shapes.size / medians[COPY]
    fused = medians.get(FUSED)
    rows = []
    for one in found:
        name, seconds = one.name, one.seconds
        metrics = {("time", "ms"): [1e3 * t for t in seconds]}
        if one.launches is not None:
            metrics["launches", "1"] = [float(one.launches)]
        if each[name]:
            own = [1e-9 * each[name] * shapes.size / t for t in seconds]
            metrics["bandwidth", "GB/s"] = own
            metrics["of_copy", "1"] = [b / copy for b in own]
        if fused is not None:
            metrics["to_fused", "1"] = [t / fused for t in seconds]
        for (metric, unit), values in metrics.items():
            rows.append(results.timed_row("kernels", case, name, metric, unit, values))
    return rows
