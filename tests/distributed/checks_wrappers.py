"""What DDP, FSDP2 and tensor parallelism need around trials; each rule is broken once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from cases import (
    assert_equal_on_all_ranks,
    assert_same_run,
    batches,
    build,
    loss_of,
    rank,
    run_alone,
    train,
    weights_of,
    world,
)
from checks_equal import (
    SEQUENCE,
    ddp,
    fsdp,
    tensor_and_sequence_parallel,
    tensor_parallel,
    trains_as_one_process,
)
from launch import check
from torch import Tensor, nn

from salsa_fused import FusedSaLSa, ranks, trials, wrappers
from salsa_fused.consistency import Consistency
from salsa_fused.kernels import kernels, shards

# -- DDP's buffers -----------------------------------------------------------------------------


class ReadsItsBuffer(nn.Module):
    """Its output depends on a buffer that every forward in training changes."""

    seen: list[float]

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(1))
        self.seen = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.mean.item())
        self.mean = self.mean * 0.9 + x.mean().detach() * 0.1 + 1.0
        return self.linear(x) * (1.0 + 0.1 * self.mean)


@check(2)
def buffers_under_ddp():
    """Every evaluation of a step sees rank 0's buffer, and so does the next step's first one."""
    torch.manual_seed(0)
    net = ReadsItsBuffer().double()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = FusedSaLSa(model.parameters(), module=model)
    generator = torch.Generator().manual_seed(rank())
    for _ in range(15):
        x = torch.randn(16, 4, generator=generator, dtype=torch.float64) + rank()
        net.seen.clear()
        optimizer.step(lambda x=x: (model(x) - x[:, :1]).square().mean())
        assert len(set(net.seen)) == 1, net.seen
        assert_equal_on_all_ranks(list(net.seen))
    assert optimizer.metrics()["total_trials"] > 10


@check(2)
def accumulation_under_ddp():
    """Micro-batches with no_sync(), clipped: as one process that has all of them in one."""
    model: Any = ddp(build(torch.float64))
    alone = build(torch.float64)
    optimizer = FusedSaLSa(model.parameters(), module=model)
    own = torch.distributed.new_subgroups(1)[0]
    other = FusedSaLSa(alone.parameters(), module=alone, process_group=own)
    for (x, y), (all_x, all_y) in zip(batches(12, 2, rank()), batches(12, 1, 0)):
        halves = [(x[:2], y[:2]), (x[2:], y[2:])]
        optimizer.zero_grad()
        total: Any = 0.0
        with optimizer.first_evaluation():
            for number, half in enumerate(halves):
                with model.no_sync() if number == 0 else contextlib.nullcontext():
                    loss = loss_of(model, *half) / 2
                    loss.backward()
                total = total + loss.detach()
        optimizer.clip_grad_norm_(0.5)

        def closure(halves: Any = halves) -> Tensor:
            return sum(loss_of(model, *half) for half in halves) / 2

        optimizer.step(closure, loss=total)
        other.zero_grad()
        with other.first_evaluation():
            loss = loss_of(alone, all_x, all_y)
        loss.backward()
        other.clip_grad_norm_(0.5)
        other.step(lambda x=all_x, y=all_y: loss_of(alone, x, y), loss=loss)
        assert optimizer.step_size == pytest.approx(other.step_size, rel=1e-12)
        assert optimizer.metrics()["total_trials"] == other.metrics()["total_trials"]
    assert torch.allclose(weights_of(model), weights_of(alone), rtol=0, atol=1e-10)


@check(2)
def a_ddp_around_the_module_is_told():
    torch.manual_seed(0)
    net = ReadsItsBuffer().double()
    model = nn.parallel.DistributedDataParallel(net)
    x = torch.randn(16, 4, dtype=torch.float64) + rank()
    for module, told in ((net, True), (model, False)):
        optimizer = FusedSaLSa(model.parameters(), module=module)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optimizer.step(lambda: (model(x) - x[:, :1]).square().mean())
        assert ["a module inside" in str(one.message) for one in said] == [True] * told


def accumulated_without_sync(nan_in: int | None = None, **settings: Any) -> Any:
    """Two micro-batches a step; the first one's gradients are reduced with the second's.

    ``nan_in``: the step whose first loss is not a number on rank 1.
    """
    model: Any = fsdp(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters(), module=model, **settings)
    for step, (x, y) in enumerate(batches(12, world(), rank())):
        for part in (slice(1), slice(1, None)):
            factor = float("nan") if (step, part.stop, rank()) == (nan_in, 1, 1) else 1.0
            share = len(x[part]) / len(x)
            model.set_requires_gradient_sync(part.stop is None)
            loss = optimizer.evaluate(
                lambda x=x[part], y=y[part], factor=factor: factor * loss_of(model, x, y), share
            )
            (share * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, weights_of(model)


@check(2)
def accumulation_without_sync_under_fsdp2():
    """FSDP2 keeps the gradients of the first to itself: trials repeat both all the same."""
    optimizer, found = accumulated_without_sync()
    rows, weights = run_alone(torch.float64, 12)
    assert optimizer.metrics()["total_trials"] == rows[-1][3]
    assert optimizer.step_size == pytest.approx(rows[-1][1], rel=1e-12)
    assert torch.allclose(found, weights, rtol=0, atol=1e-10)
    optimizer, found = accumulated_without_sync(nan_in=5, search_period=None, lr=1e-2)
    assert optimizer.skipped_steps == 1 and found.isfinite().all()


@check(2)
def parameters_without_a_gradient_under_ddp():
    """Everywhere, and on one rank only."""
    torch.manual_seed(0)
    net = nn.ModuleDict({name: nn.Linear(4, 1) for name in ("used", "rank 1", "never")}).double()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = net

        def forward(self, x: Tensor) -> Tensor:
            y = self.parts["used"](x)
            return y + self.parts["rank 1"](x) if rank() == 1 else y

    model = nn.parallel.DistributedDataParallel(Model(), find_unused_parameters=True)
    optimizer = FusedSaLSa(model.parameters(), module=model)
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(rank()))
    for _ in range(12):
        optimizer.step(lambda: (model(x) - 1).square().mean())
    assert len(optimizer.state) == 4 and optimizer.skipped_steps == 0
    assert_equal_on_all_ranks(weights_of(net))


# -- clipping ----------------------------------------------------------------------------------


@check(2)
def clipping_of_dtensors():
    trains_as_one_process(fsdp, max_grad_norm=0.3)
    trains_as_one_process(tensor_parallel, parts=1, max_grad_norm=0.3, steps=12)


# -- built before the model is sharded ---------------------------------------------------------


@check(2)
def an_optimizer_built_before_fully_shard():
    """Accelerate puts the DTensors into its groups; without that it says that nothing trains."""
    model: Any = build(torch.float64)
    names = [name for name, _ in model.named_parameters()]
    optimizer = FusedSaLSa(model.parameters(), module=model)
    fsdp(model)
    x, y = batches(1, 2, rank())[0]
    with pytest.warns(UserWarning, match="Build the optimizer after that"):
        optimizer.step(lambda: loss_of(model, x, y))
    model.zero_grad()
    optimizer.param_groups[0]["params"] = [model.get_parameter(name) for name in names]
    rows = train(model, optimizer, 12, parts=2, part=rank())
    expected, _ = run_alone(torch.float64, 12)
    assert_same_run(rows, expected, losses=1e-10, sizes=1e-12)


# -- loss_reduction ----------------------------------------------------------------------------


def summed(model: Any) -> nn.Module:
    """As torchtitan has it: gradients are a sum over the ranks."""
    sharded: Any = fsdp(model)
    for module in sharded.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has nothing else
    return sharded


def train_summed(loss_reduction: str) -> None:
    expected, expected_weights = run_alone(torch.float64, 12)
    model = summed(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters(), module=model, loss_reduction=loss_reduction)
    rows = train(model, optimizer, 12, parts=2, part=rank(), scale=0.5)
    assert_same_run(rows, expected, losses=1e-10, sizes=1e-12)
    assert torch.allclose(weights_of(model), expected_weights, rtol=0, atol=1e-10)


@check(2)
def losses_that_are_summed():
    train_summed("sum")


# -- the slope ---------------------------------------------------------------------------------


def slope_warnings(run: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in said if "gradients promise" in str(one.message)]


def run_steps(wrap: Callable[[Any], nn.Module], **settings: Any) -> Callable[[], object]:
    model = wrap(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters(), module=model, **settings)
    return lambda: train(model, optimizer, 3, parts=2, part=rank())


def nothing(*arguments: object) -> None:
    pass


@contextlib.contextmanager
def without(*owners: Any) -> Iterator[None]:
    """Leave out FSDP2's reshard, in these modules."""
    with contextlib.ExitStack() as stack:
        for owner in owners:
            stack.enter_context(mock.patch.object(owner, "reshard", nothing))
        yield


@check(2)
def a_wrong_slope_is_told():
    found: list[Any] = []
    measured = Consistency._observed_to_expected

    def noted(self: Any, *arguments: Any) -> Any:
        found.append(measured(self, *arguments))
        return found[-1]

    with mock.patch.object(Consistency, "_observed_to_expected", noted):
        assert slope_warnings(run_steps(fsdp)) == []
        assert slope_warnings(run_steps(ddp)) == []
    assert len(found) == 2 and all(0.99 < ratio < 1.005 for ratio in found), found
    assert len(slope_warnings(run_steps(summed))) == 1  # and the loss a mean
    with without(trials, wrappers):
        assert len(slope_warnings(run_steps(fsdp))) == 1  # a stale root
        stale = run_steps(lambda model: fsdp(model, reshard_after_forward=False))
        assert len(slope_warnings(stale)) == 1  # all is stale


# -- each rule, broken once --------------------------------------------------------------------


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    with pytest.raises((AssertionError, RuntimeError)):
        yield


@check(2)
def noticed_without_reshard_before_trials():
    whole, calls = wrappers.reshard, [0]

    def only_after_the_last(modules: Any) -> None:
        calls[0] += 1

    with mock.patch.object(trials, "reshard", only_after_the_last), noticed():
        trains_as_one_process(fsdp, steps=12, check_replay=False)
    assert calls[0] > 0 and whole is wrappers.reshard


@check(2)
def noticed_without_reshard_after_the_last_trial():
    def end_without(self: Any) -> None:
        kept, self._sharded = self._sharded, []
        try:
            own_end(self)
        finally:
            self._sharded = kept

    own_end = trials.Trials.end
    with mock.patch.object(trials.Trials, "end", end_without), noticed():
        trains_as_one_process(fsdp, steps=12, check_replay=False)


@check(2)
def noticed_if_parts_count_as_the_whole():
    with mock.patch.object(shards, "pieces", return_value=1), noticed():
        trains_as_one_process(fsdp, steps=12, check_replay=False)


@check(2)
def noticed_if_a_whole_counts_twice():
    with mock.patch.object(kernels, "_counted", lambda total, bucket: total * 2), noticed():
        trains_as_one_process(ddp, steps=12, check_replay=False)


@check(2)
def noticed_if_one_ranks_loss_counts_for_all():
    first = mock.patch.object(ranks, "_mean", lambda numbers: numbers[0])
    with first, noticed():
        trains_as_one_process(ddp, steps=12, check_replay=False)


@check(2)
def noticed_if_a_gradient_is_not_redistributed():
    def as_they_lie(self: Any) -> None:
        for dtensor, part in zip(self._dtensors, self._parts):
            gradient = dtensor.grad
            if gradient is not None:
                own = gradient.to_local()
                part.grad = own if own.shape == part.shape else own[: part.shape[0]]

    with mock.patch.object(shards.Shards, "_take_gradients", as_they_lie), noticed():
        trains_as_one_process(
            tensor_and_sequence_parallel, parts=1, steps=12, check_replay=False, **SEQUENCE
        )


@check(2)
def noticed_if_a_sum_of_losses_is_taken_for_a_mean():
    with noticed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_summed("mean")
    assert world() == 2
