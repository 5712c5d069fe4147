"""Reading a state dict: this optimizer's own, or that of ``torch.optim.Adam`` and ``AdamW``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from .arguments import SHARED_SETTINGS
from .kernels.layout import moment_like, parameter_label
from .kernels.window import WINDOW_START, empty_like
from .line_search import SearchSettings, SearchState
from .look_back import Window
from .warning import warn

MOMENTS = ("exp_avg", "exp_avg_sq")

State = defaultdict[Any, dict[str, Any]]


def read(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> tuple[State, list[dict[str, Any]]]:
    """The state and the parameter groups that an optimizer with ``groups`` has after loading.

    Raises:
        ValueError: the number of groups, of their parameters, or a shape does not match.
    """
    saved_groups = state_dict["param_groups"]
    if len(groups) != len(saved_groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_groups)}, and the optimizer has {len(groups)}"
        )
    for index, (group, saved) in enumerate(zip(groups, saved_groups)):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: group {index} has {len(saved['params'])} parameters there "
                f"and {len(group['params'])} here"
            )
    own = all("step_size" in saved for saved in saved_groups)
    new_groups = [
        _loaded_group(group, saved) if own else _fresh_group(group)
        for group, saved in zip(groups, saved_groups)
    ]
    if own and new_groups:
        _warn_of_replaced_settings(groups[0], new_groups[0])
    moments = not new_groups or new_groups[0]["direction"] != "sgd"
    return _read_state(state_dict["state"], groups, saved_groups, moments), new_groups


# What a group of version 0.1.0's first checkpoints does not say.
BEFORE_THE_FAMILY = {"direction": "adam", "units": "all", "trust_clip": 1.0, "next_unit": 0}
BEFORE_LOOKING_BACK = {"look_back": False, "total_steps": None}


def completed(group: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group with what an earlier version did not save."""
    size = group["step_size"]
    since = {"accepted_step_size": size, "flat_searches": 0, **BEFORE_LOOKING_BACK}
    return {**BEFORE_THE_FAMILY, **since, **Window(size)._asdict(), **group}


def _loaded_group(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The loaded hyper-parameters and search state win, as in torch."""
    loaded = {name: value for name, value in saved.items() if name != "params"}
    return {**group, **completed(deepcopy(loaded))}


def _warn_of_replaced_settings(given: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Adam's own numbers are replaced silently, as in torch: schedulers change them anyway."""
    replaced = [
        f"{name}={given[name]!r} by {loaded[name]!r}"
        for name in SHARED_SETTINGS
        if _as_tuple(given[name]) != _as_tuple(loaded[name])
    ]
    if replaced:
        warn(
            "the loaded state replaces settings that this optimizer was built with: "
            f"{', '.join(replaced)}. To keep one, set it in the state dict's param_groups before, "
            "or load the moments alone, {'state': loaded['state'], 'param_groups': "
            "optimizer.state_dict()['param_groups']}"
        )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fresh_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Adam's hyper-parameters mean other things: keep these, and begin the search anew."""
    return {**group, **SearchState.fresh(SearchSettings.read_from(group))._asdict()}


def _read_state(
    saved_state: Mapping[Any, Any],
    groups: Sequence[Mapping[str, Any]],
    saved_groups: Sequence[Mapping[str, Any]],
    moments: bool,
) -> State:
    state: State = defaultdict(dict)
    dropped: set[str] = set()
    known = set()
    for group, saved in zip(groups, saved_groups):
        for index, (parameter, key) in enumerate(zip(group["params"], saved["params"])):
            known.add(key)
            if not (entry := saved_state.get(key)):
                continue
            dropped |= set(entry) - {WINDOW_START} - ({"step", *MOMENTS} if moments else set())
            label = parameter_label(group, index)
            if moments:
                state[parameter] = _read_moments(parameter, entry, label)
            if WINDOW_START in entry:
                start = _of_its_shape(parameter, entry, WINDOW_START, label)
                state[parameter][WINDOW_START] = empty_like(parameter).copy_(start)
    for key, value in saved_state.items():
        if key not in known:
            state[key] = value  # not a parameter's: torch keeps it, too
    if dropped:
        why = "(amsgrad's maximum?)" if moments else 'with direction="sgd"'
        warn(
            f"the loaded state holds {', '.join(sorted(map(str, dropped)))}, which FusedSaLSa does "
            f"not use {why}: dropped",
        )
    return state


def _of_its_shape(parameter: Tensor, entry: Mapping[str, Any], name: str, label: str) -> Tensor:
    value: Tensor = entry[name]
    if value.shape != parameter.shape:
        raise ValueError(
            f"the loaded {name} of {label} has shape {tuple(value.shape)}: is this the "
            "checkpoint of another model?"
        )
    return value


def _read_moments(parameter: Tensor, entry: Mapping[str, Any], label: str) -> dict[str, Any]:
    missing = {"step", *MOMENTS} - set(entry)
    if missing:
        raise ValueError(
            f"the loaded state of {label} lacks {', '.join(sorted(missing))}: it is not the state "
            "of FusedSaLSa, Adam or AdamW"
        )
    moments = {}
    for name in MOMENTS:
        value = _of_its_shape(parameter, entry, name, label)
        moment = moment_like(parameter, value)
        moments[name] = moment.clone() if moment is value else moment
    return {"step": int(entry["step"]), **moments}
