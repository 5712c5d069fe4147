"""An actor-critic that balances a pole on a cart: one update for every episode."""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from bench.methods import of_torch
from bench.networks import parameter_count
from bench.scripts.script import Script
from bench.training import PLAIN_STEP, Loop, Run

DISCOUNT = 0.99
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

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shared = nn.Linear(4, width)
        self.action = nn.Linear(width, 2)
        self.value = nn.Linear(width, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.shared(states))
        return self.action(hidden).softmax(-1), self.value(hidden).squeeze(-1)


def actor_critic(width: int = 128, longest: int = 500) -> Script:
    """`longest`: the steps of an episode, and its highest return."""

    def train(loop_of: Callable[..., Loop], run: Run, chance: torch.Generator) -> bool:
        policy, lengths = Policy(width), []
        loop = loop_of(policy)
        for _ in range(int(loop.budget) // PLAIN_STEP):  # searches cost no episodes
            episode = play(policy, longest, chance)
            lengths.append(len(episode[0]))
            loop.step(partial(_loss, policy, *episode))
        best, last = fmean(sorted(lengths)[-LAST:]), fmean(lengths[-LAST:])
        run.scores |= {"best_return": best, "last_return": last}
        return not all(map(math.isfinite, run.losses)) or last < DEAD

    return Script(
        case="actor-critic", title="Actor-critic",
        description=(
            f"a pole on a cart, episodes of at most {longest} steps, one update for "
            f"each, {parameter_count(Policy(width)):,} parameters, one layer for both heads"
        ),
        own=(of_torch("Adam", "lr=3e-2", torch.optim.Adam, lr=3e-2),), plain_steps=100, train=train,
        score=f"mean return of the best and of the last {LAST} episodes", judged_by="last_return",
        higher_is_better=True, repeats=10,
    )  # fmt: skip


@torch.no_grad()
def play(policy: Policy, longest: int, chance: torch.Generator) -> tuple[Tensor, ...]:
    """One episode with actions by the policy's probabilities; every step is a reward of 1.

    Return its states, its actions, the values that the policy gave the states, and the returns
    from there on, discounted and standardized.
    """
    start = torch.rand(4, generator=chance).mul(0.1).sub(0.05).tolist()
    state: State = (start[0], start[1], start[2], start[3])
    happened: list[tuple[State, int, float]] = []
    for draw in torch.rand(longest, generator=chance).tolist():
        if fallen(state):
            break
        probabilities, value = policy(torch.tensor(state))
        action = int(draw < float(probabilities[1]))
        happened.append((state, action, float(value)))
        state = moved(state, right=action == 1)
    states, actions, values = map(torch.tensor, zip(*happened))
    totals = list(accumulate([1.0] * len(happened), lambda later, one: one + DISCOUNT * later))
    discounted = torch.tensor(totals[::-1])
    standardized = (discounted - discounted.mean()) / (discounted.std() + 1e-8)
    return states, actions, values, standardized


def _loss(
    policy: Policy, states: Tensor, actions: Tensor, acted_with: Tensor, returns: Tensor
) -> Tensor:
    """Summed over the episode; the advantage is a number, of the policy that acted."""
    probabilities, values = policy(states)
    chosen = Categorical(probabilities, validate_args=False).log_prob(actions)
    value_loss = F.smooth_l1_loss(values, returns, reduction="sum")
    return -(chosen * (returns - acted_with)).sum() + value_loss
