"""``python -m salsa_fused``: versions, backends, what is missing and why; one line each."""

from __future__ import annotations

import os
import platform
import warnings

import torch

from . import __version__
from .kernels import compiled, native_cuda, triton_backend
from .kernels.choice import ENVIRONMENT_VARIABLE, choose_backend, forced_backend


def report() -> list[tuple[str, str]]:
    """What there is, as (name, description)."""
    return [
        ("salsa_fused", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("gpu", _gpu()),
        ("triton", _triton()),
        ("native, cpu", _native()),
        ("native, cuda", _native_cuda()),
        ("reference", "available: plain torch, any device and floating dtype, slow"),
        (f"${ENVIRONMENT_VARIABLE}", os.environ.get(ENVIRONMENT_VARIABLE) or "not set"),
        *[(f"fp32 on {device}", _serving(device)) for device in _devices()],
    ]


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"


def _triton() -> str:
    reason = triton_backend.missing()
    if reason is None and torch.cuda.is_available():
        reason = triton_backend.launch_failure(torch.device("cuda"))
    if reason is not None:
        return f"missing: {reason}"
    return f"available for fp32, bf16 and fp16: {triton_backend.description()}"


def _native() -> str:
    reason = compiled.missing()
    if reason is not None:
        return f"missing: {reason}"
    return f"available on the CPU for fp32, bf16 and fp16: {compiled.description()}"


def _native_cuda() -> str:
    reason = native_cuda.missing()
    if native_cuda.module is None:
        return f"missing: {reason}"
    if reason is None:
        reason = native_cuda.launch_failure(torch.device("cuda", 0))
    served = "available for fp32, bf16 and fp16" if reason is None else f"not used: {reason}"
    return f"{served}: {native_cuda.description()}"


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _serving(device: str) -> str:
    weight = torch.zeros(1, device=device)
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
