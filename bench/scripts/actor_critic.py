"""An actor-critic that balances a pole on a cart: one update for every episode."""

from __future__ import annotations

import math
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from bench.models import parameter_count
from bench.scripts.loop import Training, at_least_one
from bench.scripts.script import Run, Script, Way

CASE = "actor-critic"
EPISODES = 100
DISCOUNT = 0.99
LONGEST = 500  # steps of an episode, and its highest return
LAST = 10  # episodes of the scores
DEAD = 15.0  # a return below this: the pole falls as fast as it can

State = tuple[float, float, float, float]  # position, velocity, angle, angular velocity


def moved(state: State, right: bool) -> State:
    """The cart and the pole a fiftieth of a second later (Barto, Sutton and Anderson 1983)."""
    x, v, angle, spin = state
    gravity, cart, pole, half_length, force, second = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    sine, cosine, total = math.sin(angle), math.cos(angle), cart + pole
    push = ((force if right else -force) + pole * half_length * spin**2 * sine) / total
    turn = (gravity * sine - cosine * push) / (half_length * (4 / 3 - pole * cosine**2 / total))
    speed_up = push - pole * half_length * turn * cosine / total
    return x + second * v, v + second * speed_up, angle + second * spin, spin + second * turn


def fallen(state: State) -> bool:
    return abs(state[0]) > 2.4 or abs(state[2]) > math.radians(12)


class Policy(nn.Module):
    """States (batch, 4) -> probabilities of both actions (batch, 2), and the values (batch,)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.shared = nn.Linear(4, width)
        self.action = nn.Linear(width, 2)
        self.value = nn.Linear(width, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.shared(states))
        return self.action(hidden).softmax(-1), self.value(hidden).squeeze(-1)


class Episode(NamedTuple):
    """What happened, in numbers: the loss is computed from them again in every evaluation."""

    states: Tensor  # (time, 4)
    actions: Tensor  # (time,)
    values: Tensor  # (time,), of the policy that acted
    returns: Tensor  # (time,), discounted and standardized


def script(work: float = 1.0, width: int = 128, longest: int = LONGEST) -> Script:
    episodes = at_least_one(work * EPISODES)

    def train(way: Way, seed: int) -> Run:
        torch.manual_seed(seed)
        policy = Policy(width)
        training = Training(way, policy.parameters(), policy, episodes)
        chance = torch.Generator().manual_seed(seed)
        lengths = []
        for _ in range(episodes):
            episode = play(policy, longest, chance)
            lengths.append(len(episode.actions))
            training.step(partial(_loss, policy, episode))
        run = training.run(CASE, seed)
        run.scores["best_return"] = fmean(sorted(lengths)[-LAST:])
        run.scores["last_return"] = fmean(lengths[-LAST:])
        finite = all(map(math.isfinite, run.losses))
        run.died = not finite or run.scores["last_return"] < DEAD
        return run

    return Script(
        case=CASE,
        title="Actor-critic",
        description=(
            f"a pole on a cart, {episodes} episodes of at most {longest} steps, one update for "
            f"each, {parameter_count(Policy(width)):,} parameters, one layer for both heads"
        ),
        own=(Way("Adam", "lr=3e-2", adam),),
        train=train,
        score=f"mean return of the best and of the last {LAST} episodes",
        shown=("best_return", "last_return"),
        judged_by="last_return",
        higher_is_better=True,
        repeats=10,
        loss_is_positive=False,
    )


def adam(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
    return torch.optim.Adam(params, lr=3e-2)


@torch.no_grad()
def play(policy: Policy, longest: int, chance: torch.Generator) -> Episode:
    """One episode with actions by the policy's probabilities; every step is a reward of 1."""
    start = torch.rand(4, generator=chance).mul(0.1).sub(0.05).tolist()
    state: State = (start[0], start[1], start[2], start[3])
    states: list[State] = []
    actions: list[int] = []
    values: list[float] = []
    draws = torch.rand(longest, generator=chance).tolist()
    while len(actions) < longest and not fallen(state):
        probabilities, value = policy(torch.tensor(state))
        action = int(draws[len(actions)] < float(probabilities[1]))
        states.append(state)
        actions.append(action)
        values.append(float(value))
        state = moved(state, right=action == 1)
    returns, total = [], 0.0
    for _ in actions:
        total = 1.0 + DISCOUNT * total
        returns.append(total)
    discounted = torch.tensor(returns[::-1])
    standardized = (discounted - discounted.mean()) / (discounted.std() + 1e-8)
    return Episode(torch.tensor(states), torch.tensor(actions), torch.tensor(values), standardized)


def _loss(policy: Policy, episode: Episode) -> Tensor:
    """Summed over the episode; the advantage is a number, of the policy that acted."""
    probabilities, values = policy(episode.states)
    chosen = Categorical(probabilities, validate_args=False).log_prob(episode.actions)
    advantages = episode.returns - episode.values
    value_loss = F.smooth_l1_loss(values, episode.returns, reduction="sum")
    return -(chosen * advantages).sum() + value_loss
