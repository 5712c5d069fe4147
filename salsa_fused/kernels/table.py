"""The one object that knows where all weights, gradients and moments lie.

*Rows*: a weight, its gradient and its moments.  *Chunks*: (row, start, end), the pieces of work.
*Classes*: the scalars of each distinct (parameter group, t).  Built once, compared with the
tensors on every step, and rebuilt where something differs: ``.to()``, ``p.data = ``, an EMA swap
and a loaded state all move tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .._torch import forget_cached_weights, largest_of_each
from .choice import choose_backend
from .interface import AdamClass, Backend, Direction
from .launch import Launch, State
from .layout import moment_like, parameter_label, readable_gradient
from .parameters import check_no_shared_memory, check_parameter, takes_part
from .scalars import CLASSES, LARGE_DECAY, largest_ratio, warn_of_decay, with_bounded_decay
from .watch import same_items, same_objects

Groups = Sequence[Mapping[str, Any]]

LOST = (
    "{}: the weights before the search could not be put back, for while trials ran the closure "
    "freed this memory, replaced it by another shape, dtype or device, or torch could not write to "
    "it; all others were. Load what was lost from a checkpoint, and leave parameters in place "
    "inside the closure"
)


class Table:
    """All parameters of an optimizer, ready for the kernels.

    The order of calls in a step: :meth:`refresh`; in a search :meth:`first_trial`, then
    :meth:`next_trial` as often as needed; :meth:`final_write` and :meth:`commit`, or
    :meth:`restore`; :meth:`release` last, on every path.  After an exception at any other place
    :meth:`forget`, too.  Where a window of steps is looked back on, :meth:`alignment` comes before
    the first trial; where one begins, :meth:`prepare_window` before :meth:`final_write` and
    :meth:`begin_window` after :meth:`commit`.
    """

    def __init__(self, forced: Backend | None = None) -> None:
        self.forced = forced
        self.launches: list[Launch] = []
        self._direction: Direction = "adam"  # of all groups
        self._parameters: list[Tensor] = []
        self._group_sizes: list[int] = []
        self._empty: list[Tensor] = []  # of zero size
        self._frozen: list[Tensor] = []  # and without a gradient: they may be anything
        self._warned_of_decay = False
        # keys and values of the state, as launches have them
        self._entries: list[Any] | None = None

    def refresh(self, groups: Groups, state: State) -> bool:
        """Take up this step's gradients; whether there is any.

        Raises:
            RuntimeError: a gradient that no kernel can read (sparse, complex, on another device).
            TypeError, ValueError: a parameter with its first gradient that no kernel can train.
        """
        if not self._take_up(groups, state):
            self._build(groups)
            if not self._take_up(groups, state):
                raise RuntimeError("the parameters changed while the optimizer looked at them")
        return True in [launch.has_gradients for launch in self.launches]

    def first_trial(
        self, groups: Groups, step_size: float, unit: int | None = None
    ) -> list[Tensor]:
        """Save the weights, move them to the first trial; one slope per launch, on its device.

        ``unit``: of this group only, in the whole search.
        """
        self._set_classes(groups, step_size, trial=True)
        self._follow()
        self._trust(groups)
        moving = [launch for launch in self.launches if unit is None or unit in launch.groups]
        for launch in moving:
            launch.select(unit)
            launch.make_room()
        return [launch.backend.first_trial(launch) for launch in moving]

    def next_trial(self, groups: Groups, step_size: float) -> None:
        """Move the weights to another trial along the same direction."""
        self._set_classes(groups, step_size, trial=True)
        self._follow()
        for launch in self.launches:
            if launch.moved:
                launch.backend.next_trial(launch)

    def final_write(
        self, groups: Groups, step_size: float | list[float], skip: Tensor | None = None
    ) -> None:
        """Write weights and moments, from the saved weights where a search moved them.

        Not those weights that stand at a trial which is the step already.  ``step_size``: one for
        all, or one for each group.

        ``skip``: one fp32 number on a device, for what the host does not know yet; not 0, and
        nothing is written.
        """
        searched = True in [launch.moved for launch in self.launches]
        tried = [launch.classes for launch in self.launches] if searched else []
        self._set_classes(groups, step_size, trial=False)
        self._trust(groups)  # with the decay as it was asked for
        if [group for group in groups if group["weight_decay"]]:
            self._bound_decay(groups, step_size)
        made = [False] * len(self.launches)
        if searched and not self._follow():
            made = list(map(_stands_at_the_step, self.launches, tried))
        if skip is not None:
            for launch in self.launches:
                launch.skip = skip.to(launch.device, non_blocking=launch.device.type != "cpu")
        writes = [launch.ready_to_write(made=m) for launch, m in zip(self.launches, made)]
        for launch, of_launch in zip(self.launches, writes):
            for write in of_launch:
                write()
            launch.moved = False
        forget_cached_weights()

    def _trust(self, groups: Groups) -> None:
        """LAMB's ratios, once in a step: at the weights before it."""
        if self._direction == "lamb":
            clip = groups[0]["trust_clip"]
            for launch in self.launches:
                if launch.ratios is None:
                    bound = math.inf if clip is None else clip
                    launch.ratios = launch.backend.trust_ratios(launch, bound)

    def largest_gradients(self) -> list[Tensor]:
        """The largest absolute value among each launch's gradients, on its device.

        Not a number where one of them is not.
        """
        found = []
        for launch in self.launches:
            present = [gradient for gradient in launch.gradients if gradient is not None]
            if present:
                found.append(torch.stack(largest_of_each(present)).amax())
        return found

    def root_mean_square(self) -> float:
        """Of all weights that have a gradient; the host waits for it."""
        norms, count = [0.0], 0
        for launch in self.launches:
            pairs = zip(launch.weights, launch.gradients)
            moving = [weight for weight, gradient in pairs if gradient is not None]
            norms.append(get_total_norm(moving).item())
            count += sum(weight.numel() for weight in moving)
        return math.hypot(*norms) / math.sqrt(max(count, 1))

    def alignment(self) -> list[Tensor]:
        """``<g, window_start - w>`` of each launch that has rows with both, on its device.

        The weights and gradients are those that lie there: clipped, and to maximize as to minimize.
        """
        self._follow()
        looked_back_on = [launch for launch in self.launches if launch.take_window_starts()]
        return [launch.backend.alignment(launch) for launch in looked_back_on]

    def prepare_window(self, state: State) -> None:
        """Make ready what :meth:`begin_window` enters; nothing that anybody sees changes."""
        with torch.no_grad():
            for launch in self.launches:
                launch.prepare_window(state)

    def prepare_newcomers(self, state: State) -> bool:
        """The same for weights whose first step this is; whether there are any.

        So a state is complete from its first step on, as checkpoints expect it.
        """
        found = [launch for launch in self.launches if launch.new_moments]
        if not found:  # on most steps
            return False
        with torch.no_grad():
            for launch in found:
                launch.prepare_window(state, newcomers_only=True)
        return True

    def begin_window(self, state: State) -> None:
        """Enter the weights before this step, of those that it stepped, into the state."""
        with torch.no_grad():
            for launch in self.launches:
                launch.begin_window(state)

    def commit(self, state: State) -> None:
        """Enter this step's moments and counts into the optimizer's state."""
        for launch in self.launches:
            launch.commit(state)
        for weight in self._empty:  # of zero size: no kernel sees them, checkpoints expect them
            if weight.grad is not None and self._direction != "sgd":
                t = state.get(weight, {}).get("step", 0)
                moments = {name: moment_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                state[weight] = {"step": t + 1, **moments}

    def restore(self) -> None:
        """Put the saved weights back, all that can be; nothing where they are back already.

        Raises:
            RuntimeError: user code freed or replaced weights during the search; all others are
                back then.
        """
        with torch.no_grad():
            lost = [name for launch in self.launches if launch.moved for name in launch.restore()]
        forget_cached_weights()
        if lost:
            raise RuntimeError(LOST.format(", ".join(lost)))

    def forget(self) -> None:
        """Build everything anew at the next step: an exception may have left it half made."""
        self.launches, self._parameters, self._group_sizes = [], [], []
        self._empty, self._frozen, self._entries = [], [], None

    def release(self) -> None:
        """Hold neither gradients nor saved weights between steps."""
        for launch in self.launches:
            launch.release()

    def _follow(self) -> bool:
        """User code may have run since the table was built: whether it moved a weight."""
        moved = [launch.follow() for launch in self.launches]  # all of them
        return any(moved)

    def _take_up(self, groups: Groups, state: State) -> bool:
        """Read gradients, moments and counts; false where the table fits no longer."""
        for launch in self.launches:
            launch.prefetch()
        parameters = [as_list(group["params"]) for group in groups]
        # looking each weight up would call Tensor.__hash__
        known, self._entries = self._entries, None  # until all launches have them
        same = known is not None and same_items(state, known)
        fits = (
            groups[0]["direction"] == self._direction
            and list(map(len, parameters)) == self._group_sizes
            and same_objects(parameters, self._parameters)
            and (not self._empty or not any(weight.numel() for weight in self._empty))
            and (not self._frozen or self._all_stay_frozen())
            and all(launch.take_up(state, same_entries=same) for launch in self.launches)
        )
        if fits:
            self._entries = known if same else [*state, *state.values()]
        return fits

    def _all_stay_frozen(self) -> bool:
        return all(map(is_, [weight.grad for weight in self._frozen], repeat(None)))

    def _build(self, groups: Groups) -> None:
        """Rows, chunks and launches anew; frozen and zero-size tensors have none."""
        direction = groups[0]["direction"]
        launches: dict[tuple[Any, ...], Launch] = {}
        empty, frozen = [], []
        of_launches = [weight for launch in self.launches for weight in launch.weights]
        known = set(map(id, (*of_launches, *self._empty)))
        newcomers = False  # what shares memory was refused before, but for these
        for index, group in enumerate(groups):
            for position, weight in enumerate(group["params"]):
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
                key = (backend.name, weight.device, weight.dtype, gradient_dtype)
                if key not in launches:
                    launches[key] = Launch(
                        backend, weight.device, weight.dtype, gradient_dtype, direction
                    )
                launches[key].add(weight, index, label)
        if newcomers:
            check_no_shared_memory(groups)
        self.launches, self._empty, self._frozen = list(launches.values()), empty, frozen
        self._direction = direction
        self._parameters = parameters_of(groups)
        self._group_sizes = [len(group["params"]) for group in groups]

    def _set_classes(self, groups: Groups, step_size: float | list[float], *, trial: bool) -> None:
        """The scalars for a trial or for the final write, in float64.

        Applied to group l is ``lr_l * step_size``; tried is ``lr_l / max lr`` of it, so that a
        factor common to all groups scales what is applied and is not undone by the search.
        """
        factors = [float(group["lr"]) for group in groups]
        largest = max(factors)
        class_of = CLASSES[self._direction]
        sizes = step_size if isinstance(step_size, list) else [step_size] * len(groups)
        for launch in self.launches:
            launch.classes = []
            for index, t in launch.class_keys:
                relative = factors[index] / largest if largest > 0.0 else 0.0
                step = sizes[index] * (relative if trial else factors[index])
                launch.classes.append(class_of(index, groups[index], t, step, relative, trial))

    def _bound_decay(self, groups: Groups, step_size: float | list[float]) -> None:
        """See to it that the final write turns no weight's sign by decay, and warn beforehand."""
        unbounded = self._direction == "lamb" and groups[0]["trust_clip"] is None
        if unbounded:
            self._bound_ratios()
        ratio = largest_ratio(groups[0]) if self._direction == "lamb" else 1.0
        for launch in self.launches:
            for k, made in enumerate(launch.classes):
                part = made.step * made.weight_decay * ratio  # that is taken of a weight
                if not part >= LARGE_DECAY:
                    continue
                if not self._warned_of_decay:
                    self._warned_of_decay = True
                    index, _ = launch.class_keys[k]
                    size = step_size[index] if isinstance(step_size, list) else step_size
                    warn_of_decay(groups, index, size, part, ratio)
                if not unbounded:
                    launch.classes[k] = with_bounded_decay(made, part)

    def _bound_ratios(self) -> None:
        """Where nothing bounds LAMB's ratios, the decay is bounded by them: row by row."""
        for launch in self.launches:
            assert launch.ratios is not None
            parts = [launch.classes[k].step * launch.classes[k].weight_decay for k in launch.klass]
            part = launch.ratios * launch.ratios.new_tensor(parts)
            launch.ratios = torch.where(part < 1.0, launch.ratios, launch.ratios / (1.0 + part))


def as_list(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What stands in a group: a list, unless somebody has put another sequence there."""
    return parameters if isinstance(parameters, list) else list(parameters)


def parameters_of(groups: Groups) -> list[Tensor]:
    """All parameters, in the order of their groups."""
    return [parameter for group in groups for parameter in group["params"]]


def _stands_at_the_step(launch: Launch, tried: list[AdamClass]) -> bool:
    """Whether the last trial's point, with these classes, is where the final write would go."""
    return (
        launch.direction == "sgd"
        and launch.moved
        and all(
            now == then
            for (group, _), now, then in zip(launch.class_keys, launch.classes, tried)
            if launch.unit in (None, group)
        )
    )
