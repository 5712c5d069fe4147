"""The Triton kernels, interpreted: they serve on a CPU under TRITON_INTERPRET=1.

Their bits are looked at in `tests/ptx/`, where what is compiled runs, for all cases and faster.

Not collected with the rest: Triton decides when it is imported whether it interprets, so
`test_triton.py` runs this file in a process of its own, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    DIRECTIONS,
    FORMATS,
    along,
    assert_aligned,
    assert_same_run,
    backend_named,
    make_state,
    make_weights,
    make_window,
    same_bits,
)
from small_net import make_closure, make_net

from salsa_fused import FusedSaLSa
from salsa_fused.kernels.backends.triton import interpreted

BOTH = ("triton", "native")


def test_this_process_interprets():
    assert interpreted()
    assert backend_named("triton").refusal(torch.zeros(1), torch.float32) is None


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits(dtype, direction):
    def make():
        weights = make_weights([7, 2048, 4099], dtype, missing={1})
        return weights, None, make_state(weights)

    assert_same_run(along(direction, make), BOTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_what_is_stored_otherwise(dtype):
    def make():
        weights = make_weights([7, 2048, 4099], dtype, missing={1})
        return weights, None, make_state(weights)

    assert_same_run(make, BOTH, formats=FORMATS["all"])


def test_alignment():
    def make():
        weights = make_weights([7, 2048, 4099], missing={1})
        return weights, None, make_window(weights, make_state(weights), without={0})

    assert_aligned(BOTH, make)


def test_a_run_takes_the_same_steps():
    runs = []
    for backend in BOTH:
        net = make_net(0, norm=False)
        optimizer = FusedSaLSa(net.parameters(), backend=backend, check_replay=False)
        found = []
        for step in range(15):
            torch.manual_seed(step)
            optimizer.step(make_closure(net, step))
            found.append((optimizer.step_size, *[p.detach().clone() for p in net.parameters()]))
        assert optimizer.backends == (backend,)
        runs.append(found)
    for ours, theirs in zip(*runs):
        assert ours[0] == theirs[0]
        assert all(map(same_bits, ours[1:], theirs[1:]))
