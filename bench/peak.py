"""Peak memory: the most bytes that tensors took at once, from torch's own allocators."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes beyond those that were taken before; `run` should build all that it needs."""
    gc.collect()
    return _on_gpu(run, device) if device.type == "cuda" else _on_cpu(run)


def _on_gpu(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(run: Callable[[], object]) -> int:
    """The allocator of the CPU keeps no statistics; it tells the profiler what it does."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    taken = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        taken += change
        peak = max(peak, taken)
    return peak
