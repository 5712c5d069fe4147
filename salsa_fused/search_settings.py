"""The constants of the line search: their names, their defaults, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .plain_numbers import as_plain_numbers, check_choice, check_integer, is_integer, number


class SearchSettings(NamedTuple):
    """The constants of the search, one set per optimizer.

    The symbols are those of :mod:`salsa_fused.line_search`.  A checkpoint of a version that did not
    know a setting gets the default that stands here, which changes nothing.
    """

    c: float = 0.5
    beta3: float = 0.99
    backtrack: float = 0.7
    growth: float = 2 ** (1 / 20)
    growth_per: Literal["search", "step"] = "search"
    init_step_size: float = 1.0
    schedule: Literal["doubling", "rate"] = "doubling"
    search_period: tuple[int, int] | None = (1, 10)
    max_trials: int = 10
    look_back: bool | None = False  # whether the applied step size follows look_back.py
    total_steps: int | None = None  # of the whole run, where it is known

    @classmethod
    def checked(cls, arguments: Mapping[str, Any]) -> SearchSettings:
        """Return the settings among the arguments of an optimizer's constructor.

        ``beta3`` is the third of ``arguments["betas"]``; arguments that are no settings of the
        search are not looked at.

        Raises:
            ValueError: a setting is of another kind, or out of range; the message names it.
        """
        given = dict(arguments)
        _, _, given["beta3"] = three_betas(given["betas"])
        given["search_period"] = period_bounds(given["search_period"])
        settings = cls(**{name: given[name] for name in cls._fields})
        settings._check()
        return cls(**as_plain_numbers(settings._asdict()))

    @classmethod
    def read_from(cls, group: Mapping[str, Any]) -> SearchSettings:
        """Return the settings that stand in a parameter group under these names."""
        return cls(*[group[name] for name in cls._fields])

    def _check(self) -> None:
        for name, value in (("c", self.c), ("backtrack", self.backtrack)):
            if not 0.0 < number(name, value) < 1.0:
                raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
        if not 0.0 <= number("betas[2]", self.beta3) < 1.0:
            raise ValueError(f"betas[2] (beta3) must lie in [0, 1), got {self.beta3!r}")
        if not 1.0 <= number("growth", self.growth) < math.inf:
            raise ValueError(f"growth must be at least 1 and finite, got {self.growth!r}")
        if not 0.0 < number("init_step_size", self.init_step_size) < math.inf:
            raise ValueError(
                f"init_step_size must be positive and finite, got {self.init_step_size!r}"
            )
        check_choice("growth_per", self.growth_per, ("search", "step"))
        check_choice("schedule", self.schedule, ("doubling", "rate"))
        check_integer("max_trials", self.max_trials)
        if self.look_back is not None and not isinstance(self.look_back, bool):
            raise ValueError(f"look_back must be True, False or None, got {self.look_back!r}")
        if self.look_back and self.search_period is None:
            raise ValueError(
                "look_back=True needs searches, and search_period=None has none: leave out one of "
                "them"
            )
        total = self.total_steps
        if total is not None and not (is_integer(total) and total >= 1):
            raise ValueError(
                "total_steps must be the number of steps of the whole run, an integer >= 1, or "
                f"None where it is not known, got {total!r}"
            )


def three_betas(betas: Any) -> tuple[float, float, float]:
    """Return (beta1, beta2, beta3): Adam's two and the smoothing of the search."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 3:
        example = (*betas, 0.99) if isinstance(betas, (tuple, list)) and len(betas) == 2 else None
        hint = f": betas={example}" if example else " such as (0.9, 0.999, 0.99)"
        raise ValueError(
            f"betas must be three numbers, Adam's two and the smoothing of the search{hint}; "
            f"got {betas!r}"
        )
    return betas[0], betas[1], betas[2]


def period_bounds(search_period: Any) -> tuple[int, int] | None:
    """Return ``(L_min, L_max)`` for what a user gave: such a pair, one integer, or None."""
    if search_period is None:
        return None
    pair = (search_period, search_period) if is_integer(search_period) else search_period
    are_two = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(is_integer, pair))
    if are_two and 1 <= pair[0] <= pair[1]:
        return int(pair[0]), int(pair[1])
    raise ValueError(
        "search_period must be (L_min, L_max) with 1 <= L_min <= L_max, one integer >= 1, or None "
        f"for no search, got {search_period!r}"
    )
