"""``python -m salsa_fused``: versions, backends, what is missing and why; one line each."""

from __future__ import annotations

import importlib.util
import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version

import torch

from . import __version__
from .kernels import native
from .kernels.choice import ENVIRONMENT_VARIABLE, choose_backend, forced_backend


def report() -> list[tuple[str, str]]:
    """What there is, as (name, description)."""
    return [
        ("salsa_fused", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("triton", _triton()),
        ("gpu", _gpu()),
        ("reference", "available: plain torch, any device and floating dtype, slow"),
        ("native", _native()),
        (f"${ENVIRONMENT_VARIABLE}", os.environ.get(ENVIRONMENT_VARIABLE) or "not set"),
        ("fp32 on cpu", _serving()),
    ]


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed (not used yet: there are no GPU kernels in this version)"
    try:
        return f"{version('triton')} (not used yet: there are no GPU kernels in this version)"
    except PackageNotFoundError:
        return "installed, version unknown"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (served by the reference backend in this version)"


def _native() -> str:
    reason = native.missing()
    if reason is not None:
        return f"missing: {reason}"
    return f"available on the CPU for fp32, bf16 and fp16: {native.description()}"


def _serving() -> str:
    weight = torch.zeros(1)
    try:
        forced = forced_backend(None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what stands above: native is missing
            return f"served by {choose_backend(weight, weight.dtype, forced).name}"
    except (ValueError, RuntimeError) as error:
        return f"not served: {error}"


def main() -> None:
    rows = report()
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


if __name__ == "__main__":
    main()
