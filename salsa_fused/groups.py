"""Parameter groups: what a group may have to itself, and what is one for all of them.

Every refusal names the argument or the parameter, what was found, and what to do.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from . import turns
from ._torch import not_compiled
from .interrupts import is_running
from .kernels.directions import DIRECTIONS, direction_of
from .kernels.parameters import (
    check_no_shared_memory,
    check_parameter,
    parameter_label,
    takes_part,
)
from .plain_numbers import as_plain_numbers, check_bound, check_choice, number
from .search_settings import SearchSettings, period_bounds

# one per optimizer, not per group
SHARED_SETTINGS = (*SearchSettings._fields, "maximize", "direction", "units", "trust_clip")


def defaults_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of the constructor, and return what a group has that names nothing."""
    settings = SearchSettings.checked(arguments)
    direction, units = arguments["direction"], arguments["units"]
    numbers = check_direction(direction, arguments["numbers"])
    check_choice("units", units, get_args(turns.Units))
    check_look_back(settings.look_back, direction, units)
    check_bound("trust_clip", arguments["trust_clip"], "no bound (plain LAMB)")
    check_bound("max_grad_norm", arguments["max_grad_norm"], "no clipping")
    module = arguments["module"]
    if module is not None and not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module or None, got {type(module).__name__}")
    beta1, beta2, _ = arguments["betas"]
    defaults = {
        **{name: arguments[name] for name in ("lr", "eps", "weight_decay", "direction", "units")},
        "betas": (beta1, beta2),
        "maximize": bool(arguments["maximize"]),
        **as_plain_numbers({"trust_clip": arguments["trust_clip"]}),
        **settings._asdict(),
        **numbers,
    }
    check_numbers(defaults)
    return defaults


class Groups(Optimizer):
    """Adding groups; :meth:`_admit` checks each, those of the constructor as well."""

    _constructing = True  # then memory is looked at once, when all groups are there

    _stepping: bool
    _step: Any

    @not_compiled
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with their own ``lr``, ``betas`` (two), ``eps``, ``weight_decay``.

        The search is one for all groups: a new group takes over its settings and its state.  With
        ``units="groups"`` a new unit begins as after the search that was one for all, with the
        first group's step size, means and wait, and nothing smoothed; its turn comes last.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is then as it was.
        """
        if not self._constructing:
            self._refuse_in_a_step("add_param_group()")
        used = isinstance(param_group, dict) and param_group.keys() >= set(turns.STATE_NAMES)
        if self.param_groups and isinstance(param_group, dict):
            for name, value in self._shared().items():
                param_group.setdefault(name, value)
        with warnings.catch_warnings():  # duplicates are an error here
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
            super().add_param_group(param_group)
        try:
            self._admit(self.param_groups[-1], used)
            if not self._constructing:
                check_no_shared_memory(self.param_groups)
        except BaseException:
            self.param_groups.pop()
            raise

    def _refuse_in_a_step(self, what: str) -> None:
        if self._stepping and is_running(self._step.__func__.__code__, self):
            raise RuntimeError(f"{what} was called inside the closure of a step of this optimizer")

    def _shared(self) -> dict[str, Any]:
        """Return settings and state that a group added to others has, as the first one."""
        first = self.param_groups[0]
        return {name: first[name] for name in SHARED_SETTINGS} | turns.newcomer(first)

    def _admit(self, group: dict[str, Any], used: bool) -> None:
        """Check a group, and make its numbers plain; ``used``: an earlier optimizer had it."""
        betas = group["betas"]
        if isinstance(betas, (tuple, list)) and len(betas) == 3:
            group["betas"], group["beta3"] = (betas[0], betas[1]), betas[2]
        group["search_period"] = period_bounds(group["search_period"])
        if group is not self.param_groups[0]:
            shared = self._shared()
        else:
            shared = {name: self.defaults[name] for name in SHARED_SETTINGS}
            shared |= turns.fresh(SearchSettings.read_from(shared))
        for name, value in shared.items():
            if group.setdefault(name, value) != value:
                raise setting_of_one_group(name, group[name], value, used)
            group[name] = value  # a plain number, where an equal one of NumPy's was given
        constants = direction_of(group).constants
        for name, value in constants.items():
            group.setdefault(name, value)
        check_group(group)
        plain = ["betas", "eps", "weight_decay", *constants]
        if not isinstance(group["lr"], Tensor):
            plain.append("lr")
        group.update(as_plain_numbers({name: group[name] for name in plain}))


# -- checks -----------------------------------------------------------------------------------


def check_direction(direction: Any, numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return a direction's own numbers: its defaults, and in their place those that are given."""
    check_choice("direction", direction, tuple(DIRECTIONS))
    constants = DIRECTIONS[direction].constants
    for name in numbers:
        if name not in constants:
            takes = ", ".join(constants) or "no numbers of its own"
            raise TypeError(
                f"FusedSaLSa.__init__() got an unexpected keyword argument {name!r} "
                f"(direction={direction!r} takes {takes})"
            )
    return {**constants, **numbers}


def check_look_back(look_back: Any, direction: str, units: str) -> None:
    """Raise ValueError where looking back cannot be had with this direction or these units."""
    if look_back and units == "groups":
        raise ValueError(
            'look_back=True needs one step size for all: units="groups" has one for each group. '
            "Leave out one of them"
        )
    if look_back and not DIRECTIONS[direction].of_unit_size:
        raise ValueError(
            f'look_back=True is for directions of Adam\'s size, and direction="{direction}" has '
            "another: leave out one of them"
        )


def setting_of_one_group(name: str, given: Any, shared: Any, used: bool) -> ValueError:
    """Return the error for a group, a ``used`` one or not, that names what is one for all."""
    if used:
        return ValueError(
            "these parameter group dictionaries belong to an earlier optimizer, which keeps its "
            f"search in them ({name}={given!r}, here {shared!r}): pass fresh ones, [{{'params': "
            "group['params'], 'lr': group['lr']} for group in groups], or copies that were made "
            "before it"
        )
    text = f"a parameter group names {name}={given!r}, but the search is one for all groups and has"
    if name in turns.STATE_NAMES:
        advice = "it is found by the search and is not given: leave it out"
    else:
        argument = "betas[2]" if name == "beta3" else name
        advice = f"leave {name} out of the group, the constructor's {argument} sets it for all"
    return ValueError(f"{text} {name}={shared!r}: {advice}")


def check_group(group: Mapping[str, Any]) -> None:
    """Raise where a number of the group or a parameter cannot be used.

    Frozen parameters are checked once they have a gradient, by the kernels.
    """
    check_numbers(group)
    seen: set[int] = set()
    for index, parameter in enumerate(group["params"]):
        label = parameter_label(group, index)
        if takes_part(parameter):
            check_parameter(parameter, label)
        if id(parameter) in seen:
            raise ValueError(f"{label} is in its group twice: list every parameter once")
        seen.add(id(parameter))


def check_numbers(group: Mapping[str, Any]) -> None:
    """Raise ValueError where a number that a group may have to itself is out of range."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a tensor of one element, got {tuple(lr.shape)}")
    if not 0.0 <= number("lr", lr) < math.inf:
        raise ValueError(
            f"lr must be >= 0 and finite, got {lr!r}; it is a factor on the step size that the "
            "search finds, 1 by default"
        )
    if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
        raise ValueError(f"a group's betas must be (beta1, beta2), got {group['betas']!r}")
    for index, beta in enumerate(group["betas"]):
        if not 0.0 <= number(f"betas[{index}]", beta) < 1.0:
            raise ValueError(f"betas[{index}] must lie in [0, 1), got {beta!r}")
    for name in ("eps", "weight_decay", *direction_of(group).constants):
        value = number(name, group[name])
        if name.endswith("beta") and not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must lie in [0, 1), got {group[name]!r}")
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {group[name]!r}")
