"""A small noisy problem that brings every rule of the search into play, for both sides alike."""

from __future__ import annotations

import math

import numpy as np
import torch
from reference import ReferenceSaLSa, UnitSearch, reference_class
from torch import Tensor

from salsa_fused import FusedSaLSa
from salsa_fused.line_search import SearchSettings

SHAPES = [(6, 8), (8,), (8, 3), (3,), ()]
GROUPS = [  # of parameter indices
    {"params": [0, 1], "lr": 0.5, "weight_decay": 0.02},
    {"params": [2], "lr": 1.0},
    {"params": [3, 4], "lr": 0.25, "betas": (0.8, 0.99), "eps": 1e-6},
]


class NoisyProblem:
    """Mini-batches of a two-layer regression with label noise, dropout and an L2 penalty.

    On some steps the trials' losses are ten too high (the search is exhausted), or a large
    constant hides every difference (flat); on every seventh, `missing` the first of them, the
    last parameter has no gradient.
    Steps 1 to `long_flat` are flat whatever the step size. With 10 of them the next step locates;
    three units in turn need 30, and more than one step size needs does harm.
    """

    def __init__(
        self, seed: int = 0, events: bool = True, long_flat: int = 10, missing: int = 3
    ) -> None:
        self.events = events
        self.missing = missing
        self.long_flat = long_flat
        random = np.random.default_rng(seed)
        self.start = [0.5 * random.standard_normal(shape) for shape in SHAPES]
        self.inputs = torch.from_numpy(random.standard_normal((256, 6)))
        targets = np.tanh(self.inputs.numpy() @ random.standard_normal((6, 3)))
        self.targets = torch.from_numpy(targets + 0.3 * random.standard_normal((256, 3)))

    def loss(self, weights: list[Tensor], step: int) -> Tensor:
        dtype = weights[0].dtype
        chosen = np.random.default_rng(1000 + step).integers(0, 256, 16)
        x, y = self.inputs[chosen].to(dtype), self.targets[chosen].to(dtype)
        hidden = torch.tanh(x @ weights[0] + weights[1])
        keep = torch.rand(8, dtype=torch.float64) < 0.8  # from torch's own stream
        out = (hidden * keep.to(dtype)) @ weights[2] + weights[3]
        penalized = weights[:4]
        if step % 7 != self.missing:
            out = out * torch.exp(weights[4])
            penalized = weights
        # the penalty leads back from where tanh and exp are flat, and the search with them
        loss = (out - y).square().mean() + 0.1 * sum(w.square().sum() for w in penalized)
        if self.events and 1 <= step <= self.long_flat:
            loss = loss + 2.0 ** (120 if dtype == torch.float32 else 200)
        elif self.events and 45 <= step % 60 < 50:
            loss = loss + 2.0 ** (20 if dtype == torch.float32 else 50)
        return loss

    sign = 1.0  # of what the closure returns

    def closure(self, weights: list[Tensor], step: int):
        evaluations = 0

        def closure() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            loss = self.loss(weights, step)
            loss = loss + 10.0 if self.is_bad(step) and evaluations > 1 else loss
            return self.sign * loss

        return closure

    def is_bad(self, step: int) -> bool:
        return self.events and 30 <= step % 60 < 40

    # -- the same, for the reference: float64 NumPy in and out ---------------------------------

    def loss_and_grads(self, step: int):
        def evaluate(weights: list[np.ndarray]):
            torch.manual_seed(step)
            tensors = [torch.tensor(w, requires_grad=True) for w in weights]
            loss = self.loss(tensors, step)
            grads = torch.autograd.grad(loss, tensors, allow_unused=True)
            return loss.item(), [None if g is None else g.numpy() for g in grads]

        return evaluate

    def loss_at(self, step: int):
        def evaluate(weights: list[np.ndarray]) -> float:
            torch.manual_seed(step)
            loss = self.loss([torch.tensor(w) for w in weights], step).item()
            return loss + 10.0 if self.is_bad(step) else loss

        return evaluate


class ProblemWithNaN(NoisyProblem):
    """Every eleventh loss is not a number, of searches and of plain steps."""

    def loss(self, weights: list[Tensor], step: int) -> Tensor:
        loss = super().loss(weights, step)
        return loss * math.nan if step % 11 == 8 else loss


class NegatedProblem(NoisyProblem):
    """To be maximized; the reference lowers the loss all the same."""

    sign = -1.0


def both(problem, optimizer_class=FusedSaLSa, dtype=torch.float64, groups=GROUPS, **keywords):
    """(weights, an optimizer of them, the reference) on one problem, at the same start."""
    weights = [torch.tensor(w, dtype=dtype, requires_grad=True) for w in problem.start]
    for weight in weights:  # the same numbers, also in fp32
        weight.data.copy_(weight.data.float())
    start = [weight.detach().double().numpy() for weight in weights]
    torch_groups = [{**group, "params": [weights[i] for i in group["params"]]} for group in groups]
    optimizer = optimizer_class(torch_groups, check_replay=False, **keywords)
    settings = SearchSettings.read_from(optimizer.param_groups[0])._asdict()
    first = optimizer.param_groups[0]
    if first["direction"] == "lamb":
        settings["trust_clip"] = first["trust_clip"]
    settings["max_grad_norm"] = keywords.get("max_grad_norm")
    reference = reference_class(first["direction"], first["units"])
    return weights, optimizer, reference(start, groups, **settings)


def shrink_step_size(when: int):
    """To a thousandth before one step, late so that what is applied is more than 38 of it."""

    def before_step(step: int, optimizer, reference: ReferenceSaLSa) -> None:
        if step == when:
            for group in optimizer.param_groups:
                group["step_size"] /= 1000.0
            reference.eta /= 1000.0

    return before_step


LOOKS = {  # of the reference's `looks`: what a parameter group calls them
    "a": "applied_step_size",
    "b": "first_move",
    "t_b": "window_begin",
    "t_e": "window_end",
    "P": "looks_sum",
    "Q": "looks_size",
    **{name: name for name in ("last_look", "last_change", "longest")},
}


def copy_state(optimizer, weights, reference: ReferenceSaLSa) -> None:
    """The optimizer's weights, moments and search state into the reference."""
    group = optimizer.param_groups[0]
    names = {
        "eta": "step_size",
        "h": "smoothed_decrease",
        "s": "smoothed_slope",
        "eta_accepted": "accepted_step_size",
        "flats": "flat_searches",
        "L": "period",
        "E_fast": "fast_mean",
        "E_slow": "slow_mean",
        **{name: name for name in ("steps", "located", "accepted_once", "skipped_steps")},
    }
    for name, ours in names.items():
        setattr(reference, name, group[ours])
    since = "steps_since_search"
    reference.since_search = min(group[since] for group in optimizer.param_groups)
    if isinstance(reference, UnitSearch):
        reference.next_unit = group["next_unit"]
        own = ("eta", "h", "s", "eta_accepted", "flats", "E_fast", "E_slow", "located")
        for group, unit in zip(optimizer.param_groups, reference.units):
            unit.since_search = group[since]
            for name in own:
                setattr(unit, name, group[names[name]])
    for i, weight in enumerate(weights):
        reference.params[i] = weight.detach().double().numpy().copy()
        entry = optimizer.state.get(weight, {})
        if "step" in entry:
            reference.t[i] = entry["step"]
            reference.m[i] = entry["exp_avg"].double().numpy().copy()
            reference.v[i] = entry["exp_avg_sq"].double().numpy().copy()
        window_start = entry.get("window_start")
        if window_start is not None:
            reference.looks.w_a[i] = window_start.double().numpy().copy()
    saved = optimizer.state_dict()["param_groups"][0]  # saved: no look waits
    for name, ours in LOOKS.items():
        setattr(reference.looks, name, saved[ours])
    reference.looks.waiting = []


def distance(weights: list[Tensor], reference: ReferenceSaLSa) -> float:
    """The largest difference relative to the size of a parameter (at least 1)."""
    return max(
        float(np.abs(w.detach().double().numpy() - r).max() / max(1.0, np.abs(r).max()))
        for w, r in zip(weights, reference.params)
    )


def step_sizes(reference: ReferenceSaLSa) -> list[float]:
    """One for each group."""
    if isinstance(reference, UnitSearch):
        return reference.etas
    return [reference.eta] * len(reference.groups)


def assert_same_looks(
    optimizer, weights, reference: ReferenceSaLSa, skipped: bool, tolerance: float, step: int
) -> None:
    """The numbers of looking back, in every group, and the weights at the window's beginning."""
    looks = reference.looks
    for k, group in enumerate(optimizer.param_groups):
        found = {name: group[ours] for name, ours in LOOKS.items()}
        expected = {name: getattr(looks, name) for name in LOOKS}
        if not reference.look_back:  # a skipped step moves eta, and the next one searches
            expected["a"] = found["a"] if skipped else step_sizes(reference)[k]
        for name in ("t_b", "t_e", "last_look", "last_change"):
            assert found[name] == expected[name], f"step {step}: {LOOKS[name]}"
        for name in ("a", "b", "longest"):
            near = abs(found[name] - expected[name]) <= tolerance * expected[name]
            assert near, f"step {step}: {LOOKS[name]}"
        for name in ("P", "Q"):
            near = abs(found[name] - expected[name]) <= tolerance * max(1.0, looks.Q)
            assert near, f"step {step}: {LOOKS[name]}"
    for weight, w_a in zip(weights, looks.w_a):
        found = optimizer.state.get(weight, {}).get("window_start")
        assert (found is None) == (w_a is None), f"step {step}: window_start"
        if w_a is not None:
            difference = np.abs(found.double().numpy() - w_a).max()
            assert difference <= tolerance * max(1.0, np.abs(w_a).max()), (
                f"step {step}: window_start"
            )


def follow_each(problems, *arguments, **keywords) -> None:
    """Follow the reference on one problem after the other."""
    for problem in problems:
        follow(problem, *arguments, **keywords)


def follow(
    problem, optimizer_class=FusedSaLSa, steps=300, tolerance=1e-10, before_step=None, **keywords
) -> set:
    """Assert that an optimizer takes the reference's decisions and weights; returns outcomes.

    `before_step(step, optimizer, reference)` may change both.
    """
    weights, optimizer, reference = both(problem, optimizer_class, **keywords)
    outcomes = set()
    for step in range(steps):
        if before_step is not None:
            before_step(step, optimizer, reference)
        torch.manual_seed(step)
        due = optimizer.search_due
        optimizer.step(problem.closure(weights, step))
        record = reference.step(problem.loss_and_grads(step), problem.loss_at(step))
        assert due == record.searched, f"step {step}: searched"
        if due:
            last = optimizer.last_search
            found, expected = (last.outcome, last.trials), (record.outcome, len(record.trials))
            assert found == expected, f"step {step}: outcome and trials"
            outcomes.add(last.outcome)
            assert last.unit == record.unit, f"step {step}: unit"
        for group, eta in zip(optimizer.param_groups, step_sizes(reference)):
            assert abs(group["step_size"] / eta - 1.0) < tolerance, f"step {step}: step size"
        assert_same_looks(optimizer, weights, reference, record.skipped, tolerance, step)
        assert distance(weights, reference) < tolerance, f"step {step}: weights"
    return outcomes
