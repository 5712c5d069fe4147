"""How the tensors beside a weight are stored: kernels load each to fp32, and store it again.

Gradients and saved weights have the weight's dtype.  A 16-bit weight may have a *master*, its value
in fp32, which stands in the optimizer's state: trials and steps go from there, and the weight is
the master rounded to nearest.  So a step that is smaller than half a 16-bit step is not lost, and
a search has nothing to save.  Moments are fp32 or bf16; a bf16 moment is rounded at random
(rounding.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .directions import Direction
from .memory import compute_dtype, moment_like

MASTER = "master_param"  # in an entry of the state
HALVES = (torch.bfloat16, torch.float16)  # weights of these dtypes may have a master
STORED = (torch.float32, torch.bfloat16)  # what a moment may be asked to be


class Storage(NamedTuple):
    """How the tensors beside the weights of one dtype are stored.

    ``code`` is what kernels are told (``Formats`` in ``csrc/formats.h``): 1 for masters, and
    ``2 << k`` where moment ``k`` is bf16.
    """

    names: tuple[str, ...]  # in the state: the direction's moments, in its order, and the master
    dtypes: tuple[torch.dtype, ...]  # of these
    code: int

    @property
    def masters(self) -> bool:
        return self.code & 1 == 1

    @property
    def rounds(self) -> bool:
        """Whether a moment is rounded at random."""
        return self.code > 1

    def tensors_for(self, weight: Tensor, entry: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return all these tensors for a weight, by name and sorted as torch has them.

        ``entry``: what there is of them.  Each is that very tensor where it lies so already.

        Raises:
            RuntimeError: one has another shape than the weight.
        """
        pairs = sorted(zip(self.names, self.dtypes))
        return {name: tensor_beside(weight, name, dtype, entry.get(name)) for name, dtype in pairs}


def tensor_beside(weight: Tensor, name: str, dtype: torch.dtype, value: Tensor | None) -> Tensor:
    """Return a moment or a master that lies like its weight; None: zeros, or the weight's value.

    Raises:
        RuntimeError: ``value`` has another shape than the weight.
    """
    if value is None and name == MASTER:
        value = weight.detach()
    return moment_like(weight, value, dtype)


class Formats(NamedTuple):
    """What a user asks for, of all weights of an optimizer."""

    master_weights: bool = False
    exp_avg_dtype: torch.dtype = torch.float32  # of every moment but exp_avg_sq
    exp_avg_sq_dtype: torch.dtype = torch.float32

    @classmethod
    def checked(cls, arguments: Mapping[str, Any]) -> Formats:
        """Return those among the arguments of an optimizer's constructor; None is fp32.

        Raises:
            ValueError: a format that no kernel stores.
        """
        masters, *dtypes = [arguments[name] for name in cls._fields]
        if not isinstance(masters, bool):
            raise ValueError(f"master_weights must be True or False, got {masters!r}")
        for name, dtype in zip(cls._fields[1:], dtypes):
            if dtype is not None and dtype not in STORED:
                raise ValueError(
                    f"{name} must be torch.float32, torch.bfloat16 or None (fp32), got {dtype!r}"
                )
        return cls(masters, *[dtype or torch.float32 for dtype in dtypes])

    def of(self, dtype: torch.dtype, direction: Direction) -> Storage:
        """Return how what stands beside weights of this dtype is stored.

        fp32 and fp64 weights need no master; fp64 weights have all in fp64.
        """
        names, dtypes, code = [*direction.moments], [], 0
        for k, name in enumerate(names):
            asked = self.exp_avg_sq_dtype if name == "exp_avg_sq" else self.exp_avg_dtype
            wide = compute_dtype(dtype)
            dtypes.append(asked if wide == torch.float32 else wide)
            code |= (dtypes[-1] == torch.bfloat16) << (k + 1)
        if self.master_weights and dtype in HALVES:
            names, dtypes, code = [*names, MASTER], [*dtypes, torch.float32], code | 1
        return Storage(tuple(names), tuple(dtypes), code)
