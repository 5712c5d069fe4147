"""Every private or undocumented name of torch that this package uses, and what does without it.

Any release of torch may rename what it does not document. So no other file uses such a name, and
where one is missing here the package still works: more slowly, or without a refinement.
"""

from __future__ import annotations

import functools
import math
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


def ranks() -> int:
    """Return how many processes run in torch.distributed; 1 where none was set up."""
    distributed = torch.distributed
    is_set_up = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_set_up else 1


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
