"""The one object that knows where all weights, gradients and moments lie.

*Rows*: a weight, its gradient and its moments.  *Chunks*: (row, start, end), the pieces of work.
*Classes*: the scalars of each distinct (parameter group, t).  Built once, compared with the
tensors on every step, and rebuilt where something differs: ``.to()``, ``p.data = ``, an EMA swap
and a loaded state all move tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .choice import choose_backend
from .interface import ROW_FIELDS, AdamClass, Backend, Launch, Row
from .layout import is_dense, same_layout
from .reference import compute_dtype, saved_view

CHUNK_SIZE = 1 << 15  # elements: enough of them to feed every thread, each worth a function call
SAVED_ALIGNMENT = 16  # elements, so that every row of the saved weights starts a vector

# where a row's fields stand in Launch.raw_rows
WEIGHT, GRADIENT, EXP_AVG, EXP_AVG_SQ, SAVED_AT, CLASS = range(ROW_FIELDS)

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, dict[str, Any]]


class Table:
    """All parameters of an optimizer, ready for the kernels.

    The order of calls in a step: :meth:`refresh`; in a search :meth:`first_trial`, then
    :meth:`next_trial` as often as needed; :meth:`adam_step` and :meth:`commit`, or
    :meth:`restore`; :meth:`release` last, on every path.
    """

    def __init__(self, forced: Backend | None = None) -> None:
        self.forced = forced
        self.launches: list[Launch] = []
        self._places: list[_Place] = []

    def refresh(self, groups: Groups, state: State) -> bool:
        """Take up this step's gradients; whether there is any.

        Raises:
            RuntimeError: a gradient that no kernel can read (sparse, complex, on another device).
        """
        if not self._take_up(groups, state):
            self._build(groups)
            if not self._take_up(groups, state):
                raise RuntimeError("the parameters changed while the optimizer looked at them")
        return any(place.row.gradient is not None for place in self._places)

    def first_trial(self, groups: Groups, step_size: float) -> list[Tensor]:
        """Save the weights, move them to the first trial; one slope per launch, on its device."""
        self._set_classes(groups, step_size, trial=True)
        for launch in self.launches:
            launch.saved = torch.empty(launch.saved_size, dtype=launch.dtype, device=launch.device)
        slopes = [launch.backend.first_trial(launch) for launch in self.launches]
        self._weights_moved()
        return slopes

    def next_trial(self, groups: Groups, step_size: float) -> None:
        """Move the weights to another trial along the same direction."""
        self._set_classes(groups, step_size, trial=True)
        for launch in self.launches:
            launch.backend.next_trial(launch)
        self._weights_moved()

    def adam_step(self, groups: Groups, step_size: float) -> None:
        """Write weights and moments, from the saved weights where a search moved them."""
        self._set_classes(groups, step_size, trial=False)
        for launch in self.launches:
            launch.backend.adam_step(launch)
            launch.moved = False
        self._weights_moved()

    def commit(self, state: Any) -> None:
        """Enter this step's moments and counts into the optimizer's state."""
        for place in self._places:
            row = place.row
            if row.gradient is not None:
                entry = state[row.weight]
                entry["step"] = row.t = row.t + 1
                entry["exp_avg"] = row.exp_avg
                entry["exp_avg_sq"] = row.exp_avg_sq

    def restore(self) -> None:
        """Put the saved weights back."""
        moved = [launch for launch in self.launches if launch.moved]
        for launch in moved:
            for row in launch.rows:
                if row.gradient is not None:
                    row.weight.copy_(saved_view(launch, row))
            launch.moved = False
        if moved:
            self._weights_moved()

    def release(self) -> None:
        """Hold neither gradients nor saved weights between steps."""
        for launch in self.launches:
            launch.saved = None
        for place in self._places:
            place.row.gradient = None

    # -- building -----------------------------------------------------------------------------

    def _build(self, groups: Groups) -> None:
        """Rows, chunks and launches anew; moments are taken up later, with the gradients."""
        launches: dict[tuple[Any, ...], Launch] = {}
        self._places = []
        for index, group in enumerate(groups):
            for weight in group["params"]:
                gradient_dtype = (weight if weight.grad is None else weight.grad).dtype
                backend = choose_backend(weight, gradient_dtype, self.forced)
                key = (backend.name, weight.device, weight.dtype, gradient_dtype)
                if key not in launches:
                    launches[key] = Launch(backend, weight.device, weight.dtype)
                self._places.append(_Place(launches[key], weight, index, gradient_dtype))
        self.launches = list(launches.values())

    def _take_up(self, groups: Groups, state: State) -> bool:
        """Read gradients, moments and counts; false where the table no longer fits the weights."""
        for launch in self.launches:
            launch.class_of.clear()
        places = iter(self._places)
        for index, group in enumerate(groups):
            for weight in group["params"]:
                place = next(places, None)
                if place is None or not place.take_up(weight, index, state):
                    return False
        return next(places, None) is None

    def _set_classes(self, groups: Groups, step_size: float, *, trial: bool) -> None:
        """The scalars for a trial or for the final write, in float64.

        Applied to group l is ``lr_l * step_size``; tried is ``lr_l / max lr`` of it, so that a
        factor common to all groups scales what is applied and is not undone by the search.
        """
        factors = [float(group["lr"]) for group in groups]
        largest = max(factors)
        for launch in self.launches:
            launch.classes = []
            for index, t in launch.class_of:
                relative = factors[index] / largest if largest > 0.0 else 0.0
                step = step_size * (relative if trial else factors[index])
                launch.classes.append(_adam_class(groups[index], t, step, relative, trial))

    def _weights_moved(self) -> None:
        # inside an autocast context the cached casts are those of the weights before
        torch.clear_autocast_cache()


class _Place:
    """A row, where it stands in its launch, and what to compare on the next step."""

    __slots__ = (
        "address",
        "dtype",
        "gradient_address",
        "gradient_dtype",
        "launch",
        "row",
        "size",
        "slot",
        "stride",
    )

    def __init__(
        self, launch: Launch, weight: Tensor, group: int, gradient_dtype: torch.dtype
    ) -> None:
        self.launch = launch
        self.address = weight.data_ptr()
        self.stride = weight.stride()
        self.dtype = weight.dtype
        self.gradient_dtype = gradient_dtype
        self.gradient_address = 0
        self.size = size = weight.numel()
        self.row = Row(weight, group, saved_at=launch.saved_size)
        self.slot = len(launch.raw_rows)
        index = len(launch.rows)
        launch.rows.append(self.row)
        launch.raw_rows.extend([self.address, 0, 0, 0, self.row.saved_at, 0])
        for start in range(0, size, CHUNK_SIZE):
            launch.raw_chunks.extend([index, start, min(start + CHUNK_SIZE, size)])
        launch.saved_size += -(-size // SAVED_ALIGNMENT) * SAVED_ALIGNMENT

    def take_up(self, weight: Tensor, group: int, state: State) -> bool:
        """Take up gradient, moments and count; false where the weight is not the row's.

        Called for every parameter on every step: mostly nothing has changed, and every attribute
        of a tensor that is looked at costs 50 ns.
        """
        row = self.row
        if (
            row.weight is not weight
            or row.group != group
            or weight.data_ptr() != self.address
            or weight.stride() != self.stride
            or weight.dtype != self.dtype
        ):
            return False
        raw, slot = self.launch.raw_rows, self.slot
        gradient = weight.grad
        if gradient is None or self.size == 0:
            row.gradient = None
            raw[slot + GRADIENT] = self.gradient_address = 0
            return True
        if (
            gradient.layout is not torch.strided
            or gradient.data_ptr() != self.gradient_address
            or gradient.stride() != self.stride
            or gradient.dtype != self.gradient_dtype
        ):
            gradient = _readable(gradient, weight)
            if gradient.dtype != self.gradient_dtype:
                return False
            raw[slot + GRADIENT] = self.gradient_address = gradient.data_ptr()
        row.gradient = gradient
        entry = state.get(weight)
        if entry:
            row.t = entry["step"]
            if row.exp_avg is not entry["exp_avg"] or row.exp_avg_sq is not entry["exp_avg_sq"]:
                self._take_moments(entry["exp_avg"], entry["exp_avg_sq"])
        elif row.exp_avg is None or row.t != 0:
            row.t = 0
            self._take_moments(None, None)
        class_of, key = self.launch.class_of, (group, row.t + 1)
        row.klass = raw[slot + CLASS] = class_of.setdefault(key, len(class_of))
        return True

    def _take_moments(self, exp_avg: Tensor | None, exp_avg_sq: Tensor | None) -> None:
        row, raw, slot = self.row, self.launch.raw_rows, self.slot
        row.exp_avg = moment_like(row.weight, exp_avg)
        row.exp_avg_sq = moment_like(row.weight, exp_avg_sq)
        raw[slot + EXP_AVG] = row.exp_avg.data_ptr()
        raw[slot + EXP_AVG_SQ] = row.exp_avg_sq.data_ptr()


def moment_like(weight: Tensor, value: Tensor | None = None) -> Tensor:
    """A moment that lies beside its weight: same device and strides, fp32 (or float64).

    ``value`` itself where it already does; zeros where it is None.
    """
    dtype = compute_dtype(weight.dtype)
    if value is None:
        return torch.zeros_like(weight, dtype=dtype, requires_grad=False)
    if (
        value.dtype == dtype
        and value.device == weight.device
        and value.shape == weight.shape
        and (same_layout(value, weight) or not is_dense(weight))
    ):
        return value
    return torch.empty_like(weight, dtype=dtype, requires_grad=False).copy_(value)


def _readable(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient laid out like its weight; a copy where it is not."""
    if gradient.layout != torch.strided:
        raise RuntimeError(
            f"a gradient of layout {gradient.layout} (weight of shape {tuple(weight.shape)}): "
            "FusedSaLSa needs dense gradients; build the embedding with sparse=False"
        )
    if gradient.dtype.is_complex:
        raise RuntimeError(
            f"a complex gradient (weight of shape {tuple(weight.shape)}): FusedSaLSa trains real "
            "weights; hold real and imaginary part in two parameters"
        )
    if gradient.device != weight.device:
        raise RuntimeError(
            f"a gradient is on {gradient.device} and its weight on {weight.device}: move the model "
            "before the backward pass, or call zero_grad() after moving it"
        )
    if same_layout(gradient, weight) or not is_dense(weight):
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype, requires_grad=False).copy_(gradient)


def _adam_class(
    group: Mapping[str, Any], t: int, step: float, slope_scale: float, trial: bool
) -> AdamClass:
    beta1, beta2 = group["betas"]
    # to maximize is to change the gradient's sign: exact where it is done in the scalars
    sign = -1.0 if group["maximize"] else 1.0
    return AdamClass(
        beta1=beta1,
        one_minus_beta1=sign * (1.0 - beta1),
        beta2=beta2,
        one_minus_beta2=1.0 - beta2,
        inv_bias1=1.0 / (1.0 - beta1**t),
        inv_root_bias2=1.0 / math.sqrt(1.0 - beta2**t),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        step=sign * step if trial else step,
        slope_scale=slope_scale,
    )
