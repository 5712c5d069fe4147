"""The door to the kernels: all parameters of an optimizer, in buckets.

A *row* is a weight with its gradient and moments, a *bucket* the rows that one kernel serves, a
*chunk* (row, start, end) a piece of work; *scalars* are the numbers of a (parameter group, t).
Buckets are built once, compared with the tensors on every step, and built anew where something
differs: ``.to()``, ``p.data = ``, an EMA swap and a loaded state all move tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .._torch import forget_cached_weights, is_dtensor, largest_of_each
from . import columns
from .backends import choose_backend, forced_backends
from .bucket import Bucket
from .columns import STEP, State, enter
from .decay import LARGE_DECAY, largest_ratio, warn_of_decay, with_bounded_decay
from .directions import DIRECTIONS, Direction, Scalars, StepFacts, direction_of
from .memory import readable_gradient
from .parameters import check_no_shared_memory, check_parameter, parameter_label, takes_part
from .ratios import set_ratios_of_parts
from .shards import Shards
from .storage import MASTER, Formats
from .window import WINDOW_START, empty_like

Groups = Sequence[Mapping[str, Any]]
Parts = list[Tensor]  # a scalar for each bucket

LOST = (
    "{}: the weights before the search could not be put back, for while trials ran the closure "
    "freed this memory, replaced it by another shape, dtype or device, or torch could not write to "
    "it; all others were. Load what was lost from a checkpoint, and leave parameters in place "
    "inside the closure"
)


class Kernels:
    """All parameters of an optimizer, ready for the kernels.

    The order of calls in a step: :meth:`refresh`; in a search :meth:`first_trial`, then
    :meth:`next_trial` as often as needed; :meth:`final_write` and :meth:`commit`, or
    :meth:`restore`; :meth:`release` last, on every path.  After an exception at any other place
    call :meth:`forget`, too.  Where a step looks back on a window of steps, :meth:`alignment` comes
    before the first trial; where a window begins, :meth:`prepare_window` comes before
    :meth:`final_write` and :meth:`begin_window` after :meth:`commit`.

    Of DTensors the kernels have this rank's parts (see shards.py).  What is summed up over weights
    counts each part as often as there are other parts, so that the mean over the ranks is the sum.

    Args:
        backend: the name of the backend to force; None: the fastest that serves each weight.
        mean_of_each: returns the mean over the ranks of every number.
        formats: how moments are stored, and whether 16-bit weights have masters.

    Raises:
        ValueError: there is no backend of that name.
    """

    def __init__(
        self,
        backend: str | None = None,
        mean_of_each: Callable[[Tensor], Tensor] | None = None,
        formats: Formats | None = None,
    ) -> None:
        self.forced, self.formats = forced_backends(backend), formats or Formats()
        self.shards: Shards | None = None  # where a parameter is a DTensor
        self._mean_of_each = mean_of_each or (lambda numbers: numbers)
        self._ratios_of_parts = False  # of DTensors, in this step
        self.buckets: list[Bucket] = []
        self._direction: Direction = DIRECTIONS["adam"]  # of all groups
        self._parameters: list[Tensor] = []
        self._group_sizes: list[int] = []
        self._empty: list[Tensor] = []  # of zero size
        self._frozen: list[Tensor] = []  # and without a gradient: they may be anything
        self._warned_of_decay = False
        self._known_items: list[Any] | None = None  # keys and values of the state, as buckets have

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends that serve the weights, each once; empty before a step."""
        return tuple(dict.fromkeys(bucket.backend.name for bucket in self.buckets))

    def refresh(self, groups: Groups, state: State) -> bool:
        """Read this step's gradients, moments and counts; return whether there is a gradient.

        Raises:
            RuntimeError: a gradient that no kernel can read (sparse, complex, on another device).
            TypeError, ValueError: a parameter with its first gradient that no kernel can train.
        """
        if self.shards is not None:
            self.shards.read(groups, state)
            groups, state = self.shards.groups, self.shards.state
        if not self._refresh_buckets(groups, state):
            if self.shards is None and any(map(is_dtensor, parameters_of(groups))):
                self.shards = Shards()
                return self.refresh(groups, state)
            self._build(groups)
            if not self._refresh_buckets(groups, state):
                raise RuntimeError("the parameters changed while the optimizer looked at them")
        if self.shards is not None:
            return self.shards.any_has_gradient()
        return True in [bucket.has_gradients for bucket in self.buckets]

    # -- a search -----------------------------------------------------------------------------

    def first_trial(self, groups: Groups, step_size: float, unit: int | None = None) -> Parts:
        """Save the weights, move them to the first trial; return the slope of each bucket.

        Each is a float64 scalar on its device.  ``unit``: move this group's weights only, in the
        whole search.
        """
        self._set_scalars(groups, step_size, trial=True)
        self._relocate()
        if self._direction.scaled_by_ratios:
            self._take_ratios(groups)
        moving = [bucket for bucket in self.buckets if unit is None or unit in bucket.groups]
        for bucket in moving:
            bucket.make_room(unit)
        return [_counted(bucket.first_trial(), bucket) for bucket in moving]

    def next_trial(self, groups: Groups, step_size: float) -> None:
        """Move the weights to another trial along the same direction."""
        self._set_scalars(groups, step_size, trial=True)
        self._relocate()
        for bucket in self.buckets:
            if bucket.moved:
                bucket.next_trial()

    def stands_still(self) -> bool:
        """Return whether the trial has changed no weight: 16-bit ones may be too coarse for it."""
        return all(bucket.stands_still() for bucket in self.buckets)

    def restore(self) -> None:
        """Put the saved weights back, all that can be; do nothing where they are back already.

        Raises:
            RuntimeError: user code freed or replaced weights during the search; all others are
                back then.
        """
        with torch.no_grad():
            lost = [label for bucket in self.buckets if bucket.moved for label in bucket.restore()]
        forget_cached_weights()
        if lost:
            raise RuntimeError(LOST.format(", ".join(lost)))

    # -- the step -----------------------------------------------------------------------------

    def final_write(
        self, groups: Groups, step_size: float | list[float], skip: Tensor | None = None
    ) -> None:
        """Write weights and moments, from the saved weights where a search moved them.

        Weights are not written where the accepted trial already is the step (SGD without decay).
        ``step_size``: one for all, or one for each group.  ``skip``: one fp32 number on a device,
        for what the host does not know yet: not 0, and nothing is written.
        """
        searched = True in [bucket.moved for bucket in self.buckets]
        tried = [bucket.scalars for bucket in self.buckets] if searched else []
        self._set_scalars(groups, step_size, trial=False)
        if self._direction.scaled_by_ratios:
            self._take_ratios(groups)  # with the decay as it was asked for
        if [group for group in groups if group["weight_decay"]]:
            self._bound_decay(groups, step_size)
        already_written = [False] * len(self.buckets)
        if searched and not self._relocate():
            already_written = list(map(_stands_at_the_step, self.buckets, tried))
        if skip is not None:
            for bucket in self.buckets:
                on_cpu = bucket.device.type == "cpu"
                bucket.skip = skip.to(bucket.device, non_blocking=not on_cpu)
        writes = [
            bucket.prepare_write(already_written=written)
            for bucket, written in zip(self.buckets, already_written)
        ]
        for bucket, of_bucket in zip(self.buckets, writes):
            for write in of_bucket:
                write()
            if bucket.saved is not None:
                bucket.saved.filled = False
        forget_cached_weights()

    def commit(self, state: State) -> None:
        """Enter this step's moments and counts into the optimizer's state."""
        own = state if self.shards is None else self.shards.state
        for bucket in self.buckets:
            bucket.commit(own)
        for weight in self._empty:  # of zero size: no kernel sees them, checkpoints expect them
            storage = self.formats.of(weight.dtype, self._direction)
            if weight.grad is not None and storage.names:
                entry = own.setdefault(weight, {})
                enter(entry, {STEP: entry.get(STEP, 0) + 1, **storage.tensors_for(weight, entry)})
        if self.shards is not None:
            self.shards.enter(state, self._common_count())

    def forget(self) -> None:
        """Build everything anew at the next step: an exception may have left it half made."""
        self.shards = None
        self.buckets, self._parameters, self._group_sizes = [], [], []
        self._empty, self._frozen, self._known_items = [], [], None

    def release(self) -> None:
        """Hold neither gradients nor saved weights between steps."""
        for bucket in self.buckets:
            bucket.release()
        if self.shards is not None:
            self.shards.release()
            self._ratios_of_parts = False

    # -- what steps ask of weights and gradients ----------------------------------------------

    def largest_gradients(self) -> Parts:
        """Return the largest absolute value among each bucket's gradients, on its device.

        It is not a number where one of them is not.
        """
        gradients = [[g for g in bucket.gradients if g is not None] for bucket in self.buckets]
        return [torch.stack(largest_of_each(present)).amax() for present in gradients if present]

    def norm_and_count(self) -> tuple[float, float]:
        """Return the norm of all weights that have a gradient; the host waits for it."""
        norms, count = [0.0], 0
        for bucket in self.buckets:
            moving = [bucket.precise[row] for row in bucket.stepped_rows()]
            norms.append(get_total_norm(moving).item() * math.sqrt(bucket.pieces))
            count += sum(weight.numel() for weight in moving) * bucket.pieces
        return math.hypot(*norms), count

    def alignment(self) -> Parts:
        """Return ``<g, window_start - w>`` of each bucket that has rows with both, on its device.

        Weights and gradients are those that lie there: clipped, and to maximize as to minimize.
        """
        self._relocate()
        found = [bucket for bucket in self.buckets if bucket.find_window()]
        return [_counted(bucket.backend.alignment(bucket.work()), bucket) for bucket in found]

    # -- where a window begins ----------------------------------------------------------------

    def prepare_window(self, state: State, *, newcomers_only: bool = False) -> bool:
        """Make ready what :meth:`begin_window` enters; nothing that anybody sees changes.

        ``newcomers_only``: of weights whose first step this is, so that a state is complete from
        its first step on, as checkpoints expect it.  Return whether there is anything to enter.
        """
        found = [b for b in self.buckets if b.beside.new] if newcomers_only else self.buckets
        own = state if self.shards is None else self.shards.state
        if found:
            with torch.no_grad():
                for bucket in found:
                    bucket.prepare_window(own, newcomers_only=newcomers_only)
        # a rank whose shard is empty has an entry as the other ranks have: they save it together
        empty = [] if self.shards is None else self._empty
        return bool(found) or any(WINDOW_START not in own.get(weight, {}) for weight in empty)

    def begin_window(self, state: State) -> None:
        """Enter the weights before this step, of those that it stepped, into the state."""
        with torch.no_grad():
            own = state if self.shards is None else self.shards.state
            for bucket in self.buckets:
                bucket.window.begin(own)
            if self.shards is not None:
                for weight in self._empty:
                    if weight in own:
                        precise = own[weight].get(MASTER, weight)
                        own[weight].setdefault(WINDOW_START, empty_like(precise))
                self.shards.enter(state)

    def _common_count(self) -> int | None:
        """Return the count of every parameter where nothing else of the state has changed.

        None where counts differ, or a parameter has no gradient, or moments are new.
        """
        assert self.shards is not None
        if not all(bucket.beside.current and not bucket.missing for bucket in self.buckets):
            return None
        counts: set[Any] = {t for bucket in self.buckets for _, t in bucket.scalar_keys}
        counts |= {self.shards.state.get(weight, {}).get(STEP) for weight in self._empty}
        rows = sum(len(bucket.rows) for bucket in self.buckets) + len(self._empty)
        return counts.pop() if len(counts) == 1 and rows == len(self._parameters) else None

    # -- buckets ------------------------------------------------------------------------------

    def _relocate(self) -> bool:
        """Refresh addresses: user code may have run.  Return whether it moved a weight."""
        moved = [bucket.relocate() for bucket in self.buckets]  # all of them
        return any(moved)

    def _refresh_buckets(self, groups: Groups, state: State) -> bool:
        """Read gradients, moments and counts; return False where the buckets fit no longer."""
        for bucket in self.buckets:
            bucket.prefetch()
        listed = [group["params"] for group in groups]
        parameters = [each if type(each) is list else list(each) for each in listed]
        # looking each weight up would call Tensor.__hash__
        known, self._known_items = self._known_items, None  # until all buckets have them
        same = known is not None and columns.look.same_items(state, known)
        fits = (
            groups[0]["direction"] == self._direction.name
            and list(map(len, parameters)) == self._group_sizes
            and columns.look.same_objects(parameters, self._parameters)
            and (not self._empty or not any(weight.numel() for weight in self._empty))
            and (not self._frozen or self._all_stay_frozen())
            and all(bucket.refresh(state, same_entries=same) for bucket in self.buckets)
        )
        if fits:
            self._known_items = known if same else [*state, *state.values()]
        return fits

    def _all_stay_frozen(self) -> bool:
        return all(map(is_, [weight.grad for weight in self._frozen], repeat(None)))

    def _build(self, groups: Groups) -> None:
        """Sort the parameters into buckets; frozen and zero-size tensors are in none."""
        direction = direction_of(groups[0])
        buckets: dict[tuple[Any, ...], Bucket] = {}
        empty, frozen = [], []
        in_buckets = [weight for bucket in self.buckets for weight in bucket.weights]
        known = set(map(id, (*in_buckets, *self._empty)))
        newcomers = False  # what shares memory was refused before, but for these
        number = -1  # of the parameter, among all
        for index, group in enumerate(groups):
            for position, weight in enumerate(group["params"]):
                number += 1
                if not takes_part(weight):
                    frozen.append(weight)
                    continue
                label = parameter_label(group, position)
                check_parameter(weight, label)
                newcomers = newcomers or id(weight) not in known
                if weight.numel() == 0:
                    empty.append(weight)
                    continue
                if weight.grad is not None:  # torch checks the shape only when it is assigned
                    readable_gradient(weight.grad, weight, label)
                gradient_dtype = (weight if weight.grad is None else weight.grad).dtype
                backend = choose_backend(weight, gradient_dtype, self.forced)
                pieces = 1 if self.shards is None else self.shards.pieces_of(weight)
                of_all = (weight.device, weight.dtype, gradient_dtype, direction, pieces)
                key = (id(backend), *of_all)
                if key not in buckets:
                    storage = self.formats.of(weight.dtype, direction)
                    buckets[key] = Bucket(backend, *of_all, storage)
                buckets[key].add(weight, index, label, number)
        if newcomers:
            check_no_shared_memory(groups)
        self.buckets, self._empty, self._frozen = list(buckets.values()), empty, frozen
        self._direction = direction
        self._parameters = parameters_of(groups)
        self._group_sizes = [len(group["params"]) for group in groups]

    # -- numbers ------------------------------------------------------------------------------

    def _set_scalars(self, groups: Groups, step_size: float | list[float], *, trial: bool) -> None:
        """Compute the scalars of a trial or of the final write, in float64.

        Applied to group l is ``lr_l * step_size``; tried is ``lr_l / max lr`` of it, so that a
        factor common to all groups scales what is applied and is not undone by the search.
        """
        factors = [float(group["lr"]) for group in groups]
        largest = max(factors)
        sizes = step_size if isinstance(step_size, list) else [step_size] * len(groups)
        sign = -1.0 if groups[0]["maximize"] else 1.0
        for bucket in self.buckets:
            all_made: list[Scalars] = []
            for index, t in bucket.scalar_keys:
                relative = factors[index] / largest if largest > 0.0 else 0.0
                size = sizes[index] * (relative if trial else factors[index])
                facts = StepFacts(index, groups[index], t, size, relative, trial, sign)
                all_made.append(self._direction.scalars(facts))
            if bucket.rounds:
                keyed = zip(all_made, bucket.scalar_keys)
                all_made = [made._replace(t=float(t)) for made, (_, t) in keyed]
            bucket.scalars = all_made

    def _take_ratios(self, groups: Groups) -> None:
        """Compute LAMB's ratios, once in a step: at the weights before it."""
        clip = groups[0]["trust_clip"]
        bound = math.inf if clip is None else clip
        for bucket in self.buckets:
            if bucket.ratios is None and bucket.pieces == 1:
                bucket.ratios = bucket.backend.trust_ratios(bucket.work(), bound)
        if self.shards is not None and self.shards.in_pieces and not self._ratios_of_parts:
            self._ratios_of_parts = True  # one message in a step, from all ranks
            set_ratios_of_parts(self.buckets, self._parameters, self._mean_of_each, bound)

    def _bound_decay(self, groups: Groups, step_size: float | list[float]) -> None:
        """See to it that the final write turns no weight's sign by decay, and warn beforehand."""
        scaled = self._direction.scaled_by_ratios
        unbounded = scaled and groups[0]["trust_clip"] is None
        if unbounded:
            self._bound_ratios()
        ratio = largest_ratio(groups[0]) if scaled else 1.0
        for bucket in self.buckets:
            for k, made in enumerate(bucket.scalars):
                part = made.size * made.weight_decay * ratio  # that is taken of a weight
                if not part >= LARGE_DECAY:
                    continue
                if not self._warned_of_decay:
                    self._warned_of_decay = True
                    index, _ = bucket.scalar_keys[k]
                    size = step_size[index] if isinstance(step_size, list) else step_size
                    warn_of_decay(groups, index, size, part, ratio)
                if not unbounded:
                    bucket.scalars[k] = with_bounded_decay(made, part)

    def _bound_ratios(self) -> None:
        """Where nothing bounds LAMB's ratios, the decay is bounded by them: row by row."""
        for bucket in self.buckets:
            assert bucket.ratios is not None
            parts = [one.size * one.weight_decay for one in bucket.scalars]
            part = bucket.ratios * bucket.ratios.new_tensor([parts[k] for k in bucket.scalars_of])
            bucket.ratios = torch.where(part < 1.0, bucket.ratios, bucket.ratios / (1.0 + part))


def parameters_of(groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Return all parameters, in the order of their groups."""
    return [parameter for group in groups for parameter in group["params"]]


def _counted(total: Tensor, bucket: Bucket) -> Tensor:
    """Count a sum over parts of weights as often as other ranks have other parts."""
    return total if bucket.pieces == 1 else total * bucket.pieces


def _stands_at_the_step(bucket: Bucket, tried: list[Scalars]) -> bool:
    """Tell whether the last trial's point, with these scalars, is where the step would go."""
    return (
        bucket.direction.trial_is_step
        and bucket.moved
        and bucket.beside.masters is None  # which trials leave alone
        and all(
            now == then
            for (group, _), now, then in zip(bucket.scalar_keys, bucket.scalars, tried)
            if bucket.unit in (None, group)
        )
    )
