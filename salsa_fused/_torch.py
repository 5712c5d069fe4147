"""Every private or undocumented name of torch that this package uses, and what does without it.

Any release of torch may rename what it does not document. So no other file uses such a name, and
where one is missing here the package still works: more slowly, or without a refinement.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers

F = TypeVar("F", bound=Callable[..., Any])

# -- a step -----------------------------------------------------------------------------------


def not_compiled(function: F) -> F:
    """Keep ``torch.compile`` from following calls of this function."""
    # the public name imports the compiler at once, which takes seconds
    disable: Any = getattr(torch, "_disable_dynamo", torch.compiler.disable)
    return disable(function)


# the public class works as a function, too, and takes a microsecond; it calls this one
set_grad_mode: Callable[[bool], object]
set_grad_mode = getattr(torch._C, "_set_grad_enabled", torch.set_grad_enabled)

# True where torch keeps these hooks elsewhere: it has to be asked in every step then
_pre_hooks_of_all: Any = getattr(optimizers, "_global_optimizer_pre_hooks", True)
_post_hooks_of_all: Any = getattr(optimizers, "_global_optimizer_post_hooks", True)


def hooked_where_watched(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``step`` as ``Optimizer.profile_hook_step`` does, but skip it where nobody watches.

    Without a hook and a profiler it would cost a plain step of a small model a tenth of its time.
    """
    wrap = getattr(Optimizer, "profile_hook_step", None)
    if wrap is None:  # then torch wraps `step` in a way of its own
        return func
    hooked = wrap(func)

    @functools.wraps(func)
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        try:
            watched = (
                profiler._is_profiler_enabled
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _pre_hooks_of_all
                or _post_hooks_of_all
            )
        except AttributeError:  # torch keeps one of them elsewhere
            watched = True
        return (hooked if watched else func)(self, *args, **kwargs)

    return step


def load_hooks(optimizer: Optimizer, when: Literal["pre", "post"]) -> list[Callable[..., Any]]:
    """Return what the user has registered for a state dict that is loaded.

    Where torch keeps these hooks elsewhere they are not found, and not called.
    """
    return list(getattr(optimizer, f"_optimizer_load_state_dict_{when}_hooks", {}).values())


def parts_of(scheduler: Any) -> list[Any]:
    """Return the schedulers that one consists of, as SequentialLR and ChainedScheduler do."""
    return list(getattr(scheduler, "_schedulers", ()))


# -- several ranks ----------------------------------------------------------------------------


# whether this process runs in torch.distributed, with others or alone; asked in every step
ranks_are_set_up: Callable[[], bool] = lambda: False  # noqa: E731
if torch.distributed.is_available():
    ranks_are_set_up = torch.distributed.is_initialized


def is_dtensor(tensor: object) -> bool:
    """Return whether a tensor is torch.distributed's, of which each rank has a part."""
    module = sys.modules.get("torch.distributed.tensor")  # to import it takes a second
    return module is not None and isinstance(tensor, module.DTensor)


_part_of = attrgetter("_local_tensor")


def parts_of_dtensors(dtensors: Sequence[Any]) -> list[Tensor]:
    """Return this rank's part of each DTensor, the very tensor that it holds."""
    try:
        return list(map(_part_of, dtensors))
    except AttributeError:  # torch calls it otherwise
        with torch.no_grad():  # then it is no view that autograd knows of
            return [dtensor.to_local() for dtensor in dtensors]


def local_of(tensor: Any) -> Any:
    """Return this rank's part of a DTensor; any other tensor itself."""
    return parts_of_dtensors([tensor])[0] if is_dtensor(tensor) else tensor


def dtensor_of(part: Tensor, like: Any) -> Any:
    """Return a DTensor of this part, whose whole has the shape and placements of ``like``.

    Nothing is copied: the part may be offloaded, where torch would move it to the mesh's devices.
    """
    cls = sys.modules["torch.distributed.tensor"].DTensor
    how = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    if part.device.type == like.device_mesh.device_type:
        return cls.from_local(part, like.device_mesh, like.placements, **how)
    whole: Any = torch.empty_like(like, dtype=part.dtype, requires_grad=False)
    whole._local_tensor = part
    return whole


def spread_like(like: Any, tensor: Any) -> Tensor:
    """Return a tensor that is a DTensor of the same ranks and placements, or of none, as another.

    What is whole on every rank is cut there, and nothing is sent.
    """
    if not is_dtensor(like):
        return whole_of(tensor)
    mesh, placements = like.device_mesh, like.placements
    if is_dtensor(tensor):
        return tensor.redistribute(mesh, placements) if tensor.placements != placements else tensor
    spread = sys.modules["torch.distributed.tensor"].distribute_tensor
    return spread(tensor.to(mesh.device_type), mesh, placements, src_data_rank=None)


def whole_of(tensor: Any) -> Tensor:
    """Return a DTensor's whole, from all of its ranks; any other tensor itself."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def is_flattened_by_fsdp1(parameter: Tensor) -> bool:
    """Return whether a parameter is FullyShardedDataParallel's: it looks like a plain one."""
    return bool(getattr(parameter, "_fsdp_flattened", False))


def is_of_deepspeed(parameter: Tensor) -> bool:
    """Return whether DeepSpeed's ZeRO has taken a parameter over."""
    return any(hasattr(parameter, name) for name in ("ds_id", "_hp_mapping"))


def wait_until_it_is_there(tensor: Any) -> Tensor:
    """Return what a collective that was left running will have written."""
    return tensor.wait() if type(tensor) is not Tensor and hasattr(tensor, "wait") else tensor


SYNCS = "require_forward_param_sync"  # of DDP: the next forward broadcasts the buffers


def joins(ddp: Any) -> bool:
    """Return whether DDP's ``join()`` was entered: its ranks run out of batches at other times."""
    return bool(getattr(getattr(ddp, "_join_config", None), "enable", False))


# -- many tensors at once ---------------------------------------------------------------------


def _copy_one_by_one(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources):
        target.copy_(source)


copy_each: Callable[[Sequence[Tensor], Sequence[Tensor]], object]
copy_each = getattr(torch, "_foreach_copy_", _copy_one_by_one)


def largest_of_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the largest absolute value of each tensor; not a number where one of them is not."""
    if hasattr(torch, "_foreach_norm"):
        return list(torch._foreach_norm(list(tensors), math.inf))
    return [torch.linalg.vector_norm(tensor, math.inf) for tensor in tensors]


def forget_cached_weights() -> None:
    """Drop what autocast and parametrizations have computed from the weights before."""
    getattr(torch, "clear_autocast_cache", lambda: None)()
    # looked up in every call: torch puts another one in its place
    if cached := getattr(parametrize, "_cache", None):
        cached.clear()


# -- tensors in memory ------------------------------------------------------------------------

# what csrc/columns.cpp reads tensors with; None where this torch has none
dlpack_exchange_api: Any = getattr(Tensor, "__dlpack_c_exchange_api__", None)

_version = attrgetter("_version")


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """Return how often each tensor was written to, as autograd counts; 0 where nobody does."""
    try:
        return list(map(_version, tensors))
    except (AttributeError, RuntimeError):  # RuntimeError: made under torch.inference_mode
        return [getattr(t, "_version", 0) if not t.is_inference() else 0 for t in tensors]


def objects_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the addresses of torch's objects for a tensor and its storage, if torch tells."""
    try:
        return tensor._cdata, tensor.untyped_storage()._cdata
    except AttributeError:
        return ()
