"""The factors of adaptive fine-tuning for scripted validation losses."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, LinearLR

from salsa_fused import FusedSaLSa
from salsa_fused.schedules import AdaptiveFineTuning

NAN = math.nan


def adamw(*lrs: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.ones(1, requires_grad=True)], "lr": lr} for lr in lrs or (1.0,)]
    return torch.optim.AdamW(groups)


def train_step(optimizer) -> None:
    """One step that any optimizer can take."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, FusedSaLSa):
        optimizer.step(lambda: sum((p - 0.5).square().sum() for p in parameters))
        return
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def run_epoch(scheduler, loss, steps=None) -> list[float]:
    """The first group's lr at each optimizer step of an epoch."""
    used = []
    for _ in range(scheduler.steps_per_epoch if steps is None else steps):
        used.append(float(scheduler.optimizer.param_groups[0]["lr"]))
        train_step(scheduler.optimizer)
        scheduler.step()
    scheduler.step(loss)
    return used


def factors(losses, **keywords) -> tuple[list[float], AdaptiveFineTuning]:
    """The factor of each epoch, one step each, as long as training goes on."""
    scheduler = AdaptiveFineTuning(adamw(), **keywords)
    used = []
    for loss in losses:
        assert not scheduler.finished
        used += run_epoch(scheduler, loss)
    return used, scheduler


def down(*sevenths: int) -> list[float]:
    return [pytest.approx(k / 7, rel=1e-15) for k in sevenths]


# The procedure, an epoch at a time: 2 epochs of warm-up, 7 of cool-down


def test_stop_after_a_full_cooldown():
    used, scheduler = factors([5, 4, 3, 3.5, *[3.2] * 7])
    assert used == [0.5, 1, 1, 1, *down(7, 6, 5, 4, 3, 2, 1)]
    assert scheduler.finished and scheduler.factor == 0 == scheduler.optimizer.param_groups[0]["lr"]
    assert (scheduler.best_epoch, scheduler.best_loss) == (2, 3.0)


def test_improvement_in_cooldown_returns_to_one():
    used, scheduler = factors([5, 4, 3, 3.5, 3.4, 3.3, 2.9, 2.8])
    assert used == [0.5, 1, 1, 1, *down(7, 6, 5), 1]
    assert scheduler.factor == 1 and not scheduler.finished
    assert (scheduler.best_epoch, scheduler.best_loss) == (7, 2.8)


def test_improvement_is_against_the_best_so_far():
    # 3.4 after 3.5 is no improvement
    used, _ = factors([5, 3, 3.5, 3.4, 3.3])
    assert used == [0.5, 1, 1, *down(7, 6)]


def test_two_restarts():
    losses = [5, 4, 4.5, 4.4, 3.9, 3.8, 4, 4, 4, 3.5, 3.6, *[3.7] * 7]
    used, scheduler = factors(losses)
    assert used == [
        *(0.5, 1, 1),  # 4.5 is no improvement
        *down(7, 6),  # 3.9 is
        *(1, 1),  # 4 is none
        *down(7, 6, 5),  # 3.5 is
        1,  # 3.6 is none
        *down(7, 6, 5, 4, 3, 2, 1),
    ]
    assert scheduler.finished and (scheduler.best_epoch, scheduler.best_loss) == (9, 3.5)


def test_improvement_in_the_last_epoch_of_a_cooldown():
    used, scheduler = factors([5, 4, 4.1, *[4.1] * 6, 3.9, 3.8])
    assert used == [0.5, 1, 1, *down(7, 6, 5, 4, 3, 2, 1), 1]
    assert not scheduler.finished and scheduler.factor == 1


def test_the_same_loss_is_no_improvement():
    used, _ = factors([5, 4, 4, 4])
    assert used == [0.5, 1, 1, *down(7)]


def test_plateau_at_the_end_of_warmup():
    used, _ = factors([5, 5, 5, 5])
    assert used == [0.5, 1, *down(7, 6)]


def test_plateau_in_warmup_does_not_end_it():
    used, scheduler = factors([5, 6, 7, 6, 6, 6], warmup=4)
    assert used == [0.25, 0.5, 0.75, 1, *down(7, 6)]
    used, scheduler = factors([5, 6, 7, 4, 3], warmup=4)
    assert used == [0.25, 0.5, 0.75, 1, 1] and scheduler.best_epoch == 4


def test_nan_is_no_improvement():
    used, scheduler = factors([5, 4, NAN, NAN, 3, 2])
    assert used == [0.5, 1, 1, *down(7, 6), 1]
    assert (scheduler.best_epoch, scheduler.best_loss) == (5, 2.0)
    used, scheduler = factors([NAN] * 9)
    assert used == [0.5, 1, *down(7, 6, 5, 4, 3, 2, 1)]
    assert scheduler.finished and scheduler.best_epoch is None and not scheduler.improved
    assert scheduler.best_loss == math.inf
    used, scheduler = factors([NAN, 4])
    assert scheduler.best_epoch == 1


def test_no_warmup_and_a_short_cooldown():
    used, scheduler = factors([5, 5, 5], warmup=0, cooldown=2)
    assert used == [1, 1, 1]  # not an improvement, so the second is the last at the full factor
    assert scheduler.factor == 0.5
    assert factors([5, 5, 5], warmup=0, cooldown=1)[1].finished


def test_improved_tells_when_to_keep_a_checkpoint():
    scheduler = AdaptiveFineTuning(adamw())
    kept = []
    for loss in [5, 4, 4.5, NAN, 3, 3]:
        run_epoch(scheduler, loss)
        kept.append(scheduler.improved)
    assert kept == [True, True, False, False, True, False]


def test_nothing_changes_after_the_end():
    _, scheduler = factors([5, 4, *[4] * 8])
    assert scheduler.finished
    run_epoch(scheduler, 1.0)
    assert (scheduler.finished, scheduler.factor, scheduler.best_loss) == (True, 0.0, 4.0)
    assert scheduler.epoch == 10 and scheduler.step_in_epoch == 0


def test_validation_losses_of_every_kind():
    for loss in (1, 1.0, np.float32(1.0), torch.tensor(1.0), torch.ones(1, requires_grad=True)):
        scheduler = AdaptiveFineTuning(adamw())
        run_epoch(scheduler, loss)
        assert type(scheduler.best_loss) is float and scheduler.best_loss == 1.0


# Linear from step to step


def test_every_step_of_an_epoch_has_its_factor():
    scheduler = AdaptiveFineTuning(adamw(), steps_per_epoch=4, cooldown=2)
    assert run_epoch(scheduler, 5) == [1 / 8, 2 / 8, 3 / 8, 4 / 8]
    assert run_epoch(scheduler, 4) == [5 / 8, 6 / 8, 7 / 8, 1]
    assert run_epoch(scheduler, 4) == [1, 1, 1, 1]
    assert run_epoch(scheduler, 4) == [1, 7 / 8, 6 / 8, 5 / 8]
    assert run_epoch(scheduler, 3) == [4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert run_epoch(scheduler, 3) == [1, 1, 1, 1]
    assert run_epoch(scheduler, 3) == [1, 7 / 8, 6 / 8, 5 / 8]
    assert run_epoch(scheduler, 3) == [4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert scheduler.finished


def test_epochs_longer_or_shorter_than_announced():
    scheduler = AdaptiveFineTuning(adamw(), steps_per_epoch=2)
    assert run_epoch(scheduler, 5, steps=4) == [1 / 4, 2 / 4, 2 / 4, 2 / 4]
    assert run_epoch(scheduler, 5, steps=1) == [3 / 4]
    assert run_epoch(scheduler, 5) == [1, pytest.approx(13 / 14)]


def test_where_an_epoch_is_one_step_its_loss_is_enough():
    scheduler = AdaptiveFineTuning(adamw())
    used = []
    for loss in [5, 4, 4.5, 4, 4]:
        used.append(scheduler.get_last_lr()[0])
        train_step(scheduler.optimizer)
        scheduler.step(loss)
    assert used == [0.5, 1, 1, *down(7, 6)]


def test_part_of_an_epoch_as_warmup():
    scheduler = AdaptiveFineTuning(adamw(), steps_per_epoch=4, warmup=0.5)
    assert run_epoch(scheduler, 5) == [0.5, 1, 1, 1]


# Groups, optimizers, other schedulers


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, FusedSaLSa])
def test_several_groups_keep_their_own_lr(optimizer_class):
    lrs = [0.3, 1.0, 0.07]
    groups = [{"params": [torch.ones(1, requires_grad=True)], "lr": lr} for lr in lrs]
    optimizer = optimizer_class(groups)
    scheduler = AdaptiveFineTuning(optimizer, steps_per_epoch=2, warmup=1, cooldown=3)
    for loss in [3, 2, 2, 2, 1, 1, 1, 1]:
        for _ in range(2):
            assert [g["lr"] for g in optimizer.param_groups] == [scheduler.factor * x for x in lrs]
            assert scheduler.get_last_lr() == [g["lr"] for g in optimizer.param_groups]
            train_step(optimizer)
            scheduler.step()
        scheduler.step(loss)
        if scheduler.factor == 1:  # exactly
            assert [group["lr"] for group in optimizer.param_groups] == lrs


@pytest.mark.parametrize("chained", [True, False], ids=["ChainedScheduler", "one by one"])
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, FusedSaLSa])
def test_beside_another_scheduler(optimizer_class, ours_first, chained):
    optimizer = optimizer_class([torch.ones(1, requires_grad=True)], lr=0.5)

    def theirs():
        return ExponentialLR(optimizer, gamma=0.9)

    if ours_first:
        scheduler = AdaptiveFineTuning(optimizer, steps_per_epoch=3, cooldown=2)
        both = [scheduler, theirs()]
    else:
        both = [theirs(), AdaptiveFineTuning(optimizer, steps_per_epoch=3, cooldown=2)]
        scheduler = both[1]
    chain = ChainedScheduler(both, optimizer)
    steps = 0
    for loss in [5, 4, 4, 3, 3, 3, 2, 2]:
        for _ in range(3):
            expected = 0.5 * scheduler.factor * 0.9**steps
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
            train_step(optimizer)
            for each in [chain] if chained else both:
                each.step()
            steps += 1
        scheduler.step(loss)
    assert not scheduler.finished


def test_an_lr_that_the_user_changes_is_the_new_full_one():
    optimizer = adamw(0.5)
    scheduler = AdaptiveFineTuning(optimizer, cooldown=2)
    for loss in [5, 4, 4]:
        run_epoch(scheduler, loss)
    run_epoch(scheduler, 4)
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.param_groups[0]["lr"] /= 5
    run_epoch(scheduler, 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_group_added_later():
    optimizer = adamw(0.5)
    scheduler = AdaptiveFineTuning(optimizer)
    run_epoch(scheduler, 5)
    run_epoch(scheduler, 4)
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "lr": 0.2})
    run_epoch(scheduler, 4)
    run_epoch(scheduler, 4)
    assert [g["lr"] for g in optimizer.param_groups] == [x * scheduler.factor for x in (0.5, 0.2)]
    assert scheduler.factor == pytest.approx(6 / 7)


def test_an_lr_in_a_tensor():
    optimizer = torch.optim.AdamW([torch.ones(1, requires_grad=True)], lr=torch.tensor(0.1))
    lr = optimizer.param_groups[0]["lr"]
    scheduler = AdaptiveFineTuning(optimizer, cooldown=2)
    for loss in [5, 4, 4, 4]:
        run_epoch(scheduler, loss)
    assert optimizer.param_groups[0]["lr"] is lr and lr.item() == pytest.approx(0.05)
    run_epoch(scheduler, 3)
    assert lr.item() == torch.tensor(0.1).item()


def test_salsa_applies_the_factor_and_its_search_does_not_undo_it():
    """The same weights, searched twice: the factor scales what is written, not what is tried."""
    moved, step_sizes = [], []
    for schedule in (False, True):
        weight = torch.full((1,), 3.0, requires_grad=True)
        optimizer = FusedSaLSa([weight])
        if schedule:
            AdaptiveFineTuning(optimizer)  # half
        optimizer.step(lambda weight=weight: weight.square().sum())
        moved.append(3.0 - weight.item())
        step_sizes.append(optimizer.step_size)
    assert step_sizes[0] == step_sizes[1] and moved[1] == pytest.approx(moved[0] / 2, rel=1e-4)


# Resumption


LOSSES = [5, 4, 4.5, 4.4, 3.9, 4, NAN, 4, 4, 4, 4, 4, 4]  # a restart, then the end
STEPS = 2


def script() -> list[float | None]:
    """All calls of step in order: None after a step, a loss after an epoch."""
    return [call for loss in LOSSES for call in (*[None] * STEPS, loss)]


@pytest.mark.parametrize("order", ["as torch says", "scheduler made last", "scheduler first"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, FusedSaLSa])
def test_a_resumed_scheduler_continues(optimizer_class, order):
    def new():
        weights = [torch.ones(1, requires_grad=True) for _ in range(2)]
        return optimizer_class(
            [{"params": [weights[0]], "lr": 0.3}, {"params": [weights[1]], "lr": 0.7}]
        )

    def state(scheduler):
        return (
            [group["lr"] for group in scheduler.optimizer.param_groups],
            scheduler.factor,
            scheduler.epoch,
            scheduler.best_epoch,
            scheduler.best_loss,
            scheduler.improved,
            scheduler.finished,
        )

    def call(scheduler, loss):
        if loss is None:
            train_step(scheduler.optimizer)
        scheduler.step(loss)

    whole = AdaptiveFineTuning(new(), STEPS)
    expected = []
    saved = []
    for loss in script():
        saved.append((whole.optimizer.state_dict(), whole.state_dict()))
        saved[-1] = copy.deepcopy(saved[-1])
        call(whole, loss)
        expected.append(state(whole))
    assert whole.finished

    for stop, (of_optimizer, of_scheduler) in enumerate(saved):
        file = io.BytesIO()
        torch.save(of_scheduler, file)
        file.seek(0)
        of_scheduler = torch.load(file, weights_only=True)
        optimizer = new()
        if order == "scheduler made last":
            optimizer.load_state_dict(of_optimizer)
            resumed = AdaptiveFineTuning(optimizer, STEPS)
            resumed.load_state_dict(of_scheduler)
        else:
            resumed = AdaptiveFineTuning(optimizer, STEPS)
            if order == "scheduler first":
                resumed.load_state_dict(of_scheduler)
                optimizer.load_state_dict(of_optimizer)
            else:
                optimizer.load_state_dict(of_optimizer)
                resumed.load_state_dict(of_scheduler)
        for loss, then in zip(script()[stop:], expected[stop:], strict=True):
            call(resumed, loss)
            assert state(resumed) == then, stop


def test_a_state_dict_does_not_change_later():
    scheduler = AdaptiveFineTuning(adamw(1.0, 2.0))
    other = LinearLR(scheduler.optimizer)
    before = scheduler.state_dict()
    kept = pickle.dumps(before)
    for loss in (5, 4):
        run_epoch(scheduler, loss)
        other.step()
    assert pickle.dumps(before) == kept


def test_resumed_beside_another_scheduler():
    def new():
        optimizer = adamw(0.5)
        return optimizer, AdaptiveFineTuning(optimizer, 2), ExponentialLR(optimizer, 0.9)

    def epoch(parts, loss):
        optimizer, ours, theirs = parts
        for _ in range(2):
            train_step(optimizer)
            ours.step()
            theirs.step()
        ours.step(loss)

    first = new()
    for loss in (5, 4, 4):
        epoch(first, loss)
    second = new()
    for part, state in zip(second, [copy.deepcopy(part.state_dict()) for part in first]):
        part.load_state_dict(state)
    for loss in (4, 3, 3):
        epoch(first, loss)
        epoch(second, loss)
        assert second[0].param_groups[0]["lr"] == first[0].param_groups[0]["lr"]


# Bad arguments


@pytest.mark.parametrize("name", ["steps_per_epoch", "cooldown"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "7"])
def test_bad_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got {value!r}"):
        AdaptiveFineTuning(adamw(), **{name: value})


@pytest.mark.parametrize("value", [-1, NAN, math.inf, True, None, "2"])
def test_bad_warmup(value):
    with pytest.raises(ValueError, match=r"warmup must be .* epochs.*, got"):
        AdaptiveFineTuning(adamw(), warmup=value)


def test_a_refused_scheduler_leaves_the_optimizer_alone():
    optimizer = adamw(0.3)
    with pytest.raises(ValueError, match="cooldown"):
        AdaptiveFineTuning(optimizer, cooldown=0)
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert "initial_lr" not in optimizer.param_groups[0]


def test_bad_optimizer():
    with pytest.raises(TypeError, match="is not an Optimizer"):
        AdaptiveFineTuning([torch.ones(1)])


@pytest.mark.parametrize("loss", ["3.0", [3.0], {"loss": 3.0}, 1j, torch.ones(2)])
def test_bad_validation_loss(loss):
    scheduler = AdaptiveFineTuning(adamw(0.3))
    before = (scheduler.state_dict(), scheduler.optimizer.param_groups[0]["lr"])
    train_step(scheduler.optimizer)
    with pytest.raises(TypeError, match=r"step\(validation_loss\) takes the validation loss"):
        scheduler.step(loss)
    assert (scheduler.state_dict(), scheduler.optimizer.param_groups[0]["lr"]) == before
