"""FusedSaLSa and its float64 reference on the same problem, compared after every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from noisy_problem import GROUPS, NoisyProblem
from reference import ReferenceSaLSa, UnitSearch, reference_class
from seeds import seed_torch
from torch import Tensor

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import direction_of
from salsa_fused.line_search import SearchSettings

STEPS = 130  # two rounds of the problem's events, and four windows of looking back


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
    numbers = {name: first[name] for name in direction_of(first).constants}
    groups = [{**numbers, **group} for group in groups]
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


MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "n": "exp_avg_slow"}  # of a weight's state


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
            for name, ours in MOMENTS.items():
                if ours in entry:
                    getattr(reference, name)[i] = entry[ours].double().numpy().copy()
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
    problem, optimizer_class=FusedSaLSa, steps=STEPS, tolerance=1e-10, before_step=None, **keywords
) -> set:
    """Assert that an optimizer takes the reference's decisions and weights; returns outcomes.

    `before_step(step, optimizer, reference)` may change both.
    """
    weights, optimizer, reference = both(problem, optimizer_class, **keywords)
    outcomes = set()
    for step in range(steps):
        if before_step is not None:
            before_step(step, optimizer, reference)
        seed_torch(step)
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


RESOLUTION = 8 * 2.0**-23


def follow_in_fp32(backend: str, steps: int = STEPS, **keywords) -> int:
    """Compare every step from equal state.

    Returns: how many steps were left out, since rounding could turn the decision.
    """
    problem = NoisyProblem(events=False)
    weights, optimizer, reference = both(problem, dtype=torch.float32, backend=backend, **keywords)
    undecided = 0
    for step in range(steps):
        copy_state(optimizer, weights, reference)
        seed_torch(step)
        optimizer.step(problem.closure(weights, step))
        record = reference.step(
            problem.loss_and_grads(step), problem.loss_at(step), resolution=RESOLUTION
        )
        noise = (1.0 - reference.beta3) * RESOLUTION * record.loss
        near = any(abs(t.lhs - t.rhs) < max(1e-4 * t.rhs, noise) for t in record.trials)
        if near or record.outcome == "flat":
            undecided += 1
            continue
        found = [group["step_size"] for group in optimizer.param_groups]
        assert found == pytest.approx(step_sizes(reference), rel=1e-6), step
        assert distance(weights, reference) < 1e-5, step
    assert optimizer.backends == (backend,)
    return undecided
