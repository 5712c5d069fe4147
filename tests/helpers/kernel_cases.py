"""Models for the kernels to run on, and a run of all three that two backends must share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from salsa_fused.kernels import DIRECTIONS as ALL_DIRECTIONS
from salsa_fused.kernels import Kernels
from salsa_fused.kernels.backends import forced_backends
from salsa_fused.kernels.memory import compute_dtype, moment_like
from salsa_fused.kernels.storage import Formats

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIRECTIONS = tuple(ALL_DIRECTIONS)
PLACES = {  # in csrc/directions.h, of those that have a struct
    name: place for place, name in enumerate(DIRECTIONS) if ALL_DIRECTIONS[name].arithmetic == name
}
GROUP = {
    **{"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    **{"maximize": False, "direction": "adam", "trust_clip": 1.0},
    **{"alpha": 5.0, "slow_beta": 0.99},
}


BF16 = torch.bfloat16
FORMATS = {  # what is not stored as the defaults have it
    "masters": Formats(True),
    "masters, exp_avg": Formats(True, BF16),
    "masters, exp_avg_sq": Formats(True, torch.float32, BF16),
    "all": Formats(True, BF16, BF16),
    "moments": Formats(False, BF16, BF16),
}


def make_weights(sizes, dtype=torch.float32, seed=0, missing=()):
    """Weights with gradients over many orders of magnitude, so that rounding shows."""
    random = torch.Generator().manual_seed(seed)

    def draw(size):
        return torch.randn(size, dtype=torch.float64, generator=random)

    weights = []
    for i, size in enumerate(sizes):
        weight = draw(size).to(dtype)
        gradient = (draw(size) * torch.exp(3 * draw(size))).clamp(-6e4, 6e4).to(dtype)
        if i not in missing:
            weight.grad = gradient
        weights.append(weight)
    return weights


def random_bits(size, dtype, seed):
    """Finite numbers of every magnitude, subnormal ones included."""
    random = np.random.default_rng(seed)
    if dtype == 0:
        return (random.standard_normal(size) * 10.0 ** random.integers(-45, 3, size)).astype("f4")
    bits = random.integers(0, 2**16, size, dtype=np.uint16)
    exponent = {1: 0x7F80, 2: 0x7C00}[dtype]
    return np.where((bits & exponent) == exponent, bits ^ 0x4000, bits)


def backend_named(name):
    """The backend object of that name; of two, the one on the CPU."""
    return forced_backends(name)[0]


MOMENTS = ("exp_avg", "exp_avg_sq", "exp_avg_slow", "master_param")


def make_state(weights, t=7, seed=1):
    """Moments of every direction for every weight."""
    random, slow = (torch.Generator().manual_seed(s) for s in (seed, seed + 1000))
    return {
        weight: {
            "step": t,
            "exp_avg": moment_like(weight, torch.randn(weight.shape, generator=random)),
            "exp_avg_sq": moment_like(weight, torch.rand(weight.shape, generator=random).pow(4)),
            "exp_avg_slow": moment_like(weight, torch.randn(weight.shape, generator=slow)),
        }
        for weight in weights
    }


def make_window(weights, state, seed=2, without=()):
    """Enter into the state where a window began: near the weights, as they were some steps ago."""
    random = torch.Generator().manual_seed(seed)
    for i, weight in enumerate(weights):
        if i not in without and weight.numel():
            moved = 0.1 * torch.randn(weight.shape, generator=random)
            start = torch.empty_like(weight).copy_(weight.double() + moved)
            state.setdefault(weight, {})["window_start"] = start
    return state


def alignment_of(backend, weights, groups=None, state=None, formats=None):
    """What the backend makes of <g, window_start - w>, before anything else in a step."""
    kernels = Kernels(backend, formats=formats)
    assert kernels.refresh(groups or [{**GROUP, "params": weights}], state)
    return math.fsum(part.item() for part in kernels.alignment())


def alignment_terms(weights, state):
    """The elements that are added up, in the precision that kernels compute in, as float64."""
    terms = [torch.zeros(1, dtype=torch.float64)]
    for weight in weights:
        start = state.get(weight, {}).get("window_start")
        if weight.grad is not None and start is not None:
            dtype = compute_dtype(weight.dtype)
            w, g, start = (x.detach().to(dtype) for x in (weight, weight.grad, start))
            terms.append(((start - w) * g).double().flatten().cpu())
    return torch.cat(terms)


def assert_aligned(backends, make):
    """`make` builds (weights, groups, state); all backends give their terms' sum."""
    for backend in backends:
        weights, groups, state = make()
        terms = alignment_terms(weights, state)
        expected, scale = math.fsum(terms.tolist()), terms.abs().sum().item()
        assert abs(alignment_of(backend, weights, groups, state) - expected) <= 1e-12 * scale


def run(backend, weights, groups=None, state=None, eta=0.37, unit=None, formats=None):
    """first_trial, next_trial, final write; a copy of every tensor after each, and the slope.

    Of one unit's trials the final write has a step size for each group.
    """
    groups = groups or [{**GROUP, "params": weights}]
    state = {} if state is None else state
    kernels = Kernels(backend, formats=formats)
    seen = []

    def look():
        entries = [entry for weight in weights if (entry := state.get(weight))]
        moments = [entry[name] for entry in entries for name in MOMENTS if name in entry]
        seen.append([tensor.clone() for tensor in (*weights, *moments)])

    assert kernels.refresh(groups, state)
    slope = sum(s.item() for s in kernels.first_trial(groups, eta, unit))
    look()
    kernels.next_trial(groups, eta * 0.7)
    look()
    final = eta * 0.49
    kernels.final_write(groups, final if unit is None else [final, 0.3 * final][: len(groups)])
    for weight in weights:
        state.setdefault(weight, {})
    kernels.commit(state)
    kernels.release()
    for weight in [w for w in state if not state[w]]:
        del state[weight]
    look()
    kernels.refresh(groups, state)
    kernels.final_write(groups, eta)  # a plain step, in place
    kernels.commit(state)
    kernels.release()
    look()
    return seen, slope


def same_bits(a, b):
    """Equal bit for bit; of two that are not a number the bits do not matter."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    a, b = a.cpu(), b.cpu()
    numbers = ~a.isnan()
    return torch.equal(numbers, ~b.isnan()) and torch.equal(
        a[numbers].view(integer), b[numbers].view(integer)
    )


def assert_same_run(make, backends=("native", "reference"), device="cpu", unit=None, formats=None):
    """`make` builds (weights, groups, state) anew; both backends must leave the same bits.

    The first of the two runs on `device`, the other on the CPU.
    """
    (ours, slope), (theirs, their_slope) = (
        run(backend, *moved(make(), place), unit=unit, formats=formats)
        for backend, place in zip(backends, (device, "cpu"))
    )
    for step, (tensors, others) in enumerate(zip(ours, theirs)):
        assert len(tensors) == len(others)
        for i, (a, b) in enumerate(zip(tensors, others)):
            assert same_bits(a, b), f"bucket {step}, tensor {i}"
    assert slope == pytest.approx(their_slope, rel=1e-12, nan_ok=True)


def along(direction, make):
    """The same, along this direction."""

    def build():
        weights, groups, state = make()
        groups = groups or [{**GROUP, "params": weights}]
        return weights, [{**group, "direction": direction} for group in groups], state

    return build


def moved(case, device):
    """The same case on a device: the same strides, and the same places beside 16 bytes."""
    if device == "cpu":
        return case
    weights, groups, state = case
    there = {id(weight): _moved(weight, device) for weight in weights}
    for weight in weights:
        if weight.grad is not None:
            there[id(weight)].grad = _moved(weight.grad, device)
    if groups is not None:
        groups = [{**g, "params": [there[id(w)] for w in g["params"]]} for g in groups]
    if state is not None:
        state = {
            there[id(w)]: {
                name: _moved(x, device) if isinstance(x, torch.Tensor) else x
                for name, x in entry.items()
            }
            for w, entry in state.items()
        }
    return list(there.values()), groups, state


def _moved(tensor, device):
    offset = tensor.data_ptr() % 16 // tensor.element_size()
    room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device=device)
    return room.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


# -- models to run ----------------------------------------------------------------------------


def two_groups():
    weights = make_weights([1000] * 6)
    groups = [
        {**GROUP, "lr": 0.3, "weight_decay": 0.01, "params": weights[:3]},
        {**GROUP, "betas": (0.0, 0.9), "eps": 1e-3, "params": weights[3:]},
    ]
    return weights, groups, {**make_state(weights[:2], 3), **make_state(weights[4:], 1000)}


def extreme_values():
    values = torch.tensor([0.0, -0.0, 1e-45, 1e-38, 1e-20, 1.0, 1e18, 1e30, 3e38, torch.inf])
    values = torch.cat([values, -values])
    weight = values.repeat(20).clone()
    weight.grad = values.repeat_interleave(20).clone()
    return [weight], None, {}


def side_by_side():
    """Weights and gradients without a gap between them: whoever writes beyond one, shows."""
    sizes = [1000, 4, 513, 2048, 7, 4096, 100]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    (room,) = make_weights([ends[-1]])
    parts = [slice(end - size, end) for end, size in zip(ends, sizes)]
    weights = [room[part] for part in parts[:-1]]  # the last part is a guard
    for weight, part in zip(weights, parts):
        weight.grad = room.grad[part]
    guard = room[parts[-1]]
    return [*weights, guard], None, {}


@dataclass
class Model:
    """Shapes, memory orders, dtypes and gradients that hypothesis draws."""

    shapes: list[list[int]]
    orders: list[list[int]]  # of the dimensions in memory
    same_order: list[bool]  # in the gradient
    offsets: list[int]  # elements from where the memory begins
    with_gradient: list[bool]
    dtypes: list[torch.dtype]
    grouped: bool
    seed: int

    def build(self):
        weights = []
        for i, shape in enumerate(self.shapes):
            random = torch.Generator().manual_seed(self.seed + i)
            order, dtype = self.orders[i], self.dtypes[i]
            room = torch.randn(math.prod(shape) + self.offsets[i], generator=random).to(dtype)
            weight = room[self.offsets[i] :].view([shape[k] for k in order])
            weight = weight.permute([order.index(k) for k in range(len(shape))])
            assert list(weight.shape) == shape
            gradient = torch.randn(shape, generator=random).to(dtype)
            if self.with_gradient[i]:
                same = self.same_order[i]
                weight.grad = torch.empty_like(weight).copy_(gradient) if same else gradient
            weights.append(weight)
        if not any(w.grad is not None and w.numel() for w in weights):
            extra = torch.ones(3)
            extra.grad = torch.ones(3)
            weights.append(extra)
        middle = len(weights) // 2 if self.grouped else 0
        groups = [
            {**GROUP, "lr": 0.2, "params": weights[:middle]},
            {**GROUP, "weight_decay": 0.3, "params": weights[middle:]},
        ]
        return weights, groups, {}


@st.composite
def models(draw):
    """Any dense strides, aligned or not, zero-size and 0-dim tensors included."""
    shape = st.lists(st.integers(0, 40), max_size=4).filter(lambda s: math.prod(s) < 20_000)
    shapes = draw(st.lists(shape, min_size=1, max_size=5))
    n = len(shapes)

    def each(strategy):
        return draw(st.lists(strategy, min_size=n, max_size=n))

    return Model(
        shapes=shapes,
        orders=[draw(st.permutations(range(len(shape)))) for shape in shapes],
        same_order=each(st.booleans()),
        offsets=each(st.sampled_from([0, 0, 1, 3, 4])),
        with_gradient=each(st.booleans()),
        dtypes=each(st.sampled_from(DTYPES)),
        grouped=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )
