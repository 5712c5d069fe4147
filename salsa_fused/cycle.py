"""Which part of the model a search moves: all of it, or one unit after the other (PLASLS).

A unit is a parameter group with a step size of its own (arXiv 2403.18506).  The first search that
is accepted is one for all of them and gives each its step size; after that they take turns, group
0 first.  What belongs to a unit stands in its group, everything else is equal in all groups.

Nothing here knows of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from . import look_back
from .line_search import STATE_NAMES, LineSearch, SearchSettings, SearchState

Units = Literal["all", "groups"]
Groups = Sequence[dict[str, Any]]

OWN = (  # a unit's
    "step_size",
    "smoothed_decrease",
    "smoothed_slope",
    "located",
    "accepted_step_size",
    "flat_searches",
    "fast_mean",
    "slow_mean",
    "steps_since_search",
    "applied_step_size",
)
UNSMOOTHED = {"smoothed_decrease": 0.0, "smoothed_slope": 0.0, "flat_searches": 0}  # at first


def is_due(groups: Groups, line_search_class: type[LineSearch]) -> bool:
    """Whether the next step searches."""
    if _turn(groups) is None:
        waited = groups[0]["steps_since_search"]
    else:
        waited = min(group["steps_since_search"] for group in groups)
    return line_search_class.due(groups[0], waited)


def begin(groups: Groups, line_search_class: type[LineSearch]) -> LineSearch:
    """A search: of all groups, or of the unit whose turn it is."""
    unit = _turn(groups)
    state = SearchState.read_from(groups[unit or 0])
    settings = SearchSettings.read_from(groups[0])
    settings = settings._replace(look_back=looks_back(groups[0]))
    return line_search_class(settings, state, unit)


def _turn(groups: Groups) -> int | None:
    """Whose turn it is; None: all groups together."""
    first = groups[0]
    if first["units"] == "all" or not first["accepted_once"]:
        return None
    return first["next_unit"] % len(groups)


def looks_back(group: Mapping[str, Any]) -> bool:
    """Whether what is applied follows look_back.py.

    None means yes, but where there is no search, no moment, or one step size for each group.
    """
    if group["look_back"] is None:
        return (
            group["search_period"] is not None
            and group["direction"] != "sgd"
            and group["units"] == "all"
        )
    return group["look_back"]


def applied(groups: Groups, search: LineSearch | None) -> float | list[float]:
    """The step size of the final write, or each group's; after a search or without one."""
    first = groups[0]
    share = look_back.share_of_horizon(first["total_steps"], first["steps"] + 1)
    if _turn(groups) is None:
        return share * (last_applied(first) if search is None else search.applied_step_size)
    sizes = [group["step_size"] for group in groups]
    if search is not None and search.unit is not None:
        sizes[search.unit] = search.step_size
    return [share * size for size in sizes]


def last_applied(group: Mapping[str, Any]) -> float:
    """What steps without a search apply, before the horizon's share (and ``lr``)."""
    return group["applied_step_size" if looks_back(group) else "step_size"]


def look_is_due(groups: Groups) -> bool:
    """Whether the next step, if it does not search, looks back on its window all the same."""
    return look_back.look_is_due(groups[0]) and looks_back(groups[0])


def hear_of_looks(groups: Groups, looks: Sequence[float]) -> None:
    """Enter looks of steps without a search."""
    if looks:
        window = look_back.looked(look_back.Window.read_from(groups[0]), looks)
        for group in groups:
            group.update(looks_sum=window.looks_sum, looks_size=window.looks_size)


def count_plain_step(
    groups: Groups, line_search_class: type[LineSearch], *, looked: bool = False
) -> None:
    """Enter into the groups what a step without a search has changed."""
    unit = _turn(groups)
    group = groups[unit or 0]
    numbers = line_search_class.plain_step(group)
    if looked:
        numbers["last_look"] = numbers["steps"]
    if len(groups) > 1:  # equal in all groups, also where a user has edited one
        numbers = {name: group[name] for name in STATE_NAMES} | numbers
    _enter(groups, unit, numbers, taken=True)


def remember(groups: Groups, search: LineSearch) -> None:
    """Enter into the groups what a search has changed."""
    numbers = search.finish()._asdict()
    if search.unit is None:
        if search.outcome == "accepted" and groups[0]["units"] == "groups":
            numbers |= UNSMOOTHED
    elif not search.skipped:
        numbers["next_unit"] = (numbers["next_unit"] + 1) % len(groups)
    _enter(groups, search.unit, numbers, taken=not search.skipped)


def _enter(groups: Groups, unit: int | None, numbers: dict[str, Any], *, taken: bool) -> None:
    """All numbers into all groups; or those that are one unit's own into that unit only."""
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


def newcomer(first: Mapping[str, Any]) -> dict[str, Any]:
    """The state that a group begins with which is added to others."""
    state = {name: first[name] for name in STATE_NAMES}
    if first["units"] == "groups":  # as a unit begins after the search that was one for all
        state |= {**UNSMOOTHED, "located": first["accepted_once"]}
    return state
