"""A GPU that there is not: every "cuda" becomes the CPU, and the GPU's backends run their PTX.

For the logic of what only a GPU runs otherwise (names, branches, shapes), not for its bits, waits
or times.  `python tests/helpers/fake_cuda.py bench kernels ...` runs a bench on small models,
`python tests/helpers/fake_cuda.py pytest ...` tests, each in a process that is faked for good.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import types
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/helpers"), str(ROOT)]

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

CPU = torch.device("cpu")
NAME = "NVIDIA Fake 1"


def on_cpu(value):
    """The value, or the CPU where it names a GPU."""
    if isinstance(value, torch.device):
        return CPU if value.type == "cuda" else value
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return "cpu"
    return value


class EveryCudaIsTheCpu(TorchFunctionMode):
    """Takes the place of what torch dispatches on."""

    def __torch_function__(self, function, kinds, arguments=(), keywords=None):
        if function is torch.device:  # what is asked for still says "cuda"
            return function(*arguments, **(keywords or {}))
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return arguments[0]
        given = {name: on_cpu(value) for name, value in (keywords or {}).items()}
        return function(*map(on_cpu, arguments), **given)


class Event:
    def __init__(self, enable_timing=False):
        self._at = 0.0

    def record(self, stream=None):
        self._at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end._at - self._at)


class Stream:
    cuda_stream = 0

    def __init__(self, *arguments, **keywords):
        pass

    def wait_stream(self, other):
        pass

    synchronize = record_event = wait_event = wait_stream


class Graph(contextlib.AbstractContextManager):
    """A capture: within it torch says that it captures."""

    capturing = False

    def __init__(self, *arguments, **keywords):
        pass

    def __enter__(self):
        Graph.capturing = True

    def __exit__(self, *details):
        Graph.capturing = False


def nothing(*arguments, **keywords):
    return None


PARTS = {
    **dict.fromkeys(("is_available", "is_initialized"), lambda: True),
    **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats", "_sleep"), nothing),
    **dict.fromkeys(("set_sync_debug_mode", "_lazy_init", "init"), nothing),
    "memory_allocated": lambda device=None: 1 << 20,
    "max_memory_allocated": lambda device=None: 3 << 20,
    **{"device_count": lambda: 1, "current_device": lambda: 0},
    **{"get_device_name": lambda device=None: NAME, "get_device_capability": lambda d=None: (8, 6)},
    "get_device_properties": lambda device=None: types.SimpleNamespace(
        name=NAME, total_memory=48 << 30, multi_processor_count=84, major=8, minor=6
    ),
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    **{"Event": Event, "Stream": Stream, "current_stream": lambda device=None: Stream()},
    **{"graph": Graph, "CUDAGraph": object, "is_current_stream_capturing": lambda: Graph.capturing},
    **dict.fromkeys(("device", "stream"), lambda *arguments: contextlib.nullcontext()),
}


@contextlib.contextmanager
def fake_cuda():
    """Within it there is a GPU; its Triton kernels run where Triton and a C compiler are."""
    from ptx import conftest, library

    from salsa_fused.kernels import backends

    with contextlib.ExitStack() as stack:
        for name, part in PARTS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, part))
        if conftest.reason_of_absence("triton") is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            served = conftest.served("triton", conftest.HERE, library.threads_in(folder))
            stack.enter_context(served)
            backends.BACKENDS.insert(0, backends.BACKENDS[-1])  # chosen without being asked
            stack.callback(backends.BACKENDS.pop, 0)
        stack.enter_context(EveryCudaIsTheCpu())
        yield


def small_benches():
    """The benches' models for a GPU, each small enough for translated PTX."""
    from bench import kernels, networks, steps
    from bench.sets.batches import Batch

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50))

        def forward(self, tokens):
            return self.layers(tokens)

    dtypes = {title: dtype for title, (_, dtype) in kernels.GPU_MODELS.items()}
    kernels.GPU_MODELS = {title: (Tiny, dtype) for title, dtype in dtypes.items()}
    kernels.FLUSH_BYTES["cuda"] = 1 << 20
    workload = next(w for w in steps.ON_GPU if "gpt" in w.title.lower())
    assert networks.parameter_count(Tiny()) < 2000

    def draw(batch, length, generator):
        while True:
            tokens = torch.randint(50, (2, 8), generator=generator)
            yield Batch(tokens, tokens.roll(1))

    steps.ON_GPU = [workload._replace(title="tiny", model=Tiny, draw=draw, batch=2, length=8)]
    # torch.compile is tried by itself: here it would compile for a device that there is not
    steps.METHODS = [m for m in steps.METHODS if m.settings != "torch.compile"][:3]
    steps.MEMORY_METHODS, steps.WARM_UP = steps.METHODS, 5


def main(arguments):
    what, *rest = arguments
    with fake_cuda():
        if what == "pytest":
            import pytest

            return pytest.main(rest)
        from bench.__main__ import main as bench

        small_benches()
        return bench(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
