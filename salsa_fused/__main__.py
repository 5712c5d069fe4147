"""``python -m salsa_fused``: versions, backends, what is missing and why; one line each."""

from __future__ import annotations

import os
import platform
import warnings

import torch

from . import __version__
from .kernels.backends import BACKENDS, ENVIRONMENT_VARIABLE, choose_backend, forced_backends


def report() -> list[tuple[str, str]]:
    """What there is, as (name, description)."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        ("salsa_fused", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("gpu", _gpu()),
        *[(backend.title, backend.describe()) for backend in BACKENDS],
        (f"${ENVIRONMENT_VARIABLE}", os.environ.get(ENVIRONMENT_VARIABLE) or "not set"),
        *[(f"fp32 on {device}", _serving(device)) for device in devices],
    ]


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"


def _serving(device: str) -> str:
    weight = torch.zeros(1, device=device)
    try:
        forced = forced_backends(None)
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
