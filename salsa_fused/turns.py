"""Whose turn it is: when the next step searches, what the search moves, and what a step applies.

A unit is a parameter group with a step size of its own (PLASLS, arXiv 2403.18506).  The first
search that is accepted is one for all units and gives each its step size; after that they take
turns, group 0 first.  What belongs to a unit stands in its group, everything else is equal in all
groups.

Nothing here knows of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from . import look_back
from .kernels.directions import direction_of
from .line_search import LineSearch, SearchResult, SearchState
from .look_back import FIRST_STEPS, LOOKS, Window
from .search_settings import SearchSettings

Units = Literal["all", "groups"]
Groups = Sequence[dict[str, Any]]

STATE_NAMES = (*SearchState._fields, *Window._fields)  # in every parameter group

OWN = (  # a unit's
    *("step_size", "accepted_step_size", "applied_step_size", "smoothed_decrease"),
    *("smoothed_slope", "fast_mean", "slow_mean", "located", "flat_searches"),
    "steps_since_search",
)
UNSMOOTHED = {"smoothed_decrease": 0.0, "smoothed_slope": 0.0, "flat_searches": 0}  # at first


# -- the state in the groups ------------------------------------------------------------------


def fresh(settings: SearchSettings) -> dict[str, Any]:
    """Return the state before the first step."""
    return SearchState.fresh(settings)._asdict() | Window(settings.init_step_size)._asdict()


def newcomer(first: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with which a group begins that is added to others."""
    state = {name: first[name] for name in STATE_NAMES}
    if first["units"] == "groups":  # as a unit begins after the search that was one for all
        state |= {**UNSMOOTHED, "located": first["accepted_once"]}
    return state


# -- before a step ----------------------------------------------------------------------------


def is_due(groups: Groups) -> bool:
    """Return whether the next step searches."""
    first = groups[0]
    if first["search_period"] is None:
        return False
    if _turn(groups) is None:
        return due(first, first["steps_since_search"])
    return due(first, min([group["steps_since_search"] for group in groups]))


def due(group: Mapping[str, Any], waited: int) -> bool:
    """Search on the first ten steps, then when ``L`` steps have passed since the last search.

    ``waited``: steps since then; of units that take turns, since a search of any of them.
    """
    return group["steps"] < FIRST_STEPS or waited + 1 >= group["period"]


def look_is_due(group: Mapping[str, Any]) -> bool:
    """Return whether the next step looks back on its window even if it does not search."""
    begin = group["window_begin"]
    if begin == 0:
        return False
    waited = group["steps"] + 1 - group["last_look"]
    return waited * LOOKS >= group["window_end"] - begin and looks_back(group)


def looks_back(group: Mapping[str, Any]) -> bool:
    """Return whether what is applied follows look_back.py.

    ``look_back=None`` means yes, except where there is no search, a direction of another size than
    Adam's, or one step size for each group.
    """
    asked: bool | None = group["look_back"]
    if asked is not None:
        return asked
    return (
        group["search_period"] is not None
        and group["units"] == "all"
        and direction_of(group).of_unit_size
    )


def begin(groups: Groups, line_search_class: type[LineSearch]) -> LineSearch:
    """Begin a search: of all groups, or of the unit whose turn it is."""
    unit = _turn(groups)
    state = SearchState.read_from(groups[unit or 0])
    return line_search_class(SearchSettings.read_from(groups[0]), state, unit)


def _turn(groups: Groups) -> int | None:
    """Return the index of the unit whose turn it is; None: all groups together."""
    first = groups[0]
    if first["units"] == "all" or not first["accepted_once"]:
        return None
    return first["next_unit"] % len(groups)


# -- what a step applies ----------------------------------------------------------------------


def window_after(
    groups: Groups, search: LineSearch, looks: Sequence[float] = (), first_move: float = 0.0
) -> Window:
    """Return the applied step size and the window after a search that has ended.

    ``looks``: those back on the window since the last search, this step's the last.
    ``first_move``: the largest step size for the first steps; 0 where the window knows it.
    """
    first = groups[0]
    before = Window.read_from(groups[search.unit or 0])
    if search.skipped:
        return before
    if not looks_back(first):
        return before._replace(applied_step_size=search.step_size)
    return look_back.searched(
        before._replace(first_move=first_move or before.first_move),
        search.state.steps + 1,
        search.step_size,
        looks,
        horizon_known=first["total_steps"] is not None,
    )


def applied(
    groups: Groups, search: LineSearch | None = None, window: Window | None = None
) -> float | list[float]:
    """Return the step size of the final write, or each group's.

    ``search`` and ``window``: those of this step; None where it has not searched.
    """
    first = groups[0]
    share = share_of_horizon(first["total_steps"], first["steps"] + 1)
    if _turn(groups) is None:
        if window is not None:
            return share * window.applied_step_size
        return share * first["applied_step_size" if looks_back(first) else "step_size"]
    sizes = [group["step_size"] for group in groups]
    if search is not None and search.unit is not None:
        sizes[search.unit] = search.step_size
    return [share * size for size in sizes]


def share_of_horizon(total_steps: int | None, step: int) -> float:
    """Return the factor of step 1, 2, ... on what is applied: 1, then linearly down to the end.

    It falls over the last half; the last step has the smallest factor, and so have those after it.
    """
    if total_steps is None:
        return 1.0
    left = max(total_steps - step + 1, 1)
    return min(1.0, left / max(total_steps - total_steps // 2, 1))


# -- after a step -----------------------------------------------------------------------------


def plain_step(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a step without a search changes: the step size never grows untested."""
    return {"steps": group["steps"] + 1, "steps_since_search": group["steps_since_search"] + 1}


def count_plain_step(groups: Groups, *, looked: bool = False) -> None:
    """Enter into the groups what a step without a search has changed."""
    unit = _turn(groups)
    group = groups[unit or 0]
    numbers = plain_step(group)
    if looked:
        numbers["last_look"] = numbers["steps"]
    if len(groups) == 1:
        group.update(numbers)
        return
    # equal in all groups, also where a user has edited one
    numbers = {name: group[name] for name in STATE_NAMES} | numbers
    _enter(groups, unit, numbers, taken=True)


def count_skipped_step(groups: Groups, loss: float) -> SearchResult:
    """Enter a step that was skipped before it searched: its loss or a gradient is not finite."""
    unit = _turn(groups)
    group = groups[unit or 0]
    numbers = {name: group[name] for name in STATE_NAMES}
    numbers["skipped_steps"] += 1
    _enter(groups, unit, numbers, taken=False)
    return SearchResult(0, "non_finite", loss, math.nan, math.nan, group["step_size"], unit)


def add_looks(groups: Groups, looks: Sequence[float]) -> None:
    """Enter looks of steps without a search."""
    if looks:
        window = look_back.looked(Window.read_from(groups[0]), looks)
        for group in groups:
            group.update(looks_sum=window.looks_sum, looks_size=window.looks_size)


def remember(groups: Groups, search: LineSearch, window: Window) -> None:
    """Enter into the groups what a search has changed."""
    numbers = search.finish()._asdict() | window._asdict()
    if search.unit is None:
        if search.outcome == "accepted" and groups[0]["units"] == "groups":
            numbers |= UNSMOOTHED
    elif not search.skipped:
        numbers["next_unit"] = (numbers["next_unit"] + 1) % len(groups)
    _enter(groups, search.unit, numbers, taken=not search.skipped)


def _enter(groups: Groups, unit: int | None, numbers: dict[str, Any], *, taken: bool) -> None:
    """Enter all numbers into all groups; or those that are one unit's own into that unit only."""
    if unit is None:
        for group in groups:
            group.update(numbers)
        return
    shared = {name: value for name, value in numbers.items() if name not in OWN}
    for index, group in enumerate(groups):
        if index == unit:
            group.update(numbers)
        else:
            group.update(shared)
            group["steps_since_search"] += taken
