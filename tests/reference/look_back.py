"""Looking back: the step size that is applied, beside the one that the searches find.

a      what a step applies, times lr, where the search would have eta
b      bound of a before the first window, a part of the weights' root mean square
       (0: not known yet, -1: there is none)
t      the step: 1, 2, ... as they are taken, skipped ones not counted
t_b    the window's first step, t_e its last one (a search ends it, so it may last longer)
w_a    the weights just before step t_b, or before a parameter's first step where that comes later
A      a look: <g, w_a - w>, positive where this step would go on from w_a as the window did
P, Q   sums of A and of |A| over the window

How far the window moved along what later gradients ask for is P / Q, from -1 to 1.
"""

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray

FIRST_STEPS = 10  # of these a is eta, bounded by b; then the first window begins
FIRST_MOVE = 0.03  # b, of the root mean square of the weights
FIRST_SHARE = 1e-4  # of eta, however small b is
LOOKS = 16  # in a window, on plain steps; every search looks as well
UNSETTLED = 0.25  # of a window, before it changes a
GRAIN = 1024  # r is a multiple of 1 / GRAIN
UP, DOWN = 2.0, 0.5  # exponents, of r > 0 and of r < 0
MOST_ETAS = 38.0  # a is at most so many eta


class LookBack:
    """The rule's numbers, and what a step makes of them. It knows nothing of groups or of lr."""

    notes_newcomers = True  # between the beginnings of windows
    relative = False  # a step is a part of the weights: b is the same whatever their size

    def __init__(self, init_step_size: float, tensors: int) -> None:
        self.a = init_step_size
        self.b = 0.0  # no bound
        self.t_b = self.t_e = 0  # t_e = 0: no window
        self.w_a: list[Array | None] = [None] * tensors
        self.P = self.Q = 0.0
        self.waiting: list[float] = []  # looks of plain steps since the last search
        self.shortens = True  # where total_steps is known, that does
        self.last_look = self.last_change = 0
        self.longest = 0.0

    def plain_step(self, t: int, w: Sequence[Array], g: Sequence[Array | None]) -> None:
        """Of a step that is taken, before its write."""
        if self.t_e > 0 and (t - self.last_look) * LOOKS >= self.t_e - self.t_b:
            self.waiting.append(self._look(w, g))
            self.last_look = t
        self._note_newcomers(w, g)

    def _note_newcomers(self, w: Sequence[Array], g: Sequence[Array | None]) -> None:
        """A parameter that takes its first step: its way begins here."""
        for i, gi in enumerate(g):
            if self.notes_newcomers and gi is not None and self.w_a[i] is None:
                self.w_a[i] = w[i].copy()

    def search(self, t: int, eta: float, w: Sequence[Array], g: Sequence[Array | None]) -> None:
        """After a search that ended accepted or flat with eta, before the write."""
        first = self.t_e == 0  # no window has begun
        if first and self.b == 0:
            self.b = FIRST_MOVE * (1.0 if self.relative else self._root_mean_square(w, g)) or -1.0
        if first:
            self.a = min(eta, max(self.b, FIRST_SHARE * eta)) if self.b > 0 else eta
        if self.t_e > 0:
            self.waiting.append(self._look(w, g))
            self.last_look = t
            self.enter_waiting()
            self._change(t)
        self._note_newcomers(w, g)
        if t >= max(self.t_e, FIRST_STEPS):
            self._begin_window(t, w, g)
        self.a = min(self.a, MOST_ETAS * eta)
        self.longest = self.a if first else max(self.longest, self.a)

    def enter_waiting(self) -> None:
        """At a search, or to save the state."""
        for A in self.waiting:
            if math.isfinite(A):
                self.P += A
                self.Q += abs(A)
        self.waiting = []

    def _root_mean_square(self, w: Sequence[Array], g: Sequence[Array | None]) -> float:
        """Of all elements together that have a gradient in this step."""
        moving = [wi.ravel() for wi, gi in zip(w, g, strict=True) if gi is not None]
        return math.sqrt(np.mean(np.concatenate(moving) ** 2))

    def _look(self, w: Sequence[Array], g: Sequence[Array | None]) -> float:
        A = 0.0
        for wi, gi, w_a in zip(w, g, self.w_a, strict=True):
            if gi is not None and w_a is not None:
                with np.errstate(invalid="ignore", over="ignore"):  # then it does not count
                    A += float(np.sum(gi * (w_a - wi)))
        return A

    def _change(self, t: int) -> None:
        settled = self.t_b + UNSETTLED * (self.t_e - self.t_b)
        since = max(self.last_change, settled)
        share = (min(t, self.t_e) - since) / (self.t_e - settled)
        if share > 0:
            r = round(self.P / self.Q * GRAIN) / GRAIN if self.Q != 0 else 0.0
            down = DOWN if self.shortens else 0.0
            self.a *= 2.0 ** (share * r * (UP if r > 0 else down))
            self.last_change = t

    def _begin_window(self, t: int, w: Sequence[Array], g: Sequence[Array | None]) -> None:
        self.t_b, self.t_e = t, 2 * t
        for i, gi in enumerate(g):
            if gi is not None:
                self.w_a[i] = w[i].copy()
        self.P = self.Q = 0.0
        self.last_look = self.last_change = t
