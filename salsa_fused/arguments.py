"""What the constructor of :class:`~salsa_fused.FusedSaLSa` and its parameter groups may hold.

Every refusal names the argument or the parameter, what was found, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor

from .cycle import Units
from .kernels import Direction
from .kernels.layout import parameter_label
from .kernels.parameters import check_parameter, takes_part
from .line_search import STATE_NAMES, SearchSettings
from .warning import warn

# one per optimizer, not per group
SHARED_SETTINGS = (*SearchSettings._fields, "maximize", "direction", "units", "trust_clip")
LOWEST_PLAUSIBLE_LR = 0.05  # below it, `lr` was probably meant as a learning rate


def check_search_settings(numbers: Mapping[str, Any]) -> None:
    """Raise ValueError where a setting of the search is out of range."""
    _in_range("c", numbers["c"], 0.0, 1.0, "(0, 1)")
    if not 0.0 <= _number("betas[2]", numbers["beta3"]) < 1.0:
        raise ValueError(f"betas[2] (beta3) must lie in [0, 1), got {numbers['beta3']!r}")
    _in_range("backtrack", numbers["backtrack"], 0.0, 1.0, "(0, 1)")
    if not 1.0 <= _number("growth", numbers["growth"]) < math.inf:
        raise ValueError(f"growth must be at least 1 and finite, got {numbers['growth']!r}")
    if not 0.0 < _number("init_step_size", numbers["init_step_size"]) < math.inf:
        raise ValueError(
            f"init_step_size must be positive and finite, got {numbers['init_step_size']!r}"
        )
    _one_of("growth_per", numbers["growth_per"], ("search", "step"))
    _one_of("schedule", numbers["schedule"], ("doubling", "rate"))
    if not _is_integer(numbers["max_trials"]) or numbers["max_trials"] < 1:
        raise ValueError(f"max_trials must be an integer >= 1, got {numbers['max_trials']!r}")
    total = numbers["total_steps"]
    if total is not None and not (_is_integer(total) and total >= 1):
        raise ValueError(
            "total_steps must be the number of steps of the whole run, an integer >= 1, or None "
            f"where it is not known, got {total!r}"
        )


def check_direction(direction: Any) -> None:
    """Raise ValueError for a direction that there is not."""
    _one_of("direction", direction, get_args(Direction))


def check_units(units: Any) -> None:
    """Raise ValueError for units that there are not."""
    _one_of("units", units, get_args(Units))


def check_look_back(
    look_back: Any, direction: Any, units: Any, search_period: tuple[int, int] | None
) -> None:
    """Raise ValueError where it is neither a truth value nor None, or cannot be had."""
    if look_back is not None and not isinstance(look_back, bool):
        raise ValueError(f"look_back must be True, False or None, got {look_back!r}")
    if look_back and units == "groups":
        raise ValueError(
            'look_back=True needs one step size for all: units="groups" has one for each group. '
            "Leave out one of them"
        )
    if look_back and direction == "sgd":
        raise ValueError(
            'look_back=True is for directions of Adam\'s size, and direction="sgd" has another: '
            "leave out one of them"
        )
    if look_back and search_period is None:
        raise ValueError(
            "look_back=True needs searches, and search_period=None has none: leave out one of them"
        )


def check_trust_clip(trust_clip: Any) -> None:
    """Raise ValueError unless it is positive or None."""
    if trust_clip is not None and not _number("trust_clip", trust_clip) > 0.0:
        raise ValueError(
            f"trust_clip must be positive, or None for no bound (plain LAMB), got {trust_clip!r}"
        )


def check_max_grad_norm(max_grad_norm: Any, name: str = "max_grad_norm") -> None:
    """Raise ValueError unless it is positive or None."""
    if max_grad_norm is not None and not _number(name, max_grad_norm) > 0.0:
        raise ValueError(f"{name} must be positive, or None for no clipping, got {max_grad_norm!r}")


def period_bounds(search_period: Any) -> tuple[int, int] | None:
    """``(L_min, L_max)`` of what the user gave: such a pair, one integer, or None."""
    if search_period is None:
        return None
    pair = (search_period, search_period) if _is_integer(search_period) else search_period
    if (
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and all(_is_integer(bound) for bound in pair)
        and 1 <= pair[0] <= pair[1]
    ):
        return int(pair[0]), int(pair[1])
    raise ValueError(
        "search_period must be (L_min, L_max) with 1 <= L_min <= L_max, one integer >= 1, or None "
        f"for no search, got {search_period!r}"
    )


def three_betas(betas: Any) -> tuple[float, float, float]:
    """(beta1, beta2, beta3): Adam's two and the smoothing of the search."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 3:
        example = (*betas, 0.99) if isinstance(betas, (tuple, list)) and len(betas) == 2 else None
        hint = f": betas={example}" if example else " such as (0.9, 0.999, 0.99)"
        raise ValueError(
            f"betas must be three numbers, Adam's two and the smoothing of the search{hint}; "
            f"got {betas!r}"
        )
    return betas[0], betas[1], betas[2]


def as_plain_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Python's own numbers for NumPy's and torch's: `torch.load(weights_only=True)` reads them."""

    def plain(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(plain(item) for item in value)
        if value is None or isinstance(value, (str, bool)):
            return value
        return int(value) if isinstance(value, Integral) else float(value)

    return {name: plain(value) for name, value in values.items()}


def foreign_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are neither Python's own nor tensors, alone or in a tuple: NumPy's."""

    def is_foreign(value: Any) -> bool:
        return isinstance(value, Real) and type(value) not in (int, float, bool)

    found = {}
    for name, value in values.items():
        items = value if isinstance(value, tuple) else (value,)
        if any(map(is_foreign, items)) and all(isinstance(item, Real) for item in items):
            found[name] = value
    return found


def setting_of_one_group(
    name: str, given: Any, shared: Any, *, of_an_earlier_optimizer: bool
) -> ValueError:
    """The error for a group that names what is one for all of them."""
    if of_an_earlier_optimizer:
        return ValueError(
            "these parameter group dictionaries belong to an earlier optimizer, which keeps its "
            f"search in them ({name}={given!r}, here {shared!r}): pass fresh ones, [{{'params': "
            "group['params'], 'lr': group['lr']} for group in groups], or copies that were made "
            "before it"
        )
    text = f"a parameter group names {name}={given!r}, but the search is one for all groups and has"
    if name in STATE_NAMES:
        advice = "it is found by the search and is not given: leave it out"
    else:
        argument = "betas[2]" if name == "beta3" else name
        advice = f"leave {name} out of the group, the constructor's {argument} sets it for all"
    return ValueError(f"{text} {name}={shared!r}: {advice}")


def check_group(group: Mapping[str, Any]) -> None:
    """Raise where ``lr``, ``betas``, ``eps``, ``weight_decay`` or a parameter is unusable.

    Frozen parameters are looked at when they have a gradient (see ``Table``).
    """
    check_numbers(group)
    seen: set[int] = set()
    for index, parameter in enumerate(group["params"]):
        if takes_part(parameter):
            check_parameter(parameter, parameter_label(group, index))
        if id(parameter) in seen:
            label = parameter_label(group, index)
            raise ValueError(f"{label} is in its group twice: list every parameter once")
        seen.add(id(parameter))


def check_numbers(group: Mapping[str, Any]) -> None:
    """Raise ValueError where ``lr``, ``betas``, ``eps`` or ``weight_decay`` is out of range."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a tensor of one element, got {tuple(lr.shape)}")
    if not 0.0 <= _number("lr", lr) < math.inf:
        raise ValueError(
            f"lr must be >= 0 and finite, got {lr!r}; it is a factor on the step size that the "
            "search finds, 1 by default"
        )
    if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
        raise ValueError(f"a group's betas must be (beta1, beta2), got {group['betas']!r}")
    for index, beta in enumerate(group["betas"]):
        if not 0.0 <= _number(f"betas[{index}]", beta) < 1.0:
            raise ValueError(f"betas[{index}] must lie in [0, 1), got {beta!r}")
    for name in ("eps", "weight_decay"):
        if not 0.0 <= _number(name, group[name]) < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {group[name]!r}")


def check_call(closure: Any, loss: Any, searching: bool) -> None:
    """Raise where ``step(closure, loss=loss)`` cannot be carried out, before anything changes."""
    if loss is not None:
        check_loss(loss, "loss")
    if closure is not None and not callable(closure):
        raise TypeError(
            f"closure must be callable and return the loss, got {type(closure).__name__}; a loss "
            "that is computed already goes into step(closure, loss=loss)"
        )
    if searching and closure is None:
        raise RuntimeError(
            "a search is due at this step and needs a closure that computes the loss: call "
            "step(closure), ask optimizer.search_due beforehand, or build the optimizer with "
            "search_period=None for no search"
        )
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "step() cannot be captured in a CUDA graph: a search decides on the host. Capture "
            "forward and backward only"
        )
    if searching and (several := ranks()) > 1:
        raise RuntimeError(
            f"{several} ranks run in torch.distributed: each would find its own step size and they "
            "would drift apart. Searches work in one process only; search_period=None works in "
            "several"
        )


def check_loss(loss: Any, source: str) -> Tensor:
    """Raise TypeError or ValueError unless ``loss`` is one real number in a tensor."""
    if not isinstance(loss, Tensor):
        hint = ""
        if loss is None:
            hint = (
                ": does it lack `return loss`? (A search needs it, in Lightning's manual "
                "optimization, too: give step() a closure there)"
            )
        raise TypeError(
            f"{source} must be the loss, a tensor of one element, got {type(loss).__name__}{hint}"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"{source} must be a loss of one element, got a tensor of shape {tuple(loss.shape)}: "
            "reduce it with .mean() or .sum()"
        )
    if not loss.is_floating_point():
        raise TypeError(f"{source} must be a real floating-point loss, got {loss.dtype}")
    return loss


def warn_of_learning_rate(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Warn of ``lr=1e-3``, which everybody swaps in at first; whether it was necessary."""
    largest = largest_lr(groups)
    meant = largest < LOWEST_PLAUSIBLE_LR and groups[0]["search_period"] is not None
    if meant:
        warn(
            f"lr={largest:g} is a factor on the step size that the search finds, not a learning "
            "rate: pass lr=1.0 (the default). Schedulers and warm-ups scale it, and "
            "salsa_fused.schedules.as_factor makes factors of a schedule of learning rates",
        )
    return meant


def largest_lr(groups: Sequence[Mapping[str, Any]]) -> float:
    return max([float(group["lr"]) for group in groups])


def ranks() -> int:
    """How many processes run in torch.distributed; 1 where none was set up."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def _number(name: str, value: Any) -> float:
    several = isinstance(value, Tensor) and value.numel() != 1
    if isinstance(value, bool) or several or not isinstance(value, (Real, Tensor)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _in_range(name: str, value: Any, low: float, high: float, interval: str) -> None:
    if not low < _number(name, value) < high:
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
