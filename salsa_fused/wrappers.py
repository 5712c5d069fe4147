"""What the wrappers of a model need around trials: FSDP2's ``fully_shard`` and DDP.

After a forward without gradients FSDP2's root, and every module with ``reshard_after_forward=
False``, keeps the gathered weights: the next trial would evaluate the weights of the one before.
After an exception in the midst of a forward its modules wait for the rest of it.

DDP's forward broadcasts rank 0's buffers only if the forward before was one with gradients: a trial
has to find that as the first evaluation did (:mod:`salsa_fused.replay` puts it back).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ._torch import (
    SYNCS,
    is_dtensor,
    is_flattened_by_fsdp1,
    is_of_deepspeed,
    joins,
    ranks_are_set_up,
)

FSDP1 = (
    "the model is wrapped in FullyShardedDataParallel (FSDP1), which gives no way to evaluate the "
    "loss at other weights: use FSDP2, torch.distributed.fsdp.fully_shard, or search_period=None"
)

DEEPSPEED = (
    "DeepSpeed's ZeRO holds the parameters, and its engine takes steps without a closure: use "
    "FSDP2 (torch.distributed.fsdp.fully_shard) or DDP, or search_period=None"
)

JOIN = (
    "DistributedDataParallel.join() was entered, for ranks that have different numbers of batches, "
    "and a step whose loss is known tells it to all ranks: those that have run out would not "
    "answer. Give all ranks equally many batches (drop the last ones, or sample some twice), call "
    "step() without a closure (search_period=None), or, after join() has ended, wrap the model "
    "anew"
)

NO_MODULE = (
    "the parameters are DTensors, and a search has to know the model that holds them (fully_shard "
    "keeps gathered weights from one forward to the next): pass module=model, the module that the "
    "closure calls"
)


def sharded_modules(module: nn.Module | None) -> list[Any]:
    """Return the modules that ``fully_shard`` was applied to, the outermost first."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    if module is None or kind is None or not ranks_are_set_up():
        return []
    return [each for each in module.modules() if isinstance(each, kind)]


def reshard(modules: Sequence[Any]) -> None:
    """Give up gathered weights: the next forward gathers them anew."""
    for module in modules:
        module.reshard()


def end_forward(module: nn.Module | None) -> None:
    """Let the next forward be a new one, after an exception has cut one off.

    Torch's name for it came with 2.13; without it an exception in the midst of a forward leaves
    FSDP2 in that forward.
    """
    modules = sharded_modules(module)
    inner = {id(each) for outer in modules for each in outer.modules() if each is not outer}
    for each in modules:
        if id(each) not in inner and hasattr(each, "reset_iter_state"):
            each.reset_iter_state()
    reshard(modules)


def buffer_syncs(module: nn.Module | None) -> list[tuple[Any, bool]]:
    """Return every DDP of a model, and whether its next forward broadcasts buffers."""
    if module is None or not ranks_are_set_up():
        return []
    found = [each for each in module.modules() if isinstance(each, DistributedDataParallel)]
    return [(each, vars(each)[SYNCS]) for each in found if SYNCS in vars(each)]


def broadcasts_buffers(module: nn.Module) -> bool:
    """Return whether this is a DDP that keeps its ranks' buffers equal."""
    if not isinstance(module, DistributedDataParallel):
        return False
    return module.broadcast_buffers and any(True for _ in module.buffers())


def put_back_buffer_syncs(syncs: Sequence[tuple[Any, bool]]) -> None:
    """Set what :func:`buffer_syncs` has returned."""
    for module, flag in syncs:
        setattr(module, SYNCS, flag)


def refuse_join(module: nn.Module | None) -> None:
    """Raise RuntimeError where a rank may run out of batches: it would not answer the others.

    Only the outermost module is looked at, in every step.
    """
    if isinstance(module, DistributedDataParallel) and joins(module):
        raise RuntimeError(JOIN)


def refuse_searches(parameters: Sequence[Any], module: nn.Module | None, ranks: int) -> None:
    """Raise RuntimeError where trials would evaluate other weights, or a slope would be a part's.

    ``ranks``: how many decide together.
    """
    if any(map(is_of_deepspeed, parameters)):
        raise RuntimeError(DEEPSPEED)
    if any(map(is_flattened_by_fsdp1, parameters)):
        raise RuntimeError(FSDP1)
    if module is None and any(map(is_dtensor, parameters)):
        raise RuntimeError(NO_MODULE)
    meshes = {each.device_mesh for each in parameters if is_dtensor(each)}
    if sizes := [mesh.size() for mesh in meshes if ranks % mesh.size()]:
        raise RuntimeError(
            f"parameters are spread over {sizes[0]} ranks, and process_group has {ranks}: it has "
            "to hold all of them, and every copy of the model; leave it out for all ranks"
        )
