"""What a plain step costs the host: the Python between one launch and the next.

On a GPU that is what limits small models. With `--device cpu` the launches themselves are left
out, of both optimizers: what remains is Python's time, all checks of tensors included.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench import console as c
from bench import results
from bench.kernels import Call, Seconds, in_turn, plain_step, ratios
from bench.results import Results
from bench.tables import HOST_CASES, by_case

TENSORS, ELEMENTS = 200, 16  # too few elements to cost anything but the host
ADAM, OURS = "torch Adam, fused", "FusedSaLSa, triton"


def host(arguments: argparse.Namespace) -> int:
    device, rows = torch.device(arguments.device), []
    gpu = device.type == "cuda"
    with nullcontext() if gpu else without_launches():
        for case in HOST_CASES:
            seconds = measure(device, arguments.rounds, case=case)
            for name, own in seconds.items():
                us, relative = [1e6 * t for t in own], ratios(own, seconds[ADAM])
                rows.append(results.timed_row("host", case, name, "time", "us", us))
                rows.append(results.timed_row("host", case, name, "to_fused", "1", relative))
    settings = {"tensors": TENSORS, "rounds": arguments.rounds, "launches": gpu}
    measured = Results(results.environment(device), rows, settings=settings)
    return c.finish(measured, by_case(measured), arguments.json, c.quiet_console())


@contextmanager
def without_launches() -> Iterator[None]:
    """Run neither our kernels nor those that torch's fused Adam calls."""
    from salsa_fused.kernels import backends
    from salsa_fused.kernels.backends import triton

    class OnTheHost(triton.TritonBackend):
        """Serves CPU tensors, whose launches are left out."""

        def refusal(self, weight: Tensor, gradient_dtype: torch.dtype) -> str | None:
            return None

    nothing = mock.patch.multiple
    with (
        mock.patch.object(backends, "BACKENDS", [OnTheHost(), *backends.BACKENDS[1:]]),
        nothing(triton, start=_do_nothing, compile_only=_do_nothing),
        nothing(torch, _fused_adam_=_do_nothing, _foreach_add_=_do_nothing),
    ):
        yield


def _do_nothing(*arguments: object, **keywords: object) -> None:
    pass


def measure(device: torch.device, rounds: int, *, case: str) -> dict[str, Seconds]:
    """Seconds of every plain step; gradients that "move" are other tensors in every round.

    A "closure" returns a loss that is there, whose gradients are there too.
    """
    moving, loss = case == "move", torch.zeros((), device=device)
    weights = [nn.Parameter(torch.randn(ELEMENTS, device=device)) for _ in range(TENSORS)]
    gradients = cycle([[torch.randn_like(weight) for weight in weights] for _ in range(1 + moving)])

    def move() -> None:
        for weight, gradient in zip(weights, next(gradients)):
            weight.grad = gradient

    def before(step: Call) -> None:
        if not moving:
            step()  # so that the other optimizer's step is not what it comes after
        if device.type == "cuda":
            torch.cuda.synchronize()

    move()
    steps: dict[str, Any] = {
        ADAM: torch.optim.Adam(weights, lr=1e-6, fused=True).step,
        OURS: plain_step(weights, "triton"),
    }
    if case == "closure":
        steps = {name: partial(step, lambda: loss) for name, step in steps.items()}
    return in_turn(steps, rounds, before=before, after_round=move)
