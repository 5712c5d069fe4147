"""A Wasserstein GAN with gradient penalty: five critic steps for one of the generator."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam

from bench.methods import of_torch
from bench.models import mlp
from bench.networks import parameter_count
from bench.scripts.script import Script
from bench.training import Loop, Run

BATCH, NOISE = 64, 8
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


def wgan_gp(width: int = 128) -> Script:
    data = ring()

    def networks() -> tuple[nn.Module, nn.Module]:
        """The generator, and the critic."""
        return nn.Sequential(*mlp(NOISE, width, width, 2), nn.Tanh()), mlp(2, width, width, 1)

    def train(loop_of: Callable[..., Loop], run: Run, chance: torch.Generator) -> bool:
        makes, judges = networks()
        both = nn.ModuleList([makes, judges])
        of_critic = loop_of(both, judges.parameters(), run=Run())
        of_generator = loop_of(both, makes.parameters())
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
        run.losses = of_critic.run.losses[CRITIC_STEPS - 1 :: CRITIC_STEPS]
        with torch.no_grad():
            noise = torch.randn(len(data), NOISE, generator=torch.Generator().manual_seed(0))
            samples = makes(noise)
        spread = float(samples.std(0).mean() / data.std(0).mean())
        run.scores["sliced_wasserstein"] = sliced_wasserstein(samples, data)
        # Where the last gradient is exactly zero, no optimizer gets away.
        moves = any(w.grad is not None and w.grad.any() for w in makes.parameters())
        return not all(map(math.isfinite, run.losses)) or spread < SMALLEST_SPREAD or not moves

    makes, judges = map(parameter_count, networks())
    return Script(
        case="wgan-gp", title="WGAN-GP",
        description=(
            f"eight clusters of points, {makes:,} parameters make them and {judges:,} judge, "
            f"{CRITIC_STEPS} critic steps for one of the generator, batch {BATCH}"
        ),
        own=(of_torch("Adam", "lr=1e-4, betas 0 and 0.9", Adam, lr=1e-4, betas=(0.0, 0.9)),),
        plain_steps=800 * (CRITIC_STEPS + 1), train=train, score="sliced Wasserstein distance",
        judged_by="sliced_wasserstein",
    )  # fmt: skip


def _critic_loss(judges: nn.Module, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    between = (share * real + (1 - share) * fake).requires_grad_()
    with torch.enable_grad():  # trials need this gradient, too
        (slope,) = torch.autograd.grad(judges(between).sum(), between, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    return judges(fake).mean() - judges(real).mean() + PENALTY * penalty


def _generator_loss(makes: nn.Module, judges: nn.Module, noise: Tensor) -> Tensor:
    return -judges(makes(noise)).mean()


def sliced_wasserstein(samples: Tensor, data: Tensor) -> float:
    """The mean distance of equally many points, sorted along random directions."""
    chance = torch.Generator().manual_seed(0)
    directions = torch.randn(data.shape[1], DIRECTIONS, generator=chance)
    directions /= directions.norm(dim=0)
    ours, theirs = (points @ directions for points in (samples, data))
    return float((ours.sort(0).values - theirs.sort(0).values).abs().mean())
