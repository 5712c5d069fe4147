"""What a forward changes besides its output: buffers, and weights that no optimizer step moves.

A trial runs the forward again, so whatever it counts or averages on the way is counted once more:
BatchNorm's running statistics, a momentum encoder, a codebook.  ``module=`` replays buffers; the
rest the user has to know of.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ._torch import versions_of


@contextmanager
def called_modules() -> Iterator[list[nn.Module]]:
    """Find the modules whose forward runs inside: hooks on all modules tell, and are removed."""
    found: list[nn.Module] = []
    handle = register_module_forward_pre_hook(lambda module, args: found.append(module))
    try:
        with warnings.catch_warnings():  # torch tells users of such hooks; these are ours
            warnings.filterwarnings("ignore", "Using `torch.compile")
            yield found
    finally:
        handle.remove()


class _Seen(NamedTuple):
    label: str
    is_buffer: bool
    tensor: Tensor
    version: int


class SideEffects:
    """``SideEffects(modules, ...)`` between two evaluations; afterwards what the second changed.

    ``trained``: ids of the tensors that the optimizer moves.  ``replayed``: the module whose
    buffers are put back, if there is one.
    """

    def __init__(
        self, modules: list[nn.Module], trained: Collection[int], replayed: nn.Module | None
    ) -> None:
        known = {*trained}
        if replayed is not None:
            known |= {id(buffer) for buffer in replayed.buffers()}
        owners = {id(owner): owner for module in modules for owner in module.modules()}
        self._seen: list[_Seen] = []
        for owner in owners.values():
            for is_buffer, tensors in ((True, owner._buffers), (False, owner._parameters)):
                for name, tensor in tensors.items():
                    if tensor is not None and id(tensor) not in known:
                        known.add(id(tensor))
                        label = f"{name!r} of {type(owner).__name__}"
                        self._seen.append(_Seen(label, is_buffer, tensor, *versions_of([tensor])))

    def changed(self) -> tuple[list[str], list[str]]:
        """Name the buffers, and the parameters, that were written to since."""
        versions = versions_of([seen.tensor for seen in self._seen])
        written = [seen for seen, now in zip(self._seen, versions) if seen.version != now]
        buffers = [seen.label for seen in written if seen.is_buffer]
        return buffers, [seen.label for seen in written if not seen.is_buffer]
