"""Trains in a torch that lacks a name, for test_private_torch.py.

``python torch_without.py NAME ...`` prints what came of each, as JSON.  Each gets a fork of a
process that has imported torch and not the package: as fresh as a new one, at a tenth of its cost.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

STEPS = 40

NOTHING = "nothing"

DELETED = (
    "torch._disable_dynamo",
    "torch._foreach_copy_",
    "torch._foreach_norm",
    "torch.clear_autocast_cache",
    "torch.amp.GradScaler",
    "torch.amp.GradScaler.scale",
    "torch.autograd._unsafe_preserve_version_counter",
    "torch.autograd.profiler._is_profiler_enabled",
    "torch.nn.parameter.is_lazy",
    "torch.nn.utils.parametrize._cache",
    "torch.nn.Parameter.__torch_function__",
    "torch.optim.Optimizer.profile_hook_step",
    "torch.Tensor.__torch_dispatch__",
    "torch.Tensor.__dlpack_c_exchange_api__",
)

# what a class has from C and nobody can delete: using it raises AttributeError
HIDDEN = ("torch.Tensor._version", "torch.Tensor._cdata", "torch.UntypedStorage._cdata")

# in torch.optim.optimizer, which goes on to use them
RENAMED = (
    "profile_hook_step",
    "_global_optimizer_pre_hooks",
    "_global_optimizer_post_hooks",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

NAMES = (NOTHING, *DELETED, *HIDDEN, *RENAMED)


def take_away(name: str) -> bool:
    """Whether this torch had it."""
    if name in RENAMED:
        return rename(name)
    path, _, last = name.rpartition(".")
    owner = resolve_name(path) if path else None
    if name in DELETED and last in vars(owner):
        delattr(owner, last)
    elif name in HIDDEN and hasattr(owner, last):
        setattr(owner, last, property(no_such_attribute))
    else:
        return name == NOTHING
    return True


def no_such_attribute(self: object) -> None:
    raise AttributeError("there is none in this torch")


def rename(name: str) -> bool:
    """Run the source of torch's optimizers anew, with another name."""
    module = resolve_name("torch.optim.optimizer")
    source = Path(module.__file__).read_text()
    vars(module).pop(name, None)
    other = re.sub(rf"\b{name}\b", f"other_{name}", source)
    exec(compile(other, module.__file__, "exec"), vars(module))
    torch.optim.Optimizer = module.Optimizer  # type: ignore[misc]
    return other != source


def train() -> dict[str, Any]:
    """Search, take plain steps, save and load; what came of it."""
    from salsa_fused import FusedSaLSa

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers, torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
    x = torch.randn(32, 6)
    y = x[:, :1] * x[:, 1:2]
    calls = {"step_hooks": 0, "load_hooks": 0}

    def counting(what: str) -> Callable[..., None]:
        def hook(*arguments: object) -> None:
            calls[what] += 1

        return hook

    def build() -> FusedSaLSa:
        optimizer = FusedSaLSa(net.parameters(), module=net, check_finite=True)
        optimizer.register_load_state_dict_pre_hook(counting("load_hooks"))
        optimizer.register_load_state_dict_post_hook(counting("load_hooks"))
        return optimizer

    def loss() -> torch.Tensor:
        return (net(x) - y).square().mean()

    optimizer = build()
    losses, searches = [], 0
    # one hook at a time: each has to be noticed by itself
    for kind in ("pre", "post", "global pre", "global post"):
        state, optimizer = optimizer.state_dict(), build()
        optimizer.load_state_dict(state)
        owner, prefix = optimizer, "register_step"
        if kind.startswith("global"):
            owner, prefix = resolve_name("torch.optim.optimizer"), "register_optimizer_step"
        register = getattr(owner, f"{prefix}_{kind.split()[-1]}_hook")
        handle = register(counting("step_hooks"))
        for _ in range(STEPS // 4):
            searches += optimizer.search_due
            losses.append(optimizer.step(loss).item())
        handle.remove()
    tensors = [tensor.detach().contiguous().numpy() for tensor in net.state_dict().values()]
    weights = hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors)).hexdigest()
    return {"losses": losses, "searches": searches, "weights": weights, **calls}


def train_without(name: str) -> dict[str, Any]:
    """Take the name away and train; the error where that fails."""
    try:
        assert not any(module.startswith("salsa_fused") for module in sys.modules)
        return {"had": take_away(name), **train()}
    except BaseException:
        return {"error": traceback.format_exc()}


def main(names: list[str]) -> None:
    importlib.import_module("torch._dynamo")  # the first step would, in seconds: once for all
    for name in names:
        if len(names) > 1 and os.fork():
            os.wait()
            continue
        print(json.dumps({"name": name, **train_without(name)}), flush=True)
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
