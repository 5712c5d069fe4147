"""Other people's optimizers, as PyPI has them: installed once into a folder, without their needs.

Where one is installed in the environment already, that one is used.
"""

import importlib
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.methods import Closure, Method, cosine_end, gradients, of_torch
from bench.results import version
from bench.sets.fetch import CACHE, DataError, pip, shown

FOLDER = CACHE / "peers"
PEERS = {  # the module that is imported, and what pip is asked for
    "salsa.SaLSA": "SaLSa-Optimizer==0.1.0",
    "prodigyopt": "prodigyopt==1.1.2",
    "dadaptation": "dadaptation==3.2",
    "schedulefree": "schedulefree==1.4.1",
    "GeN": "gen-optim==0.1.1",
    "momo": "momo-opt==0.1.0",
    "sps_safe": "sps_safe==1.0.0",
}
GEN_EVERY = 4  # steps; the package's page recommends four or more
sys.path.append(str(FOLDER))


def peer(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{PEERS[module]} is missing ({error}): python -m bench data") from None


def versions() -> dict[str, str | None]:
    """The versions of all peers; None for one that is missing."""
    names = (requirement.partition("==")[0] for requirement in PEERS.values())
    return {name: version(name) for name in names}


def fetch_peers() -> list[str]:
    """Install all peers into the folder; return what failed, and why."""
    failed = []
    for requirement in PEERS.values():
        name, _, number = requirement.partition("==")
        if not (FOLDER / f"{name.replace('-', '_')}-{number}.dist-info").exists():
            print(f"Installing the peer {requirement} into {shown(FOLDER)}/.", flush=True)
            said = pip("install", "--no-deps", "--target", str(FOLDER), requirement)
            failed += [f"{requirement}: {said}"] if said else []
    return failed


# --- their steps ----------------------------------------------------------------------------------


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def authors_step(optimizer: Any, closure: Closure) -> Tensor:
    """The authors' package tells its closure whether it wants gradients; and it prints."""

    def theirs(backwards: bool = False) -> Tensor:
        with torch.set_grad_enabled(backwards):
            return gradients(optimizer, closure) if backwards else closure()

    with _silent():
        return torch.as_tensor(optimizer.step(theirs)).detach()


def told_step(optimizer: Any, closure: Closure) -> Tensor:
    """A step of optimizers that want to know the loss."""
    loss = gradients(optimizer, closure)
    optimizer.step(loss=loss)
    return loss.detach()


def _adapted(optimizer: Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group["d"]) * group["lr"]


class GeN(torch.optim.AdamW):
    """GeN (arXiv 2407.02772) as its package has it: AdamW, whose learning rate a parabola sets.

    It begins with the learning rate of the package's page. The package's function takes a model and
    a data set; here the optimizer is called in place of the model, and evaluates its closure.
    """

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.parabola = peer("GeN").lr_parabola  # or DataError, before anything else
        super().__init__(params, lr=1e-4)
        self.taken = 0

    def parameters(self) -> Iterator[Tensor]:
        return (weight for group in self.param_groups for weight in group["params"])

    def __call__(self, _inputs: Tensor) -> Tensor:
        return self.closure()

    def train_step(self, closure: Closure) -> Tensor:
        """One step; every fourth one evaluates the loss at three points of the line."""
        self.closure = closure
        loss = gradients(self, closure)
        self.taken += 1
        if self.taken % GEN_EVERY == 0:
            batches, device = iter([torch.zeros(2)]), loss.device  # "inputs" and "targets"
            with _silent():  # it prints what a fit has failed of, and then halves the rate
                self.parabola(self, self, lambda loss, _: loss, 1, batches, device, "image_cls")
        self.step()
        return loss.detach()


# --- as methods -----------------------------------------------------------------------------------


def _of(name: str, optimizer: str, settings: str, **how: Any) -> Method:
    """An optimizer of a package, "MODULE.CLASS", with its defaults."""
    module, _, of = optimizer.rpartition(".")

    def make(params: list[nn.Parameter]) -> Optimizer:
        built = getattr(peer(module), of)(params)
        if hasattr(built, "train"):  # schedule-free
            built.train()
        return built

    return replace(of_torch(name, settings, make), **how)


AUTHORS_SALSA = _of(
    "authors' SaLSa", "salsa.SaLSA.SaLSA", "SaLSa-Optimizer 0.1.0", step=authors_step,
    step_size=lambda optimizer: float(optimizer.step_size),
)  # fmt: skip
PRODIGY = _of("Prodigy", "prodigyopt.Prodigy", "1.1.2, defaults", step_size=_adapted)
PRODIGY_COSINE = replace(
    PRODIGY, name="Prodigy, cosine", settings="1.1.2, cosine over the last half", factor=cosine_end
)
D_ADAPTATION = _of("D-Adaptation", "dadaptation.DAdaptAdam", "DAdaptAdam 3.2, defaults",
                   step_size=_adapted)  # fmt: skip
SCHEDULE_FREE = _of("schedule-free", "schedulefree.AdamWScheduleFree",
                    "AdamW 1.4.1, default lr=0.0025")  # fmt: skip
GEN = of_torch("GeN", "gen-optim 0.1.1 with AdamW, lr=1e-4 to begin with, every 4th step", GeN)
GEN = replace(GEN, step=GeN.train_step)
# MoMo's step size is at most lr=0.01; what it is, the package keeps to itself.
MOMO = _of("MoMo", "momo.MomoAdam", "MomoAdam 0.1.0, defaults", step=told_step,
           step_size=lambda _: math.nan)  # fmt: skip
SPS_SAFE = _of("SPS-safe", "sps_safe.IMA_SPS_safe", "IMA_SPS_safe 1.0.0, defaults",
               step=told_step, step_size=lambda optimizer: float(optimizer.ss))  # fmt: skip
