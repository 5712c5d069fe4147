"""A Wasserstein GAN with gradient penalty: five critic steps for one of the generator."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.models import parameter_count
from bench.scripts.loop import Training, at_least_one
from bench.scripts.script import Run, Script, Way
from bench.training import Work

CASE = "wgan-gp"
STEPS = 800  # of the generator
BATCH, NOISE, WIDTH = 64, 8, 128
CRITIC_STEPS, PENALTY = 5, 10.0
POINTS, CLUSTERS = 2000, 8
DIRECTIONS = 64  # of the sliced Wasserstein distance
SMALLEST_SPREAD = 0.05  # of the samples, in the data's: below it nothing is generated any more


def ring() -> Tensor:
    """(POINTS, 2): eight clusters on a circle, within the range of the generator's tanh."""
    chance = torch.Generator().manual_seed(0)
    angles = torch.randint(CLUSTERS, (POINTS,), generator=chance) * (2 * math.pi / CLUSTERS)
    centers = 0.7 * torch.stack([angles.cos(), angles.sin()], 1)
    return centers + 0.03 * torch.randn(POINTS, 2, generator=chance)


def generator(width: int) -> nn.Module:
    return nn.Sequential(*_hidden(NOISE, width), nn.Linear(width, 2), nn.Tanh())


def critic(width: int) -> nn.Module:
    return nn.Sequential(*_hidden(2, width), nn.Linear(width, 1))


def _hidden(inputs: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()


def script(work: float = 1.0, width: int = WIDTH) -> Script:
    plain_steps, data = (CRITIC_STEPS + 1) * at_least_one(work * STEPS), ring()

    def train(way: Way, seed: int) -> Run:
        torch.manual_seed(seed)
        makes, judges = generator(width), critic(width)
        both, shared = nn.ModuleList([makes, judges]), Work()
        of_critic = Training(way, judges.parameters(), both, plain_steps, work=shared)
        of_generator = Training(way, makes.parameters(), both, plain_steps, work=shared)
        chance = torch.Generator().manual_seed(seed)
        for _ in of_generator.steps():
            for _ in range(CRITIC_STEPS):
                real = data[torch.randint(len(data), (BATCH,), generator=chance)]
                share = torch.rand(BATCH, 1, generator=chance)
                with torch.no_grad():
                    fake = makes(torch.randn(BATCH, NOISE, generator=chance))
                judges.zero_grad()  # the generator's loss has left gradients here
                of_critic.step(partial(_critic_loss, judges, real, fake, share))
            noise = torch.randn(BATCH, NOISE, generator=chance)
            makes.zero_grad()
            of_generator.step(partial(_generator_loss, makes, judges, noise))
        run = of_generator.run(CASE, seed)
        run.losses = of_critic.losses[CRITIC_STEPS - 1 :: CRITIC_STEPS]
        samples = _samples(makes, len(data))
        run.scores["sliced_wasserstein"] = sliced_wasserstein(samples, data)
        run.scores["spread"] = float(samples.std(0).mean() / data.std(0).mean())
        finite = all(map(math.isfinite, run.losses))
        run.died = not finite or run.scores["spread"] < SMALLEST_SPREAD or _is_stuck(makes)
        return run

    return Script(
        case=CASE,
        title="WGAN-GP",
        description=(
            f"eight clusters of points, {parameter_count(generator(width)):,} parameters make "
            f"them and {parameter_count(critic(width)):,} judge, {CRITIC_STEPS} critic steps for "
            f"one of the generator, batch {BATCH}"
        ),
        own=(Way("Adam", "lr=1e-4, betas 0 and 0.9", adam),),
        train=train,
        score="sliced Wasserstein distance",
        shown=("sliced_wasserstein",),
        judged_by="sliced_wasserstein",
        loss_is_positive=False,
    )


def adam(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
    return torch.optim.Adam(params, lr=1e-4, betas=(0.0, 0.9))


def _critic_loss(judges: nn.Module, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    between = (share * real + (1 - share) * fake).requires_grad_()
    with torch.enable_grad():  # trials need this gradient, too
        (slope,) = torch.autograd.grad(judges(between).sum(), between, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    return judges(fake).mean() - judges(real).mean() + PENALTY * penalty


def _generator_loss(makes: nn.Module, judges: nn.Module, noise: Tensor) -> Tensor:
    return -judges(makes(noise)).mean()


@torch.no_grad()
def _samples(makes: nn.Module, count: int) -> Tensor:
    return makes(torch.randn(count, NOISE, generator=torch.Generator().manual_seed(0)))


def sliced_wasserstein(samples: Tensor, data: Tensor) -> float:
    """The mean distance of equally many points, sorted along random directions."""
    chance = torch.Generator().manual_seed(0)
    directions = torch.randn(data.shape[1], DIRECTIONS, generator=chance)
    directions /= directions.norm(dim=0)
    ours, theirs = (points @ directions for points in (samples, data))
    return float((ours.sort(0).values - theirs.sort(0).values).abs().mean())


def _is_stuck(makes: nn.Module) -> bool:
    """The last gradient is exactly zero: no optimizer gets away from here."""
    return not any(w.grad is not None and w.grad.any() for w in makes.parameters())
