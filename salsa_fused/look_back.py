"""How far to go: the step size that is applied follows what the last window of steps achieved.

The search asks one mini-batch how long *one* step may be.  Training lasts longer: a step that
oscillates across a valley, which one step would rather avoid, takes the weights along it.  So what
is applied starts as the step size that the search finds, and then follows a question of the whole
way: with the weights ``w_a`` where a window of steps began, and the gradient ``g`` of a new
mini-batch at the weights ``w``,

    look       A = <g, w_a - w>
    agreement  r = sum A / sum |A|    over the looks of this window, -1 to 1

``A > 0``: the loss still falls along the way that the weights have come since ``w_a``; longer steps
would have come further.  ``A < 0``: they have gone too far, or only to and fro.  In a window the
applied step size ``a`` changes by the factor

    2^(2 r)    where r > 0: at most four times longer
    2^(r / 2)  where r < 0: at most by the root of two shorter

spread evenly over its searches after its first quarter, when the way is long enough to tell.  A
window ends when the run is twice as long as at its beginning: steps 10 to 20, 20 to 40, ...  So the
question looks as far back as the run is long, and steps that only overshoot shrink as one over the
root of the number of steps, no faster.  Where the horizon is known (``total_steps``) it is what
shortens steps at the end, and looking back only makes them longer.

``a`` is at most 38 times what the search finds: Adam with momentum 0.9 is stable for steps so much
longer than those that SaLSa's c = 0.5 accepts along the gradient, 2 (1 + 0.9) / (1 - 0.9).
Before the first window it is what the search finds, but at most 3 % of the weights' root mean
square (with LAMB, whose ratios hold the weights' size, 3 %): a step that fits its own mini-batch
only may be accepted there, and ruin what follows.  Of what is found it is at least a ten-thousandth
then, for weights that begin next to 0.

The batch of ``g`` has not taken part in the way, so that its noise does not speak for longer steps.
This is the idea of hypergradients (Baydin et al. 2018) and of learning rates by distance (Ivgi et
al. 2023; Mishchenko and Defazio 2023), over a horizon that grows with the run.

Nothing here knows of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FIRST_STEPS = 10  # before the first window
LOOKS = 16  # in a window, at least
SETTLING = 0.25  # of a window, in which the way is too short to tell
LONGER, SHORTER = 2.0, 0.5  # powers of two in a window, where all looks agree
MOMENTUM_EDGE = 38.0  # times the step size of the search
FIRST_MOVE = 0.03  # of the weights' root mean square, before the first window
FIRST_SHARE = 1e-4  # of what is found, whatever the weights
GRAIN = 1024.0  # sums differ from backend to backend in their last bits; agreements do not


class Window(NamedTuple):
    """What is remembered from step to step: plain numbers, fit for a checkpoint.

    Steps are counted from 1; those that were skipped do not count.
    """

    applied_step_size: float
    window_begin: int = 0  # the step before which the weights were noted; 0: no window yet
    window_end: int = 0
    looks_sum: float = 0.0
    looks_size: float = 0.0  # sum of absolute values
    last_look: int = 0
    last_change: int = 0  # of the applied step size
    first_move: float = 0.0  # the largest before the first window; 0: unknown, -1: no bound
    longest: float = 0.0  # that was applied since

    @classmethod
    def read_from(cls, numbers: Mapping[str, Any]) -> Window:
        return cls(*[numbers[name] for name in cls._fields])

    @property
    def agreement(self) -> float:
        """r: between -1, where the way was too long in all looks, and 1, too short in all."""
        if self.looks_size == 0.0:
            return 0.0
        return round(self.looks_sum / self.looks_size * GRAIN) / GRAIN


def looked(window: Window, looks: Sequence[float]) -> Window:
    """Return the window with these looks added; those that are not finite are left out."""
    total, size = window.looks_sum, window.looks_size
    for look in looks:  # one by one: a checkpoint in between changes no bit
        if math.isfinite(look):
            total, size = total + look, size + abs(look)
    return window._replace(looks_sum=total, looks_size=size)


def searched(
    window: Window, step: int, found: float, looks: Sequence[float], *, horizon_known: bool = False
) -> Window:
    """Return the window after a search that found this step size.

    ``looks``: those since the last search, this one's the last.
    """
    shorter = 0.0 if horizon_known else SHORTER
    applied, first = window.applied_step_size, window.window_begin == 0
    if first:
        bounded = max(window.first_move, FIRST_SHARE * found)
        applied = min(found, bounded) if window.first_move > 0.0 else found
    window = looked(window, looks)
    if window.window_begin > 0:
        settled = window.window_begin + SETTLING * (window.window_end - window.window_begin)
        since = max(window.last_change, settled)
        share = (min(step, window.window_end) - since) / (window.window_end - settled)
        if share > 0.0:
            r = window.agreement
            applied *= 2.0 ** (share * r * (LONGER if r > 0.0 else shorter))
            window = window._replace(last_change=step)
        window = window._replace(last_look=step)
    if step >= max(window.window_end, FIRST_STEPS):
        window = window._replace(window_begin=step, window_end=2 * step)
        window = window._replace(looks_sum=0.0, looks_size=0.0, last_look=step, last_change=step)
    applied = min(applied, MOMENTUM_EDGE * found)
    longest = applied if first else max(applied, window.longest)
    return window._replace(applied_step_size=applied, longest=longest)
