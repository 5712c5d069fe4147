"""Several ranks train as one process does that has the whole batches."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
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
from launch import check
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils._python_dispatch import TorchDispatchMode

from salsa_fused import FusedSaLSa, _torch

STEPS = 30


def ddp(model: nn.Module, **keywords: Any) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, **keywords)


def fsdp(model: Any, **keywords: Any) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, **keywords)
    return fully_shard(model, **keywords)


def hsdp(model: Any) -> nn.Module:
    return fsdp(model, mesh=init_device_mesh("cpu", (2, world() // 2), mesh_dim_names=("r", "s")))


def tensor_and_sequence_parallel(model: Any, mesh: DeviceMesh | None = None) -> nn.Module:
    plan: dict[str, Any] = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    for i in range(len(model.blocks)):
        plan[f"blocks.{i}.norm"] = SequenceParallel()
        plan[f"blocks.{i}.up"] = ColwiseParallel(input_layouts=Shard(1))
        plan[f"blocks.{i}.down"] = RowwiseParallel(output_layouts=Shard(1))
    mesh = mesh or init_device_mesh("cpu", (world(),))
    parallel: nn.Module = parallelize_module(model, mesh, plan)
    return parallel


def tensor_parallel(model: Any, mesh: DeviceMesh | None = None) -> nn.Module:
    """Norms, the embedding and the scale stay plain tensors beside DTensors."""
    plan: dict[str, Any] = {"head": ColwiseParallel(output_layouts=Replicate())}
    for i in range(len(model.blocks)):
        plan |= {f"blocks.{i}.up": ColwiseParallel(), f"blocks.{i}.down": RowwiseParallel()}
    mesh = mesh or init_device_mesh("cpu", (world(),))
    parallel: nn.Module = parallelize_module(model, mesh, plan)
    return parallel


def two_dimensions(model: Any) -> nn.Module:
    """FSDP2 over two pairs of ranks, each of which has tensor and sequence parallelism."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    tensor_and_sequence_parallel(model, mesh["tp"])
    return fsdp(model, mesh=mesh["dp"])


def trains_as_one_process(
    wrap: Callable[[Any], nn.Module],
    *,
    dtype: torch.dtype = torch.float64,
    steps: int = STEPS,
    parts: int | None = None,
    part: int | None = None,
    losses: float = 1e-10,
    sizes: float = 1e-12,
    weights: float = 1e-10,
    of_model: dict[str, Any] | None = None,
    **settings: Any,
) -> FusedSaLSa:
    """``parts``, ``part``: of every batch; all ranks have parts of their own by default."""
    of_model = of_model or {}
    expected, expected_weights = run_alone(dtype, steps, **of_model, **settings)
    model = wrap(build(dtype, **of_model))
    optimizer = FusedSaLSa(model.parameters(), module=model, **settings)
    parts = world() if parts is None else parts
    part = rank() % parts if part is None else part
    rows = train(model, optimizer, steps, parts=parts, part=part)
    assert_equal_on_all_ranks(rows)
    assert_same_run(rows, expected, losses=losses, sizes=sizes)
    found = weights_of(model)
    assert_equal_on_all_ranks(found)
    off = (found - expected_weights).abs().max().item()
    assert off <= weights, off
    return optimizer


SEQUENCE = {"of_model": {"scaled": False, "width": 16}}


@check(2)
def ddp_on_2():
    trains_as_one_process(ddp)


@check(2)
def fsdp2_on_2():
    trains_as_one_process(fsdp)


@check(2)
def fsdp2_that_keeps_gathered_weights():
    trains_as_one_process(lambda model: fsdp(model, reshard_after_forward=False))


@check(2)
def tensor_and_sequence_parallel_on_2():
    trains_as_one_process(tensor_and_sequence_parallel, parts=1, **SEQUENCE)


@check(2)
def plain_tensors_beside_dtensors():
    trains_as_one_process(tensor_parallel, parts=1)


@check(2)
def fsdp2_in_fp32():
    """The native kernels."""
    like_fp32 = {"losses": 1e-5, "sizes": 1e-5, "weights": 2e-5}
    optimizer = trains_as_one_process(fsdp, dtype=torch.float32, steps=40, **like_fp32)
    assert optimizer.backends == ("native",)


class DispatchedDTensors(TorchDispatchMode):
    """The operations that get a DTensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@check(2)
def a_plain_step_dispatches_no_dtensor():
    """And is one launch for all weights that are spread alike."""
    model = fsdp(build(torch.float32))
    optimizer = FusedSaLSa(model.parameters(), module=model, search_period=None, lr=1e-2)
    train(model, optimizer, 2, parts=2, part=rank())
    for x, y in batches(4, 2, rank())[2:]:
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        with DispatchedDTensors() as seen:
            optimizer.step()
        assert seen.names == []
    with DispatchedDTensors() as seen:
        optimizer.zero_grad(set_to_none=False)
    assert seen.names  # so it does see them
    assert len(optimizer._kernels.buckets) == 1
    everything = [t for entry in optimizer.state.values() for t in entry.values()]
    assert {type(value) for value in everything} == {int, DTensor}


@check(2)
def lamb_under_fsdp2():
    trains_as_one_process(fsdp, direction="lamb", weight_decay=0.01)


@check(2)
def units_under_fsdp2():
    trains_as_one_process(fsdp, units="groups")


@check(2)
def without_torchs_private_name_for_parts():
    with mock.patch.object(_torch, "_part_of", attrgetter("there_is_none")):
        trains_as_one_process(fsdp, steps=12)


@check(2)
def compiled_blocks():
    def wrap(model: Any) -> nn.Module:
        for block in model.blocks:
            block.compile(backend="aot_eager")
        return fsdp(model)

    trains_as_one_process(wrap, steps=12)


@check(2)
def a_compiled_model_under_ddp():
    def wrap(model: Any) -> nn.Module:
        model.compile(backend="aot_eager")
        return ddp(model)

    trains_as_one_process(wrap, steps=12)


@check(2)
def a_compiled_training_step_under_ddp():
    expected, _ = run_alone(torch.float64, 12)
    model = ddp(build(torch.float64))
    optimizer = FusedSaLSa(model.parameters(), module=model)

    @torch.compile(backend="eager")
    def one_step(x: torch.Tensor, y: torch.Tensor) -> Any:
        return optimizer.step(lambda: loss_of(model, x, y))

    losses = [one_step(x, y).item() for x, y in batches(12, 2, rank())]
    assert losses == pytest.approx([row[0] for row in expected], rel=1e-10)
    assert optimizer.metrics()["total_trials"] == expected[-1][3]


@check(2)
def mixed_precision_of_fsdp2():
    """There is nothing to compare with to the last digit: it trains, and no check complains."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = fsdp(build(torch.float32), mp_policy=policy)
    optimizer = FusedSaLSa(model.parameters(), module=model)
    rows = train(model, optimizer, STEPS, parts=2, part=rank())
    assert_equal_on_all_ranks(rows)
    expected, _ = run_alone(torch.float32, STEPS)
    assert rows[-1][0] < 1.05 * expected[-1][0] and optimizer.skipped_steps == 0


@check(2)
def a_rank_with_nothing_but_empty_shards():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(1, 4, dtype=torch.float64)) for _ in range(2)]
    model = nn.ParameterList([weight.detach().clone() for weight in weights])
    fully_shard(model)
    optimizer = FusedSaLSa(model.parameters(), module=model)
    here = sum(p.to_local().numel() for p in model.parameters())
    assert here == (8 if rank() == 0 else 0)
    x = torch.randn(4, 4, dtype=torch.float64)

    def run(parameters: Any, optimizer: FusedSaLSa, unshard: Callable[[], Any]) -> list[Any]:
        rows = []
        for _ in range(20):

            def closure() -> torch.Tensor:
                unshard()
                a, b = parameters()
                return (x @ a.flatten() - 1).square().mean() + (x @ b.flatten() + 1).square().mean()

            loss = optimizer.step(closure)
            rows.append((loss.item(), optimizer.step_size, optimizer.metrics()["total_trials"]))
        return rows

    whole = lambda: [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model]  # noqa: E731
    rows = run(whole, optimizer, lambda: None)
    assert_equal_on_all_ranks(rows)
    assert rows[-1][0] < rows[0][0]


@check(2)
def ddp_for_200_steps():
    trains_as_one_process(ddp, steps=200)


@check(2)
def fsdp2_for_200_steps():
    trains_as_one_process(fsdp, steps=200)


@check(2)
def tensor_and_sequence_parallel_for_200_steps():
    trains_as_one_process(tensor_and_sequence_parallel, parts=1, steps=200, **SEQUENCE)


@check(4)
def fsdp2_on_4():
    trains_as_one_process(fsdp)


@check(4)
def hsdp_on_4():
    trains_as_one_process(hsdp, steps=200)


@check(4)
def fsdp2_times_tensor_parallel_on_4():
    trains_as_one_process(two_dimensions, parts=2, part=rank() // 2, steps=200, **SEQUENCE)


@check(4)
def lamb_under_hsdp():
    trains_as_one_process(hsdp, direction="lamb", weight_decay=0.01, trust_clip=None)
