"""DTensors for kernels that know plain tensors: this rank's part of each, and of its state.

FSDP2 and tensor parallelism give each rank a part of a weight, a DTensor.  Every operation on one
goes through Python, 50 us each.  A step takes the parts out instead, all of them plain tensors, and
the kernels go over them in one launch.  In the optimizer's state stand DTensors again, which
checkpoints can put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from math import prod
from operator import is_
from typing import Any

from torch import Tensor

from .._torch import (
    dtensor_of,
    is_dtensor,
    local_of,
    parts_of_dtensors,
    wait_until_it_is_there,
)
from . import columns
from .columns import STEP, State

Groups = Sequence[Mapping[str, Any]]


class Shards:
    """The parameters of an optimizer as this rank has them; plain ones are there themselves.

    ``groups`` and ``state`` are what the kernels are given in place of the optimizer's own.
    """

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._parameters: list[Tensor] = []
        self._dtensors: list[Any] = []
        self._parts: list[Tensor] = []  # of the DTensors, in their order
        self._plain: list[Tensor] = []
        self._pieces: dict[int, int] = {}  # by the id of a part
        self._placements: list[Any] = []  # of the DTensors
        self._wholes: dict[int, Any] = {}  # what stands in the state for a part, by the part's id
        self._seen = _Seen()

    @property
    def in_pieces(self) -> bool:
        """Whether a weight is not whole on every rank."""
        return max(self._pieces.values(), default=1) > 1

    def pieces_of(self, part: Tensor) -> int:
        """Return how many ranks have another part of that weight: 1 where each has all of it."""
        return self._pieces.get(id(part), 1)

    # -- before the kernels -------------------------------------------------------------------

    def read(self, groups: Groups, state: State) -> None:
        """Take out what this rank has of weights, gradients and state."""
        self._take_weights(groups)
        self._take_gradients()
        if not self._seen.is_in(state):
            self._take_state(state)

    def any_has_gradient(self) -> bool:
        """Return whether a parameter has a gradient: also if its part is empty here."""
        return any(parameter.grad is not None for parameter in self._parameters)

    def _take_weights(self, groups: Groups) -> None:
        listed = [list(group["params"]) for group in groups]
        same = columns.look.same_objects(listed, self._parameters)
        if same and all(map(is_, parts_of_dtensors(self._dtensors), self._parts)):
            return
        self._parameters = list(chain.from_iterable(listed))
        self._dtensors = list(filter(is_dtensor, self._parameters))
        self._parts = parts_of_dtensors(self._dtensors)
        self._placements = [dtensor.placements for dtensor in self._dtensors]
        self._plain = [parameter for parameter in self._parameters if not is_dtensor(parameter)]
        self._pieces = dict(zip(map(id, self._parts), map(pieces, self._dtensors)))
        part_of = dict(zip(map(id, self._dtensors), self._parts))
        self.groups = [
            {**group, "params": [part_of.get(id(each), each) for each in parameters]}
            for group, parameters in zip(groups, listed)
        ]
        self._seen = _Seen()

    def _take_gradients(self) -> None:
        """Put the gradient's part beside the weight's, placed as the weight is.

        A norm's weight whose inputs are sharded by sequence is whole on all ranks, and its gradient
        a sum that nobody has added up yet; an embedding's may be the other way round.
        """
        gradients = [dtensor.grad for dtensor in self._dtensors]
        present = [gradient for gradient in gradients if gradient is not None]
        if len(present) < len(gradients) or [g.placements for g in present] != self._placements:
            gradients = list(map(_placed_like, gradients, self._dtensors))
            present = [gradient for gradient in gradients if gradient is not None]
        own = parts_of_dtensors(present)
        if not all(map(is_, map(type, own), repeat(Tensor))):
            own = list(map(wait_until_it_is_there, own))
        rest = iter(own)
        for part, gradient in zip(self._parts, gradients):
            part.grad = gradient if gradient is None else next(rest)

    def _take_state(self, state: State) -> None:
        """Take out the state; entries that say the same as before stay the same objects."""
        before, self.state, self._wholes = self.state, {}, {}
        for plain in self._plain:
            if (entry := state.get(plain)) is not None:
                self.state[plain] = entry
        for dtensor, part in zip(self._dtensors, self._parts):
            if not (entry := state.get(dtensor)):
                continue
            own = {name: local_of(value) for name, value in entry.items()}
            known = before.get(part, {})
            same = known.keys() == own.keys() and all(map(is_, known.values(), own.values()))
            self.state[part] = known if same else own
            wholes = zip(self.state[part].values(), entry.values())
            self._wholes |= {id(own): whole for own, whole in wholes if is_dtensor(whole)}

    # -- after them ---------------------------------------------------------------------------

    def enter(self, state: State, t: int | None = None) -> None:
        """Enter what the kernels have left in their state into the optimizer's.

        ``t``: the count of all entries, where nothing else has changed.
        """
        if t is not None and self._seen.enter_count(t):
            return
        for plain in self._plain:
            if plain in self.state and plain not in state:
                state[plain] = self.state[plain]
        for dtensor, part in zip(self._dtensors, self._parts):
            if (own := self.state.get(part)) is None:
                continue
            entry = state.setdefault(dtensor, {})
            for name, value in own.items():
                if not isinstance(value, Tensor):
                    entry[name] = value
                elif name not in entry or entry[name] is not self._wholes.get(id(value)):
                    entry[name] = self._wholes[id(value)] = dtensor_of(value, dtensor)
        self._seen = _Seen(state, self._dtensors)

    def release(self) -> None:
        """Hold no gradient between steps."""
        for part in self._parts:
            part.grad = None


class _Seen:
    """What stood in the optimizer's state when it was last looked at: all objects."""

    def __init__(self, state: State | None = None, dtensors: Sequence[Tensor] = ()) -> None:
        self._items: list[Any] | None = None if state is None else [*state, *state.values()]
        self._entries = [state[each] for each in dtensors if each in state] if state else []
        first = self._entries[0] if self._entries else {}
        self._names = (STEP, *[name for name in first if name != STEP])
        self._columns = [[e.get(name) for e in self._entries] for name in self._names[1:]]
        self._wholes = [each for each in chain.from_iterable(self._columns) if is_dtensor(each)]
        self._parts = parts_of_dtensors(self._wholes)
        self._t = columns.look.common_step(self._entries, self._columns, self._names)

    def is_in(self, state: State) -> bool:
        """Return whether all of it is there; False, too, where entries differ from each other."""
        return (
            self._items is not None
            and columns.look.same_items(state, self._items)
            and (self._t is not None or not self._entries)
            and columns.look.common_step(self._entries, self._columns, self._names) == self._t
            and all(map(is_, parts_of_dtensors(self._wholes), self._parts))
        )

    def enter_count(self, t: int) -> bool:
        """Enter this count into all entries; return False where they had none in common."""
        if self._t is None:
            return False
        columns.look.set_in_all(self._entries, STEP, t)
        self._t = t
        return True


def _placed_like(gradient: Any, dtensor: Any) -> Any:
    if gradient is None or gradient.placements == dtensor.placements:
        return gradient
    return gradient.redistribute(placements=dtensor.placements)


def pieces(dtensor: Any) -> int:
    """Return how many ranks have a part of their own: all others have the same as one of them."""
    sizes = zip(dtensor.device_mesh.shape, dtensor.placements)
    return prod(size for size, placement in sizes if not placement.is_replicate())
