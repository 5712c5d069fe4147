"""What a user reads from an optimizer: step sizes, counters, the last search."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from . import turns
from .kernels import Kernels
from .line_search import SearchResult
from .look_back import Window
from .pending import Pending

COUNTERS = ("steps", "searches", "total_trials", "unchanged_trials", "skipped_steps", "period")


class Readings(Optimizer):
    """Properties and methods that only read; those that a GPU counts by itself are asked of it."""

    last_search: SearchResult | None
    _pending: Pending
    _kernels: Kernels
    _in_trial: bool

    @property
    def in_trial(self) -> bool:
        """Whether the closure runs for a trial: outputs and logs are then another point's."""
        return self._in_trial

    @property
    def step_size(self) -> float:
        """The step size that the last search found: what one mini-batch accepts.

        With ``units="groups"`` the first group's; ``group["step_size"]`` is each group's own.
        """
        return self.param_groups[0]["step_size"]

    @property
    def applied_step_size(self) -> float:
        """What the last step applied to the weights, without ``lr``: a learning rate of AdamW.

        With ``units="groups"`` the first group's.
        """
        first = self.param_groups[0]
        share = turns.share_of_horizon(first["total_steps"], first["steps"])
        return share * first["applied_step_size" if turns.looks_back(first) else "step_size"]

    def suggested_lr(self) -> float:
        """Return the learning rate to give AdamW on the same problem, with warm-up and decay to 0.

        It is the longest step size that was applied after the first ten steps, so far, with ``lr``
        at 1 and without the horizon's share: ask when the run, or a tenth of it, is done.  Without
        looking back it is what the last search found.

        Raises:
            RuntimeError: no search has been accepted yet; or there is none, or another direction.
        """
        first = self.param_groups[0]
        if first["search_period"] is None or first["direction"] != "adam":
            raise RuntimeError(
                'suggested_lr() needs searches along direction="adam": this optimizer has '
                f"search_period={first['search_period']}, direction={first['direction']!r}"
            )
        if not first["accepted_once"]:
            raise RuntimeError("no search has been accepted yet: take some steps first")
        return first["longest"] if turns.looks_back(first) else first["step_size"]

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends that serve the weights, each once; empty before a step."""
        return self._kernels.backends

    @property
    def skipped_steps(self) -> int:
        """Steps not taken: the loss or the slope was not finite, or no trial was accepted.

        The host asks the GPU here for those that it skipped by itself, between two searches.
        """
        self._collect_skips()
        return self.param_groups[0]["skipped_steps"]

    def metrics(self) -> dict[str, float | int | str]:
        """Return the last search and the counters as a flat dictionary, for loggers.

        Keys are the same on every call; before the first search ``outcome`` is ``"none"``.
        ``unit``: the group that was searched, -1 for all of them together.
        ``unchanged_trials``: those that changed no weight, for 16-bit weights were too coarse.
        """
        self._collect_skips()
        group = self.param_groups[0]
        found: dict[str, Any] = dict.fromkeys(SearchResult._fields, math.nan)
        found |= {"trials": 0, "outcome": "none", "unit": None}
        if self.last_search is not None:
            found = self.last_search._asdict()
        return {
            **found,
            "unit": -1 if found["unit"] is None else found["unit"],
            "step_size": group["step_size"],
            "applied_step_size": self.applied_step_size,
            "agreement": Window.read_from(group).agreement,
            **{name: group[name] for name in COUNTERS},
        }

    def _collect_skips(self) -> None:
        """Enter into the groups what devices have skipped since they were last asked."""
        count = self._pending.collect_skips()
        for group in self.param_groups:
            group["skipped_steps"] += count
