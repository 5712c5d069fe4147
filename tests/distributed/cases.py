"""Models and runs that are the same on one rank and on several, for tests/distributed.

Every run is on the same global batches: each rank has its equal part of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from salsa_fused import FusedSaLSa

TOKENS, WIDTH, LENGTH, BATCH = 32, 12, 8, 8


class Block(nn.Module):
    """A feed-forward block, in the names of tensor parallel plans."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width + 1 + (width % 2 == 0))
        self.down = nn.Linear(self.up.out_features, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """A small language model: uneven sizes, and a weight of one element."""

    def __init__(self, width: int = WIDTH, *, scaled: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, TOKENS)
        if scaled:
            self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        h = self.head(self.norm(h))
        return h * self.scale if hasattr(self, "scale") else h


Rows = list[tuple[Any, ...]]


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def build(dtype: torch.dtype, seed: int = 0, **keywords: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**keywords).to(dtype)


def batches(steps: int, parts: int, part: int) -> list[tuple[Tensor, Tensor]]:
    """Return a part of every batch: the token that follows is a function of the token."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(steps):
        x = torch.randint(0, TOKENS, (BATCH, LENGTH), generator=generator)
        y = (x * 5 + 1) % TOKENS
        y[:, -2:] = torch.randint(0, TOKENS, (BATCH, 2), generator=generator)  # noise
        own = slice(part * BATCH // parts, (part + 1) * BATCH // parts)
        found.append((x[own], y[own]))
    return found


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    outputs = model(x).flatten(0, 1)
    if outputs.dtype == torch.bfloat16:
        outputs = outputs.float()
    return nn.functional.cross_entropy(outputs, y.flatten())


def train(
    model: nn.Module,
    optimizer: FusedSaLSa,
    steps: int,
    *,
    parts: int = 1,
    part: int = 0,
    scale: float = 1.0,
    begin: int = 0,
) -> Rows:
    """Return loss, step size, applied step size, trials, period and skips after every step."""
    rows = []
    for x, y in batches(begin + steps, parts, part)[begin:]:
        loss = optimizer.step(lambda x=x, y=y: loss_of(model, x, y) * scale)
        numbers = optimizer.metrics()
        names = ("step_size", "applied_step_size", "total_trials", "period", "skipped_steps")
        rows.append((loss.item(), *[numbers[name] for name in names]))
    return rows


def as_all_alone(**keywords: Any) -> FusedSaLSa:
    """An optimizer that this process has to itself."""
    own = dist.new_subgroups(1)[0] if dist.is_initialized() else None
    return FusedSaLSa(process_group=own, **keywords)


@cache
def run_alone(dtype: torch.dtype, steps: int, scale: float = 1.0, **settings: Any) -> Any:
    """Rows and weights of one process that has whole batches; rank 0 trains, all have them."""
    found: list[Any] = [None]
    model = build(dtype, **{k: settings.pop(k) for k in ("width", "scaled") if k in settings})
    if "plan" in settings:  # as tensor parallel checks leave it out
        settings.pop("plan")
    optimizer = as_all_alone(params=model.parameters(), module=model, **settings)
    if rank() == 0:
        found = [(train(model, optimizer, steps, scale=scale), weights_of(model))]
    dist.broadcast_object_list(found)
    return found[0]


def weights_of(model: nn.Module) -> Tensor:
    """All weights, whole."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([weight.detach().reshape(-1) for weight in found])


def assert_equal_on_all_ranks(value: Any) -> None:
    """Bit for bit."""
    everywhere: list[Any] = [None] * world()
    dist.all_gather_object(everywhere, value)
    for other in everywhere:
        if isinstance(value, Tensor):
            assert torch.equal(value, other)
        else:
            assert value == other, everywhere


def assert_same_run(
    rows: Rows,
    alone: Rows,
    *,
    losses: float,
    sizes: float,
) -> None:
    """The same decisions; losses and step sizes to a relative tolerance."""
    assert len(rows) == len(alone)
    for step, (one, other) in enumerate(zip(rows, alone)):
        assert one[3:] == other[3:], (step, one, other)
        assert abs(one[0] - other[0]) <= losses * abs(other[0]), (step, one, other)
        for mine, expected in zip(one[1:3], other[1:3]):
            assert abs(mine - expected) <= sizes * expected, (step, one, other)
