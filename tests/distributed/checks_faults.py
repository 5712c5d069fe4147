"""What goes wrong on one rank: all skip the step, or all undo it, and go on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import (
    assert_equal_on_all_ranks,
    batches,
    build,
    loss_of,
    rank,
    train,
    weights_of,
    world,
)
from checks_equal import ddp, fsdp, tensor_parallel
from launch import PATIENCE, check
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from salsa_fused import FusedSaLSa

WRAPS = {"ddp": ddp, "fsdp": fsdp}


def trained(wrap: Callable[[Any], nn.Module], steps: int = 3, **settings: Any) -> Any:
    model = wrap(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters(), module=model, **settings)
    train(model, optimizer, steps, parts=2, part=rank())
    return model, optimizer


def one_step(model: Any, optimizer: Any, spoil: Callable[[Tensor], Tensor], begin: int) -> Tensor:
    ((x, y),) = batches(begin + 1, 2, rank())[begin:]
    loss = optimizer.step(lambda: spoil(loss_of(model, x, y)))
    assert loss is not None
    return loss


def everything(model: nn.Module, optimizer: FusedSaLSa) -> tuple[Tensor, list[float]]:
    state = [
        (value.full_tensor() if hasattr(value, "full_tensor") else value).sum().item()
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor)
    ]
    return weights_of(model), state


# -- losses and gradients that are not finite ------------------------------------------------------


def skips_on_all_ranks(spoil_at: int, wrap: Callable[[Any], nn.Module], **settings: Any) -> None:
    """``spoil_at``: which evaluation of a step is not finite, on rank 1."""
    model, optimizer = trained(wrap, **settings)
    weights, state = everything(model, optimizer)
    calls, skipped, steps = 0, optimizer.skipped_steps, optimizer.metrics()["steps"]

    def spoil(loss: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss * float("nan") if rank() == 1 and calls == spoil_at + 1 else loss

    one_step(model, optimizer, spoil, 3)
    after, state_after = everything(model, optimizer)
    if spoil_at == 0:
        assert optimizer.skipped_steps == skipped + 1 and optimizer.metrics()["steps"] == steps
        assert torch.equal(weights, after) and state == state_after
    else:  # that trial was rejected
        assert optimizer.last_search.trials > 1 and optimizer.skipped_steps == skipped
        assert torch.isfinite(after).all() and not torch.equal(weights, after)
    assert_equal_on_all_ranks((optimizer.metrics()["steps"], optimizer.step_size))
    assert_equal_on_all_ranks(after)
    train(model, optimizer, 2, parts=2, part=rank(), begin=4)
    assert_equal_on_all_ranks(weights_of(model))


@check(2)
def a_first_loss_that_is_nan():
    for wrap in WRAPS.values():
        skips_on_all_ranks(0, wrap, check_replay=False)


@check(2)
def a_trial_that_is_nan():
    for wrap in WRAPS.values():
        skips_on_all_ranks(1, wrap, check_replay=False)


@check(2)
def a_plain_steps_loss_that_is_nan():
    for wrap in WRAPS.values():
        skips_on_all_ranks(0, wrap, search_period=None, lr=1e-2)


@check(2)
def a_given_loss_that_is_nan():
    """A plain step without a closure."""
    model, optimizer = trained(ddp, search_period=None, lr=1e-2)
    weights = weights_of(model)
    ((x, y),) = batches(1, 2, rank())
    optimizer.zero_grad()
    loss = loss_of(model, x, y) * (float("nan") if rank() == 1 else 1.0)
    loss.backward()
    optimizer.step(loss=loss)
    assert optimizer.skipped_steps == 1
    assert torch.equal(weights, weights_of(model))


@check(2)
def a_gradient_that_is_nan():
    """In one rank's shard only."""
    model, optimizer = trained(fsdp, search_period=None, lr=1e-2, check_finite=True)
    weights, _ = everything(model, optimizer)
    ((x, y),) = batches(1, 2, rank())
    optimizer.zero_grad()
    loss_of(model, x, y).backward()
    if rank() == 1:
        model.embed.weight.grad.to_local().view(-1)[0] = float("nan")
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert torch.equal(weights, weights_of(model))


@check(2)
def a_search_with_a_gradient_that_is_nan():
    model, optimizer = trained(fsdp)
    weights, _ = everything(model, optimizer)
    ((x, y),) = batches(1, 2, rank())
    optimizer.zero_grad()
    with optimizer.first_evaluation():
        loss = loss_of(model, x, y)
    loss.backward()
    if rank() == 1:
        model.embed.weight.grad.to_local().view(-1)[0] = float("nan")
    optimizer.step(lambda: loss_of(model, x, y), loss=loss)
    assert optimizer.skipped_steps == 1
    assert torch.equal(weights, weights_of(model))


# -- closures that raise ---------------------------------------------------------------------------


@check(2)
def a_closure_that_raises_at_a_trial_on_one_rank():
    """Under DDP the others hear of it: all undo the step within a second, and go on."""
    model, optimizer = trained(ddp, check_replay=False)
    undisturbed, other = trained(ddp, check_replay=False)
    before, calls = everything(model, optimizer), 0

    def spoil(loss: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if rank() == 1 and calls == 2:
            raise MemoryError("on rank 1")
        return loss

    began = time.perf_counter()
    with pytest.raises(MemoryError if rank() == 1 else RuntimeError) as raised:
        one_step(model, optimizer, spoil, 3)
    assert time.perf_counter() - began < 5
    if rank() == 0:
        assert "failed on rank 1" in str(raised.value)
    after = everything(model, optimizer)
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    again = train(model, optimizer, 12, parts=2, part=rank(), begin=3)
    assert again == train(undisturbed, other, 12, parts=2, part=rank(), begin=3)
    assert torch.equal(weights_of(model), weights_of(undisturbed))


@check(2)
def a_failure_between_two_messages():
    """Outside of the closure."""
    model, optimizer = trained(ddp, check_replay=False)
    before = weights_of(model)
    kernels = optimizer._kernels
    if rank() == 1:

        def broken(*arguments: object) -> None:
            raise MemoryError("no room for the saved weights")

        kernels.first_trial = broken
    with pytest.raises(MemoryError if rank() == 1 else RuntimeError):
        one_step(model, optimizer, lambda loss: loss, 3)
    vars(kernels).pop("first_trial", None)
    assert torch.equal(before, weights_of(model))
    train(model, optimizer, 3, parts=2, part=rank(), begin=3)
    assert_equal_on_all_ranks(weights_of(model))


@check(2)
def fsdp2_after_an_exception_in_mid_forward():
    """On both ranks: what follows is as if it had not been, also if it was the first evaluation."""
    undisturbed, other = trained(fsdp, check_replay=False)
    expected = train(undisturbed, other, 5, parts=2, part=rank(), begin=3)
    for at in (1, 2):  # the first evaluation, the first trial
        model, optimizer = trained(fsdp, check_replay=False)
        calls = 0

        def raise_once(module: nn.Module, inputs: Any, at: int = at) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise MemoryError("in mid-forward")

        hook = model.norm.register_forward_pre_hook(raise_once)
        with pytest.raises(MemoryError):
            one_step(model, optimizer, lambda loss: loss, 3)
        assert calls == at
        hook.remove()
        assert train(model, optimizer, 5, parts=2, part=rank(), begin=3) == expected
        assert torch.equal(weights_of(model), weights_of(undisturbed))


# -- ranks that are apart --------------------------------------------------------------------------


@check(2)
def ranks_at_different_steps():
    for apart, what in (("steps", "different steps"), ("step_size", "different step sizes")):
        model, optimizer = trained(ddp)
        if rank() == 1:
            optimizer.param_groups[0][apart] += 1
        with pytest.raises(RuntimeError, match=what):
            one_step(model, optimizer, lambda loss: loss, 3)
    model, optimizer = trained(ddp, 12)
    for group in optimizer.param_groups:
        group["steps_since_search"] = 99 * rank()  # a search on rank 1 only
        group["period"] = 50
    with pytest.raises(RuntimeError, match="a plain step, a search"):
        one_step(model, optimizer, lambda loss: loss, 3)


@check(2, alone=True)
def a_rank_that_dies():
    """The others are not left for ever: they get an error from gloo."""
    model, optimizer = trained(ddp, check_replay=False)
    calls = 0

    def spoil(loss: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if rank() == 1 and calls == 2:
            os._exit(0)
        return loss

    before, began = weights_of(model), time.perf_counter()
    with pytest.raises(RuntimeError):
        one_step(model, optimizer, spoil, 3)
    assert time.perf_counter() - began < 2 * PATIENCE
    assert torch.equal(before, weights_of(model))


# -- what is refused -------------------------------------------------------------------------------


@check(2)
def what_is_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    model: Any = fsdp(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters())
    with pytest.raises(RuntimeError, match="pass module=model"):
        one_step(model, optimizer, lambda loss: loss, 0)

    flat = FullyShardedDataParallel(build(torch.float64), device_id=torch.device("cpu"))
    optimizer = FusedSaLSa(flat.parameters(), module=flat)
    with pytest.raises(RuntimeError, match="FSDP1"):
        one_step(flat, optimizer, lambda loss: loss, 0)

    plain = build(torch.float64)
    for parameter in plain.parameters():
        parameter.ds_id = 0
    optimizer = FusedSaLSa(plain.parameters(), module=plain)
    with pytest.raises(RuntimeError, match="DeepSpeed"):
        one_step(plain, optimizer, lambda loss: loss, 0)

    torch.manual_seed(0)
    stage = nn.Linear(3, 4 + rank()).double()  # of a pipeline
    optimizer = FusedSaLSa(stage.parameters(), module=stage)
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="pipeline"):
        optimizer.step(lambda: stage(x).square().mean())

    alone = build(torch.float64)  # not wrapped in DDP
    optimizer = FusedSaLSa(alone.parameters(), module=alone)
    before = weights_of(alone)
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        one_step(alone, optimizer, lambda loss: loss, 0)
    assert torch.equal(before, weights_of(alone))

    rootless: Any = build(torch.float64)  # its plain weights' gradients are each rank's own
    for block in rootless.blocks:
        fully_shard(block)
    optimizer = FusedSaLSa(rootless.parameters(), module=rootless)
    before = weights_of(rootless)
    with pytest.raises(RuntimeError, match="give all of it to fully_shard"):
        one_step(rootless, optimizer, lambda loss: loss, 0)
    assert torch.equal(before, weights_of(rootless))

    model = ddp(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters(), module=model)
    with model.join(), pytest.raises(RuntimeError, match="join"):
        one_step(model, optimizer, lambda loss: loss, 0)

    own = dist.new_subgroups(1)[0]
    model = tensor_parallel(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters(), module=model, process_group=own)
    with pytest.raises(RuntimeError, match="process_group"):
        one_step(model, optimizer, lambda loss: loss, 0)
    with pytest.raises(TypeError, match="process_group"):
        FusedSaLSa(model.parameters(), process_group=2)
    with pytest.raises(ValueError, match="loss_reduction"):
        FusedSaLSa(model.parameters(), loss_reduction="avg")
    assert world() == 2
